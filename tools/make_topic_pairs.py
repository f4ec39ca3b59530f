"""Make texts with vectors whose mutual information is known, to see whether a network uses what it is told.

    python tools/make_topic_pairs.py --documents 20000 --output data/topics
    python tools/evaluate.py vectors runs/topics      # after training: what the vector tells, against what it holds

Each topic has words of its own and a vector; a text has them with a probability of --share a word. What text and vector have
in common is log K (1 - (1 - q)^n) nats. Writes PREFIX.bin, .idx, .vectors.npy and .meta.json, as tools/import_pairs.py does. Ids
are below 256 with the defaults, so that --tokenizer-type ByteTokenizer will do.
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
from dataclasses import fields

from megatron.data.pairs import vectors_path
from megatron.data.synthetic.topics import Topics, write_pairs
from megatron.errors import CannotWrite, exits
from megatron.files import output_prefix, staged

SAID = {
    "topics": "K",
    "length": "words of a text",
    "share": "probability that a word is one of the topic's own",
    "own": "words that only one topic has, of each",
    "common": "words that all share",
    "size": "numbers of a vector",
    "noise": "standard deviation of a vector around its topic's, which has length 1",
    "seed": "of topics and texts; training and validation share it, and differ in --first",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=output_prefix, required=True, metavar="PREFIX", help="where to write")
    parser.add_argument("--documents", type=int, default=20000, help="pairs [20000]")
    parser.add_argument("--first", type=int, default=0, metavar="PART", help="begin at this part, of 4096 pairs [0]")
    for field in fields(Topics):
        kind = type(field.default)
        parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=f"{SAID[field.name]} [{field.default}]")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a line")
    given = parser.parse_args(argv)
    for name in ("documents", "topics", "length", "own", "common", "size"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} {getattr(given, name)}: expected 1 or more")
    if not 0 < given.share < 1 or given.noise < 0 or given.seed < 0 or given.first < 0:
        parser.error("--share must lie between 0 and 1, --noise, --seed and --first may not be negative")
    return given


@exits
def main(argv: list[str] | None = None) -> None:
    given = parse(argv)
    source = Topics(**{field.name: getattr(given, field.name) for field in fields(Topics)})
    for path in (Path(f"{given.output}.bin"), vectors_path(given.output)):
        if path.exists():
            raise CannotWrite(f"{path} exists: choose another --output, or remove it")
    with staged(Path(given.output).parent) as stage:
        write_pairs(source, stage / Path(given.output).name, given.documents, given.first)
    found = {"prefix": str(given.output), "pairs": given.documents, "information": source.information()}
    found |= {"entropy": source.entropy(), "ids": source.num_ids}
    said = f"{given.output}: {given.documents:,} texts of {source.length} words, {source.num_ids} ids, vectors of {source.size}; "
    said += f"a text has {source.entropy():.3f} nats given its topic, and {source.information():.4f} in common with its vector"
    print(json.dumps(found) if given.json else said)


if __name__ == "__main__":
    sys.exit(main())
