"""The torch-native engine: forward, backward, accurate norm, clip, fused AdamW -- or skip, as one decision.

b rows, s positions, n asked positions.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from megatron.batch import Batch, Step
from megatron.core.norm import global_norm
from megatron.core.transformer import GPT
from megatron.errors import Mismatch

if TYPE_CHECKING:
    from megatron import config

TABLES = ("embed.weight", "head.weight")
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class RowScores:
    """What a no-gradient pass says of each row."""
    loss: np.ndarray                # [b] float64   sum of weights * nll
    hits: np.ndarray                # [b] int64
    asked: np.ndarray               # [b] int64
    scored: np.ndarray              # [b] int64


class NativeEngine:
    """One process, one device. Weights and moments are fp32; the model computes in its own dtype."""

    def __init__(self, model: GPT, cfg: config.Optim, live_rows: int):
        self.model, self.clip, self.live_rows = model, cfg.clip_grad, live_rows
        self.device = model.embed.weight.device
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": cfg.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=cfg.lr or 0.0, betas=(cfg.adam_beta1, cfg.adam_beta2), eps=cfg.adam_eps, fused=True)

    def step(self, batches: list[Batch], lr: float) -> Step:
        """One optimizer step over the micro-batches of a global batch, or none of it when anything is not finite."""
        self.model.train()
        total = sum(int(b.scored.sum()) for b in batches)           # known before the first forward
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        for batch in batches:
            micro, _, hit = self.model(batch.to(self.device))
            (micro / total).backward()
            loss += micro.detach().double()
            hits += hit.sum()
        norm = float(global_norm(self.live(name, p.grad) for name, p in self.model.named_parameters()))
        value = float(loss) / total
        finite = np.isfinite(norm) and np.isfinite(value)
        scale = min(1.0, self.clip / (norm + 1e-6)) if self.clip and finite else 1.0
        if finite:
            self.update(lr, scale)
        self.optimizer.zero_grad()
        asked = sum(len(b.asked) for b in batches)
        return Step(loss=value, accuracy=int(hits) / max(1, asked), grad_norm=norm, clipped_norm=norm * scale, skipped=not finite)

    def update(self, lr: float, scale: float) -> None:
        if scale < 1.0:
            torch._foreach_mul_([p.grad for p in self.model.parameters()], scale)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()

    @torch.no_grad()
    def score(self, batch: Batch) -> RowScores:
        """Each row's weighted NLL, without a gradient."""
        self.model.eval()
        _, nll, hit = self.model(batch.to(self.device))
        rows, num_rows = (batch.asked // batch.inputs.shape[1]).numpy(), len(batch.index)
        weighted = nll.double().cpu().numpy() * batch.weights.flatten()[batch.asked].double().numpy()
        return RowScores(loss=np.bincount(rows, weighted, num_rows), asked=np.bincount(rows, minlength=num_rows),
                         hits=np.bincount(rows[hit.cpu().numpy()], minlength=num_rows), scored=batch.scored.sum(1).numpy())

    def live(self, name: str, x: Tensor) -> Tensor:
        """Table rows that no id can name do not count."""
        return x[:self.live_rows] if name in TABLES else x

    def params_norm(self) -> float:
        return float(global_norm(self.live(name, p) for name, p in self.model.named_parameters()))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a restart needs, by logical name and full shape: weights, both moments, the update count."""
        out = {f"model/{name}": p.detach() for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            for moment in MOMENTS if p in self.optimizer.state else ():
                out[f"optimizer/{moment}/{name}"] = self.optimizer.state[p][moment]
        updates = next((s["step"] for s in self.optimizer.state.values()), torch.zeros(()))
        return out | {"optimizer/step": updates.detach().cpu().float()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], weights_only: bool = False) -> None:
        """Take over what `tensors()` gave. Raises Mismatch before anything is touched."""
        updates = 0 if weights_only else int(tensors.get("optimizer/step", torch.zeros(())))
        named = dict(self.model.named_parameters())
        wanted = {f"model/{name}": p for name, p in named.items()}
        if updates:
            wanted |= {f"optimizer/{moment}/{name}": p for name, p in named.items() for moment in MOMENTS}
        refuse_misfits(wanted, tensors)
        for name, p in named.items():
            p.copy_(tensors[f"model/{name}"])
            if updates:
                moments = {moment: tensors[f"optimizer/{moment}/{name}"].to(p.device, p.dtype, copy=True) for moment in MOMENTS}
                self.optimizer.state[p] = {"step": torch.tensor(float(updates), device=p.device)} | moments


def refuse_misfits(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raises Mismatch naming what is missing or has another shape."""
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} has shape {list(found[name].shape)}, expected {list(p.shape)}" for name, p in wanted.items()
              if name in found and found[name].shape != p.shape]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise Mismatch(f"the checkpoint does not fit the model: {'; '.join(wrong[:5])}{more}")
