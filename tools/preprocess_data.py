"""Text to tokens: JSON Lines, parquet or plain text, also .gz and .zst, to PREFIX_<key>_document.bin, .idx and .meta.json.

    python tools/preprocess_data.py --input corpus.jsonl --output-prefix data/corpus --append-eod --workers 8

The order of the input is kept, or drawn from --shuffle SEED, and the output is the same for any number of workers. A run that
is killed leaves nothing under the final name, and the same command goes on where it stopped. There is no tool that merges
corpora, because training blends them: --train-data-path 0.7 data/a 0.3 data/b.
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
import os
from collections.abc import Callable, Sequence

from megatron.data.encoding import Recipe
from megatron.data.prepare.preprocess import Preprocessing, preprocess, summary
from megatron.data.text_files import input_files
from megatron.data.tokenizer import add_flags, flags_of
from megatron.errors import exits
from megatron.files import output_prefix


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="files or quoted globs: .parquet, .csv, .tsv, .txt (one document a file), .json with an array, anything else JSON "
        "Lines; .gz and .zst of all but parquet",
    )
    add("--root", metavar="DIR", help="folder that --input and --output-prefix start from")
    add("--json-keys", nargs="+", default=["text"], metavar="KEY", help="one output a key [text]")
    add(
        "--output-prefix",
        type=output_prefix,
        required=True,
        metavar="PREFIX",
        help="writes PREFIX_<key>_document.bin, .idx and .meta.json",
    )
    add("--overwrite", action="store_true", help="replace an output that exists")
    add_flags(parser)
    add(
        "--bpe-backend",
        choices=["auto", "gigatoken", "tiktoken"],
        default="auto",
        help="who makes GPT-2's ids, which are the same [auto: gigatoken where it is installed]",
    )
    add_document_flags(add)
    add("--workers", type=int, default=1, help="processes that tokenize [1]")
    add("--dataset-impl", choices=["mmap"], default="mmap", help="the one format there is")
    add("--partitions", type=int, choices=[1], default=1, help="Megatron's: the order is always kept, use --workers")
    add("--json", action="store_true", help="print one JSON object an output, with its counts, instead of a line")
    for flag in ("--make-vocab-size-divisible-by", "--seq-length", "--log-interval"):
        add(flag, type=int, help="Megatron's, and taken for its scripts' sake: decides nothing about the output")
    args = parser.parse_args(argv)
    if min(args.workers, args.max_line_bytes) < 1:
        parser.error("--workers and --max-line-bytes must be at least 1")
    if args.root:
        args.input = [os.path.join(args.root, pattern) for pattern in args.input]
        args.output_prefix = os.path.join(args.root, args.output_prefix)
    if len(set(args.json_keys)) < len(args.json_keys):
        parser.error("--json-keys names a key twice")
    return args


def add_document_flags(add: Callable) -> None:
    """What becomes a document, and in which order."""
    add("--append-eod", action="store_true", help="end each document with the end-of-document id")
    add(
        "--on-bad-line",
        choices=["fail", "skip"],
        default="fail",
        help="fail: stop at the first line that is no document; skip: list such lines in PREFIX.rejects.jsonl",
    )
    add(
        "--max-line-bytes",
        type=int,
        default=16 << 20,
        metavar="N",
        help="a longer line (value of a parquet file) is no document [16 MiB]",
    )
    add(
        "--shuffle",
        type=int,
        metavar="SEED",
        help="write the documents in an order drawn from the seed, so that the first tokens are a sample of all; meanwhile "
        "takes the output's size on disk once more [the order of the input]",
    )


@exits
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    recipe = Recipe(
        **flags_of(args),
        bpe_backend=args.bpe_backend,
        keys=tuple(args.json_keys),
        append_eod=args.append_eod,
        max_line_bytes=args.max_line_bytes,
    )
    job = Preprocessing(
        recipe=recipe,
        files=tuple(input_files(args.input)),
        prefix=args.output_prefix,
        overwrite=args.overwrite,
        skip_bad=args.on_bad_line == "skip",
        workers=args.workers,
        shuffle=args.shuffle,
    )
    for found in preprocess(job):
        print(json.dumps(found) if args.json else summary(found))


if __name__ == "__main__":
    sys.exit(main())
