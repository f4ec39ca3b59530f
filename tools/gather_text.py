"""Gather real text that is already here: the sources of Python's own library, one document a file, as JSON Lines.

    python tools/gather_text.py --output data/train.jsonl --megabytes 20 --valid-output data/valid.jsonl --valid-every 20

The same Python version and seed give the same files. Documents are shuffled by a hash of their path, so that the
training and validation documents are alike.
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

from megatron.data.prepare.python_sources import gather
from megatron.errors import CannotWrite, exits


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE", help="JSON Lines to write")
    add("--megabytes", type=float, default=20.0, help="stop after this many megabytes of text, both files together [20]")
    add("--seed", type=int, default=0, help="another order of the documents [0]")
    add("--valid-output", type=Path, metavar="FILE", help="JSON Lines for held-out documents")
    add("--valid-every", type=int, metavar="K", help="every K-th document is held out [20]")
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--json", action="store_true", help="print one JSON object a file instead of a line")
    args = parser.parse_args(argv)
    if not args.megabytes > 0:
        parser.error("--megabytes must be above 0")
    if args.valid_every is not None and not args.valid_output:
        parser.error("--valid-every needs --valid-output FILE")
    args.valid_every = 20 if args.valid_every is None else args.valid_every
    if args.valid_every < 2:
        parser.error("--valid-every must be at least 2")
    if args.valid_output and args.valid_output.resolve() == args.output.resolve():
        parser.error("--output and --valid-output name the same file")
    return args


@exits
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    for path in (args.output, args.valid_output):
        if path and path.exists() and not args.overwrite:
            raise CannotWrite(f"{path} exists: choose another name, or pass --overwrite")
    outputs = gather(args.output, args.valid_output, args.valid_every, args.seed, args.megabytes)
    short = sum(output.text_bytes for output in outputs) < args.megabytes * 1e6
    for found in (output.facts() for output in outputs):
        said = (
            f"{found['path']}: {found['documents']:,} documents, {found['text_bytes']:,} bytes of text, sha256 {found['sha256']}"
        )
        print(json.dumps(found | {"all_there_is": short}) if args.json else said + (" (all there is)" if short else ""))


if __name__ == "__main__":
    sys.exit(main())
