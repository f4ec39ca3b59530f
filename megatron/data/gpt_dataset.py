"""Packed samples of s + 1 tokens, each a pure function of (seed, sample number): no index is built, stored or cached.

A corpus (or its range [start, stop)) of T tokens is a circle, and training walks it epoch after epoch. Epoch e enters the
circle at a rotation drawn from (seed, e), so that sample borders differ between epochs. Sample k visits the s tokens
[ks, (k + 1)s) of the endless walk; its last, extra token is only the target of the one before. Within epoch e

    the first c = (-eT) mod s tokens     finish the sample that began in epoch e - 1,
    m = (T - c) // s whole windows       follow in an order drawn from (seed, e), a keyed permutation computed in place,
    the remaining tokens                 begin the sample that epoch e + 1 finishes.

So every token is visited exactly once an epoch, only the one sample on the border of two epochs is not contiguous
text, and a run planned for 500 epochs begins exactly like one planned for 4.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Protocol

import numpy as np

from megatron.data.blend import Blend, Rule
from megatron.data.compiled import compiled
from megatron.data.indexed import IndexedDataset
from megatron.data.samples import Samples, hash64
from megatron.data.sources import Source, open_corpus, token_range
from megatron.data.token_file import TokenFile
from megatron.errors import BadData

FEISTEL_ROUNDS = 8  # of two halves each: all 120 orders of 5 windows come up alike
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ROTATION, ORDER = 0, 1  # what an epoch's random number is for


# A permutation without a table


def feistel(at: np.ndarray, height: np.ndarray, width: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A keyed permutation of [0, height x width): rows and columns shift one another.  uint64 [b] -> [b]"""
    row, column = at // width, at % width
    for _ in range(FEISTEL_ROUNDS):
        row = (row + hash64(key + column) % height) % height
        key = key + GOLDEN
        column = (column + hash64(key + row) % width) % width
        key = key + GOLDEN
    return row * width + column


