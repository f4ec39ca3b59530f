"""Tensor parallelism: two ways in, two ways out, and the layers between them (Shoeybi et al., arXiv:1909.08053;
sequence parallelism: Korthikanti et al., arXiv:2205.05198). Model code sees `ColumnLinear` and `RowLinear` and nothing else.

b batch, s sequence, h hidden; widths with a slash are this rank's share.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.core.dropout import drop, keep, mix
from megatron.core.mesh import Group, all_gather, all_reduce, reduce_scatter
from megatron.core.parameters import Role, Spec


def gathered(x: Tensor, tp: Group) -> Tensor:
    """Every rank's part of the sequence.  [b, s/tp, h] -> [b, s, h]"""
    parts = x.new_empty(tp.size * x.shape[0], *x.shape[1:])
    all_gather(parts, x.contiguous(), group=tp.pg)
    return parts.unflatten(0, (tp.size, -1)).movedim(0, 1).flatten(1, 2)  # [b, s, h]


def scattered(x: Tensor, tp: Group) -> Tensor:
    """The sum over ranks, of which each keeps its part of the sequence.  [b, s, h] -> [b, s/tp, h]"""
    parts = x.unflatten(1, (tp.size, -1)).movedim(1, 0).flatten(0, 1).contiguous()  # [tp b, s/tp, h]
    out = x.new_empty(x.shape[0], x.shape[1] // tp.size, x.shape[2])
    reduce_scatter(out, parts, group=tp.pg)
    return out


def part(x: Tensor, tp: Group) -> Tensor:
    """This rank's part of the sequence where it is cut, else all of it.  [b, s, ...] -> [b, s/tp, ...]"""
    return x.chunk(tp.size, 1)[tp.rank] if tp.sequence else x


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, tp):
        ctx.tp = tp
        return gathered(x, tp) if tp.sequence else x.view_as(x)

    @staticmethod
    def backward(ctx, d_x):
        return scattered(d_x, ctx.tp) if ctx.tp.sequence else all_reduce(d_x.contiguous().clone(), ctx.tp), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, tp):
        ctx.tp = tp
        return scattered(x, tp) if tp.sequence else all_reduce(x.contiguous().clone(), tp)

    @staticmethod
    def backward(ctx, d_x):
        return gathered(d_x, ctx.tp) if ctx.tp.sequence else d_x, None


class _GatheredLinear(torch.autograd.Function):
    """F.linear(gathered(x), weight) that keeps only this rank's part of x, and gathers it again for the weight's gradient."""

    @staticmethod
    def forward(ctx, x, weight, tp):
        ctx.tp = tp
        ctx.save_for_backward(x, weight)
        return F.linear(gathered(x, tp), weight)

    @staticmethod
    def backward(ctx, d_y):
        x, weight = ctx.saved_tensors
        whole = gathered(x, ctx.tp)
        return scattered(d_y @ weight, ctx.tp), d_y.flatten(0, 1).t() @ whole.flatten(0, 1), None


def enter(x: Tensor, tp: Group) -> Tensor:
    """Megatron's f: every rank reads all of x, and the gradients of all are summed."""
    return _Enter.apply(x, tp) if tp.size > 1 else x


def leave(x: Tensor, tp: Group) -> Tensor:
    """Megatron's g: the sum of every rank's share."""
    return _Leave.apply(x, tp) if tp.size > 1 else x


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, tp):
        ctx.tp = tp
        return x.view_as(x)

    @staticmethod
    def backward(ctx, d_x):
        return d_x if ctx.tp.rank == 0 else torch.zeros_like(d_x), None


def once(x: Tensor, tp: Group) -> Tensor:
    """Behind `enter`, for what every rank computes alike: the gradients of all are summed, and the first gives it."""
    return _Once.apply(x, tp) if tp.size > 1 else x


