"""AdamW (Loshchilov & Hutter, arXiv:1711.05101) by torch's own fused kernel, without torch.optim.Optimizer.

That class imports torch's compiler with its first parameter, which takes as long as a thousand steps of a tiny model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """`param_groups` and `state` are as torch.optim.AdamW has them with fused=True, and so is what `step` does.

    Each group has `params`, `lr`, `weight_decay` and `eps`; its other entries are its maker's.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]):
        self.param_groups = [{"lr": lr} | group for group in groups]
        self.betas = betas
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One update of the parameters that have a gradient."""
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            if not learning:
                continue
            for p in learning:
                if p not in self.state:
                    self.state[p] = {"step": torch.zeros((), device=p.device)} | {m: torch.zeros_like(p.data) for m in MOMENTS}
            averages, squares, steps = ([self.state[p][name] for p in learning] for name in (*MOMENTS, "step"))
            adamw(
                learning,
                [p.grad for p in learning if p.grad is not None],
                averages,
                squares,
                [],
                steps,
                fused=True,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
