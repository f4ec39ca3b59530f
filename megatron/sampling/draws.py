"""What a draw is: how the model's distribution is cut, and random numbers with addresses.

All is float64. Where probabilities are compared, they are rounded first: what differs by less than `GRID` nats ties, and ties go
to the lower id or to the left, so that the last bits of another layout, batch or machine do not decide.
n places, v ids, b rows, s places of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron.batch import Purpose, stream
from megatron.objectives.sdd import States
from megatron.sampling.reading import Kept

DECIMALS = 4
GRID = 10.0**-DECIMALS  # nats


@dataclass(frozen=True, kw_only=True)
class How:
    """What a user may set. The cuts act one after the other, each on the distribution that the one before left."""

    temperature: float = 1.0  # 0: the likeliest id
    top_k: int | None = None  # only the k likeliest ids
    top_p: float | None = None  # only the likeliest ids that together reach p (Holtzman et al., arXiv:1904.09751)
    min_p: float | None = None  # only ids with at least this share of the likeliest one's probability (arXiv:2407.01082)
    steps: int | None = None  # forward passes of a row; None: a place a step
    block_length: int | None = None  # open places are filled in blocks of so many, from the left; None: one block
    threshold: float | None = None  # probability that a token must reach; None: 0.9
    factor: float | None = None  # of the factor rule; None: 1
    entropy_bound: float | None = None  # nats; None: 0.1
    eta: float | None = None  # how much is hidden again; None: the sampler's own
    cache: Kept | None = None  # what is not read again for each place of a block
    guidance: float | None = None  # w of classifier-free guidance; None: none
    end: int | None = None  # a drawn id that closes its row: behind it stands nothing else
    stops: Callable[[list[int]], bool] | None = None  # whether the ids drawn so far, from left to right, are enough


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is to be filled."""

    ids: Tensor  # [b, s] int64    with what a model reads in open places
    open: Tensor  # [b, s] bool     places to fill
    numbers: list[int]  # [b] of the samples: with the seed they name every random number
    seed: int
    vocab_size: int  # ids that may be drawn: below it
    mask: int | None = None  # what guidance reads in place of what is given
    states: States | None = None  # what places between clean and noise are, where they are no ids
    candidates: int = 0  # of such a place
    uniform_share: float = 0.0  # of the noise that is a random id; the rest is the mask
    latent: Tensor | None = None  # [b, d] fp32   each row's vector, standardised, of which the first place is
    block: int = 0  # places of a block of a model that sees only blocks up to a place's own; 0: it sees all places


def exponentials(seed: int, number: int, place: int, size: int, before: int = 0) -> np.ndarray:
    """-log(u) of one place of one sample, drawn so many times before.  -> float64 [size]"""
    u = stream(seed, Purpose.SAMPLED_TOKEN, number, place + (before << 32)).random(size)
    with np.errstate(divide="ignore"):
        return np.negative(np.log(u, out=u), out=u)


def reveal_times(rows: Rows) -> Tensor:
    """When each place is revealed as time runs from 1 to 0.  -> [b, s] float64 in [0, 1)"""
    width = rows.ids.shape[1]
    return torch.from_numpy(np.stack([stream(rows.seed, Purpose.REVEAL_TIME, i).random(width) for i in rows.numbers]))


def rounded(x: Tensor) -> Tensor:
    return x.round(decimals=DECIMALS)


def cut(log_p: Tensor, how: How) -> Tensor:
    """Log-probabilities after temperature (above 0) and cuts; -inf for what is cut.  float64 [n, v] -> [n, v]"""
    if how.temperature != 1:
        log_p = (log_p / how.temperature).log_softmax(-1)
    if how.top_k is None and how.top_p is None and how.min_p is None:
        return log_p
    order = rounded(log_p).sort(dim=-1, descending=True, stable=True).indices
    kept = log_p.gather(-1, order)  # likeliest first
    if how.top_k is not None:
        kept[:, how.top_k :] = -torch.inf
    if how.top_p is not None and how.top_p < 1:
        p = kept.softmax(-1)
        kept = kept.masked_fill((p.cumsum(-1) - p).round(decimals=6) >= how.top_p, -torch.inf)
    if how.min_p is not None:
        kept = kept.masked_fill(rounded(kept - kept[:, :1]) < round(float(np.log(how.min_p)), DECIMALS), -torch.inf)
    return torch.empty_like(log_p).scatter_(-1, order, kept.log_softmax(-1))


def drawn(logits: Tensor, where: Tensor, rows: Rows, how: How, before: list[int] | None = None) -> Tensor:
    """An id for each place: the likeliest, or by noise of its address, which makes the largest p / e one of the distribution.

    logits [n, v], where [n, 2] int64 (row, place), before [n]: how often it has been drawn -> [n] int64
    """
    log_p = logits[:, : rows.vocab_size].double().cpu().log_softmax(-1)
    if how.temperature == 0:
        return likeliest(log_p)
    noise = np.empty(log_p.shape)
    for at, (row, place) in enumerate(where.tolist()):
        noise[at] = exponentials(rows.seed, rows.numbers[row], place, log_p.shape[1], before[at] if before else 0)
    return (cut(log_p, how).exp() / torch.from_numpy(noise)).argmax(-1)


def drawn_together(logits: Tensor, rows: Rows, how: How, step: int) -> Tensor:
    """As `drawn` of all open places, with the noise of a row's step at one address: what is drawn anew in every step is many.

    logits [n, v] -> [n] int64
    """
    log_p = logits[:, : rows.vocab_size].double().cpu().log_softmax(-1)
    if how.temperature == 0:
        return likeliest(log_p)
    return chosen_together(cut(log_p, how).exp(), rows, step)


def chosen_together(p: Tensor, rows: Rows, step: int) -> Tensor:
    """A draw for each open place from p [n, k], up to a factor, with the noise of a row's step at one address.  -> [n] int64"""
    width = rows.ids.shape[1]
    noise = [exponentials(rows.seed, i, 0, width * p.shape[1], step).reshape(width, -1) for i in rows.numbers]
    return (p / torch.from_numpy(np.stack(noise))[rows.open]).argmax(-1)


def likeliest(log_p: Tensor) -> Tensor:
    """The first of those that tie.  [n, v] -> [n]"""
    return rounded(log_p).max(-1, keepdim=True).values.eq(rounded(log_p)).to(torch.uint8).argmax(-1)


def close(ids: Tensor, still: Tensor, where: Tensor, found: Tensor, rows: Rows, how: How) -> None:
    """Where a row ended, every place to be filled behind it holds the end.  In place; where [n, 2], found [n]"""
    if how.end is None:
        return
    for row, place in where[found == how.end].tolist():
        behind = slice(place + 1, None)
        ids[row, behind] = ids[row, behind].masked_fill(rows.open[row, behind], how.end)
        still[row, behind] = False
