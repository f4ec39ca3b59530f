"""The transformer: RMSNorm, rotary attention, SwiGLU. b batch, s sequence, h hidden; n heads, d head width, f ffn, v vocabulary.

Weights are fp32; the model computes in the dtype of its embeddings' output, each weight cast where it is used. n and f are
this tensor-parallel rank's share. Fused projections put the axis that the cut takes first, (head, q|k|v, d) and (f, gate|up),
so that it never separates what belongs together.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron.batch import Batch
from megatron.core.dropout import branch, drop, keep, row_keys
from megatron.core.fused import attention, gated, rms_norm, rotated_heads
from megatron.core.head import weighted_nll, whole_logits, wide
from megatron.core.mesh import ALONE, Group
from megatron.core.tensor_parallel import ColumnLinear, Linear, RowLinear, VocabEmbedding, enter, part

if TYPE_CHECKING:
    from megatron.config import Model


ATTENTION_SITE, *BRANCH_SITES, EMBEDDING_SITE = range(4)  # where dropout acts, within a layer


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.to(x.dtype), self.eps)


class Dropout(nn.Module):
    """Hidden dropout at one site of the model, addressed by each row's key."""

    def __init__(self, p: float, site: int):
        super().__init__()
        self.p, self.site = p, site

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        if keys is None or not self.p:
            return x
        return drop(x, keep(keys, self.site, torch.arange(x.shape[-1], device=x.device), self.p), self.p)


class Attention(nn.Module):
    def __init__(self, cfg: Model, causal: bool, tp: Group, selective: bool):
        super().__init__()
        width = cfg.num_attention_heads * cfg.kv_channels
        self.d, self.n, self.causal, self.p = cfg.kv_channels, cfg.num_attention_heads // tp.size, causal, cfg.attention_dropout
        self.first_head, self.selective = tp.rank * self.n, selective
        self.qkv, self.out = ColumnLinear(cfg.hidden_size, 3 * width, tp), RowLinear(width, cfg.hidden_size, tp)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], keys: Tensor | None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (self.n, 3, self.d))  # [b, s, n, 3, d]
        if self.selective and torch.is_grad_enabled():
            y = checkpoint(self.attend, qkv, *rope, keys, use_reentrant=False, preserve_rng_state=False)
        else:
            y = self.attend(qkv, *rope, keys)
        return self.out(y.transpose(1, 2).flatten(2))  # [b, s, h]

    def attend(self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor | None) -> Tensor:
        """[b, s, n, 3, d] -> [b, n, s, d]"""
        q, k, v = rotated_heads(qkv, cos, sin)  # each [b, n, s, d]
        if keys is not None and self.p:
            return self.dropped(q, k, v, keys)
        return attention(q, k, v, self.causal)

    def dropped(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor) -> Tensor:
        """Attention with its probabilities written out, because no fused kernel drops them by address."""
        scores = (q @ k.transpose(-1, -2)).to(wide(q.dtype)) / math.sqrt(self.d)  # [b, n, s, s]
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        heads = torch.arange(self.first_head, self.first_head + self.n, device=q.device, dtype=torch.int32) * 0x3504F333
        kept = keep(keys[:, None] ^ heads[:, None], ATTENTION_SITE, torch.arange(scores.shape[-1], device=q.device), self.p)
        return drop(scores.softmax(-1), kept, self.p).to(v.dtype) @ v


