"""Data parallelism over the model: torch's DDP and FSDP2, the sums that pipelines need, and what each rank's optimizer owns.

ZeRO stages (Rajbhandari et al., arXiv:1910.02054), weights, gradients and moments in fp32: 0 cuts nothing; 1 cuts the moments and
the update by rows of each parameter; 2 and 3 are FSDP2, which cuts weights and gradients too and, at 3, gathers each
block's weights anew for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from megatron.core.mesh import Group, Mesh, all_gather, flat_sum
from megatron.core.parameters import Spec, whole_shape
from megatron.core.transformer import GPT
from megatron.layout import split_evenly

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

BUCKET_BYTES = 64 << 20  # of one message


@dataclass(frozen=True, kw_only=True)
class Share:
    """The rectangle of one parameter that this rank's optimizer updates."""

    name: str
    parameter: nn.Parameter  # the model's, cut by tensor parallelism; a DTensor under FSDP2
    rows: slice  # of its dimension 0
    data: Tensor  # those rows, in memory that they share, or a copy of them on the CPU
    shape: tuple[int, ...]  # of the whole parameter
    start: tuple[int, ...]  # where the rectangle begins in it
    owner: bool  # whether this rank answers for it in norms and checkpoints
    apart: bool  # whether `data` is a copy
    spec: Spec

    def gradient(self) -> Tensor:
        """The rows of the gradient that belong to `data`, beside it."""
        return gradient_of(self.parameter)[self.rows].to(self.data.device)


def is_cut(x: Tensor) -> TypeGuard[DTensor]:
    """Whether FSDP2 holds it: asked so, because the import of DTensor takes longer than a short run's steps."""
    return hasattr(x, "to_local")


def is_sharded(model: nn.Module) -> TypeGuard[FSDPModule]:
    """Whether `fsdp` made it."""
    return isinstance(model, GPT) and model.sharded


def local(x: Tensor) -> Tensor:
    """This rank's part of a tensor that FSDP2 holds; any other as it is."""
    return x.to_local() if is_cut(x) else x


def gradient_of(p: nn.Parameter) -> Tensor:
    """This rank's part of a gradient; after a backward pass every parameter of a stage has one."""
    assert p.grad is not None
    return local(p.grad)


def make_shares(stages: Sequence[GPT], mesh: Mesh, zero_stage: int, on_cpu: bool = False) -> list[Share]:
    """What this rank updates. A parameter that two stages of the rank have in common appears once."""
    seen, shares = set(), []
    for stage in stages:
        for name, p in stage.named_parameters():
            if id(p) not in seen:
                seen.add(id(p))
                shares.append(make_share(stage, name, p, mesh, zero_stage, on_cpu))
    return shares


def make_share(stage: GPT, name: str, p: nn.Parameter, mesh: Mesh, zero_stage: int, on_cpu: bool) -> Share:
    spec, tp, dp = stage.declared[name], mesh.tp, mesh.dp
    cut = spec.cut
    counts = row_counts(p.shape[0], dp, zero_stage)
    first_row = sum(counts[: dp.rank]) if zero_stage else 0
    begin = 0 if is_cut(p) else first_row
    rows = slice(begin, begin + counts[dp.rank])
    offset = tp.rank * p.shape[cut] if cut is not None else 0  # where the tensor-parallel part begins
    start = tuple(first_row * (dim == 0) + offset * (dim == cut) for dim in range(p.dim()))
    data = local(p.detach())[rows]
    in_place = not zero_stage and not on_cpu
    copy = spec.copies == "ends" and not stage.first
    owner = (cut is not None or tp.rank == 0) and (zero_stage > 0 or dp.rank == 0) and not copy
    return Share(
        name=name,
        parameter=p,
        rows=rows,
        data=p if in_place else data.to("cpu", copy=True) if on_cpu else data,
        shape=whole_shape(spec, p, tp.size),
        start=start,
        owner=owner,
        apart=on_cpu,
        spec=spec,
    )


