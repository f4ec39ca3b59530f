"""Prompts and responses to token pairs for instruction tuning: PREFIX_train and PREFIX_valid, in Megatron's format.

    python tools/prepare_instruct.py --input alpaca.json --output-prefix data/alpaca --valid-fraction 0.05

Reads JSON arrays and JSON Lines in Alpaca's keys (instruction, input, output), Dolly's (instruction, context, response),
prompt and response as they are, or keys of your own (--keys). Prompts get the template `### Instruction: / ### Input: /
### Response:`; the input's block is left out where there is none. Validation takes whole prompts by their hash: no prompt is
on both sides, and the choice does not depend on the order of the file. --write-pt DIR also writes the pairs as tensors,
train_tokens.pt, train_masks.pt (1 on the response), val_tokens.pt, val_masks.pt [N, --max-seq-len], with config.json and
tokenizer.json. --from-pt DIR reads such a folder instead of --input.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed

from megatron.data.indexed import IndexedWriter, best_dtype  # noqa: E402
from megatron.data.instruct import FORMATS, BadRecord, Keys, Pair, encode_pair, pair_of, read_records, recognized  # noqa: E402
from megatron.data.tokenizer import Tokenizer, add_flags, build_tokenizer  # noqa: E402
from megatron.data.tokenizer_json import tokenizer_json  # noqa: E402
from megatron.errors import BadData, CannotWrite, MissingInput, exits  # noqa: E402
from megatron.files import output_prefix, staged  # noqa: E402

Encoded = tuple[np.ndarray, np.ndarray]  # ids of prompt and response
IN_TENSORS = {"train": "train", "valid": "val"}  # a split's name there


# ---- reading and splitting


def read_pairs(paths: Sequence[str], keys: Keys | None, skip: bool, skipped: Counter) -> Iterator[Pair]:
    """The pairs of all files; without `keys` each file's first record tells its format.

    Raises BadData at a record that is none, or counts it in `skipped`.
    """
    for path in paths:
        here = keys
        for where, record in read_records(path):
            if not here and not isinstance(record, BadRecord):
                here = recognized(where, record)
            try:
                yield pair_of(record, here)
            except BadRecord as error:
                kind, reason = error.args
                if not skip:
                    raise BadData(f"{where}: {kind}: {reason}; nothing was written: mend it, or pass --on-bad skip") from None
                skipped[kind] += 1


def held_out(pairs: Sequence[Pair], fraction: float, seed: int) -> np.ndarray:
    """Which pairs validate: those whose prompts have the smallest hashes, whole prompts at a time.  -> bool [n]"""
    count = round(fraction * len(pairs))
    if not fraction:
        return np.zeros(len(pairs), bool)
    hashes = [hashlib.sha256(f"{seed}\n{pair.prompt}".encode()).digest() for pair in pairs]
    last = sorted(hashes)[max(count, 1) - 1]
    chosen = np.array([one <= last for one in hashes])
    if chosen.all():
        raise BadData(
            f"--valid-fraction {fraction:g}: {len(pairs)} pairs with {len(set(hashes))} different prompts leave none "
            "to train on; give more pairs or a smaller fraction"
        )
    return chosen


# ---- tensors of other trainers


def read_tensor(path: Path) -> np.ndarray:
    """One tensor, read without running anything.  -> int64 [N, L].  Raises MissingInput or BadData."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror or error}, expected a tensor [N, L]") from None
    except Exception as error:  # whatever a damaged archive makes the library raise
        raise BadData(f"{path}: is not a tensor that can be read safely ({type(error).__name__}); write it again") from None
    whole = isinstance(found, torch.Tensor) and found.ndim == 2 and found.layout == torch.strided
    if not whole or found.is_complex() or (found.is_floating_point() and not torch.equal(found, found.round())):
        kind = f"{found.dtype} {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise BadData(f"{path}: holds {kind}, expected whole numbers [N, L]")
    return found.to(torch.int64).numpy()


