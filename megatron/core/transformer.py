"""The transformer: RMSNorm, rotary attention, SwiGLU. b batch, s sequence, h hidden; n heads, d head width, f ffn, v vocabulary.

Weights are fp32; the model computes in the dtype of its embeddings' output, each weight cast where it is used. n and f are
this tensor-parallel rank's share. Fused projections put the axis that the cut takes first, (group, q..q|k|v, d) and
(f, gate|up), so that it never separates what belongs together; a query head alone is a group, or several share keys and values
(grouped-query attention: Ainslie et al., arXiv:2305.13245; the rows stand as in Megatron).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron.batch import Batch
from megatron.core.cache import Cache
from megatron.core.dropout import branch, drop, keep, row_keys
from megatron.core.fused import attention, gated, rms_norm, rotated_heads
from megatron.core.head import weighted_nll, whole_logits, wide
from megatron.core.mesh import ALONE, Group
from megatron.core.parameters import Spec, collect, initialise, scaled
from megatron.core.slots import Slots
from megatron.core.tensor_parallel import ColumnLinear, Linear, RowLinear, VocabEmbedding, enter, once, part

if TYPE_CHECKING:
    from megatron.config import Model


ATTENTION_SITE, *BRANCH_SITES, EMBEDDING_SITE, WEIGHT_SITE = range(5)  # where dropout acts, within a layer
PLAIN = Slots()
Join = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # one layer of a cache: own keys and values for all that may be seen


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang and Sennrich, arXiv:1910.07467). It reads no condition."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.empty(width))

    def specs(self) -> dict[str, Spec]:
        return {"weight": Spec(init="ones", decay=False, partial=True)}

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return rms_norm(x, self.weight.to(x.dtype), self.eps)

    def gated(self, y: Tensor, c: Tensor | None) -> Tensor:
        """What a branch adds to its input."""
        return y


class AdaptiveNorm(RMSNorm):
    """Scale, shift and gate of a branch from a condition, all zero at first (adaLN-zero, Peebles and Xie, arXiv:2212.09748).

    Three matrices and not one cut in three: under a zero-bubble schedule a parameter may join the path of x at one place only.
    """

    def __init__(self, width: int, eps: float, features: int):
        super().__init__(width, eps)
        self.scale, self.shift, self.gate = (nn.Parameter(torch.empty(width, features)) for _ in range(3))

    def specs(self) -> dict[str, Spec]:
        own = Spec(role="embedding", init="zeros", decay=False, partial=True)
        return super().specs() | {"scale": own, "shift": own, "gate": own}

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """x [b, s, h], c [b, c] -> [b, s, h]"""
        return super().forward(x) * (1 + self.of(self.scale, c, x)) + self.of(self.shift, c, x)

    def gated(self, y: Tensor, c: Tensor | None) -> Tensor:
        return y * self.of(self.gate, c, y)

    def of(self, matrix: Tensor, c: Tensor | None, x: Tensor) -> Tensor:
        """[h, c] times the condition -> [b, 1, h]"""
        assert c is not None  # GPT.hidden computes it wherever norms are adaptive
        return (c.to(x.dtype) @ matrix.to(x.dtype).t())[:, None]


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
        width, groups = cfg.num_attention_heads * cfg.kv_channels, cfg.num_query_groups or cfg.num_attention_heads
        self.d, self.causal, self.p = cfg.kv_channels, causal, cfg.attention_dropout
        self.n, self.groups = cfg.num_attention_heads // tp.size, groups // tp.size  # this rank's
        self.first_head, self.selective, self.query_factor = tp.rank * self.n, selective, cfg.query_factor
        self.qkv = ColumnLinear(cfg.hidden_size, width + 2 * cfg.shape().key_width, tp, cfg.initial_std)
        self.out = RowLinear(width, cfg.hidden_size, tp, residual_std(cfg))

    def specs(self) -> dict[str, Spec]:
        queries, keys = self.n // self.groups * self.d, self.d
        return {"qkv.weight": replace(self.qkv.specs()["weight"], fused=(queries, keys, keys))}

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], keys: Tensor | None, seen: Tensor | None, join: Join | None = None
    ) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (self.groups, -1, self.d))  # [b, s, g, n/g + 2, d]
        if self.selective and torch.is_grad_enabled():
            y = checkpoint(self.attend, qkv, *rope, keys, seen, use_reentrant=False, preserve_rng_state=False)
        else:
            y = self.attend(qkv, *rope, keys, seen, join)
        return self.out(y.transpose(1, 2).flatten(2))  # [b, s, h]

    def attend(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor | None, seen: Tensor | None, join: Join | None = None
    ) -> Tensor:
        """[b, s, g, n/g + 2, d] -> [b, n, s, d]"""
        q, k, v = rotated_heads(qkv, cos, sin)  # each [b, n, s, d]
        q = times(q, self.query_factor)
        if join is not None:
            k, v = join(k, v)
            return attention(q, k, v, self.causal and q.shape[2] == k.shape[2], seen)
        if keys is not None and self.p:
            return self.dropped(q, k, v, keys, seen)
        return attention(q, k, v, self.causal, seen)

    def dropped(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, seen: Tensor | None = None) -> Tensor:
        """Attention with its probabilities written out, because no fused kernel drops them by address."""
        scores = (q @ k.transpose(-1, -2)).to(wide(q.dtype)) / math.sqrt(self.d)  # [b, n, s, s]
        if seen is None and self.causal:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if seen is not None:
            scores = scores.masked_fill(~seen, -math.inf)
        heads = torch.arange(self.first_head, self.first_head + self.n, device=q.device, dtype=torch.int32) * 0x3504F333
        kept = keep(keys[:, None] ^ heads[:, None], ATTENTION_SITE, torch.arange(scores.shape[-1], device=q.device), self.p)
        return drop(scores.softmax(-1), kept, self.p).to(v.dtype) @ v


class GateUp(ColumnLinear):
    """Gate and up projection: stored as (f, gate|up) for the cut, multiplied as all of gate, then all of up: -> [b, s, 2 f]."""

    def specs(self) -> dict[str, Spec]:
        return {"weight": replace(super().specs()["weight"], fused=(1, 1))}

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x[..., 0].numel() >= x.shape[-1]:
            return super().forward(x)
        y = self.times(x, self.weight.to(x.dtype))  # of few tokens it is quicker to lay out the product than the weight
        return y.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)

    def laid_out(self, dtype: torch.dtype) -> Tensor:
        halves = self.thinned().unflatten(0, (-1, 2)).transpose(0, 1)  # [2, f, h]
        return halves.to(dtype, memory_format=torch.contiguous_format).flatten(0, 1)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x) (Shazeer, arXiv:2002.05202)."""

    def __init__(self, cfg: Model, tp: Group):
        super().__init__()
        self.up = GateUp(cfg.hidden_size, 2 * cfg.ffn_hidden_size, tp, cfg.initial_std)
        self.down = RowLinear(cfg.ffn_hidden_size, cfg.hidden_size, tp, residual_std(cfg))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gated(self.up(x)))


