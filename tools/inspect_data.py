"""What a corpus holds: documents, tokens, type, tokenizer, lengths, epochs of a plan, text; and whether every byte is intact.

python tools/inspect_data.py data/c4_text_document --train-tokens 10B --unique-tokens 100M --decode 3
python tools/inspect_data.py data/*.idx --verify                    # exit code 65 names the first damaged block
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
from typing import Any

from megatron.data.indexed import IndexedDataset
from megatron.data.inspection import QUANTILES, decode, describe_corpus, tokenizer_for, verify, visits
from megatron.data.tokenizer import add_flags, flags_of
from megatron.errors import exits
from megatron.flags import parse_count


def inspect(prefix: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is asked of one corpus.  Raises MissingInput, BadData, Mismatch."""
    corpus = IndexedDataset(prefix)
    found = describe_corpus(corpus)
    if args.verify:
        found |= verify(corpus)
    if args.train_tokens or args.unique_tokens:
        found["plan"] = visits(corpus, args.seq_length, args.unique_tokens, args.train_tokens)
    if args.decode:
        found["decoded"] = decode(corpus, tokenizer_for(corpus, flags_of(args)), args.decode)
    return found


def show(found: dict) -> None:
    lengths = found["document_lengths"]
    rows = [
        *((name, f"{found[name]:,}") for name in ("documents", "sequences", "tokens")),
        ("type", f"{found['dtype']}, {found['bytes']:,} bytes"),
        ("largest id", largest_id(found)),
        ("tokenizer", tokenizer_line(found)),
        ("sidecar", sidecar_line(found)),
        ("fingerprint", found["fingerprint"]),
        (
            "lengths",
            f"mean {lengths['mean']:.1f}, "
            + ", ".join(f"{name} {lengths[name]:,}" for name in QUANTILES)
            + f"; {lengths['empty']:,} empty",
        ),
    ]
    if "plan" in found:
        rows.append(("plan", plan_line(found["plan"])))
    print(found["prefix"])
    for name, value in rows:
        print(f"  {name:<12} {value}")
    for sample in found.get("decoded", []):
        print(f"  document {sample['document']} ({sample['tokens']:,} tokens): {json.dumps(sample['text'], ensure_ascii=False)}")


def largest_id(found: dict) -> str:
    return "not known without a sidecar; --verify looks" if found["largest_id"] is None else str(found["largest_id"])


def tokenizer_line(found: dict) -> str:
    made = found["tokenizer"]
    if not made:
        return "not known"
    return f"{made['type']}, {made['vocab_size']} ids, end of document {made['eod']}, {made['fingerprint']}"


def sidecar_line(found: dict) -> str:
    checked = found.get("blocks_verified")
    if not found["sidecar"]:
        return "none: only the structure is checked" + ("" if checked is None else ", and that no id is negative")
    return "yes" if checked is None else f"yes; the index and all {checked:,} blocks of the .bin are intact"


def plan_line(found: dict) -> str:
    said = (
        f"{found['unique_tokens']:,} unique tokens are {found['samples_per_epoch']:,.2f} samples of {found['seq_length']:,} "
        "an epoch"
    )
    if "epochs" in found:
        said += f"; {found['train_tokens']:,} training tokens are {found['samples']:,} samples, {found['epochs']:,.2f} epochs"
    return said


def count(text: str) -> float:
    """A number above 0, for argparse."""
    found = parse_count(text)
    if not 0 < found < 1 << 53:
        raise ValueError
    return found


def whole(text: str) -> int:
    """A whole number above 0, for argparse."""
    if count(text) % 1:
        raise ValueError
    return int(count(text))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("prefixes", nargs="+", metavar="PREFIX", help="corpora, without or with their .bin or .idx")
    add("--verify", action="store_true", help="check every block against the sidecar's checksums")
    add("--json", action="store_true", help="one JSON object a corpus and line")
    add("--train-tokens", type=whole, metavar="N", help="plan: tokens to train on; says the epochs")
    add("--seq-length", type=whole, metavar="N", help="plan: tokens a sample [2048]")
    add("--unique-tokens", type=count, metavar="N", help="plan: only so many of the first tokens, or this share up to 1")
    add("--decode", type=whole, metavar="K", help="show the text of K documents, spread over the corpus")
    add_flags(parser, None, "of --decode [what the sidecar says, else GPT2BPETokenizer]")
    args = parser.parse_args(argv)
    if args.unique_tokens and args.unique_tokens > 1 and args.unique_tokens % 1:
        parser.error(f"--unique-tokens {args.unique_tokens:g} must be a whole number of tokens, or a share up to 1")
    if args.seq_length and not (args.train_tokens or args.unique_tokens):
        parser.error("--seq-length is of a plan: give --train-tokens or --unique-tokens as well")
    if any(flags_of(args).values()) and not args.decode:
        parser.error("the flags of a tokenizer are for --decode K: give it as well, or leave them out")
    args.seq_length = args.seq_length or 2048
    return args


@exits
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    for prefix in dict.fromkeys(name.removesuffix(".bin").removesuffix(".idx") for name in args.prefixes):
        found = inspect(prefix, args)
        print(json.dumps(found)) if args.json else show(found)


if __name__ == "__main__":
    sys.exit(main())
