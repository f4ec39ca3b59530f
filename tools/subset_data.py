"""The first tokens of a corpus, or any range of them, as a corpus of their own: exactly that many, document borders kept.

    python tools/subset_data.py data/c4_text_document --tokens 100M --output-prefix data/c4_100m
    python tools/subset_data.py data/c4_text_document --tokens 0.25 --output-prefix data/c4_quarter

Training needs no copy for this (--unique-tokens, or START:END before a prefix): copies are for handing on. Subsets are
prefixes of the same stream, so smaller ones lie inside larger ones token for token; the document on the border is cut.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed

from megatron.data.indexed import IndexedDataset, IndexedWriter  # noqa: E402
from megatron.data.lineage import origin_of  # noqa: E402
from megatron.data.sources import Source, parse_range, token_range  # noqa: E402
from megatron.errors import BadData, CannotWrite, exits  # noqa: E402
from megatron.files import output_prefix  # noqa: E402

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
            for number in range(first, last):
                copy_document(corpus, number, start, stop, writer)
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
    at = 0
    while at < len(edges) - 1:
        until = max(at + 1, int(np.searchsorted(edges, edges[at] + CHUNK, side="right")) - 1)
        writer.add_documents(corpus.tokens(int(edges[at]), int(edges[until])), np.diff(edges[at : until + 1]))
        at = until


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


def refuse_taken(args: argparse.Namespace) -> None:
    """The source is never overwritten, and nothing else unasked.  Raises CannotWrite."""
    if os.path.realpath(f"{args.output_prefix}.bin") == os.path.realpath(f"{args.prefix}.bin"):
        raise CannotWrite(f"--output-prefix {args.output_prefix} is the corpus itself: choose another")
    for path in (Path(f"{args.output_prefix}{suffix}") for suffix in SUFFIXES):
        if path.exists() and not args.overwrite:
            raise CannotWrite(f"{path} exists: choose another --output-prefix, or pass --overwrite")
    try:
        Path(args.output_prefix).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"{Path(args.output_prefix).parent}: {error.strerror}; choose another --output-prefix") from error


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("prefix", metavar="PREFIX", help="corpus to take from, without .bin and .idx")
    add(
        "--tokens",
        required=True,
        metavar="N|SHARE|START:END",
        help="how many of the first tokens: 100M, or a share: 0.25; or a range: 1e6:2e6",
    )
    add("--output-prefix", type=output_prefix, required=True, metavar="PREFIX", help="writes PREFIX.bin, .idx and .meta.json")
    add("--overwrite", action="store_true", help="replace an output that exists")
    args = parser.parse_args(argv)
    return args


@exits
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    marks = args.tokens if ":" in args.tokens else f":{args.tokens}"
    if marks.count(":") > 1:
        raise BadData(f"--tokens {args.tokens} is no count such as 100M, no share such as 0.25 and no range such as 1e6:2e6")
    chosen = Source(1.0, *parse_range(marks, args.prefix, "--tokens"), args.prefix)
    corpus = IndexedDataset(args.prefix)
    start, stop = token_range(chosen, corpus.num_tokens)
    if start == stop:
        raise BadData(f"--tokens {args.tokens} of {args.prefix}, which has {corpus.num_tokens} tokens, is none: ask for more")
    refuse_taken(args)
    written = write_subset(corpus, start, stop, args.output_prefix)
    print(
        f"{args.output_prefix}: {written.num_documents:,} documents, {written.num_tokens:,} tokens "
        f"(tokens {start}:{stop} of {args.prefix})"
    )
    if not corpus.meta:
        print(f"{args.prefix} has no .meta.json: its tokens were copied as they are, with no checksum to hold them against")


if __name__ == "__main__":
    sys.exit(main())
