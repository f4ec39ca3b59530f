"""Texts so short that all of them can be gone through, and models of them whose every answer stands in one table.

r rows, n places behind a given first token, v tokens; v itself stands for a place that is hidden. What a model says of a partly
hidden row is one of (v+1)^n entries, so that one table serves every scoring rule. Everything is float64.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from megatron.errors import Mismatch

LARGEST = 1 << 24  # numbers in a table
LOWEST = -700.0  # nats that stand for what cannot be


@dataclass(frozen=True, kw_only=True)
class Rows:
    """All rows of one kind. What is not scored is padding behind the end, which is the last token v-1."""

    name: str
    vocab: int
    tokens: Tensor  # [r, n] int64
    scored: Tensor  # [r, n] bool


class Model(Protocol):
    """Anything that answers for every partly hidden row."""

    def predict(self, seen: Tensor) -> Tensor:
        """int64 [r, n], hidden places hold v -> log-probabilities [r, n, v]"""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model by its table; of one that is the exact posterior of a law of rows, `law` is that law."""

    name: str
    table: Tensor  # [(v+1)^n, n, v]
    law: Tensor | None = None  # [r]

    def predict(self, seen: Tensor) -> Tensor:
        n, v = self.table.shape[1:]
        return self.table[(seen * (v + 1) ** torch.arange(n - 1, -1, -1)).sum(1)]


def packed(vocab: int, length: int) -> Rows:
    """All v^n rows, none of which ends.  Raises Mismatch where they are too many."""
    if vocab < 2 or length < 1 or vocab**length * length > LARGEST:
        raise Mismatch(
            f"--vocab {vocab} --length {length}: expected 2 tokens and 1 place or more, and {LARGEST} tokens at most in all rows"
        )
    tokens = torch.tensor(list(itertools.product(range(vocab), repeat=length)))
    return Rows(name="packed", vocab=vocab, tokens=tokens, scored=torch.ones_like(tokens, dtype=torch.bool))


def ending(vocab: int, length: int) -> Rows:
    """All rows that end at most once, padded with their end as instruct data is; the longest are cut before it."""
    every = packed(vocab, length).tokens
    ended = (every == vocab - 1).cumsum(1)  # [r, n]
    whole = ((ended == 0) | (every == vocab - 1)).all(1)
    scored = (ended == 0) | ((ended == 1) & (every == vocab - 1))
    return Rows(name="ending", vocab=vocab, tokens=every[whole], scored=scored[whole])


def sources(rows: Rows, seed: int = 0) -> list[Source]:
    """Copy, parity and Markov with exact posteriors, which show faults of weights; a random model, which shows those of order.

    The mutual information of copy lies in one token, of parity in all but one: the two ends between which weights can be wrong.
    """
    v, n = rows.vocab, rows.tokens.shape[1]
    if (v + 1) ** n * n * v > LARGEST:
        raise Mismatch(f"--vocab {v} --length {n}: a table of (v+1)^n n v numbers exceeds {LARGEST}: lower one of them")
    generator = torch.Generator().manual_seed(seed)
    sticky = torch.full((v, v), 0.04 / v, dtype=torch.float64) + 0.96 * torch.eye(v, dtype=torch.float64)
    drawn = torch.rand(v, v, generator=generator, dtype=torch.float64).log() ** 2  # skewed
    laws = {
        "copy": chain(rows, sticky),
        "parity": (rows.tokens.sum(1) % v == 0).double(),
        "markov": chain(rows, drawn / drawn.sum(1, keepdim=True)),
    }
    logits = 2 * torch.randn((v + 1) ** n, n, v, generator=generator, dtype=torch.float64)
    return [exact(name, rows, law / law.sum()) for name, law in laws.items()] + [
        Source(name="random", table=logits.log_softmax(-1))
    ]


def chain(rows: Rows, transitions: Tensor) -> Tensor:
    """Mass of each row under a chain from a uniform first token; a row that ended stays so.  [v, v] -> [r]"""
    mass = torch.full((len(rows.tokens),), 1 / rows.vocab, dtype=torch.float64)
    for i in range(1, rows.tokens.shape[1]):
        step = transitions[rows.tokens[:, i - 1], rows.tokens[:, i]]
        mass = mass * torch.where(rows.scored[:, i], step, 1.0)
    return mass


def exact(name: str, rows: Rows, law: Tensor) -> Source:
    """The posterior of every place given the visible ones, by summing the law over one place after another.  law [r]"""
    r, n = rows.tokens.shape
    v = rows.vocab
    mass = torch.zeros((v,) * n, dtype=torch.float64)
    mass[tuple(rows.tokens.T)] = law
    for axis in range(n):
        mass = torch.cat([mass, mass.sum(axis, keepdim=True)], axis)
    table = torch.empty(*mass.shape, n, v, dtype=torch.float64)
    for i in range(n):
        parts = mass.narrow(i, 0, v).movedim(i, -1)  # [v+1, ..., v] without place i
        whole = parts.sum(-1, keepdim=True)
        here = table[..., i, :].movedim(i, 0)  # [v+1, v+1, ..., v]
        here[v] = torch.where(whole > 0, parts / whole, 1 / v)
        for token in range(v):
            here[token] = torch.nn.functional.one_hot(torch.tensor(token), v).double()
    return Source(name=name, table=table.log().clamp_min(LOWEST).reshape(-1, n, v), law=law)


@dataclass(frozen=True, kw_only=True)
class Meter:
    """Costs one nat where `place` is predicted with `hidden` places hidden, and nothing anywhere else. No distribution."""

    vocab: int
    hidden: int
    place: int

    def predict(self, seen: Tensor) -> Tensor:
        found = torch.zeros(*seen.shape, self.vocab, dtype=torch.float64)
        found[:, self.place] -= ((seen == self.vocab).sum(1) == self.hidden).double()[:, None]
        return found


def mean_cross_entropies(model: Model, rows: Rows) -> Tensor:
    """CE_k of each row: the mean NLL of a hidden token over all ways to hide k.  -> [n, r], k = 1..n"""
    n = rows.tokens.shape[1]
    found = torch.zeros(n, len(rows.tokens), dtype=torch.float64)
    for pattern in itertools.product((False, True), repeat=n):
        hidden = torch.tensor(pattern)
        k = int(hidden.sum())
        if k:
            said = model.predict(rows.tokens.masked_fill(hidden, rows.vocab)).gather(2, rows.tokens[..., None])[..., 0]
            found[k - 1] -= said[:, hidden].sum(1) / (k * math.comb(n, k))
    return found


def first_of(rows: Rows) -> Rows:
    return replace(rows, tokens=rows.tokens[:1], scored=rows.scored[:1])
