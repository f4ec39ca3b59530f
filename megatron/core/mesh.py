"""Who works with whom: one process group for each axis of the layout. Ranks are numbered as Megatron's are: tensor
neighbours first, then data, then pipeline. A group of one has no process group, and its collectives do nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron import errors
from megatron.errors import Refusal

# Concatenating collectives, by the names that torch 2.13 gives them; earlier ones know only the old.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True, kw_only=True)
class Group:
    """Some ranks that communicate, and which of them this process is."""

    pg: dist.ProcessGroup | None = None
    ranks: tuple[int, ...] = (0,)  # global ranks, in the group's order
    rank: int = 0  # this process's place among them
    sequence: bool = False  # tensor group: between its layers each rank keeps a part of the sequence

    @property
    def size(self) -> int:
        return len(self.ranks)


ALONE = Group()


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """The groups of one process; the default is a process alone."""

    tp: Group = field(default_factory=Group)
    dp: Group = field(default_factory=Group)
    pp: Group = field(default_factory=Group)
    ends: Group = field(default_factory=Group)  # first and last rank of this process's pipeline; alone in between
    world: Group = field(default_factory=Group)
    control: Group = field(default_factory=Group)  # the world again, over gloo: JSON and barriers, on CPU tensors

    @property
    def chief(self) -> bool:
        """Whether this process writes the run's records."""
        return self.world.rank == 0


def build_mesh(tp: int = 1, pp: int = 1, sequence: bool = False) -> Mesh:
    """Groups over torch's default process group, which must exist when there is more than one process.

    Every process calls this with the same sizes. Data parallelism takes what remains of the world.
    """
    if not dist.is_initialized():
        return Mesh()
    world, rank = dist.get_world_size(), dist.get_rank()
    dp = world // (tp * pp)
    at = torch.arange(world).view(pp, dp, tp)
    everyone = Group(pg=dist.group.WORLD, ranks=tuple(range(world)), rank=rank)
    control = everyone
    if dist.get_backend() != "gloo":
        control = Group(pg=dist.new_group(backend="gloo"), ranks=everyone.ranks, rank=rank)
    lines = at.permute(1, 2, 0).reshape(-1, pp)
    return Mesh(
        tp=replace(mine(at.reshape(-1, tp), rank), sequence=sequence and tp > 1),
        dp=mine(at.permute(0, 2, 1).reshape(-1, dp), rank),
        pp=mine(lines, rank),
        ends=mine(lines[:, [0, -1]] if pp > 1 else lines, rank),
        world=everyone,
        control=control,
    )


def mine(lines: Tensor, rank: int) -> Group:
    """Make a process group of each line [groups, size]; every process makes all, in the same order."""
    found = Group(ranks=(rank,))
    for ranks in lines.tolist():
        pg = dist.new_group(ranks) if len(ranks) > 1 else None
        if rank in ranks:
            found = Group(pg=pg, ranks=tuple(ranks), rank=ranks.index(rank))
    return found


def all_reduce(x: Tensor, group: Group, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """In place; returns x."""
    if group.size > 1:
        dist.all_reduce(x, op=op, group=group.pg)
    return x


def all_to_all(
    outgoing: Sequence[Sequence[Tensor]], shapes: Sequence[Sequence[Sequence[int]]], like: Tensor, group: Group
) -> list[list[Tensor]]:
    """To each rank its list of tensors, in one message; from each rank a list of these shapes. All are as `like` is."""
    sent = torch.cat([like.new_empty(0), *(t.flatten() for to_one in outgoing for t in to_one)])
    lengths = [[math.prod(shape) for shape in from_one] for from_one in shapes]
    received = sent.new_empty(sum(map(sum, lengths)))
    dist.all_to_all_single(
        received, sent, [sum(found) for found in lengths], [sum(t.numel() for t in to_one) for to_one in outgoing], group=group.pg
    )
    found = received.split([sum(found) for found in lengths])
    return [[x.view(*shape) for x, shape in zip(one.split(n), of_one)] for one, n, of_one in zip(found, lengths, shapes)]


def gather_json(value: Any, group: Group) -> list[Any]:
    """What every rank of a group on CPU tensors has to say, in the group's order: plain JSON, nothing is unpickled."""
    if group.size == 1:
        return [value]
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in group.ranks]
    dist.all_gather(lengths, torch.tensor([len(text)]), group=group.pg)
    longest = max(int(n) for n in lengths)
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in group.ranks]
    dist.all_gather(texts, torch.cat((text, text.new_zeros(longest - len(text)))), group=group.pg)
    return [json.loads(bytes(t[: int(n)].numpy())) for t, n in zip(texts, lengths)]


@contextmanager
def agreed(group: Group) -> Iterator[None]:
    """Do the same on every rank: if one of them fails, the first of these speaks for all, and all raise its refusal."""
    failure = None
    try:
        yield
    except Exception as error:
        if group.size == 1:
            raise
        failure = error
    if failure is None or isinstance(failure, Refusal):
        said = failure and [type(failure).__name__, failure.code, str(failure)]
    else:
        said = ["Refusal", Refusal.code, f"{type(failure).__name__}: {failure}"]
    for rank, refused in enumerate(gather_json(said, group)):
        if failure is not None and not isinstance(failure, Refusal):
            raise failure  # a mistake of ours, whose traceback is wanted
        if refused:
            kind, code, sentence = refused
            raise refusal(kind, code, f"rank {rank}: {sentence}") from failure


def refusal(kind: str, code: int, sentence: str) -> Refusal:
    """Another rank's refusal: of its class where that is one of megatron/errors.py, and always with its exit code."""
    found = getattr(errors, kind, Refusal)(sentence)
    found.code = code
    return found


def barrier(group: Group) -> None:
    if group.size > 1:
        dist.barrier(group=group.pg)


def flat_sum(tensors: Sequence[Tensor], group: Group) -> None:
    """Sum tensors of one dtype over a group, in place, in one message."""
    if group.size > 1 and tensors:
        flat = all_reduce(torch.cat([t.flatten() for t in tensors]), group)
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors])):
            t.copy_(part.view_as(t))
