"""The first tokens of a corpus, or any range of them, as a corpus of their own: exactly that many, document borders kept.

    python tools/subset_data.py data/c4_text_document --tokens 100M --output-prefix data/c4_100m
    python tools/subset_data.py data/c4_text_document --tokens 0.25 --output-prefix data/c4_quarter

Training needs no copy for this (--unique-tokens, or START:END before a prefix): copies are for handing on. Subsets are
prefixes of the same stream, so smaller ones lie inside larger ones token for token; the document on the border is cut.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed
from megatron import stopping

if __name__ == "__main__":
    stopping.heed_interrupt()

import argparse
import json
from collections.abc import Sequence

from megatron.data.indexed import IndexedDataset
from megatron.data.prepare.subset import refuse_taken, write_subset
from megatron.data.sources import Source, parse_range, token_range
from megatron.errors import BadData, exits
from megatron.files import output_prefix


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
    add("--json", action="store_true", help="print one JSON object instead of a line")
    return parser.parse_args(argv)


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
    refuse_taken(args.prefix, args.output_prefix, args.overwrite)
    written = write_subset(corpus, start, stop, args.output_prefix)
    found = {"prefix": args.output_prefix, "documents": written.num_documents, "tokens": written.num_tokens}
    said = f"{args.output_prefix}: {written.num_documents:,} documents, {written.num_tokens:,} tokens"
    if args.json:
        print(json.dumps(found | {"source": args.prefix, "start": start, "stop": stop, "verified": bool(corpus.meta)}))
    else:
        print(f"{said} (tokens {start}:{stop} of {args.prefix})")
    if not (corpus.meta or args.json):
        print(f"{args.prefix} has no .meta.json: its tokens were copied as they are, with no checksum to hold them against")


if __name__ == "__main__":
    sys.exit(main())