def read_rows(folder: Path, name: str, vocab_size: int) -> list[Encoded]:
    """The pairs of NAME_tokens.pt and NAME_masks.pt: the prompt is what stands before the response.  Raises BadData."""
    where = folder / f"{name}_masks.pt"
    tokens, masks = (read_tensor(folder / f"{name}_{what}.pt") for what in ("tokens", "masks"))
    if tokens.shape != masks.shape or not np.isin(masks, (0, 1)).all():
        raise BadData(
            f"{where}: is {list(masks.shape)} with values {masks.min(initial=0)} to {masks.max(initial=0)}, expected "
            f"{list(tokens.shape)} as the tokens, with 0 and 1"
        )
    pairs = []
    for number, (row, places) in enumerate(zip(tokens, map(np.flatnonzero, masks), strict=True)):
        if not len(places) or places[0] == 0 or places[-1] - places[0] + 1 != len(places):
            first = f" from {places[0]} on" if len(places) else ""
            raise BadData(f"{where}: row {number} marks {len(places)} places{first}, expected one response behind a prompt")
        ids = row[: places[-1] + 1]
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise BadData(
                f"{folder / name}_tokens.pt: row {number} has ids {ids.min()} to {ids.max()}, expected 0 or more and "
                f"below {vocab_size}; give the tokenizer that made them"
            )
        pairs.append((ids[: places[0]], ids[places[0] :]))
    return pairs


# ---- writing


def write_corpus(prefix: Path, pairs: Sequence[Encoded], tokenizer: Tokenizer) -> None:
    """One document of two sequences a pair."""
    with IndexedWriter(str(prefix), best_dtype(tokenizer.vocab_size), tokenizer=tokenizer.facts()) as writer:
        for prompt, response in pairs:
            writer.add_document(np.concatenate([prompt, response]), lengths=[len(prompt), len(response)])


