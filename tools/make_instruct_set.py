"""A set of instructions with one right answer each, to see whether a model follows them: Alpaca's keys, a record a line.

    python tools/make_instruct_set.py --count 4000 --output data/words.jsonl
    python tools/prepare_instruct.py --input data/words.jsonl --output-prefix data/words --tokenizer-type ByteTokenizer

Answers are `Answer: X.`: the first letter of a word, the word itself, or whether there is an a in it.
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

from megatron.data.synthetic.instructions import records
from megatron.errors import CannotWrite, exits
from megatron.files import replace_file


@exits
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--count", type=int, default=4000, help="records, all different [4000]")
    parser.add_argument("--seed", type=int, default=0, help="which ones [0]")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON Lines to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a FILE that exists")
    args = parser.parse_args(argv)
    found = records(args.count, args.seed)
    if args.output.exists() and not args.overwrite:
        raise CannotWrite(f"{args.output} exists: choose another name, or pass --overwrite")
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(args.output, "".join(json.dumps(record) + "\n" for record in found).encode())
    except OSError as error:
        raise CannotWrite(f"{args.output} cannot be written: {error.strerror}; choose another place") from None
    print(f"{args.output}: {len(found):,} records")


if __name__ == "__main__":
    sys.exit(main())