class GateUp(ColumnLinear):
    """Gate and up projection: stored as (f, gate|up) for the cut, multiplied as all of gate, then all of up: -> [b, s, 2 f]."""

    def laid_out(self, dtype: torch.dtype) -> Tensor:
        halves = self.weight.unflatten(0, (-1, 2)).transpose(0, 1)  # [2, f, h]
        return halves.to(dtype, memory_format=torch.contiguous_format).flatten(0, 1)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x) (Shazeer, arXiv:2002.05202)."""

    def __init__(self, cfg: Model, tp: Group):
        super().__init__()
        self.up = GateUp(cfg.hidden_size, 2 * cfg.ffn_hidden_size, tp)
        self.down = RowLinear(cfg.ffn_hidden_size, cfg.hidden_size, tp)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gated(self.up(x)))


class Block(nn.Module):
    """Two residual branches. `keys` are the layer's own, so that all blocks are one program to a compiler.

    x [b, s, h], or [b, s/tp, h] where the sequence is cut between layers.
    """

    def __init__(self, cfg: Model, causal: bool, tp: Group, selective: bool):
        super().__init__()
        self.tp = tp
        self.norm1, self.attention = RMSNorm(cfg.hidden_size, cfg.norm_epsilon), Attention(cfg, causal, tp, selective)
        self.norm2, self.mlp = RMSNorm(cfg.hidden_size, cfg.norm_epsilon), SwiGLU(cfg, tp)
        self.dropout1, self.dropout2 = (Dropout(cfg.hidden_dropout, site) for site in BRANCH_SITES)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], keys: Tensor | None) -> Tensor:
        here = None if keys is None else part(keys, self.tp)
        x = x + self.dropout1(self.attention(self.norm1(x), rope, keys), here)
        return x + self.dropout2(self.mlp(self.norm2(x)), here)


class GPT(nn.Module):
    """Embedding, blocks, norm and head: from a posed batch to its loss, or to logits, which is all that anyone calls.

    With `layers`, one stage of it: the first embeds, the last has norm and head, and hidden states pass between them.
    """

    def __init__(
        self,
        cfg: Model,
        causal: bool,
        seed: int,
        dtype: torch.dtype = torch.float32,
        recompute: str | None = None,
        tp: Group = ALONE,
        layers: range | None = None,
    ):
        super().__init__()
        layers = range(cfg.num_layers) if layers is None else layers
        self.cfg, self.seed, self.dtype, self.recompute, self.tp = cfg, seed, dtype, recompute, tp
        self.first, self.last, self.sharded = layers.start == 0, layers.stop == cfg.num_layers, False
        self.columns = cfg.padded_vocab_size if cfg.predict_reserved else cfg.vocab_size
        tied = not cfg.untie_embeddings_and_output_weights
        if self.first or (self.last and tied):
            self.embed = VocabEmbedding(cfg.padded_vocab_size, cfg.hidden_size, tp)
        self.dropout = Dropout(cfg.hidden_dropout, EMBEDDING_SITE)
        self.blocks = nn.ModuleDict({str(i): Block(cfg, causal, tp, recompute == "selective") for i in layers})
        if self.last:
            self.norm = RMSNorm(cfg.hidden_size, cfg.norm_epsilon)
            self.head = None if tied else Linear(cfg.hidden_size, cfg.padded_vocab_size, tp)
        self.cuts = {f"{name}.weight": module.cut for name, module in self.named_modules() if isinstance(module, Linear)}
        self.init_weights()

    def hidden(self, batch: Batch, x: Tensor | None = None) -> Tensor:
        """What follows this stage's blocks.  -> [b, s, h], or [b, s/tp, h] where the sequence is cut"""
        keys = row_keys(self.seed, batch.index, batch.positions) if self.training and self.drops() else None
        if self.first:
            x = self.dropout(self.embed(batch.inputs, self.dtype), None if keys is None else part(keys, self.tp))
        rope = rotary(batch.positions, self.cfg.kv_channels, self.cfg.rotary_base, self.dtype)
        for layer, block in self.blocks.items():
            here = None if keys is None else branch(keys, int(layer))
            if not torch.is_grad_enabled() and not self.sharded:
                x = block.forward(x, rope, here)  # never compiled: passes of any size
            elif self.recompute == "full" and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, here, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, rope, here)
        return x

    def forward(self, batch: Batch, x: Tensor | None = None, loss: bool = True) -> tuple[Tensor, Tensor, Tensor] | Tensor:
        """sum(weights * nll) of the asked positions, and each one's nll and hit.  -> [] fp32, [n] fp32, [n] bool

        Without `loss`, their logits over all ids that can be predicted: -> [n, v]. A stage that is not the last gives what
        it hands on instead.
        """
        x = self.hidden(batch, x)
        if not self.last:
            return x
        x = enter(self.norm(x), self.tp).flatten(0, 1)  # [b s, h]
        asked = batch.asked
        if len(asked) < len(x):
            x = x.index_select(0, asked)  # [n, h]
        table = self.embed.weight if self.head is None else self.head.weight
        if not loss:
            return whole_logits(x, table, self.columns, self.tp)
        return weighted_nll(x, table, batch.targets.flatten()[asked], batch.weights.flatten()[asked], self.columns, self.tp)

    def drops(self) -> bool:
        return bool(self.cfg.hidden_dropout or self.cfg.attention_dropout)

    def compile_blocks(self) -> None:
        """Compile the block, not the model: all layers share one compilation, and the head's chunks stay as they are."""
        for block in self.blocks.values():
            block.compile(dynamic=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Weights are a function of (seed, parameter name): the same model at any layout, vocabulary padding or device.

        N(0, std), output projections / sqrt(2 layers), norms 1 (Megatron's rule). Table rows above the mask are zero.
        """
        for name, p in self.named_parameters():
            if name not in self.cuts:
                p.fill_(1.0)
                continue
            residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            std = self.cfg.init_method_std / (math.sqrt(2 * self.cfg.num_layers) if residual else 1.0)
            shape = self.whole_shape(name, p)
            whole = self.table(name, shape) if name in ("embed.weight", "head.weight") else normal(self.seed, name, shape)
            p.copy_(whole.chunk(self.tp.size, self.cuts[name])[self.tp.rank] * std)

    def whole_shape(self, name: str, p: Tensor) -> tuple[int, ...]:
        """A parameter's shape before the tensor-parallel cut."""
        return tuple(n * self.tp.size if dim == self.cuts.get(name) else n for dim, n in enumerate(p.shape))

    def table(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normals for the ids that there are, and for the mask from an address that no vocabulary size moves."""
        rows, known = torch.zeros(shape), min(self.cfg.vocab_size, shape[0])
        rows[:known] = normal(self.seed, name, (known, shape[1]))
        rows[known : known + 1] = normal(self.seed, name + "[mask]", (1, shape[1]))[: shape[0] - known]
        return rows


def normal(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normals at the address (seed, name)."""
    rng = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + zlib.crc32(name.encode())) % 2**63)
    return torch.randn(shape, generator=rng)


def rotary(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles (Su et al., arXiv:2104.09864).  positions [b, s] -> two [b, s, 1, 1, d/2]"""
    frequency = base ** -(torch.arange(0, width, 2, device=positions.device, dtype=wide(dtype)) / width)
    angle = positions[..., None, None, None].to(wide(dtype)) * frequency  # [b, s, 1, 1, d/2]
    return angle.cos().to(dtype), angle.sin().to(dtype)
