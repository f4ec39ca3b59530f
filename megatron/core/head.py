"""The output head and its cross-entropy, fused and chunked. n asked rows, h hidden, v vocabulary columns, c rows of a chunk.

Where tensor parallelism cuts the table, each rank has the columns of its rows and three short messages join them.

Logits of a small model are most of its step, and their gradient needs what the forward pass already holds, so the
gradient is made in the forward pass: chunk by chunk, without a second product and without [n, v] ever being stored.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron.batch import Redrawn, Taught
from megatron.core.mesh import ALONE, Group, all_gather, all_reduce
from megatron.core.tensor_parallel import own

Known = Redrawn | Taught | None  # what the loss is of, besides the tokens

CHUNK_BYTES = 26 << 20  # fp32 probabilities of one chunk: stays in cache, and below malloc's mmap threshold
PRODUCT_BYTES = 8 << 20  # one piece of the table's gradient before it is added in fp32
GROUP_BYTES = 64 << 20  # logits made at once; their gradient replaces them, for the two products that consume it


def weighted_nll(
    x: Tensor, table: Tensor, targets: Tensor, weights: Tensor, columns: int, tp: Group = ALONE, known: Known = None
) -> tuple[Tensor, Tensor, Tensor]:
    """sum(weights * nll), each row's nll, and how far its most likely id is the target: 1 / the number of ids that share the top.

    So much a choice among them at random would hit. Ties are common in bf16, and a model that says nothing ties all ids.

    Ids from `columns` on (mask and padding) cannot be predicted. With tensor parallelism `table` is this rank's rows, and
    x's gradient its share of a sum that the caller makes (`enter`). With Redrawn, `chunk_divergence` stands for the nll; with
    Taught, the sum is of `mixed_with` and the rows' nll stays plain, and the table is whole.
    x [n, h], table [V/tp, h] fp32, targets [n] int64, weights [n] fp32 -> loss [] fp32, nll [n] fp32, hit [n] fp32; all
    are float64 where x is
    """
    if torch.is_grad_enabled() and (x.requires_grad or table.requires_grad):
        return _WeightedNLL.apply(x, table, targets, weights, columns, tp, known)
    head = head_rows(table, columns, tp).to(x.dtype)
    loss, nll, hit = x.new_empty(3, len(x), dtype=wide(x.dtype))
    for rows in pieces(len(x), CHUNK_BYTES // (4 * len(head))):
        loss[rows], nll[rows], hit[rows], _ = chunk_loss(F.linear(x[rows], head), rows, targets, columns, tp, known)
    return (weights * loss).sum(), nll, hit


def whole_logits(x: Tensor, table: Tensor, columns: int, tp: Group = ALONE) -> Tensor:
    """What the softmax of `weighted_nll` is of, all columns on every tensor rank.  x [n, h], table [V/tp, h] -> [n, columns]"""
    part = F.linear(x, head_rows(table, columns, tp).to(x.dtype))
    if tp.size > 1:
        whole = part.new_empty(tp.size * len(part), part.shape[1])
        all_gather(whole, part.contiguous(), group=tp.pg)
        part = whole.unflatten(0, (tp.size, -1)).transpose(0, 1).flatten(1)[:, :columns].contiguous()
    return part.to(wide(x.dtype))


def wide(dtype: torch.dtype) -> torch.dtype:
    """What a softmax is computed in: fp32, or float64 where the model computes in it."""
    return torch.promote_types(dtype, torch.float32)


def head_rows(table: Tensor, columns: int, tp: Group) -> Tensor:
    """The rows that make logits: on one rank the predictable ones; of a cut table all, so that chunks are alike everywhere."""
    return table[:columns] if tp.size == 1 else table


def pieces(n: int, size: int) -> list[slice]:
    """0..n in slices of at most `size`, of near-equal length."""
    count = max(1, -(-n // max(1, size)))
    return [slice(i * n // count, (i + 1) * n // count) for i in range(count)]


def chunk_loss(
    logits: Tensor, here: slice, targets: Tensor, columns: int, tp: Group, known: Known
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the rows `here`: the loss, what is said of each as nll, hit, and the loss' slope.  logits [c, v] -> [c] x 3, [c, v]"""
    if isinstance(known, Redrawn):
        nll, hit, slope = chunk_divergence(logits, targets[here], known.take(here), columns, tp)
        return nll, nll, hit, slope
    nll, hit, slope = chunk_nll(logits, targets[here], columns, tp)
    loss, slope = (nll, slope) if known is None else mixed_with(known.take(here), logits, nll, slope)
    return loss, nll, hit, slope


