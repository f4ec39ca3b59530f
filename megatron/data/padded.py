"""One document a row, padded: every document once an epoch, in a fresh order each epoch.

A row has s + 1 places, of which a document fills at most s: the last column is read by no objective's inputs and is no
target of one that predicts in place, so a token there would count for some objectives and not for others.
"""

from __future__ import annotations

import numpy as np

from megatron.data.gpt_dataset import permute
from megatron.data.indexed import IndexedDataset
from megatron.data.samples import Samples, hash64

ORDER = 110  # what a random number is for


class Padded(Samples):
    """Rows of one corpus' documents. A subclass sets `kept` int64 [m], the documents that have a row, before the first row.

    `padding` is the id behind a document's end, which is never scored.  Raises MissingInput or BadData.
    """

    def __init__(self, prefix: str, seq_length: int, seed: int, vocab_size: int | None, padding: int):
        super().__init__(seq_length, seed, vocab_size)
        self.corpus, self.padding = IndexedDataset(prefix), padding
        self.starts = np.asarray(self.corpus.document_starts)
        self.lengths = np.diff(self.starts, append=self.corpus.num_tokens)
        self.kept = np.arange(self.corpus.num_documents)

    @property
    def tokens_per_epoch(self) -> int:
        """Places of an epoch's rows, padding included: what the trainer counts as consumed."""
        return len(self.kept) * self.seq_length

    @property
    def rows_in_first_epoch(self) -> int:
        return len(self.kept)

    def extents(self) -> list[tuple]:
        return [(self.corpus, 0, self.corpus.num_tokens)]

    def documents(self, numbers: np.ndarray) -> np.ndarray:
        """The document of each sample: an epoch's order is a permutation drawn from (seed, epoch).  int64 [b] -> int64 [b]"""
        epoch, place = np.divmod(np.asarray(numbers, np.int64), len(self.kept))
        order = permute(place, np.full_like(place, len(self.kept)), hash64(self.seed, ORDER, epoch))
        return self.kept[order.astype(np.int64)]

    def filled(self, documents: np.ndarray) -> np.ndarray:
        """How many places each document fills.  int64 [b] -> int64 [b]"""
        return self.lengths[documents].clip(max=self.seq_length)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Samples by number.  int64 [b] -> int64 [b, s+1]"""
        documents = self.documents(numbers)
        rows = np.full((len(documents), self.seq_length + 1), self.padding, np.int64)
        for row, start, length in zip(rows, self.starts[documents].tolist(), self.filled(documents).tolist(), strict=True):
            row[:length] = self.corpus.tokens(start, start + length)
        return rows

    def scored(self, numbers: np.ndarray) -> np.ndarray:
        """False on padding.  int64 [b] -> bool [b, s+1]"""
        return np.arange(self.seq_length + 1) < self.filled(self.documents(numbers))[:, None]

    def check_ids(self, rows: np.ndarray, numbers: np.ndarray) -> None:
        """As in Samples, of the documents' own ids: padding is none of the tokenizer's."""
        inside = np.arange(self.seq_length + 1) < self.filled(self.documents(numbers))[:, None]
        super().check_ids(np.where(inside, rows, 0), numbers)

    def origin(self, number: int) -> str:
        """The corpus and document that sample `number` comes from."""
        return f"{self.corpus.prefix}, document {self.documents(np.array([number]))[0]}"