class Block(nn.Module):
    """Two residual branches. `keys` are the layer's own, so that all blocks are one program to a compiler.

    x [b, s, h], or [b, s/tp, h] where the sequence is cut between layers.
    """

    def __init__(self, cfg: Model, causal: bool, tp: Group, selective: bool, features: int | None = None):
        super().__init__()
        self.tp, self.branch_factor = tp, 1 / cfg.depth_factor
        self.norm1, self.attention = branch_norm(cfg, features), Attention(cfg, causal, tp, selective)
        self.norm2, self.mlp = branch_norm(cfg, features), SwiGLU(cfg, tp)
        self.dropout1, self.dropout2 = (Dropout(cfg.hidden_dropout, site) for site in BRANCH_SITES)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        keys: Tensor | None,
        c: Tensor | None = None,
        seen: Tensor | None = None,
        join: Join | None = None,
    ) -> Tensor:
        here = None if keys is None else part(keys, self.tp)
        y = self.norm1.gated(self.dropout1(self.attention(self.norm1(x, c), rope, keys, seen, join), here), c)
        x = torch.add(x, y, alpha=self.branch_factor)
        y = self.norm2.gated(self.dropout2(self.mlp(self.norm2(x, c)), here), c)
        return torch.add(x, y, alpha=self.branch_factor)


def branch_norm(cfg: Model, features: int | None) -> RMSNorm:
    """The norm before a branch; with `features` of a condition, the one that reads them."""
    if features is None:
        return RMSNorm(cfg.hidden_size, cfg.norm_epsilon)
    return AdaptiveNorm(cfg.hidden_size, cfg.norm_epsilon, features)


