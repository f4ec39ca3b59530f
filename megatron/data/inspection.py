"""What a corpus holds, and whether every byte of it is intact."""

from __future__ import annotations

from typing import Any

import numpy as np

from megatron.data.indexed import IndexedDataset
from megatron.data.sources import Source, take_first
from megatron.data.tokenizer import TYPES, Tokenizer, build_tokenizer
from megatron.errors import BadData, Mismatch
from megatron.progress import ProgressLine

QUANTILES = {"min": 0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1}
CHUNK = 1 << 20  # tokens read at a time
SHOWN = 100  # tokens of a decoded document


def describe_corpus(corpus: IndexedDataset) -> dict[str, Any]:
    """Counts, type, tokenizer, origin and lengths of the documents."""
    meta = corpus.meta or {}
    return {
        "prefix": corpus.prefix,
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


def document_lengths(corpus: IndexedDataset) -> dict[str, Any]:
    """Tokens a document: mean, quantiles that are lengths which occur, and how many are empty."""
    lengths = np.diff(corpus.document_starts, append=corpus.num_tokens)
    quantiles = np.quantile(lengths, list(QUANTILES.values()), method="inverted_cdf").tolist()
    return {
        "mean": float(lengths.mean()),
        **dict(zip(QUANTILES, map(int, quantiles), strict=True)),
        "empty": int((lengths == 0).sum()),
    }


def verify(corpus: IndexedDataset) -> dict[str, Any]:
    """Read all of it; without a sidecar that proves only that every id is one.  Raises BadData."""
    line = ProgressLine(corpus.num_tokens * corpus.dtype.itemsize)
    if corpus.meta:
        checked = corpus.verify(line.show)
        line.clear()
        return {"blocks_verified": checked}
    largest = 0
    for at in range(0, corpus.num_tokens, CHUNK):
        line.show(at * corpus.dtype.itemsize)
        ids = corpus.tokens(at, min(at + CHUNK, corpus.num_tokens))
        if ids.min() < 0:
            wrong = int((ids < 0).argmax())
            raise BadData(f"{corpus.prefix}.bin: token {at + wrong} is {ids[wrong]}, expected 0 or more; copy the corpus again")
        largest = max(largest, int(ids.max()))
    line.clear()
    return {"blocks_verified": 0, "largest_id": largest}


def visits(corpus: IndexedDataset, length: int, unique_tokens: float | None, train_tokens: int | None) -> dict[str, Any]:
    """How often a run of --train-tokens visits each of the unique tokens.  Raises BadData when there are too few."""
    chosen = take_first([Source(1.0, 0, 1.0, corpus.prefix)], unique_tokens or 1.0)[0]
    unique = int(chosen.stop)
    if unique < length + 1:
        raise BadData(
            f"{corpus.prefix}, tokens 0:{unique}: --seq-length {length} needs at least {length + 1} tokens, "
            f"has {unique}; lower --seq-length or add data"
        )
    found = {"unique_tokens": unique, "seq_length": length, "samples_per_epoch": unique / length}
    if train_tokens:
        found |= {"train_tokens": train_tokens, "epochs": train_tokens / unique, "samples": train_tokens // length}
    return found


def tokenizer_for(corpus: IndexedDataset, given: dict[str, Any]) -> Tokenizer:
    """The tokenizer of the flags, or of the type that the sidecar names.  Raises Mismatch when another made the corpus."""
    made = corpus.meta and corpus.meta["tokenizer"]
    kind = given["tokenizer_type"] or (made["type"] if made and made["type"] in TYPES else "GPT2BPETokenizer")
    tokenizer = build_tokenizer(**{**given, "tokenizer_type": kind})
    if made and made["fingerprint"] != tokenizer.fingerprint():
        raise Mismatch(
            f"--decode: {corpus.prefix} was made by another tokenizer ({made['type']}, {made['vocab_size']} ids, "
            f"{made['fingerprint'][:16]}) than this one ({tokenizer.name}, {tokenizer.vocab_size} ids, "
            f"{tokenizer.fingerprint()[:16]}); give its --tokenizer-type and files"
        )
    return tokenizer


def decode(corpus: IndexedDataset, tokenizer: Tokenizer, count: int) -> list[dict[str, Any]]:
    """The beginnings of documents spread evenly over the corpus."""
    count = min(count, corpus.num_documents)
    return [decoded(corpus, tokenizer, corpus.num_documents * k // count) for k in range(count)]


def decoded(corpus: IndexedDataset, tokenizer: Tokenizer, number: int) -> dict[str, Any]:
    ids = corpus.document(number)
    if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
        raise BadData(
            f"{corpus.prefix}: document {number} holds ids from {ids.min()} to {ids.max()}, expected 0 to "
            f"{tokenizer.vocab_size - 1}; give the tokenizer that made the corpus"
        )
    text = tokenizer.decode(ids[:SHOWN].tolist()) + (" ..." if len(ids) > SHOWN else "")
    return {"document": number, "tokens": len(ids), "text": text}
