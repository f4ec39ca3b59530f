"""The torch-native engine: forward, backward, accurate norm, clip, AdamW or Muon -- or skip, as one decision of all ranks.

b rows, s positions, n asked positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from megatron.batch import Batch, RowScores, Step
from megatron.config import Optim, Parallel
from megatron.core.cache import Cache
from megatron.core.checkpoint import Checkpoint, Piece
from megatron.core.distributed import (
    Share,
    accumulating,
    data_parallel,
    finish_gradients,
    forget_gathered,
    local,
    make_shares,
    spread_update,
)
from megatron.core.head import wide
from megatron.core.mesh import Mesh, all_reduce
from megatron.core.norm import squares
from megatron.core.parameters import Spec, live
from megatron.core.transformer import GPT
from megatron.engine.adamw import MOMENTS, AdamW
from megatron.engine.average import ROOT, Average, root_of_weights
from megatron.engine.muon import MOMENTS as OF_MUON
from megatron.engine.muon import Muon
from megatron.engine.noise_scale import Scatter, estimate
from megatron.engine.randomness import untouched
from megatron.errors import Mismatch

if TYPE_CHECKING:
    from megatron.core.pipeline import Pipeline

ONE_PROCESS, NO_PARALLEL = Mesh(), Parallel()


class NativeEngine:
    """This rank's stages at any layout. Weights and moments are fp32; the model computes in its own dtype."""

    def __init__(
        self,
        stages: list[GPT],
        optim: Optim,
        parallel: Parallel = NO_PARALLEL,
        mesh: Mesh = ONE_PROCESS,
        noise_scale: bool = False,
    ):
        self.stages, self.mesh, self.clip, self.watched = stages, mesh, optim.clip_grad, False
        self.nlls: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.zero_stage = parallel.zero_stage if mesh.dp.size > 1 else 0
        self.device = next(stages[0].parameters()).device
        plan = parallel.stages(stages[0].cfg.num_layers)
        if len(stages) > 1 and plan.v_shaped and stages[0].first and not stages[0].cfg.untie_embeddings_and_output_weights:
            stages[-1].embed = stages[0].embed  # first and last stage of a V share this rank
        self.models = [
            data_parallel(stage, mesh, self.zero_stage, parallel.cpu_params, overlap=mesh.pp.size == 1) for stage in stages
        ]
        self.pipeline: Pipeline | None = None
        if mesh.pp.size > 1:
            from megatron.core.pipeline import Pipeline  # with torch's, whose import takes longer than a short run's steps

            self.pipeline = Pipeline(stages, plan, mesh, parallel.pipeline_schedule, self.device)
        self.shares = make_shares(stages, mesh, self.zero_stage, parallel.cpu_optimizer)
        self.state = {s.name: s.data if s.data is s.parameter else nn.Parameter(s.data) for s in self.shares}
        matrices = {s.name: s for s in self.shares if optim.optimizer == "muon" and s.spec.role == "matrix"}
        rest = {s.name: s.spec for s in self.shares if s.name not in matrices}
        self.optimizer = adamw({name: self.state[name] for name in rest}, rest, optim)
        self.muon = None
        if matrices:
            parameters = [self.state[name] for name in matrices]
            self.muon = Muon(list(matrices.values()), parameters, optim, mesh, self.zero_stage, self.device)
        self.average = Average(optim.ema, [s.data for s in self.shares])
        self.scatter = Scatter(self.shares, mesh, self.device) if noise_scale else None

    def step(self, batches: list[Batch], lr: float) -> Step:
        """One optimizer step over this replica's micro-batches of a global batch."""
        for stage, model in zip(self.stages, self.models):
            if not stage.training:  # walking all modules in vain costs a tiny model a percent
                model.train()
        if self.stages[0].cfg.parameter_dropout:
            for stage in self.stages:
                stage.thin(int(self.updates()))
        scored, asked = sum(int(b.scored.sum()) for b in batches), sum(b.tokens_asked for b in batches)
        counts = torch.tensor([scored, asked], device=self.device)
        total, asked = all_reduce(counts, self.mesh.dp).tolist()  # known before the first forward
        with untouched(self.device, not self.watched):
            said = self.forward_backward([b.to(self.device) for b in batches], total)
        self.watched, self.nlls, self.hits = True, [nll for _, nll, _ in said], [hit for _, _, hit in said]
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        loss = torch.stack([zero, *(micro.double() for micro, _, _ in said)]).sum()
        hits = torch.stack([zero, *(hit.double().sum() for _, _, hit in said)]).sum()
        finish_gradients(self.shares, self.mesh, self.stages, over_dp=self.pipeline is not None and self.zero_stage < 2)
        sums = self.scatter.sums(batches, total) if self.scatter else []
        own = self.squares(share.gradient() for share in self.shares)
        square, loss_sum, num_hits, *scatter = self.over_world(own, loss, hits, *sums)
        norm, value = square**0.5, loss_sum / total
        finite = np.isfinite(norm) and np.isfinite(value)
        scale = min(1.0, self.clip / (norm + 1e-6)) if self.clip and finite else 1.0
        if finite:
            self.update(lr, scale)
        for share in self.shares:
            share.parameter.grad = self.state[share.name].grad = None
        return Step(
            loss=value,
            accuracy=num_hits / max(1, asked),
            grad_norm=norm,
            clipped_norm=norm * scale,
            skipped=not finite,
            scored=total,
            asked=asked,
            spread=estimate(scatter, square) if scatter and finite else None,
        )

    def forward_backward(self, batches: list[Batch], total: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Loss [], nll [n] and hit [n] of each micro-batch of this replica, where its last stage is."""
        if self.pipeline:
            return self.pipeline.run(batches, total)
        (model,), said = self.models, []
        if self.scatter:
            self.scatter.begin()
        for i, batch in enumerate(batches):
            with accumulating(model, i == len(batches) - 1, self.zero_stage):
                micro, nll, hit = model(batch)
                (micro / total).backward()
            if self.scatter:
                self.scatter.close()
            said.append((micro.detach(), nll, hit))
        return said

    def over_world(self, square: Tensor, loss: Tensor, hits: Tensor, *beside: Tensor) -> list[float]:
        """Sums over the world; the loss and the hits that tensor ranks have in common count once."""
        once = float(self.mesh.tp.rank == 0)
        sums = torch.stack((square.to(self.device), loss * once, hits * once, *beside))
        return all_reduce(sums, self.mesh.world).tolist()

    def squares(self, tensors: Iterator[Tensor]) -> Tensor:
        """Sum of squares of one tensor for each share, as far as this rank answers for it.  -> [] float64"""
        zero = torch.zeros((), dtype=torch.float64, device=self.shares[0].data.device)
        own = (squares(live(s.spec, x, s.start[0])) for s, x in zip(self.shares, tensors) if s.owner)
        return torch.stack([zero, *own]).sum()

    @torch.no_grad()
    def update(self, lr: float, scale: float) -> None:
        for share in self.shares:
            self.state[share.name].grad = share.gradient()
        if scale < 1.0:
            torch._foreach_mul_([p.grad for p in self.state.values() if p.grad is not None], scale)
        self.average.begin()
        optimizers: list[AdamW | Muon] = [self.optimizer, *([self.muon] if self.muon else [])]
        for optimizer in optimizers:
            set_rate(optimizer, lr)
            optimizer.step()
        if self.average.kept:
            self.average.follow(float(self.updates()))
        spread_update(self.shares, self.mesh, self.zero_stage)

    def moments(self, share: Share) -> dict[str, Tensor]:
        """What the share's optimizer keeps beside its weights, by name; nothing before the first update."""
        optimizer, names = self.keeper(share)
        state = optimizer.state.get(self.state[share.name], {})
        return {name: state[name] for name in names if name in state}

    def keeper(self, share: Share) -> tuple[AdamW | Muon, tuple[str, ...]]:
        """The optimizer that updates it, and the names of what it keeps."""
        return (self.muon, OF_MUON) if self.muon and share.spec.role == "matrix" else (self.optimizer, MOMENTS)

    def updates(self) -> Tensor:
        """How many there were.  -> [] fp32"""
        return next((s["step"] for s in self.optimizer.state.values()), torch.zeros(()))

    def spread(self) -> None:
        """Bring what the optimizer holds to where the model reads it."""
        spread_update(self.shares, self.mesh, self.zero_stage)
        forget_gathered(self.stages)

    @torch.no_grad()
    def score(self, batches: list[Batch]) -> list[RowScores]:
        """Each row's weighted NLL, without a gradient."""
        for stage in self.stages:
            stage.eval()
        placed = [b.to(self.device) for b in batches]
        with self.average.read(self.spread):
            outputs = self.pipeline.forward(placed) if self.pipeline else [self.stages[0](b) for b in placed]
        return [row_scores(batch, nll, hit) for batch, (_, nll, hit) in zip(batches, outputs)]

    @torch.no_grad()
    def logits(self, batches: list[Batch], caches: Sequence[Cache | None] | None = None) -> list[Tensor]:
        """Of each batch's asked positions, on every rank.  -> [n, v]"""
        for stage in self.stages:
            if stage.training:
                stage.eval()
        placed, caches = [b.to(self.device) for b in batches], caches or [None] * len(batches)
        with self.average.read(self.spread):
            if not self.pipeline:
                return [self.stages[0](b, loss=False, cache=cache) for b, cache in zip(placed, caches)]
            shapes = [self.stages[0].answers(b) for b in batches]
            return self.pipeline.spread(self.pipeline.forward(placed, False, caches), shapes, wide(self.stages[0].dtype))

    def cache(self, rows: int, width: int) -> Cache:
        return new_cache(self.stages[0], rows, width)

    def params_norm(self) -> float:
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        square, _, _ = self.over_world(self.squares(share.data.detach() for share in self.shares), zero, zero)
        return square**0.5

    def pieces(self) -> list[Piece]:
        """Weights, their average, moments and the update count, as far as this rank owns them."""
        owned = [share for share in self.shares if share.owner]
        out = [piece(f"model/{share.name}", share, share.data.detach()) for share in owned]
        for share in owned:
            out += [piece(f"optimizer/{moment}/{share.name}", share, x) for moment, x in self.moments(share).items()]
        out += [piece(f"{ROOT}/{s.name}", s, kept) for s, kept in zip(self.shares, self.average.kept) if s.owner]
        if self.mesh.chief:
            out.append(Piece(name="optimizer/step", shape=(), start=(), tensor=self.updates().detach().cpu().float()))
        return out

    @torch.no_grad()
    def load(self, checkpoint: Checkpoint, weights_only: bool = False) -> None:
        """Weights where the model reads them, moments where the optimizer does; weights alone are the average, if there is."""
        updates = torch.zeros(())
        if not weights_only and "optimizer/step" in checkpoint.shapes:
            checkpoint.fill([Piece(name="optimizer/step", shape=(), start=(), tensor=updates)])
        moments = {s.name: {name: torch.zeros_like(s.data) for name in self.keeper(s)[1]} for s in self.shares if updates > 0}
        kept = self.average.expect(checkpoint, weights_only)
        checkpoint.fill(
            self.weights(root_of_weights(checkpoint, weights_only))
            + [piece(f"{ROOT}/{share.name}", share, tensor) for share, tensor in zip(self.shares, kept)]
            + [
                piece(f"optimizer/{moment}/{share.name}", share, tensor)
                for share in self.shares
                if moments
                for moment, tensor in moments[share.name].items()
            ]
        )
        for share in self.shares:
            optimizer, _ = self.keeper(share)
            optimizer.state.pop(self.state[share.name], None)
            if share.apart:
                share.data.copy_(local(share.parameter)[share.rows])
            if moments:
                p = self.state[share.name]
                step = {} if optimizer is self.muon else {"step": updates.to(p.device, copy=True)}
                optimizer.state[p] = step | moments[share.name]

    def weights(self, root: str) -> list[Piece]:
        """Every weight that this rank's model reads, for a checkpoint to fill."""
        out = []
        for share in self.shares:
            held = local(share.parameter.detach())
            start = (share.start[0] - share.rows.start, *share.start[1:])
            out.append(Piece(name=f"{root}/{share.name}", shape=share.shape, start=start, tensor=held))
        return out


def adamw(state: dict[str, nn.Parameter], specs: dict[str, Spec], optim: Optim) -> AdamW:
    """Fused AdamW over what this rank updates."""
    return AdamW(parameter_groups(state, specs, optim), optim.lr or 0.0, (optim.adam_beta1, optim.adam_beta2))


def parameter_groups(state: dict[str, nn.Parameter], specs: dict[str, Spec], optim: Optim) -> list[dict[str, Any]]:
    """A group for all whose specs ask for the same."""
    groups: dict[tuple[float, float, float], list[nn.Parameter]] = {}
    for name, p in state.items():
        spec = specs[name]
        key = (
            optim.decay_of(spec.role or "vector") * spec.decay_factor * spec.decay,
            spec.lr_factor,
            optim.adam_eps * spec.eps_factor,
        )
        groups.setdefault(key, []).append(p)
    named = ("weight_decay", "lr_factor", "eps")
    return [dict(zip(named, key)) | {"params": groups[key]} for key in sorted(groups, reverse=True)]


def set_rate(optimizer: AdamW | torch.optim.Optimizer, lr: float) -> None:
    """The rate of the next update, times each group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def new_cache(model: GPT, rows: int, width: int) -> Cache:
    if model.condition is not None:
        raise Mismatch(
            "--cache: this network is told of a whole row (--time-conditioning), and parts of rows would tell it otherwise: "
            "leave --cache out"
        )
    return Cache(rows, width)


def piece(name: str, share: Share, tensor: Tensor) -> Piece:
    return Piece(name=name, shape=share.shape, start=share.start, tensor=tensor)


def row_scores(batch: Batch, nll: Tensor, hit: Tensor) -> RowScores:
    rows, num_rows = (batch.asked // batch.inputs.shape[1]).numpy(), len(batch.index)
    weighted = nll.double().cpu().numpy() * batch.weights.flatten()[batch.asked].double().numpy()
    return RowScores(
        loss=np.bincount(rows, weighted, num_rows),
        asked=np.bincount(rows[~batch.asks_vector().cpu().numpy()], minlength=num_rows),
        hits=np.bincount(rows, hit.double().cpu().numpy(), num_rows),
        scored=batch.scored.sum(1).numpy(),
    )
