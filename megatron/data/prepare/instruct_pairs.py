"""Records of prompts and responses to token pairs: read, held out by whole prompts, encoded, written as a corpus."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron.data.indexed import IndexedWriter, best_dtype
from megatron.data.instruct import BadRecord, Keys, Pair, encode_pair, pair_of, read_records, recognized
from megatron.data.lineage import input_record
from megatron.data.tokenizer import Tokenizer
from megatron.errors import BadData, MissingInput
from megatron.progress import ProgressLine

Encoded = tuple[np.ndarray, np.ndarray]  # ids of prompt and response


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which files hold the pairs, and how they are split."""

    files: tuple[str, ...]
    keys: Keys | None = None  # none: each file's first record tells its format
    skip_bad: bool = False
    valid_fraction: float = 0.05
    seed: int = 0


def encoded_splits(how: Reading, tokenizer: Tokenizer, skipped: Counter[str]) -> dict[str, list[Encoded]]:
    """The pairs of all files by split; bad records are counted in `skipped`, or raise BadData."""
    pairs = list(read_pairs(how, skipped))
    if not pairs:
        left_out = f" ({counted(skipped)} skipped)" if skipped else ""
        raise BadData(f"{', '.join(how.files[:3])}: no pair{left_out}; nothing was written")
    valid = held_out(pairs, how.valid_fraction, how.seed)
    encoded, line = [], ProgressLine(len(pairs), "pairs")
    for pair in pairs:
        encoded.append(encode_pair(pair, tokenizer.encode, tokenizer.eod))
        line.show(len(encoded))
    line.clear()
    return {split: [encoded[n] for n in np.flatnonzero(where)] for split, where in (("train", ~valid), ("valid", valid))}


def counted(skipped: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))


def read_pairs(how: Reading, skipped: Counter[str]) -> Iterator[Pair]:
    """The pairs of all files.  Raises BadData at a record that is none, or counts it in `skipped`."""
    for path in how.files:
        keys = how.keys
        for where, record in read_records(path):
            try:
                if isinstance(record, BadRecord):
                    raise record
                keys = keys or recognized(where, record)
                yield pair_of(record, keys)
            except BadRecord as error:
                kind, reason = error.args
                if not how.skip_bad:
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


def origin_of_part(part: str, how: Reading) -> dict[str, Any]:
    """What the sidecar says of where a split's pairs come from.  Raises MissingInput."""
    try:
        files = [input_record(path) for path in how.files]
    except OSError as error:
        raise MissingInput(f"{error.filename}: {error.strerror}; check --input") from None
    keys = how.keys and asdict(how.keys)
    split = {"valid_fraction": how.valid_fraction, "seed": how.seed, "keys": keys, "skip_bad": how.skip_bad}
    return {"inputs": files, "split": split, "part": part}


def write_pairs(prefix: Path, pairs: Sequence[Encoded], tokenizer: Tokenizer, extra: dict[str, Any] | None = None) -> None:
    """One document of two sequences a pair; `extra` is what the sidecar says besides."""
    with IndexedWriter(str(prefix), best_dtype(tokenizer.vocab_size), tokenizer.facts(), extra) as writer:
        for prompt, response in pairs:
            writer.add_document(np.concatenate([prompt, response]), lengths=[len(prompt), len(response)])
