"""One document a row, padded: every document once an epoch, in a fresh order each epoch.

A row has s + 1 places, of which a document fills at most s: the last column is read by no objective's inputs and is no
target of one that predicts in place, so a token there would count for some objectives and not for others.

What is scored is closed: a document ends with its first end token, and gets one where it has none and the row has room.
Documents of all lengths are then events that exclude each other, so that the probabilities of all rows sum to one. The
places behind hold the same token; they follow from the end, cost nothing after it, and may not be seen before it.
"""

from __future__ import annotations

import numpy as np

from megatron.data.gpt_dataset import permute
from megatron.data.indexed import IndexedDataset
from megatron.data.samples import Samples, hash64

ORDER = 110  # what a random number is for
SCANNED_TOKENS = 1 << 22  # at once, in search of end tokens
RULE = "closed by an end token"  # in fingerprints: rows of other rules are other problems


class Padded(Samples):
    """Rows of one corpus' documents. A subclass sets `kept` int64 [m], the documents that have a row, before the first row.

    `end` is the id that closes a document and fills the row behind it.  Raises MissingInput or BadData.
    """

    def __init__(self, prefix: str, seq_length: int, seed: int, vocab_size: int | None, end: int):
        super().__init__(seq_length, seed, vocab_size)
        self.corpus, self.end = IndexedDataset(prefix), end
        self.starts = np.asarray(self.corpus.document_starts)
        self.lengths = np.diff(self.starts, append=self.corpus.num_tokens)
        self.given = self.num_given()
        self.closed = self.closed_lengths()
        self.kept = np.arange(self.corpus.num_documents)

    def num_given(self) -> np.ndarray:
        """How many of each document's first tokens are read and never scored.  -> int64 [D]"""
        return np.zeros_like(self.lengths)

    def closed_lengths(self) -> np.ndarray:
        """Each document's tokens up to the first end behind what is given, or one more, for the end it lacks.  -> int64 [D]"""
        count = self.corpus.num_tokens
        parts = [
            first + np.flatnonzero(self.corpus.tokens(first, min(first + SCANNED_TOKENS, count)) == self.end)
            for first in range(0, count, SCANNED_TOKENS)
        ]
        ends = np.append(np.concatenate(parts) if parts else np.zeros(0, np.int64), count)
        first = ends[np.searchsorted(ends, self.starts + self.given)] - self.starts
        return np.minimum(first, self.lengths) + 1

    @property
    def tokens_per_epoch(self) -> int:
        """Places of an epoch's rows, padding included: what the trainer counts as consumed."""
        return len(self.kept) * self.seq_length

    @property
    def rows_in_first_epoch(self) -> int:
        return len(self.kept)

    @property
    def samples_per_epoch(self) -> float:
        return len(self.kept)

    def extents(self) -> list[tuple]:
        return [(self.corpus, 0, self.corpus.num_tokens)]

    def documents(self, numbers: np.ndarray) -> np.ndarray:
        """The document of each sample: an epoch's order is a permutation drawn from (seed, epoch).  int64 [b] -> int64 [b]"""
        epoch, place = np.divmod(np.asarray(numbers, np.int64), len(self.kept))
        order = permute(place, np.full_like(place, len(self.kept)), hash64(self.seed, ORDER, epoch))
        return self.kept[order.astype(np.int64)]

    def filled(self, documents: np.ndarray) -> np.ndarray:
        """How many places each document fills, its end included.  int64 [b] -> int64 [b]"""
        return self.closed[documents].clip(max=self.seq_length)

    def said_of_ends(self, what: str) -> str:
        """How many documents are cut, in words: by the length of a row, or at an end token inside."""
        inside = int((self.closed < self.lengths)[self.kept].sum())
        cut = f"{int((self.closed > self.seq_length)[self.kept].sum())} {what} cut"
        return f"{cut}, {inside} at an end token inside" if inside else cut

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Samples by number.  int64 [b] -> int64 [b, s+1]"""
        documents = self.documents(numbers)
        rows = np.full((len(documents), self.seq_length + 1), self.end, np.int64)
        own = np.minimum(self.filled(documents), self.lengths[documents])
        for row, start, length in zip(rows, self.starts[documents].tolist(), own.tolist(), strict=True):
            row[:length] = self.corpus.tokens(start, start + length)
        return rows

    def scored(self, numbers: np.ndarray) -> np.ndarray:
        """True behind what is given, up to the end.  int64 [b] -> bool [b, s+1]"""
        documents, place = self.documents(numbers), np.arange(self.seq_length + 1)
        return (place >= self.given[documents, None]) & (place < self.filled(documents)[:, None])

    def origin(self, number: int) -> str:
        """The corpus and document that sample `number` comes from."""
        return f"{self.corpus.prefix}, document {self.documents(np.array([number]))[0]}"
