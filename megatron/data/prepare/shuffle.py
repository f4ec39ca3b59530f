"""A corpus' documents in an order drawn from a seed: exactly a permutation, in memory that does not grow with the corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron.data.gpt_dataset import permute
from megatron.data.indexed import IndexedDataset, IndexedWriter
from megatron.data.samples import hash64
from megatron.progress import ProgressLine

ORDER = 130  # what a random number is for
DOCUMENTS, TOKENS = 1 << 16, 1 << 22  # written at once: so many documents, or what has about so many tokens


def write_shuffled(corpus: IndexedDataset, writer: IndexedWriter, seed: int) -> None:
    """Append all documents of a corpus of one sequence each, in the order of (seed, number of documents).

    Reads at random, a document at a time, and checks each block of the corpus when it first meets it.  Raises BadData for a
    damaged block, CannotWrite.
    """
    count, done = corpus.num_documents, 0
    line = ProgressLine(corpus.num_tokens, "tokens")
    starts, sizes = index_of(corpus)
    for first in range(0, count, DOCUMENTS):
        places = np.arange(first, min(first + DOCUMENTS, count))
        order = permute(places, np.full_like(places, count), np.repeat(hash64(seed, ORDER), len(places))).astype(np.int64)
        lengths = sizes[order].astype(np.int64)
        for part in np.split(np.arange(len(order)), np.flatnonzero(np.diff(lengths.cumsum() // TOKENS)) + 1):
            ids = gathered(corpus, starts[order[part]] // corpus.dtype.itemsize, lengths[part])
            writer.add_documents(ids, lengths[part])
            done += len(ids)
            line.show(done, f"shuffled {first + int(part[-1]) + 1:,} documents")
    line.clear()


def index_of(corpus: IndexedDataset) -> tuple[np.ndarray, np.ndarray]:
    """Byte offset and size of each sequence, mapped and not read: the memory is the page cache's."""
    path, count = Path(f"{corpus.prefix}.idx"), corpus.num_sequences
    sizes = np.memmap(path, "<i4", "r", offset=corpus.sizes_at, shape=(count,))
    return np.memmap(path, "<i8", "r", offset=corpus.sizes_at + 4 * count, shape=(count,)), sizes


def gathered(corpus: IndexedDataset, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Documents that begin at `starts`, back to back; read in the order in which they lie on disk.  int64 [d] x 2 -> [n]"""
    ids, ends = np.empty(int(lengths.sum()), corpus.dtype), lengths.cumsum()
    begins = (ends - lengths).tolist()
    for at in np.argsort(starts, kind="stable").tolist():
        start, length = int(starts[at]), int(lengths[at])
        ids[begins[at] : begins[at] + length] = corpus.tokens(start, start + length)
    return ids
