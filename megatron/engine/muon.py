"""Muon (Jordan et al., https://kellerjordan.github.io/posts/muon): momentum, made orthogonal, for matrices that take the width
to the width; all else is AdamW's.

A matrix is orthogonalised whole: what tensor parallelism and ZeRO cut is put together on one rank, worked on there and dealt
back, because parts made orthogonal by themselves are another update (63 % away at two parts). Rows of several matrices that
stand in one (queries, keys and values; gate and up) are orthogonalised apart, each with the scale of its own shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from megatron.config import Optim
from megatron.core.distributed import Share, row_counts
from megatron.core.mesh import Group, Mesh, all_to_all
from megatron.core.norm import squares
from megatron.core.parameters import Spec

COEFFICIENTS, ROUNDS, EPSILON = (3.4445, -4.7750, 2.0315), 5, 1e-7  # as published
MOMENTS = ("momentum",)
TOGETHER = 1 << 18  # numbers of small matrices of one shape that are orthogonalised at once; a larger one is alone
Work = Callable[[Sequence[Share], list[Tensor]], list[Tensor]]


class Axis(NamedTuple):
    """A group whose ranks have matrices cut between them, and how: the dimension, and each rank's extent along it."""

    group: Group
    cut: Callable[[Share], tuple[int, list[int]]]


class Muon(torch.optim.Optimizer):
    """m <- mu m + (1 - mu) g;  w <- (1 - lr decay) w - lr scale NS((1 - mu) g + mu m), where NS makes a matrix near orthogonal.

    Every rank calls `step` with its parts of the same matrices; `state` holds each part's momentum. What a
    parametrization by width makes of AdamW's rate and decay (Spec.lr_factor, decay_factor) is not for orthogonal updates.
    """

    def __init__(
        self, shares: list[Share], parameters: list[nn.Parameter], optim: Optim, mesh: Mesh, zero_stage: int, device: torch.device
    ):
        rate = optim.muon_lr / optim.lr if optim.muon_lr and optim.lr else 1.0
        super().__init__(parameters, {"lr": optim.lr or 0.0, "lr_factor": rate})
        self.optim, self.device = optim, device
        rows = [Axis(mesh.dp, lambda s: (0, row_counts(s.parameter.shape[0], mesh.dp, zero_stage)))] if zero_stage else []
        self.batches = []
        pairs = sorted(zip(shares, parameters), key=lambda pair: -math.prod(pair[0].shape))  # so that ranks have as much to do
        for cut in (True, False):
            axes = rows + ([Axis(mesh.tp, tensor_cut)] if cut and mesh.tp.size > 1 else [])
            there = [pair for pair in pairs if (pair[0].spec.cut is not None) is cut]
            at_once = math.prod(axis.group.size for axis in axes)
            batches = [there[i : i + at_once] for i in range(0, len(there), at_once)] if axes else small_together(there)
            self.batches += [(axes, batch) for batch in batches]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        lr, decay = self.param_groups[0]["lr"], self.optim.decay_of("matrix")
        for axes, pairs in self.batches:
            shares, parameters = [share for share, _ in pairs], [p for _, p in pairs]
            parts = on_wholes(shares, [self.pushed(p).to(self.device) for p in parameters], axes, self.directions)
            for share, p, part in zip(shares, parameters, parts):
                p.mul_(1 - lr * decay * share.spec.decay)
                p.add_(part.to(p.device), alpha=-lr)

    def pushed(self, p: nn.Parameter) -> Tensor:
        """The gradient with Nesterov's momentum, of this rank's part."""
        assert p.grad is not None  # the engine gives every share one before an update
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum = state["momentum"].lerp_(p.grad, 1 - self.optim.muon_momentum)
        return p.grad.lerp(momentum, self.optim.muon_momentum)

    def directions(self, shares: Sequence[Share], wholes: list[Tensor]) -> list[Tensor]:
        """What whole matrices move by at a rate of -1."""
        dtype = torch.bfloat16 if self.optim.muon_bf16 else torch.float32
        apart = [separate(share.spec, whole) for share, whole in zip(shares, wholes)]
        done = iter(orthogonal([x for parts in apart for x in parts], dtype))
        found = [[next(done).mul_(scale(x.shape[0], x.shape[1], self.optim.muon_scale)) for x in parts] for parts in apart]
        return [together(share.spec, parts) for share, parts in zip(shares, found)]


