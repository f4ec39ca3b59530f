"""Engines turn posed batches into updates: `native` on torch alone, at any layout, `deepspeed` without a pipeline, `cpp_step` for
small models on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from megatron.batch import Batch, RowScores, Step
from megatron.config import Config
from megatron.core.cache import Cache
from megatron.core.checkpoint import Checkpoint, Piece
from megatron.core.mesh import Mesh
from megatron.core.transformer import GPT
from megatron.objectives import Objective


class Engine(Protocol):
    """What training asks of one. Every process of the run calls the same methods in the same order."""

    mesh: Mesh
    device: torch.device
    nlls: list[Tensor]  # [n] of each micro-batch of the last step, where the last stage is; empty elsewhere
    hits: list[Tensor]  # the same, 1 where the likeliest id was the target

    def step(self, batches: list[Batch], lr: float) -> Step:
        """One update from this replica's micro-batches, or none when anything is not finite; the same answer on every rank."""

    def score(self, batches: list[Batch]) -> list[RowScores]:
        """Each row's weighted NLL, without a gradient; known on the last stage, empty elsewhere."""

    def logits(self, batches: list[Batch], caches: Sequence[Cache | None] | None = None) -> list[Tensor]:
        """Of each batch's asked positions [n, v], over the ids that can be predicted, on every rank; v is their number.

        fp32, or float64 where the model computes in it. Replicas that ask for different batches must ask for as many.
        With a batch's cache its positions are places of the rows that the cache holds, and see what stands there.
        """

    def cache(self, rows: int, width: int) -> Cache:
        """An empty one for `logits`, of rows of so many places; every rank makes its own."""

    def params_norm(self) -> float: ...

    def pieces(self) -> list[Piece]:
        """What this rank saves: weights, both moments, the update count. No two ranks have a piece in common."""

    def load(self, checkpoint: Checkpoint, weights_only: bool = False) -> None:
        """Take over a checkpoint of any layout. Raises Mismatch before anything is touched."""


def build(cfg: Config, objective: Objective, where, mesh: Mesh, say: Callable[[str], None] = print, fresh: bool = True) -> Engine:
    """The engine that the flags ask for. `where` is the place that training/device.py chose; not `fresh`: for a load to fill."""
    plan, parallel, model = cfg.parallel.stages(cfg.model.num_layers), cfg.parallel, cfg.model
    live_rows = model.padded_vocab_size if model.predict_reserved else model.vocab_size + objective.uses_mask
    stages = [
        GPT(
            model,
            objective.causal,
            cfg.train.seed,
            where.dtype,
            cfg.train.recompute_granularity,
            mesh.tp,
            plan.layers[number],
            objective.slots(model),
            live_rows,
            fresh,
        ).to(where.device)
        for number in plan.of_rank(mesh.pp.rank)
    ]
    if where.compile:
        for stage in stages:
            stage.compile_blocks()
    if parallel.deepspeed and mesh.pp.size == 1:
        from megatron.engine import deepspeed

        return deepspeed.build(cfg, stages[0], mesh, say)
    if parallel.deepspeed:
        say(f"--deepspeed: with a pipeline the native engine runs, at the same ZeRO stage {parallel.zero_stage}")
    if cfg.train.cpp_step and not cfg.train.skip_train:
        from megatron.engine.cpp_step import CppStepEngine

        return CppStepEngine(stages, cfg.optim)
    from megatron.engine.native import NativeEngine

    return NativeEngine(stages, cfg.optim, parallel, mesh, cfg.log.log_gradient_noise_scale)
