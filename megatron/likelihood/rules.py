"""The exact likelihood of a sampler that reveals places by a deterministic rule (Turok et al., arXiv:2603.01367).

The rule sees what is visible and never the hidden tokens, so that the product of what it reveals is a distribution over rows.
It is another one than the mixture over orders, and a row's NLL may lie on either side of the NELBO. b rows, s places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from megatron.likelihood.rows import Model, Rows, log_probabilities, of_targets
from megatron.sampling.draws import rounded
from megatron.sampling.masked import entropy_of, largest, lead, negative_entropy, shares

SCORES: dict[str, Callable[[Tensor], Tensor] | None] = {
    "left-to-right": None,
    "confidence": largest,
    "margin": lead,
    "entropy": negative_entropy,
    "uncertainty": entropy_of,
}


def num_steps(places: int, a_step: int) -> int:
    return -(-places // a_step)


def planned(places: list[int], steps: int, a_step: int) -> Iterator[Tensor]:
    """How many places each row reveals in each step, whatever rows are beside it.  -> int64 [b], `steps` times"""
    counts = [shares(n, num_steps(n, a_step)) for n in places]
    return (torch.tensor([dict(enumerate(row)).get(step, 0) for row in counts]) for step in range(steps))


def by_rule(model: Model, rows: Rows, rule: str, mask_id: int, a_step: int = 1) -> Tensor:
    """NLL of each place under the sampler that reveals at most `a_step` places at once, drawn independently.

    It is the sampler of megatron/sampling in the fewest such steps, which share a row's places as evenly as they can, with its
    scores: what ties on its grid goes to the left.  -> float64 [b, s] nats
    """
    score, unrevealed = SCORES[rule], rows.open
    total = torch.zeros(unrevealed.shape, dtype=torch.float64)
    for count in planned(unrevealed.sum(1).tolist(), num_steps(rows.steps, a_step), a_step):
        hidden = rows.hidden(unrevealed)
        left = hidden & rows.open
        if score is None:
            chosen = left & (left.cumsum(1) <= count[:, None])
            found = of_targets(log_probabilities(model, rows, hidden, chosen, mask_id), rows, chosen)
        else:
            log_p = log_probabilities(model, rows, hidden, left, mask_id)
            scores = torch.full(hidden.shape, -torch.inf, dtype=torch.float64)
            scores[left] = rounded(score(log_p))
            rank = scores.sort(dim=1, descending=True, stable=True).indices.argsort(1)
            chosen = left & (rank < count[:, None])
            found = of_targets(log_p, rows, left) * chosen
        total -= found
        unrevealed = left & ~chosen
    return total
