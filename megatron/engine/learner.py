"""An objective's own network, which learns beside the model: no engine, no wrapper and no layout knows of it.

Every rank holds it whole, in fp32. It refines batches before the first forward pass, so that the number of asked positions is
known then, and learns from the detached NLLs after the last. Its gradient is made by the first tensor rank of each replica's
last stage, and one sum over the world gives all ranks the same bits; clip and optimizer are its own, because in the model's
norm it would change the baseline in silence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from megatron.batch import Batch, Step
from megatron.config import Config, Optim
from megatron.core.checkpoint import Checkpoint, Piece, whole
from megatron.core.mesh import ALONE, Mesh, flat_sum
from megatron.core.norm import global_norm
from megatron.core.parameters import collect, initialise
from megatron.engine.adamw import MOMENTS
from megatron.engine.native import adamw, set_rate
from megatron.objectives import Objective

ROOT = "companion"  # of the names of its weights, moments and initial normals


class Learner:
    """The companion of an objective, its optimizer and its place in checkpoints."""

    def __init__(self, network: nn.Module, objective: Objective, optim: Optim, mesh: Mesh, seed: int, device: torch.device):
        self.network, self.objective, self.mesh, self.clip, self.device = network, objective, mesh, optim.clip_grad, device
        specs = collect(network)
        named = {f"{ROOT}.{name}": p for name, p in network.named_parameters()}
        initialise(iter(named.items()), {f"{ROOT}.{name}": spec for name, spec in specs.items()}, seed, ALONE)
        network.to(device)
        self.state = dict(network.named_parameters())
        self.optimizer = adamw(self.state, specs, optim)

    @torch.no_grad()
    def refine(self, batches: list[Batch]) -> list[Batch]:
        """Each micro-batch that has draws, finished; the others as they are. On the learner's device."""
        placed = [batch.to(self.device) for batch in batches]
        return [self.objective.refine(b, self.network) if b.draws is not None else b for b in placed]

    def learn(self, batches: list[Batch], nlls: list[Tensor], done: Step, lr: float) -> dict[str, float]:
        """One update from a step's refined micro-batches and the NLLs of their asked positions, unless the step was skipped.

        `nlls` is empty on ranks without the last stage. -> what the step's record says, alike on every rank
        """
        for p in self.state.values():
            p.grad = torch.zeros_like(p)
        loss = torch.zeros(1, device=self.device)
        for batch, nll in zip(batches, nlls if self.mesh.tp.rank == 0 else []):
            extra = self.objective.auxiliary(batch, self.network, nll.detach())
            if extra is not None:
                (extra / done.scored).backward()
                loss += extra.detach() / done.scored
        gradients = [p.grad for p in self.state.values() if p.grad is not None]
        flat_sum([*gradients, loss], self.mesh.world)
        norm = float(global_norm(gradients))
        if not done.skipped and math.isfinite(norm):
            self.update(gradients, norm, lr)
        return {"auxiliary_loss": float(loss), "companion_grad_norm": norm}

    def update(self, gradients: list[Tensor], norm: float, lr: float) -> None:
        if self.clip and norm > self.clip:
            torch._foreach_mul_(gradients, self.clip / (norm + 1e-6))
        set_rate(self.optimizer, lr)
        self.optimizer.step()

    def pieces(self) -> list[Piece]:
        """Weights, moments and the update count, of which every rank has the same: the first saves them."""
        if not self.mesh.chief:
            return []
        state = self.optimizer.state
        found = {f"{ROOT}/model/{name}": p.detach() for name, p in self.state.items()}
        found |= {f"{ROOT}/optimizer/{m}/{n}": state[p][m] for n, p in self.state.items() for m in MOMENTS if p in state}
        steps = next((s["step"] for s in state.values()), torch.zeros(()))
        return whole(found | {f"{ROOT}/optimizer/step": steps.detach().cpu().float()})

    @torch.no_grad()
    def load(self, checkpoint: Checkpoint, weights_only: bool = False) -> None:
        """Take over a checkpoint of any layout; with `weights_only`, one without a companion leaves the initial weights."""
        if weights_only and not any(name.startswith(f"{ROOT}/") for name in checkpoint.shapes):
            return
        step = torch.zeros(())
        if not weights_only:
            checkpoint.fill(whole({f"{ROOT}/optimizer/step": step}))
        moments = {n: {m: torch.zeros_like(p) for m in MOMENTS} for n, p in self.state.items() if step > 0}
        wanted = {f"{ROOT}/model/{name}": p.detach() for name, p in self.state.items()}
        wanted |= {f"{ROOT}/optimizer/{m}/{name}": x for name, found in moments.items() for m, x in found.items()}
        checkpoint.fill(whole(wanted))
        self.optimizer.state.clear()
        for name, found in moments.items():
            self.optimizer.state[self.state[name]] = {"step": step.to(self.device, copy=True)} | found


def build(cfg: Config, objective: Objective, mesh: Mesh, device: torch.device) -> Learner | None:
    """The objective's companion as a learner; None where it has none."""
    network = objective.companion(cfg.model)
    return None if network is None else Learner(network, objective, cfg.optim, mesh, cfg.train.seed, device)
