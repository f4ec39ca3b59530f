"""The exact likelihood of a sampler that reveals places by a deterministic rule (Turok et al., arXiv:2603.01367).

The rule sees what is visible and never the hidden tokens, so that the product of what it reveals is a distribution over rows.
It is another one than the mixture over orders, and a row's NLL may lie on either side of the NELBO. b rows, s places, n asked.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron.likelihood.rows import Model, Rows, log_probabilities, of_targets

DECIMALS = 4  # of a score: what is alike on this grid is a tie, and goes to the left at every layout


def confidence(log_p: Tensor) -> Tensor:
    """The logarithm of the largest probability.  [n, v] -> [n]"""
    return log_p.amax(-1)


def margin(log_p: Tensor) -> Tensor:
    """The largest probability less the second.  [n, v] -> [n]"""
    first, second = log_p.topk(2, -1).values.exp().unbind(-1)
    return first - second


def entropy(log_p: Tensor) -> Tensor:
    """Less of it comes first: the negative, in nats.  [n, v] -> [n]"""
    return (log_p.exp() * log_p).nan_to_num(0.0).sum(-1)


RULES: dict[str, Callable[[Tensor], Tensor] | None] = {
    "left-to-right": None,
    "confidence": confidence,
    "margin": margin,
    "entropy": entropy,
}


def shares(places: int, a_step: int) -> list[int]:
    """How many places each step reveals: at most `a_step`, as evenly as can be, the first ones more."""
    steps = -(-places // a_step)
    return [places // steps + (n < places % steps) for n in range(steps)]


def by_rule(model: Model, rows: Rows, rule: str, mask_id: int, a_step: int = 1) -> Tensor:
    """NLL of the rows under the sampler that reveals `a_step` places at once, drawn independently.  -> float64 [b] nats"""
    score, unrevealed = RULES[rule], rows.open
    total = torch.zeros(len(unrevealed), dtype=torch.float64)
    for count in shares(rows.steps, a_step):
        hidden = rows.hidden(unrevealed)
        if score is None:
            chosen = hidden & (hidden.cumsum(1) <= count)
            found = of_targets(log_probabilities(model, rows, hidden, chosen, mask_id), rows, chosen)
        else:
            log_p = log_probabilities(model, rows, hidden, hidden, mask_id)
            scores = torch.full(hidden.shape, -torch.inf, dtype=torch.float64)
            scores[hidden] = score(log_p).round(decimals=DECIMALS)
            rank = scores.sort(dim=1, descending=True, stable=True).indices.argsort(1)
            chosen = hidden & (rank < count)
            found = of_targets(log_p, rows, hidden) * chosen
        total -= found.sum(1)
        unrevealed = hidden & ~chosen
    return total
