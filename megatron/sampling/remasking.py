"""Masked diffusion that may take back what it has revealed (ReMDM: Wang et al., arXiv:2503.00307). b rows, s places.

From t to s = t - 1/steps of a linear schedule, with a_t = 1 - t the share that is visible: a visible place is hidden again with
probability sigma, and a hidden one is revealed with probability (a_s - (1 - sigma) a_t) / (1 - a_t), so that a place is visible
with probability a_s afterwards whatever sigma is, up to sigma_max = min(1, (1 - a_s) / a_t). Nothing is hidden in the last step.
Where sigma depends on the token, a hidden place has none, and fewer than a_s are visible on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from megatron.batch import Purpose, stream
from megatron.sampling.draws import How, Rows, close, drawn
from megatron.sampling.masked import reader
from megatron.sampling.reading import Model

Sigma = Callable[[Tensor, Tensor], Tensor]  # sigma_max [b, 1], log-probabilities at the reveal [b, s] -> [b, s]


def capped(model: Model, rows: Rows, how: How) -> Tensor:
    """sigma = min(eta, sigma_max).  -> [b, s]"""
    eta = 0.04 if how.eta is None else how.eta
    return remasking(model, rows, how, lambda most, sure: most.clamp(max=eta).expand(sure.shape))


def rescaled(model: Model, rows: Rows, how: How) -> Tensor:
    """sigma = eta sigma_max.  -> [b, s]"""
    eta = 0.04 if how.eta is None else how.eta
    return remasking(model, rows, how, lambda most, sure: (eta * most).expand(sure.shape))


def least_sure(model: Model, rows: Rows, how: How) -> Tensor:
    """eta sigma_max, shared out by a softmax of minus the probability that each token had when it was revealed.  -> [b, s]"""
    eta = 1.0 if how.eta is None else how.eta
    return remasking(model, rows, how, partial(by_confidence, eta))


def by_confidence(eta: float, most: Tensor, sure: Tensor) -> Tensor:
    """Places that are not visible have a probability of infinity, and no share."""
    return eta * most * (-sure.exp()).softmax(1).masked_fill(sure.isinf(), 0.0)


def remasking(model: Model, rows: Rows, how: How, sigma: Sigma) -> Tensor:
    """Rows are not read in steps in which they reveal nothing. A row ends at its first end, when all is done.  -> [b, s]"""
    ids, hidden, read = rows.ids.clone(), rows.open.clone(), reader(model, rows, how)
    count = rows.open.sum(1, keepdim=True)
    steps = torch.full_like(count, how.steps) if how.steps else count  # [b, 1]
    sure = torch.full(ids.shape, torch.inf, dtype=torch.float64)  # of visible places that were open
    times = torch.zeros_like(ids)  # that each place has been revealed
    for number in range(int(steps.max())):
        before, after = number / steps.double(), ((number + 1) / steps.double()).clamp(max=1)
        most = torch.where(before > 0, (1 - after) / before, 1.0).clamp(max=1)  # before the first step nothing is visible
        again = sigma(most, sure)
        first = (after - (1 - again) * before) / (1 - before)
        uniform, going_on = uniforms(rows, number), rows.open & (number < steps)
        chosen, back = going_on & hidden & (uniform < first), going_on & ~hidden & (uniform < again)
        if chosen.any():
            logits = read(ids, chosen, rows.open)
            found = drawn(logits, chosen.nonzero(), rows, how, times[chosen].tolist())
            ids[chosen] = found
            sure[chosen] = logits.double().log_softmax(-1).gather(1, found[:, None])[:, 0]
        hidden, times = (hidden & ~chosen) | back, times + chosen
        ids, sure = ids.where(~back, rows.ids), sure.masked_fill(back, torch.inf)
    close(ids, hidden, rows.open.nonzero(), ids[rows.open], rows, how)
    return ids


def uniforms(rows: Rows, step: int) -> Tensor:
    """What decides of each place in one step.  -> [b, s] float64"""
    width = rows.ids.shape[1]
    return torch.from_numpy(np.stack([stream(rows.seed, Purpose.REMASK, i, step).random(width) for i in rows.numbers]))
