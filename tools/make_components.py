"""Papers of several kinds of text, each a Markov chain of known entropy: what --data-kind random-window reads, by category.

    python tools/make_components.py --components 8 --tokens 500k --output data/chains
    python pretrain_gpt.py FLAGS --data-kind random-window --data-path data/chains --num-categories 4 --unique-tokens 400k

One paper in ten validates and one tests. Ids are 0 to symbols - 1 (--tokenizer-type ByteTokenizer up to 257).
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

from megatron.data.synthetic.components import HELD_OUT, write_components
from megatron.data.synthetic.presets import Shape
from megatron.errors import exits
from megatron.flags import ConfigError, parse_count


@exits
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--components", type=int, default=8, help="categories [8]")
    add("--symbols", type=int, default=16, help="of each chain [16]")
    add("--sharpness", type=float, default=2.0, help="of their laws: 0 uniform, 1 Dirichlet(1), above it peaked [2]")
    add("--tokens", type=parse_count, default=500_000, help="of each category, all splits together [500k]")
    add("--paper-length", type=int, default=1024, help="tokens of a paper [1024]")
    add("--seed", type=int, default=1234, help="of chains and tokens [1234]")
    add("--output", required=True, metavar="DIR", help="folder for tokens.bin, index.jsonl, splits.json and config.json")
    add("--json", action="store_true", help="print one JSON object instead of lines")
    args = parser.parse_args(argv)
    least = {"components": 1, "symbols": 2, "paper_length": 2, "tokens": HELD_OUT * max(2, args.paper_length), "sharpness": 0}
    if wrong := [
        f"--{name.replace('_', '-')} {getattr(args, name):g}: expected {low} or more"
        for name, low in least.items()
        if not getattr(args, name) >= low
    ]:
        raise ConfigError(wrong)
    shape = Shape(components=args.components, symbols=args.symbols, sharpness=args.sharpness, seed=args.seed)
    floors = write_components(args.output, shape, int(args.tokens), args.paper_length)
    if args.json:
        print(json.dumps({"folder": args.output, "tokens": int(args.tokens), "nats_per_token": floors}))
    else:
        print("\n".join(f"{args.output}, {name}: {value:.4f} nats a token" for name, value in floors.items()))


if __name__ == "__main__":
    sys.exit(main())
