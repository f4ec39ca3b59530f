"""Texts with vectors: a row is the place of its vector, and its text behind. b rows, s places, d numbers of a vector.

A vector is noised as z_t = a z + s e with a = cos(pi t / 2), s = sin(pi t / 2) and e normal. What is predicted is v = a e - s z
(Salimans and Ho, arXiv:2202.00512): something is asked at either end, where z or e alone would be given away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron import config
from megatron.batch import Batch, Clean, Noise, Purpose, asked_positions, stream
from megatron.core.slots import Condition, Slots, Together, VectorFeatures, VectorPlace, VectorReadout
from megatron.flags import ConfigError
from megatron.objectives import REFERENCE_STRATA, Objective
from megatron.objectives.autoregressive import places
from megatron.objectives.masked import MaskedDiffusion

DEFAULT_TURNS = ["l2t=1", "t2l=1"]


@dataclass(frozen=True, kw_only=True)
class TextGivenVector(Objective):
    """A problem of text whose network is told the row's vector: its loss is, or bounds, -log p(text | vector).

    In training a share of the rows is told nothing (classifier-free guidance: Ho and Salimans, arXiv:2207.12598). A network that
    reads left to right predicts the first token from the vector.
    """

    text: Objective
    size: int  # d
    std: float  # of the reader's initial weights
    adaptive: bool = False  # norms are told too
    dropped: float = 0.0  # share of the rows that are told nothing
    causal: bool
    exact: bool
    uses_mask: bool
    given: str = "its vector"

    @classmethod
    def around(cls, text: Objective, cfg: config.Config) -> TextGivenVector:
        m = cfg.model
        assert m.latent_size is not None
        if text.companion(m) is not None:
            raise ConfigError(
                [f"--latent-size {m.latent_size}: the network that learns beside the model is told no vector: leave it out"]
            )
        return cls(
            text=text,
            size=m.latent_size,
            std=m.initial_std,
            adaptive=m.latent_adaln,
            dropped=cfg.objective.latent_dropout,
            causal=text.causal,
            exact=text.exact,
            uses_mask=text.uses_mask,
        )

    @classmethod
    def build(cls, cfg: config.Config, mask_id: int) -> TextGivenVector:
        raise TypeError("TextGivenVector is built around a problem of text: use around()")

    def reference(self) -> TextGivenVector:
        plain = self.text.reference()
        return replace(self, text=plain, dropped=0.0, exact=plain.exact)

    def untold(self) -> TextGivenVector:
        """The reference of the same network when it is told nothing."""
        return replace(self.reference(), dropped=1.0, given="")

    def slots(self, model: config.Model) -> Slots:
        own, place = self.text.slots(model), VectorPlace(model.hidden_size, self.size, self.std)
        readout = VectorReadout(model.hidden_size, self.size) if model.latent_head else None
        return Slots(reader=place, condition=self.condition(own), readout=readout)

    def condition(self, own: Slots) -> Condition | None:
        if not self.adaptive:
            return own.condition
        mine = VectorFeatures(self.size)
        return mine if own.condition is None else Together(own.condition, mine)

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        level = told_nothing(clean, noise, self.dropped).float()  # [b]
        behind = self.text.pose(clean, noise, progress)
        return led(behind, vectors_of(clean) * (1 - level)[:, None], level, clean if self.causal else None)


@dataclass(frozen=True, kw_only=True)
class VectorGivenText(Objective):
    """Predict v of the noised vector from the text, which is read whole, or in a share of the training rows not at all.

    The loss is the mean over t ~ U(0, 1] of the mean square of the error of a number of v, 1 for a network that says nothing.
    """

    size: int  # d
    std: float
    mask_id: int
    adaptive: bool = False
    dropped: float = 0.0  # share of the rows whose text is hidden
    strata: int | None = None  # samples that share one stratification of t; None: independent t
    causal: bool = False
    exact: bool = False
    uses_mask: bool = True
    likelihood: bool = False
    given: str = "its text"
    scores: str = "the vector of each row"
    unit: str = "mean square of the error of v, of a number of the standardised vector"

    @classmethod
    def build(cls, cfg: config.Config, mask_id: int) -> VectorGivenText:
        m = cfg.model
        assert m.latent_size is not None  # flags without it are refused
        return cls(
            size=m.latent_size,
            std=m.initial_std,
            mask_id=mask_id,
            adaptive=m.latent_adaln,
            dropped=cfg.objective.latent_dropout,
            strata=cfg.train.global_batch_size,
        )

    def reference(self) -> VectorGivenText:
        return replace(self, dropped=0.0, strata=REFERENCE_STRATA)

    def untold(self) -> VectorGivenText:
        """The reference where no row's text is read."""
        return replace(self.reference(), dropped=1.0)

    def slots(self, model: config.Model) -> Slots:
        condition = VectorFeatures(self.size) if self.adaptive else None
        reader, readout = VectorPlace(model.hidden_size, self.size, self.std), VectorReadout(model.hidden_size, self.size)
        return Slots(reader=reader, condition=condition, readout=readout)

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        tokens = clean.tokens[:, :-1]
        hidden = told_nothing(clean, noise, self.dropped)[:, None]
        nothing, real = torch.zeros(tokens.shape), clean.scored.any(1)
        text = Batch(
            inputs=torch.where(hidden, self.mask_id, tokens),
            targets=tokens,
            weights=nothing,
            scored=nothing.bool(),
            positions=places(tokens),
            index=clean.index,
            asked=asked_positions(nothing),
        )
        return asking(*self.noised(clean, noise), text, real.float(), real)

    def noised(self, clean: Clean, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
        """z_t [b, d], v [b, d] and t [b] of each row's vector."""
        t = noise.stratified(self.strata, Purpose.VECTOR_TIME).float() if self.strata else noise.independent().float()
        u = noise.uniform(Purpose.VECTOR_NOISE, 2, self.size).double()  # Box and Muller
        e = ((-2 * (1 - u[:, 0]).log()).sqrt() * (2 * math.pi * u[:, 1]).cos()).float()
        z, (a, s) = vectors_of(clean), levels(t)
        return a[:, None] * z + s[:, None] * e, a[:, None] * e - s[:, None] * z, t


@dataclass(frozen=True, kw_only=True)
class TextAndVector(Objective):
    """One network for texts given vectors, vectors given texts, and both at once, in turns of whole steps.

    l2t is TextGivenVector, t2l VectorGivenText; in `joint` the text is hidden and the vector noised by levels of their own, and
    both are predicted. The vector's error counts `weight` times: of a row in t2l, of each token in joint. Which kind a step
    is follows from the seed and the step's number, so that it is the same on every rank and after a restart.
    """

    text: TextGivenVector
    vector: VectorGivenText
    turns: tuple[tuple[str, int], ...]  # (kind, steps of it in a cycle, or its weight)
    drawn: bool  # each step's kind is drawn by weight; else they follow each other
    batch: int  # samples of a step
    weight: float
    causal: bool = False
    exact: bool = False
    uses_mask: bool = True
    parts: tuple[str, ...] = ("text_loss", "vector_loss")

    @classmethod
    def build(cls, cfg: config.Config, mask_id: int) -> TextAndVector:
        o = cfg.objective
        text = TextGivenVector.around(MaskedDiffusion.build(cfg, mask_id), cfg)
        turns = {"joint": 1} if o.latent_mode == "joint" else config.read_turns(o.latent_turns or DEFAULT_TURNS)
        return cls(
            text=text,
            vector=VectorGivenText.build(cfg, mask_id),
            turns=tuple(turns.items()),
            drawn=o.latent_mode == "random",
            batch=cfg.train.global_batch_size,
            weight=o.latent_weight,
        )

    def reference(self) -> TextGivenVector:
        return self.text.reference()

    def besides(self) -> dict[str, Objective]:
        return {"vector_loss": self.vector.reference()}

    def slots(self, model: config.Model) -> Slots:
        return replace(self.text.slots(model), readout=VectorReadout(model.hidden_size, self.vector.size))

    def kind(self, seed: int, step: int) -> str:
        """What a step is: joint, l2t or t2l."""
        names, counts = zip(*self.turns)
        total = sum(counts)
        place = stream(seed, Purpose.TURN, step).random() * total if self.drawn else step % total
        for name, count in zip(names, counts):
            place -= count
            if place < 0:
                return name
        return names[-1]

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        kind = self.kind(noise.seed, int(clean.index[0]) // self.batch)
        if kind == "l2t":
            return self.text.pose(clean, noise, progress)
        if kind == "t2l":
            batch = self.vector.pose(clean, noise, progress)
            return replace(batch, weights=batch.weights * self.weight)
        text, nothing = self.text.text.pose(clean, noise, progress), told_nothing(clean, noise, self.text.dropped)
        latent, target, t = self.vector.noised(clean, noise)
        weights = self.weight * text.scored.sum(1) * ~nothing
        latent, t = latent * ~nothing[:, None], t.masked_fill(nothing, 1.0)
        return asking(latent, target, t, text, weights, torch.zeros_like(nothing))

    def split(self, batch: Batch, nll: Tensor) -> Tensor:
        at, scored = batch.asks_vector().cpu(), batch.scored.cpu()
        weighted = nll.double() * batch.weights.cpu().flatten()[batch.asked.cpu()]
        pairs = (weighted[~at].sum(), scored[:, 1:].sum()), (nll[at].double().sum(), at.sum())
        return torch.tensor(pairs, dtype=torch.float64)


def levels(t: Tensor) -> tuple[Tensor, Tensor]:
    """How much of a vector and of noise there is at time t.  [b] -> a [b], s [b]"""
    return (math.pi / 2 * t).cos(), (math.pi / 2 * t).sin()


def told_nothing(clean: Clean, noise: Noise, share: float) -> Tensor:
    """Which rows the network is told one side of only; all and none draw nothing.  -> [b] bool"""
    if share in (0.0, 1.0):
        return torch.full((len(clean.index),), bool(share))
    return noise.uniform(Purpose.VECTOR_DROPPED, 1)[:, 0] < share


def asking(latent: Tensor, target: Tensor, t: Tensor, text: Batch, weights: Tensor, scored: Tensor) -> Batch:
    """A text behind its noised vector, of which v is asked with these weights [b]; `scored` [b]: its place counts as one."""
    batch = led(text, latent, t)
    batch.weights[:, 0], batch.scored[:, 0] = weights, scored
    return replace(batch, asked=asked_positions(batch.weights), latent_target=target)


def vectors_of(clean: Clean) -> Tensor:
    """-> [b, d]"""
    if clean.vectors is None:
        raise ValueError("rows have no vectors, of which the problem speaks: they are of --data-kind pairs, with --latent-size")
    return clean.vectors


def led(batch: Batch, latent: Tensor, level: Tensor, first: Clean | None = None) -> Batch:
    """The same batch behind a place for each row's vector, which predicts the first token of `first`, where that is given.

    latent [b, d], level [b]; a batch of [b, s - 1] -> [b, s]
    """
    targets, weights, scored = (F.pad(x, (1, 0)) for x in (batch.targets, batch.weights, batch.scored))
    if first is not None:
        targets[:, 0], scored[:, 0] = first.tokens[:, 0], first.scored[:, 0]
        weights[:, 0] = scored[:, 0].float()
    return replace(
        batch,
        inputs=F.pad(batch.inputs, (1, 0)),
        targets=targets,
        weights=weights,
        scored=scored,
        positions=F.pad(batch.positions + 1, (1, 0)),
        asked=asked_positions(weights),
        latent=latent,
        latent_level=level,
    )