class Linear(nn.Module):
    """One weight [out, in] without bias, of which each rank holds a part along dimension `cut`."""

    cut = 0
    p: float = 0.0  # of the weight's dropout in training
    key: Tensor | None = None  # its address, [] int32

    def __init__(self, width_in: int, width_out: int, tp: Group, std: float):
        super().__init__()
        shape = [width_out, width_in]
        if shape[self.cut] % tp.size:
            raise ValueError(f"a width of {shape[self.cut]} does not divide by the tensor-parallel size {tp.size}")
        shape[self.cut] //= tp.size
        self.tp, self.std, self.weight = tp, std, nn.Parameter(torch.empty(shape))

    def specs(self) -> dict[str, Spec]:
        return {"weight": Spec(role="matrix", std=self.std, cut=self.cut)}

    def thinned(self) -> Tensor:
        """The weight, in training without what `key` drops: of the whole weight, whoever holds it (Wan et al., ICML 2013)."""
        if self.key is None or not self.training:
            return self.weight
        first = [self.tp.rank * n * (dim == self.cut) for dim, n in enumerate(self.weight.shape)]
        rows, columns = (torch.arange(at, at + n, device=self.key.device) for at, n in zip(first, self.weight.shape))
        return drop(self.weight, keep(mix(self.key ^ mix(rows.int())), 0, columns, self.p), self.p)


class ColumnLinear(Linear):
    """Every rank reads all inputs and owns some outputs: [..., in] -> [..., out/tp]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.times(x, self.laid_out(x.dtype))

    def times(self, x: Tensor, weight: Tensor) -> Tensor:
        return _GatheredLinear.apply(x, weight, self.tp) if self.tp.sequence else F.linear(enter(x, self.tp), weight)

    def laid_out(self, dtype: torch.dtype) -> Tensor:
        return self.thinned().to(dtype)


class RowLinear(Linear):
    """Every rank owns some inputs, and their partial products are summed: [..., in/tp] -> [..., out]."""

    cut = 1

    def forward(self, x: Tensor) -> Tensor:
        return leave(F.linear(x, self.thinned().to(x.dtype)), self.tp)


class VocabEmbedding(Linear):
    """Every rank owns some rows of the table, which the head may share: [b, s] int64 -> [b, s, h]."""

    def __init__(
        self,
        vocab: int,
        hidden: int,
        tp: Group,
        std: float,
        known_rows: int,
        live_rows: int,
        shared: bool = False,
        role: Role = "embedding",
    ):
        super().__init__(hidden, vocab, tp, std)
        self.known_rows, self.live_rows, self.shared, self.role = known_rows, live_rows, shared, role

    def specs(self) -> dict[str, Spec]:
        copies: Literal["", "ends"] = "ends" if self.shared else ""
        return {
            "weight": Spec(
                role=self.role,
                init="table",
                std=self.std,
                cut=0,
                copies=copies,
                known_rows=self.known_rows,
                live_rows=self.live_rows,
            )
        }

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        if self.tp.size == 1:
            return F.embedding(ids, self.weight).to(dtype)
        local, owned = own(ids, len(self.weight), self.tp)
        return leave((F.embedding(local, self.weight) * owned[..., None]).to(dtype), self.tp)

    def mixed(self, ids: Tensor, mix: Tensor, dtype: torch.dtype) -> Tensor:
        """The sum of k rows a position, weighted, made before ranks exchange anything.

        ids [b, s, k] int64, mix [b, s, k] fp32 -> [b, s, h], or [b, s/tp, h] where the sequence is cut
        """
        local, owned = own(ids, len(self.weight), self.tp)
        bags, weights = local.flatten(0, 1), (mix * owned).flatten(0, 1).to(self.weight.dtype)
        x = F.embedding_bag(bags, self.weight, mode="sum", per_sample_weights=weights)  # [b s, h]
        return leave(x.unflatten(0, ids.shape[:2]).to(dtype), self.tp)


def own(ids: Tensor, rows: int, tp: Group) -> tuple[Tensor, Tensor]:
    """Ids counted from this rank's first row, 0 for those of others, and which are its own."""
    local = ids - tp.rank * rows
    owned = (local >= 0) & (local < rows)
    return local.where(owned, 0), owned