def mixed_with(taught: Taught, logits: Tensor, nll: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """(1 - alpha) nll + alpha tau^2 KL(teacher || model), both at tau (Hinton et al., arXiv:1503.02531), and its slope.

    logits [c, v], nll [c], slope [c, v] of the nll -> [c], [c, v]
    """
    teacher, alpha, tau = (x.to(slope.dtype) for x in taught)
    model = (logits.to(slope.dtype) / tau).log_softmax(-1)
    apart = (torch.xlogy(teacher, teacher) - teacher * model).sum(-1)
    loss = (1 - alpha) * nll + alpha * tau * tau * apart
    return loss, slope.mul_(1 - alpha).add_((model.exp() - teacher) * (alpha * tau))


def chunk_divergence(
    logits: Tensor, targets: Tensor, redrawn: Redrawn, columns: int, tp: Group = ALONE
) -> tuple[Tensor, Tensor, Tensor]:
    """How far what the network predicts of a position, under its noise, is from what the token would be under it.

    With q_v = kept [v = target] + each and p_v = kept softmax(logits)_v + each, and z what is seen: KL(q | p) + q_z / p_z -
    log(q_z / p_z) - 1, the loss of a reversed jump process (von Ruette et al., arXiv:2503.04482). Where z is no id, its
    q and p are alike. All is written in y = kept softmax / each, so that nothing cancels where there is much noise or little.
    As `chunk_nll`: -> divergence [c], hit [c], d divergence / d logits [c, v]
    """
    nll, hit, probs = chunk_nll(logits, targets, columns, tp)
    (at, owned), (near, mine) = (own(ids, logits.shape[1], tp) for ids in (targets, redrawn.seen))
    kept, each = (x.to(probs.dtype) for x in redrawn[1:])
    ratio, p_target = kept / each, nll.neg().exp()
    probs.scatter_(1, at[:, None], p_target.where(owned, probs.gather(1, at[:, None])[:, 0])[:, None])
    is_id = redrawn.seen < columns
    p_seen = probs.gather(1, near[:, None])[:, 0].where(mine & is_id, 0.0)
    y = probs * ratio[:, None]
    share = y / (1 + y)  # of p_v, that is not noise
    log_sum, share_sum, p_seen = all_reduce(torch.stack((y.log1p().sum(-1), share.sum(-1), p_seen)), tp)
    y_target, y_seen = p_target * ratio, p_seen * ratio
    log_target, share_target, share_seen = y_target.log1p(), y_target / (1 + y_target), y_seen / (1 + y_seen)
    surprise = ratio.log1p() - log_target  # log(q / p) of the token
    same = redrawn.seen == targets
    other = is_id & ~same
    jump = torch.where(same, surprise.expm1() - surprise, torch.where(other, y_seen.log1p() - share_seen, 0.0))
    found = (kept + each) * surprise - each * (log_sum - log_target) + jump
    to_target = -share_target * (kept + surprise.expm1().where(same, 0.0))
    to_seen = share_seen.square().where(other, 0.0)
    total = to_target + to_seen - each * share_sum
    slope = share.mul_(-each[:, None]).addcmul_(probs, total[:, None], value=-1)
    slope.scatter_add_(1, at[:, None], to_target.where(owned, 0.0)[:, None])
    return found, hit, slope.scatter_add_(1, near[:, None], to_seen.where(mine, 0.0)[:, None])


def chunk_nll(logits: Tensor, targets: Tensor, columns: int, tp: Group) -> tuple[Tensor, Tensor, Tensor]:
    """logits [c, v], targets [c] -> nll [c], hit [c], d nll / d logits = p - onehot [c, v]; all `wide`"""
    if tp.size > 1:
        return cut_nll(logits, targets, columns, tp)
    probs = torch.softmax(logits, -1, dtype=wide(logits.dtype))
    top = logits.amax(-1)
    at_target = logits.gather(1, targets[:, None])[:, 0]
    # The largest probability is 1 / sum exp(logit - top), at least 1/v: its log never underflows.
    nll = top.to(probs.dtype) - at_target.to(probs.dtype) - probs.amax(-1).log()
    hit = (at_target >= top) / ties(logits, targets, at_target, top)
    return nll, hit, probs.scatter_add_(1, targets[:, None], probs.new_full((len(probs), 1), -1.0))


def ties(logits: Tensor, targets: Tensor, at_target: Tensor, top: Tensor) -> Tensor:
    """How many ids of a row have the largest logit, where the target is one of them; 1 or more elsewhere.

    On a CPU counting costs as much as the softmax and a second maximum next to nothing, so that only rows are counted in which
    another id is as large as the target. A GPU would wait for their number.
    logits [c, v], which are back in place after the call, targets, at_target and top [c] -> int64 [c]
    """
    if logits.is_cuda:
        return (logits == top[:, None]).sum(-1).clamp(min=1)
    count = torch.ones_like(targets)
    logits.scatter_(1, targets[:, None], -math.inf)
    tied = ((logits.amax(-1) >= top) & (at_target >= top)).nonzero()[:, 0]
    logits.scatter_(1, targets[:, None], at_target[:, None])
    count[tied] = (logits[tied] == top[tied, None]).view(torch.uint8).sum(-1, dtype=torch.int64)
    return count


def cut_nll(logits: Tensor, targets: Tensor, columns: int, tp: Group) -> tuple[Tensor, Tensor, Tensor]:
    """`chunk_nll` where each rank has the logits of its own columns."""
    width = logits.shape[1]
    local, owned = own(targets, width, tp)
    scores = logits.to(wide(logits.dtype))
    scores[:, max(0, columns - tp.rank * width) :] = -math.inf
    top = all_reduce(scores.amax(-1), tp, dist.ReduceOp.MAX)
    at_target = scores.gather(1, local[:, None])[:, 0].where(owned, 0.0)
    count = (scores == top[:, None]).sum(-1).to(scores.dtype)
    probs = scores.sub_(top[:, None]).exp_()
    total, at_target, count = all_reduce(torch.stack((probs.sum(-1), at_target, count)), tp)
    probs.div_(total[:, None]).scatter_add_(1, local[:, None], -owned[:, None].to(probs.dtype))
    return total.log() + top - at_target, (at_target >= top) / count.clamp(min=1), probs


def accumulate(total: Tensor, d_logits: Tensor, x: Tensor, first: bool) -> None:
    """total (+)= d_logits^T x in fp32, some columns at a time: a product of lower precision is never stored whole.

    total [v, h] fp32, d_logits [c, v], x [c, h]
    """
    for columns in pieces(len(total), PRODUCT_BYTES // (x.element_size() * x.shape[1])):
        if x.dtype == torch.float32:
            torch.addmm(total[columns], d_logits[:, columns].t(), x, beta=0.0 if first else 1.0, out=total[columns])
        elif first:
            total[columns] = d_logits[:, columns].t() @ x
        else:
            total[columns] += d_logits[:, columns].t() @ x


class _WeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, table, targets, weights, columns, tp, known):
        rows_with_logits = head_rows(table, columns, tp)
        head, width = rows_with_logits.to(x.dtype), len(rows_with_logits)
        n = len(x)
        loss, nll, hit = x.new_empty(3, n, dtype=wide(x.dtype))
        d_x, d_table = torch.empty_like(x), torch.empty_like(table)
        d_table[width:] = 0
        for number, group in enumerate(pieces(n, GROUP_BYTES // (x.element_size() * width))):
            logits = F.linear(x[group], head)
            for rows in pieces(len(logits), CHUNK_BYTES // (4 * width)):
                here = slice(group.start + rows.start, group.start + rows.stop)
                # The row's weight is applied to the two thin factors instead.
                loss[here], nll[here], hit[here], logits[rows] = chunk_loss(logits[rows], here, targets, columns, tp, known)
            scale = weights[group, None].to(x.dtype)
            torch.mm(logits, head, out=d_x[group]).mul_(scale)
            accumulate(d_table[:width], logits, x[group] * scale, first=number == 0)
        ctx.d_x, ctx.d_table, ctx.scaled = d_x, d_table, False
        ctx.mark_non_differentiable(nll, hit)
        return (weights * loss).sum(), nll, hit

    @staticmethod
    def backward(ctx, d_loss, _nll, _hit):
        if not ctx.scaled:  # a zero-bubble schedule asks for the two gradients one after the other
            ctx.d_table.mul_(d_loss)
            ctx.scaled = True
        return ctx.d_x * d_loss.to(ctx.d_x.dtype), ctx.d_table, None, None, None, None, None
