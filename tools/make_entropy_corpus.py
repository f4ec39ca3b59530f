"""Make a corpus whose floor is known: an ordinary PREFIX.bin and .idx, with the source it was drawn from in PREFIX.meta.json.

    python tools/make_entropy_corpus.py markov --symbols 16 --tokens 10M --output data/chain
    python tools/make_entropy_corpus.py my_source.json --tokens 1M --output data/mine
    python tools/entropy_floor.py runs/chain          # after training on it: model minus oracle, paired by row

Sources: a preset's name, or a JSON file of one of
    {"kind": "hmm", "transitions": [symbol][state][next state]}
    {"kind": "markov", "order": k, "conditionals": [context][symbol]}
    {"kind": "mixture", "parts": [source, ...], "weights": [...], "document_length": mean tokens}
Ids are 0 to symbols - 1, so any tokenizer with that many ids will do for training (--tokenizer-type ByteTokenizer up to 257).
The first N tokens do not depend on --tokens: ranges and --unique-tokens of one corpus are nested samples of the source.
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

from megatron.data.synthetic.corpus import from_spec, write_corpus
from megatron.data.synthetic.presets import PRESETS, Shape, build
from megatron.data.synthetic.process import Process
from megatron.errors import BadData, MissingInput, exits
from megatron.files import parse_json
from megatron.flags import ConfigError, parse_count

PRESET_HELP = "; ".join(f"{name}: {(make.__doc__ or name).splitlines()[0].rstrip('.')}" for name, make in PRESETS.items())


def read_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make_entropy_corpus.py",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help=f"a JSON file, or a preset. {PRESET_HELP}")
    parser.add_argument("--output", required=True, metavar="PREFIX", help="where to write PREFIX.bin, .idx and .meta.json")
    parser.add_argument("--tokens", type=parse_count, required=True, help="length of the corpus, such as 10M")
    parser.add_argument("--seed", type=int, default=1234, help="of the tokens [1234]")
    shape = Shape()
    for flag, kind, what in (
        ("--symbols", int, "of a random source"),
        ("--order", int, "of a random chain: symbols of context"),
        ("--states", int, "of the random hidden source"),
        ("--components", int, "of the mixture"),
        ("--document-length", float, "of the mixture, mean tokens with the ending symbol"),
        ("--sharpness", float, "of random laws: 0 uniform, 1 Dirichlet(1), above it peaked"),
        ("--zipf", float, "of random laws: symbol r weighs (r + 1) ** -ZIPF as much"),
    ):
        default = getattr(shape, flag.removeprefix("--").replace("-", "_"))
        parser.add_argument(flag, type=kind, help=f"{what} [{default:g}]")
    parser.add_argument("--source-seed", dest="seed_of_source", type=int, help=f"of a random source itself [{shape.seed}]")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    given = parser.parse_args(argv)
    given.shape = {
        name: value for name, value in ((one.name, of_shape(given, one.name)) for one in fields(Shape)) if value is not None
    }
    if given.shape and given.source not in PRESETS:
        first = next(iter(given.shape))
        flag = "--source-seed" if first == "seed" else f"--{first.replace('_', '-')}"
        parser.error(f"{flag} shapes a preset, and {given.source} is none of {', '.join(PRESETS)}: leave it out")
    return given


def of_shape(given: argparse.Namespace, name: str) -> float | None:
    """What was given for a number of the shape; --seed is of the tokens."""
    return given.seed_of_source if name == "seed" else getattr(given, name)


def find_source(given: argparse.Namespace) -> Process:
    """Raises ConfigError for a shape that makes no sense, MissingInput, BadData for a name that is neither preset nor file."""
    if given.source in PRESETS:
        counts = {name: given.shape.get(name, 1) for name in ("symbols", "order", "states", "components")}
        low, sharpness = [f"--{name} {value}" for name, value in counts.items() if value < 1], given.shape.get("sharpness", 0)
        if low or not sharpness >= 0:
            raise ConfigError([f"{', '.join(low) or f'--sharpness {sharpness:g}'}: expected 1 or more, a sharpness of 0 or more"])
        return build(given.source, **given.shape)
    try:
        return from_spec(parse_json(Path(given.source).read_bytes()))
    except OSError as error:
        raise MissingInput(
            f"{given.source}: {error.strerror}; give a JSON file, or one of the presets {', '.join(PRESETS)}"
        ) from None
    except ValueError:
        raise BadData(f"{given.source}: is not JSON; see --help for what a source looks like") from None


@exits
def main(argv: list[str] | None = None) -> int:
    given = read_flags(argv)
    if given.tokens < 1 or given.tokens % 1:
        raise ConfigError([f"--tokens {given.tokens:g}: expected a whole number, 1 or more"])
    source = find_source(given)
    said = write_corpus(given.output, source, int(given.tokens), given.seed)
    low, high = said["entropy_rate"]
    if given.json:
        facts = {"prefix": given.output, "tokens": int(given.tokens), "symbols": source.num_symbols}
        print(json.dumps(facts | {"hidden_states": len(source.start), "entropy_rate": [low, high]}))
        return 0
    rate = f"{low:.6f} nats per token, in closed form" if low == high else f"between {low:.6f} and {high:.6f} nats per token"
    print(
        f"{given.output}: {int(given.tokens)} tokens of {source.num_symbols} symbols, {len(source.start)} hidden states\n"
        f"entropy rate {rate}: no model's loss on such tokens is below it but by chance"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
