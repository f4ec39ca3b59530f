"""Pipeline parallelism: torch.distributed.pipelining over stages that look their micro-batch up by its number, so that masks,
positions and targets never travel. Evaluation is a forward loop of our own, because torch's hangs on V-shaped schedules.

b rows of a micro-batch, s sequence, h hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from megatron.batch import Batch
from megatron.core.cache import Cache
from megatron.core.mesh import Mesh
from megatron.core.transformer import GPT
from megatron.layout import Stages

SCHEDULES = {"1f1b": Schedule1F1B, "interleaved": ScheduleInterleaved1F1B, "zero-bubble": ScheduleZBVZeroBubble}


class Posed(nn.Module):
    """A stage whose only input from outside is the number of a micro-batch."""

    def __init__(self, stage: GPT):
        super().__init__()
        self.stage = stage
        self.batches: list[Batch] = []
        self.said: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # loss, nll and hits of each micro-batch

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        batch = self.batches[int(number)]
        if not self.stage.last:
            return self.stage(batch, None if self.stage.first else x)
        loss, nll, hit = self.stage(batch, None if self.stage.first else x)
        self.said[int(number)] = loss.detach(), nll, hit
        return loss


class Pipeline:
    """The stages of one rank, and the schedules that drive them."""

    def __init__(self, stages: list[GPT], plan: Stages, mesh: Mesh, schedule: str, device: torch.device):
        self.plan, self.mesh, self.kind, self.device = plan, mesh, SCHEDULES[schedule], device
        self.numbers = plan.of_rank(mesh.pp.rank)
        self.posed = [Posed(stage) for stage in stages]
        self.built: dict[tuple[int, ...], PipelineScheduleSingle | PipelineScheduleMulti] = {}
        self.total = 1.0

    def run(self, batches: list[Batch], total: float) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Forward and backward of all micro-batches, each of the same shape; gradients are of the loss sum over `total`.

        -> what the last stage says of each micro-batch: loss [], nll [n], hit [n]; nothing on the other ranks.
        """
        self.total = total
        for posed in self.posed:
            posed.batches, posed.said = batches, {}
        number = torch.arange(len(batches))
        first, last = 0 in self.numbers, len(self.plan.layers) - 1 in self.numbers
        schedule = self.schedule(len(batches), *batches[0].inputs.shape)
        schedule.step(
            *([number] if first else []),
            target=number if last else None,
            losses=[] if last else None,
            return_outputs=False,
            number=number,
        )
        return [posed.said[i] for posed in self.posed for i in sorted(posed.said)]

    def schedule(self, count: int, rows: int, length: int) -> PipelineScheduleSingle | PipelineScheduleMulti:
        """torch fixes the number and shape of micro-batches when a schedule is built."""
        key = (count, rows, length)
        if key not in self.built:
            stages = [self.stage(number, posed, rows, length) for number, posed in zip(self.numbers, self.posed)]
            single = issubclass(self.kind, PipelineScheduleSingle)
            self.built[key] = self.kind(
                stages[0] if single else stages, n_microbatches=count, loss_fn=self.loss, scale_grads=False
            )
        return self.built[key]

    def loss(self, loss_sum: Tensor, number: Tensor) -> Tensor:
        return loss_sum / self.total

    def stage(self, number: int, posed: Posed, rows: int, length: int) -> PipelineStage:
        """Shapes are given, so that torch need not run a micro-batch to learn them."""
        between = self.between(rows, length).requires_grad_()
        return PipelineStage(
            posed,
            number,
            len(self.plan.layers),
            self.device,
            group=self.mesh.pp.pg,
            input_args=torch.zeros(1, dtype=torch.int64) if posed.stage.first else between,
            output_args=torch.zeros((), device="meta") if posed.stage.last else between,
        )

    def between(self, rows: int, length: int) -> Tensor:
        """What passes between stages, as a shape.  -> [b, s, h], or [b, s/tp, h] where the sequence is cut"""
        stage, tp = self.posed[0].stage, self.mesh.tp
        return torch.empty(
            rows, length // tp.size if tp.sequence else length, stage.cfg.hidden_size, dtype=stage.dtype, device="meta"
        )

    @torch.no_grad()
    def forward(self, batches: list[Batch], loss: bool = True, caches: Sequence[Cache | None] | None = None) -> list[Any]:
        """What the last stage says of each batch, (loss, nll, hit) or logits, whatever their shapes; empty on the other ranks."""
        sends: list[tuple[dist.Work | None, Tensor]] = []
        local: list[Tensor] = []
        out: list[Any] = []
        for number, posed in zip(self.numbers, self.posed):
            outputs = []
            for i, (batch, cache) in enumerate(zip(batches, caches or [None] * len(batches))):
                outputs.append(posed.stage(batch, self.input(number, batch, local, i), loss, cache))
                if not posed.stage.last and self.plan.home(number + 1) != self.mesh.pp.rank:
                    x = outputs[-1].contiguous()
                    sends.append((dist.isend(x, self.rank_of(number + 1), group=self.mesh.pp.pg), x))
            local = outputs
            if posed.stage.last:
                out = outputs
        for send, _ in sends:  # each tensor is kept alive until it is sent
            if send is not None:
                send.wait()
        return out

    def input(self, number: int, batch: Batch, local: list[Tensor], i: int) -> Tensor | None:
        if number == 0:
            return None
        if self.plan.home(number - 1) == self.mesh.pp.rank:
            return local[i]
        x = torch.empty_like(self.between(*batch.inputs.shape), device=self.device)
        dist.recv(x, self.rank_of(number - 1), group=self.mesh.pp.pg)
        return x

    def spread(self, found: list[Tensor], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
        """What the last stage found, on every rank of the pipeline."""
        out = found or [torch.empty(shape, dtype=dtype, device=self.device) for shape in shapes]
        for x in out:
            dist.broadcast(x, self.rank_of(len(self.plan.layers) - 1), group=self.mesh.pp.pg)
        return out

    def rank_of(self, stage: int) -> int:
        return self.mesh.pp.ranks[self.plan.home(stage)]
