"""The output head and its cross-entropy, fused and chunked. n asked rows, h hidden, v vocabulary columns, c rows of a chunk.

Logits of a small model are most of its step, and their gradient needs what the forward pass already holds, so the
gradient is made in the forward pass: chunk by chunk, without a second product and without [n, v] ever being stored.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 26 << 20          # fp32 probabilities of one chunk: stays in cache, and below malloc's mmap threshold
PRODUCT_BYTES = 8 << 20         # one piece of the table's gradient before it is added in fp32
GROUP_BYTES = 64 << 20          # logits made at once; their gradient replaces them, for the two products that consume it


def weighted_nll(x: Tensor, table: Tensor, targets: Tensor, weights: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """sum(weights * nll), each row's nll, and whether its most likely id is the target.

    Ids from `columns` on (mask and padding) cannot be predicted.
    x [n, h], table [V, h] fp32, targets [n] int64, weights [n] fp32 -> loss [] fp32, nll [n] fp32, hit [n] bool
    """
    if torch.is_grad_enabled() and (x.requires_grad or table.requires_grad):
        return _WeightedNLL.apply(x, table, targets, weights, columns)
    head = table[:columns].to(x.dtype)
    nll, hit = x.new_empty(len(x), dtype=torch.float32), targets.new_empty(len(x), dtype=torch.bool)
    for rows in pieces(len(x), CHUNK_BYTES // (4 * columns)):
        nll[rows], hit[rows], _ = chunk_nll(F.linear(x[rows], head), targets[rows])
    return (weights * nll).sum(), nll, hit


def pieces(n: int, size: int) -> list[slice]:
    """0..n in slices of at most `size`, of near-equal length."""
    count = max(1, -(-n // max(1, size)))
    return [slice(i * n // count, (i + 1) * n // count) for i in range(count)]


def chunk_nll(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logits [c, v], targets [c] -> nll [c] fp32, hit [c] bool, probabilities [c, v] fp32"""
    probs = torch.softmax(logits, -1, dtype=torch.float32)
    top = logits.amax(-1)
    at_target = logits.gather(1, targets[:, None])[:, 0]
    # The largest probability is 1 / sum exp(logit - top), at least 1/v: its log never underflows.
    nll = top.float() - at_target.float() - probs.amax(-1).log()
    return nll, at_target >= top, probs


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
    def forward(ctx, x, table, targets, weights, columns):
        head = table[:columns].to(x.dtype)
        n = len(x)
        nll, hit = x.new_empty(n, dtype=torch.float32), targets.new_empty(n, dtype=torch.bool)
        d_x, d_table = torch.empty_like(x), torch.empty_like(table)
        d_table[columns:] = 0
        for number, group in enumerate(pieces(n, GROUP_BYTES // (x.element_size() * columns))):
            logits = F.linear(x[group], head)
            for rows in pieces(len(logits), CHUNK_BYTES // (4 * columns)):
                here = slice(group.start + rows.start, group.start + rows.stop)
                nll[here], hit[here], probs = chunk_nll(logits[rows], targets[here])
                # d nll / d logits = p - onehot; the row's weight is applied to the two thin factors instead.
                probs.scatter_add_(1, targets[here, None], probs.new_full((len(probs), 1), -1.0))
                logits[rows] = probs
            scale = weights[group, None].to(x.dtype)
            torch.mm(logits, head, out=d_x[group]).mul_(scale)
            accumulate(d_table[:columns], logits, x[group] * scale, first=number == 0)
        ctx.save_for_backward(d_x, d_table)
        ctx.mark_non_differentiable(nll, hit)
        return (weights * nll).sum(), nll, hit

    @staticmethod
    def backward(ctx, d_loss, _nll, _hit):
        d_x, d_table = ctx.saved_tensors
        return d_x * d_loss.to(d_x.dtype), d_table.mul_(d_loss), None, None, None
