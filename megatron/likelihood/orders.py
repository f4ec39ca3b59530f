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
from megatron.score_names import MOST_PLACES


def draw_order(rows: Rows, seed: int, offset: int = 0) -> Tensor:
    """A uniformly random order of each row's open places; the given ones come last.  -> int64 [b, s]

    It is the one whose last k places a draw of the count form hides for the same (seed, sample number + offset), so that
    differences between the two estimators have less noise than either.
    """
    uniform = Noise(seed, rows.clean.index + offset).uniform(Purpose.MASK, rows.tokens.shape[1])
    return uniform.masked_fill(~rows.open, -1.0).argsort(dim=1, descending=True, stable=True)


def chain(model: Model, rows: Rows, order: Tensor, mask_id: int) -> Tensor:
    """NLL of each place when they are revealed one by one in this order: the chain rule.  int64 [b, s] -> float64 [b, s] nats"""
    unrevealed, total = rows.open, torch.zeros(order.shape, dtype=torch.float64)
    for step in range(rows.steps):
        hidden = rows.hidden(unrevealed)
        asked = torch.zeros_like(hidden).scatter_(1, order[:, step : step + 1], True)
        total -= of_targets(log_probabilities(model, rows, hidden, asked, mask_id), rows, asked) * (hidden & rows.open)
        unrevealed = unrevealed & ~asked
    return total


def k_order(orders: Tensor) -> Tensor:
    """-log of the mean likelihood over K orders: an upper bound of the mixture's NLL in the mean, tighter with K.

    [K, b] nats of single orders -> [b]
    """
    return math.log(len(orders)) - torch.logsumexp(-orders, 0)


def tangent(orders: Tensor) -> Tensor:
    """A lower bound of the mixture's NLL in the mean: log p <= log psi + p / psi - 1 for any psi (TUBE, arXiv:2605.24292).

    psi is the mean likelihood of K orders and p that of one more, which each of the K + 1 is in turn. [K + 1, b] nats -> [b]
    """
    bounds = []
    for one in range(len(orders)):
        minus_log_psi = k_order(torch.cat([orders[:one], orders[one + 1 :]]))
        bounds.append(minus_log_psi - (minus_log_psi - orders[one]).exp() + 1)
    return torch.stack(bounds).mean(0)


def hidden_sets(row: Rows) -> dict[int, list[tuple[int, int]]]:
    """Each set of places that can be hidden, as bits, with what revealing each of them leaves: (place, set); small ones first.

    Where nothing is padding these are all 2^n; behind a visible end there is nothing to hide. Stops behind 2^12; {} for
    more places than an int64 has bits.
    """
    places = row.open[0].nonzero()[:, 0]
    if len(places) > 62:
        return {}
    width, powers = row.open.shape[1], 1 << torch.arange(len(places))

    def left_hidden(sets: Tensor) -> Tensor:
        """int64 [m] -> int64 [m]"""
        unrevealed = torch.zeros(len(sets), width, dtype=torch.bool)
        unrevealed[:, places] = (sets[:, None] & powers) > 0
        return (row.take(torch.zeros_like(sets)).hidden(unrevealed)[:, places] * powers).sum(1)

    found: dict[int, list[tuple[int, int]]] = {}
    front = left_hidden(powers.sum()[None])
    while len(front) and len(found) <= 1 << MOST_PLACES["mixture"]:
        which, place = ((front[:, None] & powers) > 0).nonzero(as_tuple=True)
        rest = left_hidden(front[which] ^ powers[place])
        found |= {bits: [] for bits in front.tolist()}
        for bits, i, after in zip(front[which].tolist(), place.tolist(), rest.tolist()):
            found[bits].append((i, after))
        front = torch.tensor([bits for bits in set(rest.tolist()) if bits not in found], dtype=torch.int64)
    return dict(sorted(found.items(), key=lambda item: item[0].bit_count()))


def mixture(model: Model, rows: Rows, mask_id: int) -> Tensor:
    """Exact NLL of the mixture over all n! orders, by dynamic programming over the 2^n sets of places.  -> float64 [b] nats

    f(S), the likelihood of what is hidden, is the mean over i in S of p(x_i | rest) f(S without i). All rows have their open
    and their scored tokens in the same places.
    """
    places, sets = rows.open[0].nonzero()[:, 0], hidden_sets(rows.take(torch.tensor([0])))
    f = {0: torch.zeros(len(rows.tokens), dtype=torch.float64)}
    for bits, left in list(sets.items())[1:]:
        unrevealed = torch.zeros_like(rows.open)
        unrevealed[:, places[[i for i, _ in left]]] = True
        hidden = rows.hidden(unrevealed)
        found = of_targets(log_probabilities(model, rows, hidden, unrevealed, mask_id), rows, unrevealed)
        f[bits] = torch.logsumexp(torch.stack([found[:, places[i]] + f[rest] for i, rest in left]), 0) - math.log(len(left))
    return -f[max(sets, key=int.bit_count)]