def small_together(pairs: list[tuple[Share, nn.Parameter]]) -> list[list[tuple[Share, nn.Parameter]]]:
    """In batches of at most TOGETHER numbers, or of one."""
    batches: list[list[tuple[Share, nn.Parameter]]] = []
    room = 0
    for pair in pairs:
        room -= pair[1].numel()
        if room < 0:
            batches.append([])
            room = TOGETHER - pair[1].numel()
        batches[-1].append(pair)
    return batches


def tensor_cut(share: Share) -> tuple[int, list[int]]:
    assert share.spec.cut is not None
    tp = share.shape[share.spec.cut] // share.parameter.shape[share.spec.cut]
    return share.spec.cut, [share.parameter.shape[share.spec.cut]] * tp


def on_wholes(shares: Sequence[Share], parts: list[Tensor], axes: list[Axis], work: Work) -> list[Tensor]:
    """`work` on the matrices put together, each on one rank of each axis; a rank hands in its parts, and gets back its own."""
    if not (axes and parts):
        return work(shares, parts)
    (group, cut), *inner = axes
    n, cuts, mine = group.size, [cut(share) for share in shares], range(group.rank, len(parts), group.size)

    def extent(i: int, rank: int) -> list[int]:
        dim, sizes = cuts[i]
        return [sizes[rank] if d == dim else size for d, size in enumerate(parts[i].shape)]

    come = all_to_all([parts[r::n] for r in range(n)], [[extent(i, r) for i in mine] for r in range(n)], parts[0], group)
    wholes = [torch.cat([come[r][j] for r in range(n)], cuts[i][0]) for j, i in enumerate(mine)]
    done = on_wholes(shares[group.rank :: n], wholes, inner, work)
    cut_again = [x.split(cuts[i][1], cuts[i][0]) for i, x in zip(mine, done)]
    to_owners = [[list(p.shape) for p in parts[r::n]] for r in range(n)]
    back = all_to_all([[x[r] for x in cut_again] for r in range(n)], to_owners, parts[0], group)
    return [back[i % n][i // n] for i in range(len(parts))]


def separate(spec: Spec, whole: Tensor) -> list[Tensor]:
    """The matrices that stand in one, whose rows come in turns (Spec.fused)."""
    if not spec.fused:
        return [whole]
    turns = whole.unflatten(0, (-1, sum(spec.fused)))  # [turn, rows, columns]
    return [x.flatten(0, 1) for x in turns.split(spec.fused, 1)]


def together(spec: Spec, parts: list[Tensor]) -> Tensor:
    """`separate` undone."""
    if not spec.fused:
        return parts[0]
    return torch.cat([x.unflatten(0, (-1, rows)) for x, rows in zip(parts, spec.fused)], 1).flatten(0, 1)


def orthogonal(matrices: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Near the orthogonal factor of each: singular values of .7 to 1.2 where its own are above .002 of its norm.

    Five rounds of Newton-Schulz, X <- a X + (b A + c A A) X with A = X X' on the smaller side, from X = x / |x|. Computes in
    `dtype`, returns fp32. Small ones of a shape go together: each by itself, a tiny model's calls would cost as much as its step.
    """
    a, b, c = COEFFICIENTS
    lying = [(x.t() if x.shape[0] > x.shape[1] else x).to(dtype) for x in matrices]
    shapes: dict[torch.Size, list[int]] = {}
    for i, x in enumerate(lying):
        shapes.setdefault(x.shape, []).append(i)
    done: dict[int, Tensor] = {}
    for shape, alike in shapes.items():
        count = max(1, TOGETHER // shape.numel())
        for group in (alike[i : i + count] for i in range(0, len(alike), count)):
            norms = torch.stack([squares(lying[i]) for i in group]).sqrt().clamp(min=EPSILON).float()
            y = (torch.stack([lying[i] for i in group]).float() / norms[:, None, None]).to(dtype)  # [group, rows, columns]
            for _ in range(ROUNDS):
                gram = y @ y.mT
                y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
            done |= zip(group, y.to(matrices[0].dtype))
    return [done[i].t() if x.shape[0] > x.shape[1] else done[i] for i, x in enumerate(matrices)]


def scale(rows: int, columns: int, kind: str) -> float:
    """match-rms-adamw: .2 sqrt(max(rows, columns)), so that AdamW's rate and decay serve (Moonlight, arXiv:2502.16982).
    original: sqrt(max(1, rows / columns))."""
    return 0.2 * math.sqrt(max(rows, columns)) if kind == "match-rms-adamw" else math.sqrt(max(1.0, rows / columns))
