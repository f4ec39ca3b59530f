"""Prompts and responses to token pairs for instruction tuning: PREFIX_train and PREFIX_valid, in Megatron's format.

    python tools/prepare_instruct.py --input alpaca.json --output-prefix data/alpaca --valid-fraction 0.05

Reads JSON arrays and JSON Lines in Alpaca's keys (instruction, input, output), Dolly's (instruction, context, response),
prompt and response as they are, or keys of your own (--instruction and the like, or --keys); a path such as
instances.0.output reaches into nested records. Prompts get the template `### Instruction: / ### Input: / ### Response:`;
the input's block is left out where there is none. Validation takes whole prompts by their hash: no prompt is on both sides,
and the choice does not depend on the order of the file. --write-pt DIR also writes the pairs as tensors, train_tokens.pt,
train_masks.pt (1 on the response), val_tokens.pt, val_masks.pt [N, --max-seq-len], with config.json and tokenizer.json.
--from-pt DIR reads such a folder instead of --input.
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
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from megatron.data.instruct import FORMATS, Keys
from megatron.data.prepare.instruct_pairs import Encoded, Reading, counted, encoded_splits, origin_of_part, write_pairs
from megatron.data.prepare.pair_tensors import NAMES, read_rows, write_tensors
from megatron.data.tokenizer import Tokenizer, add_flags, build_tokenizer, flags_of
from megatron.data.tokenizer_json import tokenizer_json
from megatron.errors import CannotWrite, exits
from megatron.files import output_prefix, staged
from megatron.flags import refuse_empty

OWN_KEYS = ("instruction", "context", "prompt", "response")
ONLY_TEXT = {"format": "auto", "on_bad": "fail", "valid_fraction": 0.05, "seed": 0}  # flags of --input, and their defaults


@dataclass(frozen=True)
class Output:
    """One split: what it is called in Megatron's format and in the tensor folder."""

    split: str
    prefix: Path
    pairs: list[Encoded]


def write_all(args: argparse.Namespace, outputs: list[Output], tokenizer: Tokenizer) -> dict[str, int]:
    """Everything aside, then into place."""
    rows: dict[str, int] = {}
    with ExitStack() as stack:
        stage = stack.enter_context(staged(Path(args.output_prefix).parent))
        for output in outputs:
            write_pairs(stage / output.prefix.name, output.pairs, tokenizer, origin_of_part(output.split, reading_of(args)))
        if args.write_pt:
            parts = {NAMES[output.split]: output.pairs for output in outputs}
            rows = write_tensors(
                stack.enter_context(staged(args.write_pt)),
                parts,
                args.max_seq_len,
                tokenizer,
                tokenizer_json(tokenizer, args.tokenizer_model),
            )
        for path in taken(args):  # never a new .bin beside an old .idx
            path.unlink(missing_ok=True)
    return rows


