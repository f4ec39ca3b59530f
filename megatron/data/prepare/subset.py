"""A range of a corpus' tokens as a corpus of its own: exactly so many, document borders kept, its origin on record."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from megatron.data.indexed import IndexedDataset, IndexedWriter
from megatron.data.lineage import origin_of
from megatron.errors import CannotWrite
from megatron.progress import ProgressLine

CHUNK = 1 << 21  # tokens copied at a time
SUFFIXES = (".bin", ".idx", ".meta.json")


def write_subset(corpus: IndexedDataset, start: int, stop: int, prefix: str) -> IndexedWriter:
    """Tokens [start, stop) as a new corpus with its own sidecar.  Raises BadData for a damaged source, CannotWrite."""
    extra = {"subset_of": origin_of(corpus, start, stop)}
    with IndexedWriter(prefix, corpus.dtype, corpus.meta and corpus.meta["tokenizer"], extra) as writer:
        first, last = documents_in(corpus, start, stop)
        edges = np.append(corpus.document_starts[first:last], stop).clip(min=start)
        if documents_are_sequences(corpus):
            copy_documents(corpus, edges, writer)
        else:
            line = ProgressLine(stop - start, "tokens")
            for number in range(first, last):
                copy_document(corpus, number, start, stop, writer)
                line.show(writer.num_tokens)
            line.clear()
    return writer


def documents_in(corpus: IndexedDataset, start: int, stop: int) -> tuple[int, int]:
    """The documents [first, last) with tokens in [start, stop), and the empty ones around; behind them only at the very end."""
    starts = corpus.document_starts
    first = int(np.searchsorted(starts, start))
    if first == len(starts) or starts[first] > start:
        first -= 1
    return first, len(starts) if stop == corpus.num_tokens else int(np.searchsorted(starts, stop))


def documents_are_sequences(corpus: IndexedDataset) -> bool:
    sizes = corpus.sizes
    return len(sizes) == corpus.num_documents and np.array_equal(sizes.cumsum(dtype=np.int64) - sizes, corpus.document_starts)


def copy_documents(corpus: IndexedDataset, edges: np.ndarray, writer: IndexedWriter) -> None:
    """The documents between consecutive edges, many at once."""
    at, line = 0, ProgressLine(int(edges[-1] - edges[0]), "tokens")
    while at < len(edges) - 1:
        until = max(at + 1, int(np.searchsorted(edges, edges[at] + CHUNK, side="right")) - 1)
        writer.add_documents(corpus.tokens(int(edges[at]), int(edges[until])), np.diff(edges[at : until + 1]))
        at = until
        line.show(writer.num_tokens)
    line.clear()


def copy_document(corpus: IndexedDataset, number: int, start: int, stop: int, writer: IndexedWriter) -> None:
    """What lies in [start, stop) of one document, in its sequences; those that lie outside are left out."""
    begin, sizes = corpus.extent(number)
    end = begin + int(sizes.sum(dtype=np.int64))
    if begin < start or end > stop:
        ends = begin + sizes.cumsum(dtype=np.int64)
        inside = (ends - sizes < stop) & (ends > start)
        sizes = ends[inside].clip(max=stop) - (ends - sizes)[inside].clip(min=start)
        begin, end = max(begin, start), min(end, stop)
    writer.add_document(corpus.tokens(begin, max(begin, end)), sizes)


def refuse_taken(source: str, output: str, overwrite: bool) -> None:
    """The source is never overwritten, and nothing else unasked.  Raises CannotWrite."""
    if os.path.realpath(f"{output}.bin") == os.path.realpath(f"{source}.bin"):
        raise CannotWrite(f"--output-prefix {output} is the corpus itself: choose another")
    for path in (Path(f"{output}{suffix}") for suffix in SUFFIXES):
        if path.exists() and not overwrite:
            raise CannotWrite(f"{path} exists: choose another --output-prefix, or pass --overwrite")
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"{Path(output).parent}: {error.strerror}; choose another --output-prefix") from error
