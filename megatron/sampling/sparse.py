"""Sparse distribution diffusion: open places are k weighted candidates until they are drawn. b rows, s places, n open ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from megatron.batch import Batch, Purpose, reading, stream
from megatron.objectives.sdd import States
from megatron.sampling.draws import How, Rows, close, cut, drawn_together, rounded
from megatron.sampling.reading import Model

STEPS = 25  # where nothing is said


def renoised(model: Model, rows: Rows, how: How) -> Tensor:
    """Each step draws the open places and noises what was drawn to the next level, so that the model reads states of the kind
    that it was trained on; the last draw stays. A row ends at its first end, when all is done.  -> [b, s]
    """
    states, where = states_of(rows), rows.open.nonzero()
    steps, found = how.steps or STEPS, rows.ids[rows.open]
    ids = rows.ids.masked_fill(rows.open, 0)
    for number in range(steps):
        t = 1 - number / steps
        at = noised(states, rows, ids, t, number)
        found = drawn_together(logits(model, states, rows, at, t), rows, how, number)
        ids = ids.masked_scatter(rows.open, found)
    close(ids, torch.zeros_like(rows.open), where, found, rows, how)
    return ids


def kept(model: Model, rows: Rows, how: How) -> Tensor:
    """Each step keeps what the model finds likeliest, with its probabilities, and noises nothing; at last the likeliest stays.

    Only the noise that it begins with tells samples apart, and states of this kind were in no training.  -> [b, s]
    """
    states, where, k = states_of(rows), rows.open.nonzero(), rows.candidates
    steps = how.steps or STEPS
    found, at = rows.ids[rows.open], noised(states, rows, rows.ids.masked_fill(rows.open, 0), 1.0, 0)
    for number in range(steps):
        log_p = logits(model, states, rows, at, 1 - number / steps)[:, : rows.vocab_size].double().cpu().log_softmax(-1)
        log_p = cut(log_p, how) if how.temperature else log_p
        order = rounded(log_p).sort(dim=-1, descending=True, stable=True).indices[:, :k]  # likeliest first
        p = log_p.gather(-1, order).exp() if how.temperature else (torch.arange(k) == 0).double().expand(len(order), k)
        found = order[:, 0]
        at = [x.clone() for x in at]
        at[0][rows.open], at[1][rows.open] = order, p.float()
    ids = rows.ids.masked_scatter(rows.open, found)
    close(ids, torch.zeros_like(rows.open), where, found, rows, how)
    return ids


def states_of(rows: Rows) -> States:
    assert rows.states is not None  # samplers are served only to objectives that have them
    return rows.states


def noised(states: States, rows: Rows, ids: Tensor, t: float, step: int) -> list[Tensor]:
    """Ids and probabilities of all places at time t: given ones are certain.  -> int64 [b, s, k], fp32 [b, s, k]"""
    shape = (ids.shape[1], 3, rows.candidates)
    draws = [stream(rows.seed, Purpose.CANDIDATES_AGAIN, i, step).random(shape, np.float32) for i in rows.numbers]
    pairs = zip(
        states.noised(ids, torch.full((len(ids),), t), torch.from_numpy(np.stack(draws))), states.certain(ids, rows.candidates)
    )
    return [some.where(rows.open[..., None], sure) for some, sure in pairs]


def logits(model: Model, states: States, rows: Rows, at: list[Tensor], t: float) -> Tensor:
    """Of the open places, told the time.  -> [n, v]"""
    batch: Batch = replace(
        reading(rows.ids), asked=rows.open.flatten().nonzero()[:, 0], level=torch.full((len(rows.ids),), t), **states.read(*at)
    )
    return model.logits([batch])[0]
