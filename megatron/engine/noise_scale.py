"""The gradient noise scale (McCandlish et al., arXiv:1812.06162): the batch at which a gradient is as much noise as signal.

Gradients of micro-batches scatter about the step's; how much says the noise of one sample. It is seen on the way into each
weight's gradient, one tensor at a time, so that it needs no pass and no buffer of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from megatron.batch import Batch
from megatron.core.distributed import Share
from megatron.core.mesh import Mesh, flat_sum
from megatron.core.norm import squares
from megatron.core.parameters import live

DECAY = 0.99  # of the averages of noise and signal: about the last hundred steps


class Scatter:
    """Squared norms of the gradients of this replica's micro-batches, each whole in its stage and not cut by rows."""

    def __init__(self, shares: Sequence[Share], mesh: Mesh, device: torch.device):
        self.mesh, self.zero = mesh, torch.zeros((), dtype=torch.float64, device=device)
        self.begin()
        for share in shares:
            share.parameter.register_hook(partial(self.see, share))

    def begin(self) -> None:
        """Before a step's first backward pass."""
        self.open = self.zero
        self.done: list[Tensor] = []
        self.parts: list[list[Tensor]] = [[]]  # under sequence parallelism

    def see(self, share: Share, gradient: Tensor) -> None:
        """What one backward pass adds to a weight's gradient."""
        spec, tp = share.spec, self.mesh.tp
        own = live(spec, gradient.detach(), tp.rank * len(gradient) if spec.cut == 0 else 0)
        if tp.sequence and spec.partial:
            self.parts[-1].append(own.to(torch.float32, copy=True))  # of a sum over ranks, whose norm is not the sum of theirs
        elif spec.cut is not None or tp.rank == 0:
            self.open = self.open + squares(own)

    def close(self) -> None:
        """After the backward pass of a micro-batch."""
        self.done.append(self.open)
        self.open = self.zero
        self.parts.append([])

    def sums(self, batches: list[Batch], total: int) -> list[Tensor]:
        """This rank's summands of: squared norms over each micro-batch's share of the `total` scored positions; how many
        micro-batches have one; rows that do.  -> three [] float64"""
        flat_sum([x for of_one in self.parts for x in of_one], self.mesh.tp)
        if self.mesh.tp.rank == 0:
            self.done = [sum(map(squares, own), one) for one, own in zip(self.done, self.parts)]
        shares = [float(b.scored.sum()) / total for b in batches]
        weighted = sum((one / share for one, share in zip(self.done, shares) if share), self.zero)
        once = float(self.mesh.tp.rank == 0)
        rows = sum(int(b.scored.any(1).sum()) for b in batches)
        return [weighted, self.zero + once * sum(share > 0 for share in shares), self.zero + once * rows]


def estimate(scatter: Sequence[float], square: float) -> tuple[float, float] | None:
    """Trace of the covariance of one sample's gradient, and squared norm of the true gradient, both unbiased.

    g = sum of w_k g_k, w_k the share of micro-batch k of `count` in the step's scored positions, as n_k = w_k rows samples:
    E |g_k|^2 = |G|^2 + tr / n_k and E |g|^2 = |G|^2 + tr / rows, so that tr = (sum of w_k |g_k|^2 - |g|^2) rows / (count - 1).
    `scatter` is that sum, count and rows, `square` |g|^2. None where there are not two.
    """
    weighted, count, rows = scatter
    if count < 2:
        return None
    noise = (weighted - square) * rows / (count - 1)
    return noise, square - noise / rows


def smoothed(old: tuple[float, float], new: tuple[float, float]) -> tuple[float, float]:
    """Both averages after a step, from zeros: what they lack at first cancels in their ratio."""
    noise, signal = (DECAY * a + (1 - DECAY) * b for a, b in zip(old, new))
    return noise, signal


def noise_scale(noise: float, signal: float) -> dict[str, float]:
    """The ratio of the averages, in samples; nothing while the signal is lost in the noise."""
    return {"gradient_noise_scale": noise / signal} if signal > 0 else {}