def as_tensors(pairs: Sequence[Encoded], length: int, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs whose prompt leaves room for a response, cut to `length`.  -> int64 [N, length] ids and masks, 1 on the response"""
    fitting = [(prompt, response[: length - len(prompt)]) for prompt, response in pairs if len(prompt) < length]
    tokens = torch.full((len(fitting), length), padding, dtype=torch.int64)
    masks = torch.zeros_like(tokens)
    for row, mask, (prompt, response) in zip(tokens, masks, fitting, strict=True):
        end = len(prompt) + len(response)
        row[:end] = torch.from_numpy(np.concatenate([prompt, response]))
        mask[len(prompt) : end] = 1
    return tokens, masks


def write_tensors(
    stage: Path, parts: dict[str, Sequence[Encoded]], length: int, tokenizer: Tokenizer, tokenizer_file: bytes | None = None
) -> dict[str, int]:
    """The files other trainers read, with a config.json and, if given, a tokenizer.json.  -> rows by split"""
    rows = {}
    for split, pairs in parts.items():
        tokens, masks = as_tensors(pairs, length, tokenizer.eod)
        torch.save(tokens, stage / f"{split}_tokens.pt")
        torch.save(masks, stage / f"{split}_masks.pt")
        rows[split] = len(tokens)
    config = {
        "vocab_size": tokenizer.vocab_size,
        "max_seq_len": length,
        "eos_token_id": tokenizer.eod,
        "pad_token_id": tokenizer.eod,
        "tokenizer_type": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint(),
        **{f"{split}_rows": count for split, count in rows.items()},
    }
    (stage / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="ascii")
    if tokenizer_file:
        (stage / "tokenizer.json").write_bytes(tokenizer_file)
    return rows


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
            write_corpus(stage / output.prefix.name, output.pairs, tokenizer)
        if args.write_pt:
            parts = {IN_TENSORS[output.split]: output.pairs for output in outputs}
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
    names = [Path(f"{args.output_prefix}_{split}{end}") for split in IN_TENSORS for end in (".bin", ".idx", ".meta.json")]
    if args.write_pt:
        names += [args.write_pt / f"{split}_{what}.pt" for split in IN_TENSORS.values() for what in ("tokens", "masks")]
    return [path for path in names if path.exists()]


# ---- the command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--input", nargs="+", action="extend", metavar="FILE", help="JSON arrays or JSON Lines")
    add("--from-pt", type=Path, metavar="DIR", help="or: a folder of train_tokens.pt, train_masks.pt and perhaps val_*.pt")
    add("--format", choices=["auto", *FORMATS], default="auto", help="which keys a record has [seen from the first one]")
    add("--keys", nargs="+", metavar="KEY", help="your own keys: INSTRUCTION RESPONSE, or INSTRUCTION INPUT RESPONSE")
    add(
        "--output-prefix",
        type=output_prefix,
        required=True,
        metavar="PREFIX",
        help="writes PREFIX_train and PREFIX_valid, .bin and .idx",
    )
    add("--valid-fraction", type=float, default=0.05, help="share of the pairs held out; 0 writes no PREFIX_valid [0.05]")
    add("--seed", type=int, default=0, help="another choice of held-out prompts [0]")
    add("--on-bad", choices=["fail", "skip"], default="fail", help="at a record that is no pair: stop, or leave it out")
    add("--write-pt", type=Path, metavar="DIR", help="also write tensors there")
    add("--max-seq-len", type=int, metavar="N", help="columns of those tensors")
    add("--overwrite", action="store_true", help="replace an output that exists")
    add_flags(parser)
    args = parser.parse_args(argv)
    check(parser, args)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if bool(args.input) == bool(args.from_pt):
        parser.error("give --input FILE, or --from-pt DIR")
    if not 0 <= args.valid_fraction < 1:
        parser.error("--valid-fraction must be 0 or more and below 1")
    if bool(args.write_pt) != (args.max_seq_len is not None) or (args.max_seq_len or 2) < 2:
        parser.error("--write-pt DIR and --max-seq-len N, of 2 or more, belong together")
    if args.keys and (args.format != "auto" or not 2 <= len(args.keys) <= 3):
        parser.error("--keys takes INSTRUCTION [INPUT] RESPONSE, and no --format beside it")


def chosen_keys(args: argparse.Namespace) -> Keys | None:
    if args.keys:
        return Keys(args.keys[0], args.keys[-1], args.keys[1] if len(args.keys) == 3 else None)
    return FORMATS.get(args.format)


def summary(output: Output, rows: dict[str, int], args: argparse.Namespace) -> str:
    prompts, responses = (sum(len(pair[part]) for pair in output.pairs) for part in (0, 1))
    text = f"{output.prefix}: {len(output.pairs):,} pairs, {prompts:,} prompt and {responses:,} response tokens"
    kept = rows.get(IN_TENSORS[output.split])
    if kept is None:
        return text
    left_out = len(output.pairs) - kept
    return f"{text}; {kept:,} in {args.write_pt}" + (f", {left_out:,} prompts fill {args.max_seq_len} tokens" if left_out else "")


def counted(skipped: Counter) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))


def from_text(args: argparse.Namespace, tokenizer: Tokenizer, skipped: Counter) -> dict[str, list[Encoded]]:
    """The pairs of --input by split."""
    pairs = list(read_pairs(args.input, chosen_keys(args), args.on_bad == "skip", skipped))
    if not pairs:
        left_out = f" ({counted(skipped)} skipped)" if skipped else ""
        raise BadData(f"{', '.join(args.input[:3])}: no pair{left_out}; nothing was written")
    valid = held_out(pairs, args.valid_fraction, args.seed)
    encoded = [encode_pair(pair, tokenizer.encode, tokenizer.eod) for pair in pairs]
    return {split: [encoded[n] for n in np.flatnonzero(where)] for split, where in (("train", ~valid), ("valid", valid))}


def from_tensors(args: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, list[Encoded]]:
    """The pairs of --from-pt, with its own validation split if it has one."""
    has = {split: name for split, name in IN_TENSORS.items() if split == "train" or (args.from_pt / f"{name}_tokens.pt").exists()}
    return {split: read_rows(args.from_pt, name, tokenizer.vocab_size) for split, name in has.items()}


@exits
def main(argv: Sequence[str] | None = None) -> None:
    args, skipped = parse(argv), Counter()
    there = taken(args)
    if there and not args.overwrite:
        raise CannotWrite(f"{there[0]} exists: choose another name, or pass --overwrite")
    tokenizer = build_tokenizer(args.tokenizer_type, args.vocab_file, args.merge_file, args.tokenizer_model)
    parts = from_tensors(args, tokenizer) if args.from_pt else from_text(args, tokenizer, skipped)
    outputs = [Output(split, Path(f"{args.output_prefix}_{split}"), pairs) for split, pairs in parts.items() if pairs]
    rows = write_all(args, outputs, tokenizer)
    for output in outputs:
        print(summary(output, rows, args))
    if skipped:
        print(f"{skipped.total()} records skipped: {counted(skipped)}")


if __name__ == "__main__":
    sys.exit(main())
