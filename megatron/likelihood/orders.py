"""A masked model as a mixture over the orders in which places may be revealed: p(x) = mean over orders of prod p(x_i | seen).

The mean over orders of an order's NLL is the NELBO; the mixture's own NLL lies below it by Jensen's inequality, and the mean
over K orders inside the logarithm lies between them (Burda et al., arXiv:1509.00519, for importance weights in general).
b rows, s places.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron.batch import Noise, Purpose
from megatron.likelihood.rows import Model, Rows, log_probabilities, of_targets

MOST_PLACES = 12  # 2^12 passes a row


def draw_order(rows: Rows, seed: int, offset: int = 0) -> Tensor:
    """A uniformly random order of each row's open places; the given ones come last.  -> int64 [b, s]

    It is the one whose last k places a draw of the count form hides for the same (seed, sample number + offset), so that
    differences between the two estimators have less noise than either.
    """
    uniform = Noise(seed, rows.clean.index + offset).uniform(Purpose.MASK, rows.tokens.shape[1])
    return uniform.masked_fill(~rows.open, -1.0).argsort(dim=1, descending=True, stable=True)


def chain(model: Model, rows: Rows, order: Tensor, mask_id: int) -> Tensor:
    """NLL of the rows when places are revealed one by one in this order: the chain rule.  int64 [b, s] -> float64 [b] nats"""
    unrevealed, total = rows.open, torch.zeros(len(order), dtype=torch.float64)
    for step in range(rows.steps):
        hidden = rows.hidden(unrevealed)
        asked = torch.zeros_like(hidden).scatter_(1, order[:, step : step + 1], True)
        found = of_targets(log_probabilities(model, rows, hidden, asked, mask_id), rows, asked)
        total -= (found * hidden).sum(1)
        unrevealed = unrevealed & ~asked
    return total


def k_order(orders: Tensor) -> Tensor:
    """-log of the mean likelihood over K orders: an upper bound of the mixture's NLL in the mean, tighter with K.

    [K, b] nats of single orders -> [b]
    """
    return math.log(len(orders)) - torch.logsumexp(-orders, 0)


def mixture(model: Model, rows: Rows, mask_id: int) -> Tensor:
    """Exact NLL of the mixture over all n! orders, by dynamic programming over the 2^n sets of places.  -> float64 [b] nats

    f(S), the likelihood of what is unrevealed, is the mean over i in S of p(x_i | rest) f(S without i). Every row must have
    the same number of open places.
    """
    at = rows.open.nonzero()[:, 1].view(len(rows.tokens), rows.steps)  # [b, n]
    f = torch.zeros(1 << rows.steps, len(at), dtype=torch.float64)
    for subset in range(1, 1 << rows.steps):
        members = [i for i in range(rows.steps) if subset >> i & 1]
        unrevealed = torch.zeros_like(rows.open).scatter_(1, at[:, members], True)
        hidden = rows.hidden(unrevealed)
        found = of_targets(log_probabilities(model, rows, hidden, hidden, mask_id), rows, hidden)
        steps = found.gather(1, at[:, members]).T  # [members, b]
        f[subset] = torch.logsumexp(steps + f[[subset ^ 1 << i for i in members]], 0) - math.log(len(members))
    return -f[-1]