def permute(place: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A keyed permutation of [0, size): cycle walking on a barely larger rectangle (Black & Rogaway 2002).  [b] -> uint64 [b]"""
    place, size = place.astype(np.uint64), size.astype(np.uint64)
    height = np.ceil(np.sqrt(size)).astype(np.uint64)
    width = (size + height - 1) // height
    at = feistel(place, height, width, key)
    while (outside := at >= size).any():
        at[outside] = feistel(at[outside], height[outside], width[outside], key[outside])
    return at


# One corpus


def place_on_circle(numbers: np.ndarray, size: int, s: int, key: int) -> np.ndarray:
    """The twin of circle.cpp: a sample's entry, stay and return (see Circle.place).  int64 [b] -> int64 [3, b]"""
    epoch = numbers * s // size
    head = -epoch * size % s
    num_whole = (size - head) // s
    place = numbers - (epoch * size + head) // s
    whole = place < num_whole
    window = num_whole.copy()  # the sample on the border starts behind all whole ones
    window[whole] = permute(place[whole], num_whole[whole], hash64(np.uint64(key), epoch[whole], ORDER))
    entry = (rotation(epoch, size, key) + head + window * s) % size
    return np.stack([entry, np.where(whole, s + 1, size - head - num_whole * s), rotation(epoch + 1, size, key)])


def rotation(epoch: np.ndarray, size: int, key: int) -> np.ndarray:
    return (hash64(np.uint64(key), epoch, ROTATION) % np.uint64(size)).astype(np.int64)


class Walk(Protocol):
    """A corpus, or its range, in some order of samples."""

    corpus: IndexedDataset | TokenFile
    start: int
    stop: int
    num_tokens: int

    def rows(self, numbers: np.ndarray) -> np.ndarray: ...

    def identity(self) -> list: ...


class Circle:
    """A corpus, or its range, as the endless walk that the module's first lines describe."""

    def __init__(self, source: Source, seq_length: int, key: int):
        self.corpus, self.seq_length, self.key = open_corpus(source.prefix), seq_length, key
        self.start, self.stop = token_range(source, self.corpus.num_tokens)
        self.num_tokens = self.stop - self.start
        if self.num_tokens < seq_length + 1:
            raise BadData(
                f"{source.prefix}, tokens {self.start}:{self.stop}: --seq-length {seq_length} needs at least "
                f"{seq_length + 1} tokens, has {self.num_tokens}; lower --seq-length or add data "
                "(or give it more by its range or --split)"
            )

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Samples by number.  int64 [b] -> int64 [b, s+1]"""
        entries, stays, returns = self.place(numbers)
        rows = np.empty((len(numbers), self.seq_length + 1), np.int64)
        for row, entry, stay, again in zip(rows, entries.tolist(), stays.tolist(), returns.tolist(), strict=True):
            self.copy(row[:stay], entry)
            if stay < len(row):
                self.copy(row[stay:], again)
        return rows

    def place(self, numbers: np.ndarray) -> np.ndarray:
        """Where a sample begins on the circle, how many tokens it reads there, where the next epoch has the rest.  -> [3, b]"""
        fast = compiled("place_on_circle")
        if fast:
            return fast(numbers, self.num_tokens, self.seq_length, self.key)
        return place_on_circle(numbers, self.num_tokens, self.seq_length, self.key)

    def identity(self) -> list:
        """What names the tokens that are walked, and their order."""
        return [self.corpus.fingerprint(), self.start, self.stop]

    def copy(self, row: np.ndarray, at: int) -> None:
        """Fill `row` with the tokens that follow from `at` on the circle."""
        first = min(len(row), self.num_tokens - at)
        row[:first] = self.corpus.tokens(self.start + at, self.start + at + first)
        if first < len(row):
            row[first:] = self.corpus.tokens(self.start, self.start + len(row) - first)


class PackedDataset(Samples):
    """Samples of seq_length + 1 tokens from one or several corpora; a source of weight 0 is as good as absent.

    With `order`, each corpus is walked in that order instead of on its circle: a function of the source and its place; `rule`
    is the Megatron whose shares a blend has.
    Raises MissingInput or BadData for a corpus that is absent, damaged or too short.
    """

    def __init__(
        self,
        sources: list[Source],
        seq_length: int,
        seed: int,
        vocab_size: int | None = None,
        order: Callable[[Source, int], Walk] | None = None,
        rule: Rule = "core",
    ):
        super().__init__(seq_length, seed, vocab_size)
        order = order or (lambda source, place: Circle(source, seq_length, int(hash64(seed, place)[0])))
        used = [source for source in sources if source.weight]
        self.sources = sources
        self.walks = [order(source, place) for place, source in enumerate(used)]
        self.blend = Blend([source.weight for source in used], rule)

    @property
    def tokens_per_epoch(self) -> int:
        return sum(walk.num_tokens for walk in self.walks)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Samples by number.  int64 [b] -> int64 [b, s+1]"""
        numbers = np.asarray(numbers, np.int64)
        if numbers.size and numbers.min() < 0:
            raise IndexError(f"sample {numbers.min()}: numbers start at 0")
        if len(self.walks) == 1:
            return self.walks[0].rows(numbers)
        dataset_ids, positions = self.blend.locate(numbers)
        rows = np.empty((len(numbers), self.seq_length + 1), np.int64)
        for d in np.unique(dataset_ids).tolist():
            here = dataset_ids == d
            rows[here] = self.walks[d].rows(positions[here])
        return rows

    def origin(self, number: int) -> str:
        return self.walks[self.blend.locate(np.array([number]))[0][0]].corpus.prefix

    def extents(self) -> list[tuple]:
        return [(walk.corpus, walk.start, walk.stop) for walk in self.walks]

    @functools.cached_property
    def rows_in_first_epoch(self) -> int:
        """Samples from 0 on that visit no token twice."""
        return self.blend.samples_before(np.array([walk.num_tokens // self.seq_length for walk in self.walks]))

    def describe(self) -> str:
        """A line for each source: prefix, documents, tokens, weight, range."""
        walks = iter(self.walks)
        return "\n".join(source_line(source, next(walks) if source.weight else None) for source in self.sources)

    def fingerprint(self) -> str:
        """Names the samples: sha256 over seed, length, and each corpus' content (IndexedDataset.fingerprint), range and share."""
        parts = [[*walk.identity(), share] for walk, share in zip(self.walks, self.blend.weights.tolist(), strict=True)]
        return hashlib.sha256(json.dumps([self.seed, self.seq_length, parts]).encode()).hexdigest()


def source_line(source: Source, walk: Walk | None) -> str:
    if walk is None:
        return f"{source.prefix}: weight 0, not used"
    unvouched = "" if walk.corpus.meta else "; no .meta.json vouches for it: only its structure and its ids are checked"
    return (
        f"{source.prefix}: {walk.corpus.num_documents} documents, {walk.corpus.num_tokens} tokens, "
        f"weight {source.weight:g}, range {walk.start}:{walk.stop}{unvouched}"
    )