def taken(args: argparse.Namespace) -> list[Path]:
    """Outputs of this command that are there already, also those of a split that it will not write."""
    names = [Path(f"{args.output_prefix}_{split}{end}") for split in NAMES for end in (".bin", ".idx", ".meta.json")]
    if args.write_pt:
        names += [args.write_pt / f"{split}_{what}.pt" for split in NAMES.values() for what in ("tokens", "masks")]
    return [path for path in names if path.exists()]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--input", nargs="+", action="extend", metavar="FILE", help="JSON arrays or JSON Lines")
    add("--from-pt", type=Path, metavar="DIR", help="or: a folder of train_tokens.pt, train_masks.pt and perhaps val_*.pt")
    add("--format", choices=["auto", *FORMATS], help="which keys a record has [seen from the first one]")
    add("--keys", nargs="+", metavar="KEY", help="your own keys: INSTRUCTION RESPONSE, or INSTRUCTION INPUT RESPONSE")
    add("--instruction", metavar="KEY", help="or one by one, each a key or a path such as instances.0.input [instruction]")
    add("--context", metavar="KEY", help="what the template puts under ### Input [nothing]")
    add("--prompt", metavar="KEY", help="a prompt that is read as it is, instead of --instruction and --context")
    add("--response", metavar="KEY", help="the response, such as instances.0.output")
    add(
        "--output-prefix",
        type=output_prefix,
        required=True,
        metavar="PREFIX",
        help="writes PREFIX_train and PREFIX_valid, .bin and .idx",
    )
    add("--valid-fraction", type=float, help="share of the pairs held out; 0 writes no PREFIX_valid [0.05]")
    add("--seed", type=int, help="another choice of held-out prompts [0]")
    add("--on-bad", choices=["fail", "skip"], help="at a record that is no pair: stop, or leave it out [fail]")
    add("--write-pt", type=Path, metavar="DIR", help="also write tensors there")
    add("--max-seq-len", type=int, metavar="N", help="columns of those tensors")
    add("--overwrite", action="store_true", help="replace an output that exists")
    add("--json", action="store_true", help="print one JSON object a split instead of a line")
    add_flags(parser)
    refuse_empty(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv)
    check(parser, args)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill defaults, and end with a usage error where flags contradict each other or would not be read."""
    own = [name for name in OWN_KEYS if getattr(args, name)]
    if bool(args.input) == bool(args.from_pt):
        parser.error("give --input FILE, or --from-pt DIR")
    if args.from_pt:
        for name in (*ONLY_TEXT, "keys", *OWN_KEYS):
            if getattr(args, name) is not None:
                parser.error(
                    f"--{name.replace('_', '-')} is of --input, --from-pt has its pairs and splits as they are: leave it out"
                )
    if args.valid_fraction == 0 and args.seed is not None:
        parser.error("--seed chooses what is held out, and --valid-fraction 0 holds out nothing: leave one of them out")
    for name, default in ONLY_TEXT.items():
        setattr(args, name, default if getattr(args, name) is None else getattr(args, name))
    if not 0 <= args.valid_fraction < 1:
        parser.error("--valid-fraction must be 0 or more and below 1")
    if bool(args.write_pt) != (args.max_seq_len is not None) or (args.max_seq_len or 2) < 2:
        parser.error("--write-pt DIR and --max-seq-len N, of 2 or more, belong together")
    if (args.keys or own) and args.format != "auto" or args.keys and (own or not 2 <= len(args.keys) <= 3):
        parser.error("--keys takes INSTRUCTION [INPUT] RESPONSE; give it, or --format, or --instruction and the like")
    if own and not args.response:
        parser.error(f"--{own[0]} needs --response KEY as well")
    if args.prompt and (args.instruction or args.context):
        parser.error("--prompt is read as it is, without --instruction and --context: give either")


def chosen_keys(args: argparse.Namespace) -> Keys | None:
    if args.keys:
        return Keys(args.keys[0], args.keys[-1], args.keys[1] if len(args.keys) == 3 else None)
    if args.response:
        return Keys(args.prompt or args.instruction or "instruction", args.response, args.context, templated=bool(args.prompt))
    return FORMATS.get(args.format)


def about(output: Output, rows: dict[str, int], args: argparse.Namespace) -> dict[str, Any]:
    """What a split holds; `rows` of its tensors, where they were written."""
    prompts, responses = (sum(len(pair[part]) for pair in output.pairs) for part in (0, 1))
    found: dict[str, Any] = {
        "prefix": str(output.prefix),
        "pairs": len(output.pairs),
        "prompt_tokens": prompts,
        "response_tokens": responses,
    }
    return found | ({"tensor_rows": rows[NAMES[output.split]], "tensors": str(args.write_pt)} if rows else {})


def summary(found: dict[str, Any], length: int | None) -> str:
    text = (
        f"{found['prefix']}: {found['pairs']:,} pairs, {found['prompt_tokens']:,} prompt and "
        f"{found['response_tokens']:,} response tokens"
    )
    if "tensors" not in found:
        return text
    left_out = found["pairs"] - found["tensor_rows"]
    return f"{text}; {found['tensor_rows']:,} in {found['tensors']}" + (
        f", {left_out:,} prompts fill {length} tokens" if left_out else ""
    )


def from_tensors(folder: Path, tokenizer: Tokenizer) -> dict[str, list[Encoded]]:
    """The pairs of --from-pt, with its own validation split if it has one."""
    has = {split: name for split, name in NAMES.items() if split == "train" or (folder / f"{name}_tokens.pt").exists()}
    return {split: read_rows(folder, name, tokenizer.vocab_size) for split, name in has.items()}


def from_text(args: argparse.Namespace, tokenizer: Tokenizer, skipped: Counter[str]) -> dict[str, list[Encoded]]:
    """The pairs of --input by split."""
    return encoded_splits(reading_of(args), tokenizer, skipped)


def reading_of(args: argparse.Namespace) -> Reading:
    """Of --input; of --from-pt its files, which are parted already."""
    return Reading(
        files=tuple(args.input or [str(path) for path in sorted(args.from_pt.glob("*_tokens.pt"))]),
        keys=chosen_keys(args),
        skip_bad=args.on_bad == "skip",
        valid_fraction=args.valid_fraction,
        seed=args.seed,
    )


@exits
def main(argv: Sequence[str] | None = None) -> None:
    args, skipped = parse(argv), Counter[str]()
    there = taken(args)
    if there and not args.overwrite:
        raise CannotWrite(f"{there[0]} exists: choose another name, or pass --overwrite")
    tokenizer = build_tokenizer(**flags_of(args))
    parts = from_tensors(args.from_pt, tokenizer) if args.from_pt else from_text(args, tokenizer, skipped)
    outputs = [Output(split, Path(f"{args.output_prefix}_{split}"), pairs) for split, pairs in parts.items() if pairs]
    rows = write_all(args, outputs, tokenizer)
    for found in (about(output, rows, args) for output in outputs):
        print(json.dumps(found | {"skipped": dict(skipped)}) if args.json else summary(found, args.max_seq_len))
    if skipped and not args.json:
        print(f"{skipped.total()} records skipped: {counted(skipped)}")


if __name__ == "__main__":
    sys.exit(main())
