"""One corpus out of two folders: token files `<id>_tokens.npz` or `<id>.npz`, and a vector `<id>.npy` for each.

    python tools/import_pairs.py --tokens tokens/train --vectors latents/train --vocab-size 30522 --output-prefix data/pairs

A token file holds `input_ids` and `attention_mask`; what the mask leaves out is padding and is dropped. Writes PREFIX.bin and
PREFIX.idx, a document a text, and PREFIX.vectors.npy, float32, in the natural order of the ids (2 before 10). Every file
is read once and checked; nothing appears under the final names before all of them are.
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
from collections import Counter
from collections.abc import Sequence

from megatron.data.pairs import vectors_path
from megatron.data.prepare.vector_pairs import PairFolders, counted, find_pairs, import_all
from megatron.errors import CannotWrite, exits
from megatron.files import output_prefix, staged


def outputs(prefix: str) -> list[Path]:
    return [Path(f"{prefix}{end}") for end in (".bin", ".idx", ".meta.json")] + [vectors_path(prefix)]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--tokens", type=Path, required=True, metavar="DIR", help="folder of <id>_tokens.npz or <id>.npz")
    add("--vectors", type=Path, required=True, metavar="DIR", help="folder of <id>.npy")
    add("--vocab-size", type=int, required=True, metavar="V", help="ids lie below it (bert-base-uncased: 30522)")
    add(
        "--output-prefix",
        type=output_prefix,
        required=True,
        metavar="PREFIX",
        help="writes PREFIX.bin, PREFIX.idx and PREFIX.vectors.npy",
    )
    add(
        "--on-bad",
        choices=["fail", "skip"],
        default="fail",
        help="fail: stop at the first pair that cannot be used; skip: leave such pairs out and count them",
    )
    add("--overwrite", action="store_true", help="replace an output that exists")
    add("--json", action="store_true", help="print one JSON object instead of a line")
    args = parser.parse_args(argv)
    if args.vocab_size < 1:
        parser.error("--vocab-size must be at least 1")
    return args


@exits
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    taken = [path for path in outputs(args.output_prefix) if path.exists()]
    if taken and not args.overwrite:
        raise CannotWrite(f"{taken[0]} exists: choose another --output-prefix, or pass --overwrite")
    pairs, skipped = find_pairs(args.tokens, args.vectors), Counter[str]()
    given = PairFolders(args.tokens, args.vectors, args.vocab_size, args.on_bad == "skip")
    with staged(Path(args.output_prefix).parent) as stage:
        tally = import_all(pairs, given, stage / Path(args.output_prefix).name, skipped)
        for path in taken:  # never a new .bin beside an old .idx or old vectors
            path.unlink(missing_ok=True)
    said = f"{args.output_prefix}: {tally.pairs:,} pairs, {tally.tokens:,} tokens, vectors of {tally.width}{counted(skipped)}"
    found = {"prefix": args.output_prefix, "pairs": tally.pairs, "tokens": tally.tokens, "vector_width": tally.width}
    print(json.dumps(found | {"skipped": dict(skipped)}) if args.json else said)


if __name__ == "__main__":
    sys.exit(main())