class GPT(nn.Module):
    """Embedding, blocks, norm and head: from a posed batch to its loss, or to logits, which is all that anyone calls.

    With `layers`, one stage of it: the first embeds, the last has norm and head, and hidden states pass between them.
    `live_rows` of a table are read or trained (all by default). `fresh`: draw initial weights; else memory is as it came.
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
        slots: Slots = PLAIN,
        live_rows: int | None = None,
        fresh: bool = True,
    ):
        super().__init__()
        layers = range(cfg.num_layers) if layers is None else layers
        self.cfg, self.seed, self.dtype, self.recompute, self.tp, self.causal = cfg, seed, dtype, recompute, tp, causal
        self.first, self.last, self.sharded = layers.start == 0, layers.stop == cfg.num_layers, False
        self.columns = cfg.predicted_ids
        tied = not cfg.untie_embeddings_and_output_weights
        table = partial(
            VocabEmbedding,
            cfg.padded_vocab_size,
            cfg.hidden_size,
            tp,
            cfg.initial_std,
            known_rows=cfg.vocab_size,
            live_rows=cfg.padded_vocab_size if live_rows is None else live_rows,
        )
        if self.first or (self.last and tied):
            self.embed = table(shared=tied)
        self.reader, self.condition = slots.reader if self.first else None, slots.condition
        embedding_dropout = cfg.hidden_dropout if cfg.embedding_dropout is None else cfg.embedding_dropout
        self.dropout = Dropout(embedding_dropout, EMBEDDING_SITE)
        features = None if self.condition is None else self.condition.width
        self.blocks = nn.ModuleDict({str(i): Block(cfg, causal, tp, recompute == "selective", features) for i in layers})
        if self.last:
            self.norm = RMSNorm(cfg.hidden_size, cfg.norm_epsilon)
            self.head = None if tied else table(role="head")
        self.readout = slots.readout if self.last else None
        self.declared = scaled(collect(self), cfg.width_factor, cfg.depth_factor)
        if any(name.startswith("condition.") for name in self.declared):
            raise TypeError(
                f"the condition {type(self.condition).__name__} has parameters, which stages of a pipeline cannot share: "
                "compute it from the batch alone, and let each norm's own matrices read it"
            )
        if fresh:
            initialise(self.named_parameters(), self.declared, seed, tp)

    def hidden(self, batch: Batch, x: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """What follows this stage's blocks.  -> [b, s, h], or [b, s/tp, h] where the sequence is cut

        With a cache, which only passes without a gradient have, the batch's positions are places of rows that it holds.
        """
        keys = None
        if self.training and self.drops():  # by place in the row: positions may come again
            place = torch.arange(batch.inputs.shape[1], device=batch.inputs.device).expand_as(batch.inputs)
            keys = row_keys(self.seed, batch.index, place)
        if self.first:
            x = self.dropout(self.read(batch), None if keys is None else part(keys, self.tp))
        assert x is not None  # a later stage is handed what the one before it made
        c = None if self.condition is None else self.condition(batch)
        seen = visible(batch, self.causal)
        if cache is not None:
            if seen is not None:
                raise ValueError("a batch that says who sees whom is read without a cache")
            seen = cache.begin(batch.positions, self.causal)
        rope = rotary(batch.positions, self.cfg.kv_channels, self.cfg.rotary_base, self.dtype)
        for layer, block in self.blocks.items():
            here = None if keys is None else branch(keys, int(layer))
            join = None if cache is None else partial(cache.join, layer)
            if not torch.is_grad_enabled() and not self.sharded:
                x = block.forward(x, rope, here, c, seen, join)  # never compiled: passes of any size
            elif self.recompute == "full" and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, here, c, seen, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, rope, here, c, seen, join)
        return x

    def read(self, batch: Batch) -> Tensor:
        """What the first block reads.  -> [b, s, h], or [b, s/tp, h] where the sequence is cut"""
        if self.reader is not None:
            return self.reader(batch, self.embed, self.dtype)
        if batch.candidates is not None and batch.mix is not None:
            return self.embed.mixed(batch.candidates, batch.mix, self.dtype)
        return self.embed(batch.inputs, self.dtype)

    def forward(
        self, batch: Batch, x: Tensor | None = None, loss: bool = True, cache: Cache | None = None
    ) -> tuple[Tensor, Tensor, Tensor] | Tensor:
        """sum(weights * nll) of the asked positions, and each one's nll and hit.  -> [] fp32, [n] fp32, [n] fp32

        Without `loss`, their logits over all ids that can be predicted: -> [n, v]; of a batch with a `latent_target`, what is
        predicted of it: -> [n, d]. A stage that is not the last gives what it hands on instead.
        """
        x = self.hidden(batch, x, cache)
        if not self.last:
            return x
        x = enter(self.norm(x), self.tp).flatten(0, 1)  # [b s, h]
        asked = batch.asked
        if len(asked) < len(x):
            x = x.index_select(0, asked)  # [n, h]
        x = times(x, 1 / self.cfg.width_factor)  # what is predicted of it stays as large at any width
        if batch.latent_target is not None:
            return self.vectors(x, batch, loss)
        table = self.embed.weight if self.head is None else self.head.weight
        if not loss:
            return whole_logits(x, table, self.columns, self.tp)
        total, nll, hit = weighted_nll(
            x, table, batch.targets.flatten()[asked], batch.weights.flatten()[asked], self.columns, self.tp, batch.known()
        )
        if self.readout is not None:  # which every step of every replica must give a gradient
            total = total + (0 * self.readout.weight).sum()
        return total, nll, hit

    def vectors(self, x: Tensor, batch: Batch, loss: bool) -> tuple[Tensor, Tensor, Tensor] | Tensor:
        """`forward` where vectors are predicted too: the nll of a vector's place is the mean square of its error.

        x [n, h] of the asked positions
        """
        assert self.readout is not None and batch.latent_target is not None
        at, asked = batch.asks_vector(), batch.asked
        predicted = self.readout(once(x[at], self.tp)).to(wide(x.dtype))  # [m, d]
        if not loss:
            return predicted
        weights, targets = batch.weights.flatten()[asked], batch.targets.flatten()[asked]
        table = self.embed.weight if self.head is None else self.head.weight
        text, nll, hit = weighted_nll(x[~at], table, targets[~at], weights[~at], self.columns, self.tp)
        error = (predicted - batch.latent_target[asked[at] // batch.inputs.shape[1]]).square().mean(-1)  # [m]
        whole, hits = torch.zeros_like(weights, dtype=error.dtype), torch.zeros_like(weights, dtype=hit.dtype)
        whole[at], whole[~at], hits[~at] = error.detach(), nll.detach().to(error.dtype), hit
        return text + (weights[at] * error).sum(), whole, hits

    def answers(self, batch: Batch) -> tuple[int, int]:
        """The shape of what `forward` says without the loss."""
        width = self.columns if batch.latent_target is None else batch.latent_target.shape[1]
        return len(batch.asked), width

    def drops(self) -> bool:
        return bool(self.cfg.hidden_dropout or self.cfg.attention_dropout or self.dropout.p)

    def thin(self, update: int) -> None:
        """Drop other weights from now on: an address is (seed, the number of updates before, the weight's name)."""
        for name, module in self.blocks.named_modules():
            if isinstance(module, Linear):
                place = torch.tensor([[zlib.crc32(name.encode()) & 0x7FFFFFFF]], device=module.weight.device)
                keys = row_keys(self.seed, torch.tensor([update], device=place.device), place)
                module.p, module.key = self.cfg.parameter_dropout, branch(keys, WEIGHT_SITE)[0, 0]

    def compile_blocks(self) -> None:
        """Compile the block, not the model: all layers share one compilation, and the head's chunks stay as they are."""
        for block in self.blocks.values():
            block.compile(dynamic=False)


def times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


def residual_std(cfg: Model) -> float:
    """Of projections into the residual stream (Megatron's rule), at the base model's depth where depth is scaled."""
    return cfg.initial_std / math.sqrt(2 * (cfg.mup_base_num_layers or cfg.num_layers))


def visible(batch: Batch, causal: bool) -> Tensor | None:
    """Which position sees which, where that is not the model's plain attention.  -> [b or 1, 1, s, s] bool, or None"""
    if batch.attend is None and batch.segments is None:
        return None
    seen = batch.attend
    if seen is None:
        s = batch.inputs.shape[1]
        seen = torch.ones(s, s, dtype=torch.bool, device=batch.inputs.device)
        seen = seen.tril() if causal else seen
    seen = seen if seen.dim() == 3 else seen[None]
    if batch.segments is not None:
        seen = seen & (batch.segments[:, :, None] == batch.segments[:, None, :])
    return seen[:, None]


def rotary(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles (Su et al., arXiv:2104.09864).  positions [b, s] -> two [b, s, 1, 1, d/2]"""
    frequency = base ** -(torch.arange(0, width, 2, device=positions.device, dtype=wide(dtype)) / width)
    angle = positions[..., None, None, None].to(wide(dtype)) * frequency  # [b, s, 1, 1, d/2]
    return angle.cos().to(dtype), angle.sin().to(dtype)
