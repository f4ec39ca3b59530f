"""The nouns everyone shares. b samples, s positions, n asked positions."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Clean:
    """What the dataset yields."""

    tokens: Tensor  # [b, s+1] int64
    scored: Tensor  # [b, s+1] bool    to be predicted; what comes before is given, what comes behind follows from the last
    index: Tensor  # [b] int64        global sample number: names the noise, survives resume
    vectors: Tensor | None = None  # [b, d] fp32      standardised, where rows are texts with vectors


class Redrawn(NamedTuple):
    """Asked positions of which the input may be any id: what the loss must know of them besides the token. n positions."""

    seen: Tensor  # [n] int64     what stands there
    kept: Tensor  # [n]           chance that it is the token
    each: Tensor  # [n]           chance of each id in place of it

    def take(self, rows: slice) -> "Redrawn":
        return Redrawn(*(x[rows] for x in self))


class Taught(NamedTuple):
    """What a teacher says of the asked positions, and how much it counts. n positions, v ids."""

    probabilities: Tensor  # [n, v] fp32     at the temperature
    alpha: Tensor  # []              its share of the loss
    temperature: Tensor  # []

    def take(self, rows: slice) -> "Taught":
        return self._replace(probabilities=self.probabilities[rows])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the model is asked. Loss = sum(weights * nll) / sum(scored), for every objective."""

    inputs: Tensor  # [b, s] int64     what it reads
    targets: Tensor  # [b, s] int64     what it must predict
    weights: Tensor  # [b, s] fp32      how much each prediction counts; 0 = not asked
    scored: Tensor  # [b, s] bool      the denominator
    positions: Tensor  # [b, s] int64     rotary positions
    index: Tensor  # [b] int64        global sample number: dropout's address
    asked: Tensor  # [n] int64        flat positions with a weight, so that the head reads only those
    # What only some objectives say:
    level: Tensor | None = None  # [b] fp32       noise level that the network is told
    latent: Tensor | None = None  # [b, d] fp32    vector that it is told, at the place of position 0
    latent_level: Tensor | None = (
        None  # [b] fp32       how much of that is noise: 0 nothing, 1 all; a vector that is not told is 0, at 1
    )
    latent_target: Tensor | None = None  # [b, d] fp32    what it must predict at position 0, where that is asked
    candidates: Tensor | None = None  # [b, s, k] int64    ids of a position, read as their mixture; `inputs` is not read then
    mix: Tensor | None = None  # [b, s, k] fp32    their weights
    segments: Tensor | None = None  # [b, s] int64   a position sees those of its own number only
    attend: Tensor | None = None  # [s, s] or [b, s, s] bool    who (row) sees whom (column), in place of the model's causality
    # [b, 2] fp32: the chance that a token was kept, and that of each id in place of it; nll is core/head.py's divergence
    uniform: Tensor | None = None
    taught: Tensor | None = None  # [n, v] fp32    a teacher's probabilities at the asked positions, at a temperature
    teaching: Tensor | None = None  # [2] fp32    their share of the loss, and the temperature
    draws: Tensor | None = None  # [b, s] fp32    uniforms for `refine`; None: there is nothing to refine
    row_notes: Tensor | None = None  # [b, k] float64    what an objective notes of each row, for its `refine` and `measure`
    place_notes: Tensor | None = None  # [b, s] fp32    and of each position

    def tensors(self) -> dict[str, Tensor]:
        """What is there, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def asks_vector(self) -> Tensor:
        """Which asked positions are the place of a vector that is predicted.  -> [n] bool"""
        if self.latent_target is None:
            return torch.zeros_like(self.asked, dtype=torch.bool)
        return self.asked % self.inputs.shape[1] == 0

    def known(self) -> Redrawn | Taught | None:
        """Of the asked positions, what the loss must know besides the token."""
        if self.taught is not None and self.teaching is not None:
            return Taught(self.taught, *self.teaching)
        if self.uniform is None:
            return None
        return Redrawn(self.inputs.flatten()[self.asked], *self.uniform[self.asked // self.inputs.shape[1]].unbind(1))

    @property
    def tokens_asked(self) -> int:
        """Asked positions of which the head predicts a token."""
        return len(self.asked) - int(self.asks_vector().sum())

    def to(self, device: torch.device) -> "Batch":
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in self.tensors().items()})


def asked_positions(weights: Tensor) -> Tensor:
    """Flat indices of the positions that carry weight.  [b, s] -> [n]"""
    return weights.flatten().nonzero().flatten()


def reading(ids: Tensor) -> Batch:
    """Ids that are read and predict nothing.  [b, s] int64"""
    nothing = torch.zeros_like(ids)
    return Batch(
        inputs=ids,
        targets=ids,
        weights=nothing.float(),
        scored=nothing.bool(),
        positions=torch.arange(ids.shape[1], device=ids.device).expand(ids.shape),
        index=torch.arange(len(ids)),
        asked=nothing.flatten()[:0],
    )


class Purpose:
    """What a random number is for. Purposes never share a stream. The numbers are part of the experiment: never reuse one."""

    MASK, RATE, RATE_ORDER, DATA_ORDER, HIDDEN_DROPOUT, ATTENTION_DROPOUT, SAMPLED_TOKEN, REVEAL_TIME = range(8)
    ROW_KIND, ROW_LENGTH, HIDDEN_EDGES, ROW_ORDER, ORDER, ANSWER, REMASK = range(8, 15)
    CANDIDATES, CANDIDATES_AGAIN, UNIFORM_TOKEN = range(20, 23)
    VECTOR_DROPPED, VECTOR_TIME, VECTOR_NOISE, TURN, SAMPLED_VECTOR = range(30, 35)


def stream(seed: int, purpose: int, number: int, place: int = 0) -> np.random.Generator:
    """The generator at one address. Samples are 2**128 draws apart, their places 2**64 (Philox, Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, place, purpose, number]))