def row_counts(rows: int, dp: Group, zero_stage: int) -> list[int]:
    """How many rows of a parameter each replica updates."""
    if zero_stage == 0:
        return [rows] * dp.size
    if zero_stage == 1:
        return [len(part) for part in split_evenly(rows, dp.size)]
    chunk = -(-rows // dp.size)  # as torch.chunk, and with it FSDP2, cuts
    return [max(0, min(rows - rank * chunk, chunk)) for rank in range(dp.size)]


def data_parallel(stage: GPT, mesh: Mesh, zero_stage: int, offload: bool, overlap: bool) -> nn.Module:
    """The stage as it is to be called in training: inside DDP, cut by FSDP2, or as it is when its gradients are summed later."""
    if mesh.dp.size == 1:
        return stage
    if zero_stage >= 2:
        return fsdp(stage, mesh, reshard=zero_stage == 3, offload=offload)
    if not overlap:
        return stage
    model = DistributedDataParallel(stage, process_group=mesh.dp.pg, init_sync=False, gradient_as_bucket_view=True)
    model.register_comm_hook(mesh.dp.pg, summed)
    return model


def summed(group, bucket):
    """A DDP hook: gradients are of the global batch's loss already, so they add up and are not averaged.

    Without annotations, which torch compares with classes and would find as text.
    """
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def fsdp(stage: GPT, mesh: Mesh, reshard: bool, offload: bool) -> GPT:
    """Cut a stage block by block, in place.

    Blocks are gathered in the dtype that computes, and their gradients summed in fp32; the table, whose gradient is made in
    fp32, and the last norm are gathered as they are.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    assert mesh.dp.pg is not None  # there is more than one replica
    axis = DeviceMesh.from_group(mesh.dp.pg, next(stage.parameters()).device.type, mesh_dim_names=("dp",))
    policy = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if offload else OffloadPolicy()
    low, whole = MixedPrecisionPolicy(param_dtype=stage.dtype, reduce_dtype=torch.float32), MixedPrecisionPolicy()
    for part in (*stage.blocks.values(), stage):
        fully_shard(
            part, mesh=axis, reshard_after_forward=reshard, offload_policy=policy, mp_policy=whole if part is stage else low
        )
        assert isinstance(part, FSDPModule)  # what fully_shard makes of it
        part.set_gradient_divide_factor(1.0)  # the loss has its global denominator already
        part.set_force_sum_reduction_for_comms(True)  # gloo has no product before its sum
    stage.sharded = True
    return stage


def accumulating(model: nn.Module, last: bool, zero_stage: int) -> AbstractContextManager:
    """Around the forward and backward pass of one micro-batch; gradients must be whole after the last one."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    if is_sharded(model):
        model.set_is_last_backward(last)
        model.set_reshard_after_backward(last or zero_stage == 3)
    return nullcontext()


def finish_gradients(shares: Sequence[Share], mesh: Mesh, stages: Sequence[GPT], over_dp: bool) -> None:
    """The sums that no engine makes: over replicas with a pipeline, of partial ones where the sequence is cut, and of copies."""
    found = [(share.spec, gradient_of(share.parameter)) for share in shares]
    if over_dp:
        for bucket in buckets([g for _, g in found]):
            flat_sum(bucket, mesh.dp)
    if mesh.tp.sequence:
        flat_sum([g for spec, g in found if spec.partial], mesh.tp)
    if not (stages[0].first and stages[-1].last):
        flat_sum([g for spec, g in found if spec.copies == "ends"], mesh.ends)


def buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Runs of tensors of at most BUCKET_BYTES, or of one tensor."""
    out: list[list[Tensor]] = []
    room = 0
    for t in tensors:
        if not out or t.nbytes > room:
            out.append([])
            room = BUCKET_BYTES
        out[-1].append(t)
        room -= t.nbytes
    return out


@torch.no_grad()
def spread_update(shares: list[Share], mesh: Mesh, zero_stage: int) -> None:
    """Bring what each rank's optimizer updated to where the model reads it."""
    for share in shares:
        if share.apart:
            local(share.parameter)[share.rows].copy_(share.data)
    if zero_stage == 1 and mesh.dp.size > 1:
        for bucket in buckets([share.parameter.data for share in shares]):
            gather_rows(bucket, mesh.dp)


def forget_gathered(stages: Sequence[GPT]) -> None:
    """Weights were changed between passes: what FSDP2 has put together of them before is of no use."""
    for stage in stages:
        parts: list[Any] = [*stage.blocks.values(), stage] if stage.sharded else []  # as `fsdp` cuts it
        for part in parts:
            part.reshard()


def gather_rows(tensors: list[Tensor], dp: Group) -> None:
    """Each rank's rows of each tensor, to all ranks, in place and in one message."""
    cuts = [split_evenly(len(t), dp.size) for t in tensors]

    def parts(rank: int) -> list[Tensor]:
        return [t[rows[rank].start : rows[rank].stop] for t, rows in zip(tensors, cuts)]

    mine = torch.cat([p.flatten() for p in parts(dp.rank)])
    longest = max(sum(p.numel() for p in parts(rank)) for rank in range(dp.size))
    everyone = mine.new_empty(dp.size, longest)
    all_gather(everyone.flatten(), torch.cat((mine, mine.new_zeros(longest - len(mine)))), group=dp.pg)
    for rank, flat in enumerate(everyone):
        offset = 0
        for p in parts(rank):
            p.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()
