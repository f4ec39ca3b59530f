"""Masked-diffusion models: an order of revealing, which chance or the model decides. b rows, s places, n asked places, v ids.

The rules read the model's own probabilities, before temperature and cuts, and before a token is drawn: the distribution that is
sampled has then a likelihood that can be computed (Turok et al., arXiv:2603.01367).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from megatron.batch import reading
from megatron.sampling.draws import How, Model, Rows, close, drawn, reveal_times, rounded

Score = Callable[[Tensor], Tensor]  # log-probabilities float64 [n, v] -> [n], higher is revealed first


# Orders that are known before the model is asked


def ancestral(model: Model, rows: Rows, how: How) -> Tensor:
    """The exact reverse process of the absorbing diffusion with a linear schedule (Sahoo et al., arXiv:2406.07524).

    From t to s a masked place is revealed with probability (t - s) / t: so it is where each place has a uniform time of its own,
    and is revealed in the step that its time falls into. Rows are not read in steps in which they reveal nothing. Without
    `steps` it is the limit of infinitely many: one place a step, in the order of the times.  -> [b, s]
    """
    times = reveal_times(rows)
    if how.steps is None:
        return in_order(model, rows, how, planned(rows, how, times))
    step = torch.full(rows.ids.shape, -1)
    for row, blocks in enumerate(blocks_of(rows, how)):
        first = 0
        for places, steps in blocks:
            step[row, places] = first + steps - 1 - (times[row, places] * steps).long()
            first += steps
    return in_order(model, rows, how, step)


def left_to_right(model: Model, rows: Rows, how: How) -> Tensor:
    """-> [b, s]"""
    order = -torch.arange(rows.ids.shape[1], dtype=torch.float64).expand(rows.ids.shape)
    return in_order(model, rows, how, planned(rows, how, order))


def planned(rows: Rows, how: How, order: Tensor) -> Tensor:
    """The step in which each open place is revealed, by counts, the highest of `order` first.  [b, s] -> [b, s] int64"""
    step = torch.full(rows.ids.shape, -1)
    for row, blocks in enumerate(blocks_of(rows, how)):
        first = 0
        for places, steps in blocks:
            sorted_places = places[order[row, places].argsort(descending=True, stable=True)]
            counts = torch.tensor(shares(len(places), steps))
            step[row, sorted_places] = first + torch.repeat_interleave(torch.arange(steps), counts)
            first += steps
    return step


def in_order(model: Model, rows: Rows, how: How, step: Tensor) -> Tensor:
    """Reveal the places of step 0, of step 1, ...  [b, s] int64 -> [b, s]"""
    ids, still = rows.ids.clone(), rows.open.clone()
    for number in range(int(step.max()) + 1):
        chosen = still & (step == number)
        if chosen.any():
            where = chosen.nonzero()
            reveal(ids, still, where, logits_at(model, ids, chosen, rows), rows, how)
    return ids


# Orders that the model decides


def confidence(model: Model, rows: Rows, how: How) -> Tensor:
    """-> [b, s]"""
    return by_rule(model, rows, how, largest)


def margin(model: Model, rows: Rows, how: How) -> Tensor:
    """-> [b, s]"""
    return by_rule(model, rows, how, lead)


def entropy(model: Model, rows: Rows, how: How) -> Tensor:
    """-> [b, s]"""
    return by_rule(model, rows, how, negative_entropy)


def threshold(model: Model, rows: Rows, how: How) -> Tensor:
    """-> [b, s]"""
    least = torch.tensor(how.threshold or 0.9, dtype=torch.float64).log()
    return by_rule(model, rows, how, largest, float(rounded(least)))


def largest(log_p: Tensor) -> Tensor:
    """The logarithm of the largest probability.  [n, v] -> [n]"""
    return log_p.amax(-1)


def lead(log_p: Tensor) -> Tensor:
    """The largest probability less the second.  [n, v] -> [n]"""
    p = log_p.topk(min(2, log_p.shape[-1]), -1).values.exp()
    return p[:, 0] - p[:, 1:].sum(-1)


def negative_entropy(log_p: Tensor) -> Tensor:
    """In nats.  [n, v] -> [n]"""
    return (log_p.exp() * log_p).nan_to_num(0.0).sum(-1)


def by_rule(model: Model, rows: Rows, how: How, score: Score, least: float | None = None) -> Tensor:
    """Reveal in each block the places with the highest scores: so many a step, or with `least` all that reach it.

    At least one place of a row is revealed a step; ties go to the left.  -> [b, s]
    """
    ids, still = rows.ids.clone(), rows.open.clone()
    left = [[(places, shares(len(places), steps)) for places, steps in blocks] for blocks in blocks_of(rows, how)]
    while still.any():
        candidates, counts = torch.zeros_like(still), torch.zeros(len(ids), dtype=torch.int64)
        for row, blocks in enumerate(left):
            while blocks and not still[row, blocks[0][0]].any():
                blocks.pop(0)
            if blocks:
                places, planned_counts = blocks[0]
                candidates[row, places] = still[row, places]
                counts[row] = 1 if least is not None else planned_counts.pop(0)
        logits = logits_at(model, ids, candidates, rows)
        scores = torch.full(ids.shape, -torch.inf, dtype=torch.float64)
        scores[candidates] = torch.cat([rounded(score(some.log_softmax(-1))) for some in logits.double().split(1024)])
        order = scores.sort(dim=1, descending=True, stable=True).indices
        rank = order.argsort(1)
        chosen = candidates & ((rank < counts[:, None]) | (scores >= (torch.inf if least is None else least)))
        reveal(ids, still, chosen.nonzero(), logits[chosen[candidates]], rows, how)
    return ids


# What all of them do


def logits_at(model: Model, ids: Tensor, asked: Tensor, rows: Rows) -> Tensor:
    """Logits of the places asked, in the order of `asked.nonzero()`; only rows that are asked are read.  -> [n, v]"""
    active = asked.any(1).nonzero()[:, 0]
    flat = asked[active].flatten().nonzero()[:, 0]
    batch = replace(reading(ids[active]), index=torch.tensor(rows.numbers)[active], asked=flat)
    (logits,) = model.logits([batch])
    return logits[:, : rows.vocab_size].cpu()


def reveal(ids: Tensor, still: Tensor, where: Tensor, logits: Tensor, rows: Rows, how: How) -> None:
    found = drawn(logits, where, rows, how)
    ids[where[:, 0], where[:, 1]], still[where[:, 0], where[:, 1]] = found, False
    close(ids, still, where, found, rows, how)


def blocks_of(rows: Rows, how: How) -> list[list[tuple[Tensor, int]]]:
    """Each row's blocks: their open places, and the steps that are spent on them: at least one each, where there are as many."""
    found = []
    for row in rows.open:
        places = row.nonzero()[:, 0]
        blocks = places.split(how.block_length or max(1, len(places)))
        steps, ends = how.steps or len(places), [0]
        for block in blocks:
            ends.append(ends[-1] + len(block))
        spent = [end * steps // len(places) - start * steps // len(places) for start, end in zip(ends, ends[1:]) if end]
        found.append(list(zip(blocks, spent)))
    return found


def shares(places: int, steps: int) -> list[int]:
    """How many places each step reveals, the first ones more (Nie et al., arXiv:2502.09992)."""
    return [places // steps + (n < places % steps) for n in range(steps)]