class Noise:
    """Uniforms in [0, 1) addressed by (seed, sample number): independent of rank, layout, resume and device."""

    def __init__(self, seed: int, index: Tensor):
        self.seed, self.index = seed, index.tolist()

    @functools.cached_property
    def start(self) -> tuple[np.random.Generator, Any]:
        """A generator, and its state before the first draw."""
        rng = stream(self.seed, 0, 0)
        return rng, rng.bit_generator.state

    def at(self, purpose: int, numbers: Iterable[int]) -> Iterator[np.random.Generator]:
        """What `stream` gives at each of these addresses, good until the next: moving one costs a tenth of making it."""
        rng, state = self.start
        state["state"]["counter"][2] = purpose
        for number in numbers:
            state["state"]["counter"][3] = number
            rng.bit_generator.state = state
            yield rng

    def uniform(self, purpose: int, *shape: int) -> Tensor:
        """float32 uniforms.  -> [b, *shape]"""
        drawn = np.empty((len(self.index), *shape), np.float32)
        for row, rng in enumerate(self.at(purpose, self.index)):
            drawn[row] = rng.random(shape, np.float32)
        return torch.from_numpy(drawn)

    def stratified(self, strata: int, purpose: int = Purpose.RATE_ORDER) -> Tensor:
        """One noise level in (0, 1] a sample; `strata` consecutive samples fill all strata once.  -> [b] float64

        Block k of samples shares the offset u_k and an order drawn from (seed, k): 1 - ((u_k + place / strata) mod 1).
        """
        blocks = dict.fromkeys(i // strata for i in self.index)
        drawn = zip(blocks, self.at(purpose, blocks))
        of = {block: (rng.random(), rng.permutation(strata).tolist()) for block, rng in drawn}
        levels = []
        for block, place in (divmod(i, strata) for i in self.index):
            offset, order = of[block]
            levels.append(1.0 - (offset + order[place] / strata) % 1.0)
        return torch.tensor(levels, dtype=torch.float64)

    def independent(self) -> Tensor:
        """One independent noise level in (0, 1] a sample.  -> [b] float64"""
        drawn = self.at(Purpose.RATE, self.index)
        return torch.tensor([1.0 - rng.random() for rng in drawn], dtype=torch.float64)

    def antithetic(self) -> Tensor:
        """Independent noise levels in (0, 1] of samples 2k, whose neighbours 2k + 1 have the opposite ones.  -> [b] float64"""
        pairs = self.at(Purpose.RATE, (i // 2 for i in self.index))
        drawn = ((i % 2, rng.random()) for i, rng in zip(self.index, pairs))
        return torch.tensor([1.0 - (1.0 - u if odd else u) % 1.0 for odd, u in drawn], dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one optimizer step reports, already reduced over the whole world."""

    loss: float  # sum(weights * nll) / sum(scored), nats a token
    accuracy: float  # share of asked positions whose most likely id is the target; ties count as their share
    grad_norm: float  # before clipping
    clipped_norm: float  # after clipping
    skipped: bool  # not finite: weights and moments untouched
    scored: int  # the denominator: scored positions of the global batch
    asked: int  # positions of the global batch that the head read
    spread: tuple[float, float] | None = None  # of gradients: the noise of a sample, the signal (engine/noise_scale.py)
    extra: dict[str, float] = field(default_factory=dict)  # what the objective measures besides, by the names of its records


@dataclass(frozen=True, kw_only=True)
class RowScores:
    """What a pass without a gradient says of each row."""

    loss: np.ndarray  # [b] float64   sum of weights * nll
    hits: np.ndarray  # [b] float64   a target that shares the top with others counts as its share of them
    asked: np.ndarray  # [b] int64
    scored: np.ndarray  # [b] int64


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands. Everything that happens next is a function of this, the weights and the config."""

    step: int = 0
    samples: int = 0
    skipped: int = 0  # steps, in all
    skipped_in_row: int = 0
    best_val_loss: float | None = None
    best_step: int | None = None
    worse_in_row: int = 0  # validations since the last new best, or since the rate was lowered
    lr_scale: float = 1.0  # what plateaus have left of the rate
    gradient_noise: float = 0.0  # averages of what steps say of their gradients' spread
    gradient_signal: float = 0.0
