"""What a corpus holds: documents, tokens, type, tokenizer, lengths, epochs of a plan, text; and whether every byte is intact.

python tools/inspect_data.py data/c4_text_document --train-tokens 10B --unique-tokens 100M --decode 3
python tools/inspect_data.py data/*.idx --verify                    # exit code 65 names the first damaged block
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed

from megatron.data.indexed import IndexedDataset  # noqa: E402
from megatron.data.sources import Source, take_first  # noqa: E402
from megatron.data.tokenizer import TYPES, Tokenizer, add_flags, build_tokenizer  # noqa: E402
from megatron.errors import BadData, Mismatch, exits  # noqa: E402
from megatron.flags import parse_count  # noqa: E402

QUANTILES = {"min": 0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1}
CHUNK = 1 << 20  # tokens read at a time
SHOWN = 100  # tokens of a decoded document


def inspect(prefix: str, args: argparse.Namespace) -> dict:
    """Everything there is to say of one corpus.  Raises MissingInput, BadData, Mismatch."""
    corpus = IndexedDataset(prefix)
    meta = corpus.meta or {}
    found = {
        "prefix": prefix,
        "documents": corpus.num_documents,
        "sequences": corpus.num_sequences,
        "tokens": corpus.num_tokens,
        "dtype": corpus.dtype.name,
        "bytes": corpus.num_tokens * corpus.dtype.itemsize,
        "sidecar": bool(meta),
        "largest_id": meta.get("largest_id"),
        "tokenizer": meta.get("tokenizer"),
        "extra": meta.get("extra"),
        "fingerprint": corpus.fingerprint(),
        "document_lengths": document_lengths(corpus),
    }
    if args.verify:
        found |= verify(corpus)
    if args.train_tokens or args.unique_tokens:
        found["plan"] = plan(corpus, args)
    if args.decode:
        found["decoded"] = decode(corpus, tokenizer_for(corpus, args), args.decode)
    return found


def document_lengths(corpus: IndexedDataset) -> dict:
    """Tokens a document: mean, quantiles that are lengths which occur, and how many are empty."""
    lengths = np.diff(corpus.document_starts, append=corpus.num_tokens)
    quantiles = np.quantile(lengths, list(QUANTILES.values()), method="inverted_cdf").tolist()
    return {
        "mean": float(lengths.mean()),
        **dict(zip(QUANTILES, map(int, quantiles), strict=True)),
        "empty": int((lengths == 0).sum()),
    }


def verify(corpus: IndexedDataset) -> dict:
    """Read all of it; without a sidecar that proves only that every id is one.  Raises BadData."""
    if corpus.meta:
        return {"blocks_verified": corpus.verify()}
    largest = 0
    for at in range(0, corpus.num_tokens, CHUNK):
        ids = corpus.tokens(at, min(at + CHUNK, corpus.num_tokens))
        if ids.min() < 0:
            wrong = int((ids < 0).argmax())
            raise BadData(f"{corpus.prefix}.bin: token {at + wrong} is {ids[wrong]}, expected 0 or more; copy the corpus again")
        largest = max(largest, int(ids.max()))
    return {"blocks_verified": 0, "largest_id": largest}


def plan(corpus: IndexedDataset, args: argparse.Namespace) -> dict:
    """How often a run of --train-tokens visits each of the unique tokens.  Raises BadData when there are too few."""
    chosen = take_first([Source(1.0, 0, 1.0, corpus.prefix)], args.unique_tokens or 1.0)[0]
    unique, length = chosen.stop, args.seq_length
    if unique < length + 1:
        raise BadData(
            f"{corpus.prefix}, tokens 0:{unique}: --seq-length {length} needs at least {length + 1} tokens, "
            f"has {unique}; lower --seq-length or add data"
        )
    found = {"unique_tokens": unique, "seq_length": length, "samples_per_epoch": unique / length}
    if args.train_tokens:
        found |= {"train_tokens": args.train_tokens, "epochs": args.train_tokens / unique, "samples": args.train_tokens // length}
    return found


# Text


def tokenizer_for(corpus: IndexedDataset, args: argparse.Namespace) -> Tokenizer:
    """The tokenizer of the flags, or of the type that the sidecar names.  Raises Mismatch when another made the corpus."""
    made = corpus.meta and corpus.meta["tokenizer"]
    kind = args.tokenizer_type or (made["type"] if made and made["type"] in TYPES else "GPT2BPETokenizer")
    tokenizer = build_tokenizer(kind, args.vocab_file, args.merge_file, args.tokenizer_model)
    if made and made["fingerprint"] != tokenizer.fingerprint():
        raise Mismatch(
            f"--decode: {corpus.prefix} was made by another tokenizer ({made['type']}, {made['vocab_size']} ids, "
            f"{made['fingerprint'][:16]}) than this one ({tokenizer.name}, {tokenizer.vocab_size} ids, "
            f"{tokenizer.fingerprint()[:16]}); give its --tokenizer-type and files"
        )
    return tokenizer


def decode(corpus: IndexedDataset, tokenizer: Tokenizer, count: int) -> list[dict]:
    """The beginnings of documents spread evenly over the corpus."""
    count = min(count, corpus.num_documents)
    return [decoded(corpus, tokenizer, corpus.num_documents * k // count) for k in range(count)]


def decoded(corpus: IndexedDataset, tokenizer: Tokenizer, number: int) -> dict:
    ids = corpus.document(number)
    if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
        raise BadData(
            f"{corpus.prefix}: document {number} holds ids from {ids.min()} to {ids.max()}, expected 0 to "
            f"{tokenizer.vocab_size - 1}; give the tokenizer that made the corpus"
        )
    text = tokenizer.decode(ids[:SHOWN].tolist()) + (" ..." if len(ids) > SHOWN else "")
    return {"document": number, "tokens": len(ids), "text": text}


# What is printed


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
    add("--seq-length", type=whole, default=2048, metavar="N", help="plan: tokens a sample [2048]")
    add("--unique-tokens", type=count, metavar="N", help="plan: only so many of the first tokens, or this share up to 1")
    add("--decode", type=whole, metavar="K", help="show the text of K documents, spread over the corpus")
    add_flags(parser, None, "of --decode [what the sidecar says, else GPT2BPETokenizer]")
    args = parser.parse_args(argv)
    if args.unique_tokens and args.unique_tokens > 1 and args.unique_tokens % 1:
        parser.error(f"--unique-tokens {args.unique_tokens:g} must be a whole number of tokens, or a share up to 1")
    return args


@exits
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    for prefix in dict.fromkeys(name.removesuffix(".bin").removesuffix(".idx") for name in args.prefixes):
        found = inspect(prefix, args)
        print(json.dumps(found)) if args.json else show(found)


if __name__ == "__main__":
    sys.exit(main())
