"""What every dataset gives the loader: rows of s + 1 tokens by sample number, and what of them counts.

Randomness has an address, not a history: a row is a pure function of (seed, sample number), through `hash64`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from megatron.data.borders import Borders
from megatron.errors import BadData

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash64(*words: int | np.integer | np.ndarray) -> np.ndarray:
    """Integers mixed into uniform 64-bit ones by splitmix64 (Steele et al. 2014).  [b] ... -> uint64 [b]"""
    h: np.ndarray = np.zeros(1, np.uint64)
    for word in words:
        h = h + np.asarray(word).astype(np.uint64) + GOLDEN
        h = (h ^ (h >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> 27)) * np.uint64(0x94D049BB133111EB)
        h = h ^ (h >> 31)
    return h


class Samples(ABC):
    """A dataset. What has no body here, each kind of dataset must have; the rest holds for most of them."""

    seq_length: int
    seed: int
    vocab_size: int | None
    borders: Borders = Borders()

    def __init__(self, seq_length: int, seed: int, vocab_size: int | None):
        self.seq_length, self.seed, self.vocab_size = seq_length, seed, vocab_size

    @abstractmethod
    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Samples by number.  int64 [b] -> int64 [b, s+1]"""

    @abstractmethod
    def origin(self, number: int) -> str:
        """The file that sample `number` comes from, for messages."""

    def category(self, number: int) -> str:
        """What kind of text sample `number` is: its corpus, where nothing finer is known."""
        return Path(self.origin(number).partition(",")[0]).name

    @abstractmethod
    def describe(self) -> str:
        """What the data are, in one or several lines of the run's log."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Names the samples: equal where every sample is."""

    @property
    @abstractmethod
    def tokens_per_epoch(self) -> int:
        """Tokens that a pass over all data consumes."""

    @property
    @abstractmethod
    def rows_in_first_epoch(self) -> int:
        """Samples from 0 on that validation may score."""

    def scored(self, numbers: np.ndarray) -> np.ndarray | None:
        """Which tokens are to be predicted, None for all.  int64 [b] -> bool [b, s+1]

        What is not, and comes before them in a row, is given; what comes behind the last of them follows from it.
        """
        return None

    def event(self, first: int, last: int) -> tuple[str, str]:
        """What a validation of places first..last scores of each row, and what it is given, in words for the records."""
        return f"{first}..{last} of each row", "token 0" if first else "nothing"

    def vectors(self, numbers: np.ndarray) -> np.ndarray | None:
        """The vector that belongs to each sample, None where there is none.  int64 [b] -> float32 [b, d]"""
        return None

    def noted(self) -> dict:
        """What a model of these samples needs wherever it is used, for its checkpoints to keep."""
        return {}

    def extents(self) -> list[tuple]:
        """(corpus, start, stop) of all tokens that are read, where they are ranges of corpora."""
        return []

    @property
    def samples_per_epoch(self) -> float:
        return self.tokens_per_epoch / self.seq_length

    def epoch(self, number: int) -> float:
        """Passes over all tokens together before sample `number`; weights may walk one corpus faster than another."""
        return number / self.samples_per_epoch

    def check_ids(self, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Every id of the rows of samples `numbers` is one of the vocabulary's.  Raises BadData with the file and the id."""
        limit = math.inf if self.vocab_size is None else self.vocab_size
        if not rows.size or (rows.min() >= 0 and rows.max() < limit):
            return
        row, column = np.argwhere((rows < 0) | (rows >= limit))[0]
        raise BadData(
            f"{self.origin(int(numbers[row]))}: sample {numbers[row]} holds id {rows[row, column]}, expected 0 or more "
            f"and below the vocabulary size {self.vocab_size}; give the tokenizer that made the corpus"
        )
