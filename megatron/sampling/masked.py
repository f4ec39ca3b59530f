"""Masked-diffusion models: an order of revealing, which chance or the model decides. b rows, s places, n asked places, v ids.

The rules read the model's own probabilities, before temperature and cuts, and before a token is drawn: the distribution that is
sampled has then a likelihood that can be computed (Turok et al., arXiv:2603.01367).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron.sampling.draws import How, Rows, close, drawn, reveal_times, rounded
from megatron.sampling.reading import Guided, Model, Places

Score = Callable[[Tensor], Tensor]  # log-probabilities float64 [n, v] -> [n], higher is revealed first
Take = Callable[[Tensor], Tensor]  # scores of a row's places [b, s], highest first, -inf behind the last -> how many [b]


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
    ids, still, read, block = rows.ids.clone(), rows.open.clone(), reader(model, rows, how), numbered(rows, how)
    for number in range(int(step.max()) + 1):
        chosen = still & (step == number)
        if chosen.any():
            here = block == block.masked_fill(~chosen, -1).amax(1, keepdim=True)  # a step is of one block
            reveal(ids, still, chosen.nonzero(), read(ids, chosen, here & rows.open), rows, how)
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


def uncertainty(model: Model, rows: Rows, how: How) -> Tensor:
    """The places of most entropy first: what is hardest to say is said while least is fixed (ATAT's sampler).  -> [b, s]"""
    return by_rule(model, rows, how, entropy_of)


def threshold(model: Model, rows: Rows, how: How) -> Tensor:
    """All places whose likeliest token reaches a probability (Wu et al., arXiv:2505.22618).  -> [b, s]"""
    least = float(rounded(torch.tensor(how.threshold or 0.9, dtype=torch.float64).log()))
    return by_rule(model, rows, how, largest, lambda scores: (scores >= least).sum(1))


def factor(model: Model, rows: Rows, how: How) -> Tensor:
    """As many places n as have the least sure of them at 1 - f / (n + 1) or more (Wu et al., arXiv:2505.22618).  -> [b, s]"""
    number = torch.arange(1, rows.ids.shape[1] + 1, dtype=torch.float64)
    least = rounded((1 - (how.factor or 1.0) / (number + 1)).clamp(min=0).log())
    return by_rule(model, rows, how, largest, lambda scores: ((scores >= least) * number).amax(1).long())


def entropy_bounded(model: Model, rows: Rows, how: How) -> Tensor:
    """The places of least entropy, as many as have a sum, less the largest, within a bound in nats.

    The sum less the largest bounds how far the product of their distributions is from their joint one, as Kullback and Leibler
    measure it (Ben-Hamu et al., arXiv:2505.24857).  -> [b, s]
    """
    bound = 0.1 if how.entropy_bound is None else how.entropy_bound

    def take(scores: Tensor) -> Tensor:
        entropies = -scores  # least first, so that each is the largest so far
        return (rounded(entropies.cumsum(1) - entropies) <= bound).sum(1)  # inf less inf is not

    return by_rule(model, rows, how, negative_entropy, take)


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


def entropy_of(log_p: Tensor) -> Tensor:
    """In nats.  [n, v] -> [n]"""
    return -negative_entropy(log_p)


def by_rule(model: Model, rows: Rows, how: How, score: Score, take: Take | None = None) -> Tensor:
    """Reveal in each block the places with the highest scores: so many a step as are planned, or as `take` says.

    At least one place of a row is revealed a step; ties go to the left.  -> [b, s]
    """
    ids, still, read, block = rows.ids.clone(), rows.open.clone(), reader(model, rows, how), numbered(rows, how)
    plan = [[shares(len(places), steps) for places, steps in blocks] for blocks in blocks_of(rows, how)]
    while still.any():
        at = block.masked_fill(~still, block.numel()).amin(1)  # each row's block
        here = (block == at[:, None]) & rows.open
        candidates = still & here
        logits = read(ids, candidates, here)
        scores = torch.full(ids.shape, -torch.inf, dtype=torch.float64)
        scores[candidates] = torch.cat([rounded(score(some.log_softmax(-1))) for some in logits.double().split(1024)])
        ordered = scores.sort(dim=1, descending=True, stable=True)
        if take is None:
            counts = torch.tensor([plan[row][at[row]].pop(0) if asked else 0 for row, asked in enumerate(candidates.any(1))])
        else:
            counts = take(ordered.values).clamp(min=1)
        chosen = candidates & (ordered.indices.argsort(1) < counts[:, None])
        reveal(ids, still, chosen.nonzero(), logits[chosen[candidates]], rows, how)
    return ids


# What all of them do


def reader(model: Model, rows: Rows, how: How) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What gives the logits of some places, of ids that may be drawn: (ids, asked, block) [b, s] each -> [n, v]"""
    if how.guidance is None:
        places: Places | Guided = Places(model, rows.ids.shape, how.cache, rows.mask, rows.latent, block=rows.block)
    else:
        assert rows.mask is not None
        places = Guided(model, ~rows.open, rows.mask, how.guidance, how.cache, rows.latent)
    return lambda ids, asked, block: places.logits(ids, asked, block)[:, : rows.vocab_size]


def reveal(ids: Tensor, still: Tensor, where: Tensor, logits: Tensor, rows: Rows, how: How) -> None:
    found = drawn(logits, where, rows, how)
    ids[where[:, 0], where[:, 1]], still[where[:, 0], where[:, 1]] = found, False
    close(ids, still, where, found, rows, how)


def blocks_of(rows: Rows, how: How) -> list[list[tuple[Tensor, int]]]:
    """Each row's blocks: their open places, and the steps that are spent on them: at least one each, where there are as many."""
    found = []
    for row, number in zip(rows.open, numbered(rows, how)):
        places = row.nonzero()[:, 0]
        blocks = places.split(number[places].bincount().tolist())
        steps, ends = how.steps or len(places), [0]
        for block in blocks:
            ends.append(ends[-1] + len(block))
        spent = [end * steps // len(places) - start * steps // len(places) for start, end in zip(ends, ends[1:]) if end]
        found.append(list(zip(blocks, spent)))
    return found


def numbered(rows: Rows, how: How) -> Tensor:
    """Which block each open place belongs to, in `blocks_of`.  -> [b, s] int64"""
    if rows.block:  # the model's own, from place 0 on; those that are filled do not count
        of = torch.arange(rows.open.shape[1]) // rows.block
        there = torch.zeros(len(rows.open), int(of[-1]) + 1).index_add(1, of, rows.open.float()) > 0
        return (there.cumsum(1) - 1).clamp(min=0)[:, of]
    return (rows.open.cumsum(1) - 1).clamp(min=0) // (how.block_length or rows.open.shape[1])


def shares(places: int, steps: int) -> list[int]:
    """How many places each step reveals, the first ones more (Nie et al., arXiv:2502.09992)."""
    return [places // steps + (n < places % steps) for n in range(steps)]
