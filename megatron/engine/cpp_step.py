"""The native engine with its forward and backward pass in C++: a tiny model's step is mostly torch's calls and memory between.

Weights, gradients, norm, clip, optimizer and checkpoints stay torch's, and so do validation and all who open the run. Losses and
gradients are torch's up to the rounding of fp32, which is another one, so that records name it and sweeps keep to one.
"""

from __future__ import annotations

import importlib
import math
from types import ModuleType

import torch
from torch import Tensor

from megatron.batch import Batch
from megatron.config import Optim
from megatron.core.transformer import GPT, rotary
from megatron.engine.native import NativeEngine
from megatron.errors import Mismatch, MissingInput

# What a batch may have besides what every batch has; of `refine` and `measure`, which come before and after.
READ = {"inputs", "targets", "weights", "scored", "positions", "index", "asked", "draws", "row_notes", "place_notes"}


def extension() -> ModuleType:
    """Raises MissingInput where the installation had no compiler."""
    try:
        return importlib.import_module("megatron.engine._cpp_step")
    except ImportError as error:
        raise MissingInput(
            f"--cpp-step: the compiled step is not installed ({error}): install the project again where there is a C++ compiler, "
            "or leave the flag out"
        ) from None


def instructions() -> str:
    """The widest set that is compiled and that this processor has. Raises MissingInput."""
    return extension().sets()[-1]


class CppStepEngine(NativeEngine):
    """One process on a CPU, in fp32, of a plain network: config.py refuses what else flags can ask for."""

    def __init__(self, stages: list[GPT], optim: Optim):
        """Raises MissingInput where the installation had no compiler."""
        super().__init__(stages, optim)
        (stage,) = stages
        cfg = stage.cfg
        self.kernel = extension().Model(
            layers=cfg.num_layers,
            hidden=cfg.hidden_size,
            ffn=cfg.ffn_hidden_size,
            heads=cfg.num_attention_heads,
            channels=cfg.kv_channels,
            ids=cfg.padded_vocab_size,
            columns=stage.columns,
            positions=cfg.seq_length,
            causal=stage.causal,
            eps=cfg.norm_epsilon,
            score=cfg.query_factor / math.sqrt(cfg.kv_channels),
            branch=1 / cfg.depth_factor,
            logit=1 / cfg.width_factor,
            instructions=instructions(),
        )

    def forward_backward(self, batches: list[Batch], total: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        parameters = list(self.stages[0].parameters())
        self.kernel.read([p.detach().numpy() for p in parameters])
        said = [self.run(batch, total) for batch in batches]
        for p in parameters:
            p.grad = torch.zeros_like(p)
        self.kernel.write([p.grad.numpy() for p in parameters if p.grad is not None])
        return said

    def run(self, batch: Batch, total: int) -> tuple[Tensor, Tensor, Tensor]:
        """Loss [], nll [n] and hit [n]; its gradient is added to what the model holds."""
        cfg, asked = self.stages[0].cfg, batch.asked
        if other := sorted(batch.tensors().keys() - READ):
            raise Mismatch(f"--cpp-step reads rows of tokens alone, and this run's have {', '.join(other)} too: leave it out")
        rows = batch.positions if batch.positions.stride(0) else batch.positions[:1]  # most batches have one row for all
        cos, sin = rotary(rows, cfg.kv_channels, cfg.rotary_base, torch.float32)
        targets, weights = batch.targets.flatten()[asked], batch.weights.flatten()[asked]
        nll, hit = torch.empty_like(weights), torch.empty_like(weights)
        arrays = (batch.inputs, targets, asked, weights, cos, sin, nll, hit)
        self.kernel.run(*(x.numpy() for x in arrays), 1 / total, True)
        return (weights * nll).sum(), nll, hit
