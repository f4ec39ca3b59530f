"""A SentencePiece model as a tokenizer.json of the `tokenizers` library.

The .model file is a protocol buffer (sentencepiece_model.proto of google/sentencepiece): pieces with scores, and how text is
normalised before it is cut. Only what decides the ids is read.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

from megatron.errors import Mismatch

SPACE = "\u2581"
PIECES, TRAINER, NORMALIZER = 1, 2, 3  # fields of ModelProto
PIECE, SCORE, TYPE = 1, 2, 3  # of a piece
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # its types
MODEL_TYPE, SUFFIX = 3, 24  # of TrainerSpec: 1 unigram, 2 BPE; the space stands behind a word
CHARSMAP, DUMMY_PREFIX, REMOVE_EXTRA, ESCAPE = 2, 3, 4, 5  # of NormalizerSpec
UNIGRAM, BPE = 1, 2


def sentencepiece_json(proto: bytes) -> bytes:
    """Raises Mismatch for a kind of model that the library has not."""
    fields = list(read(proto))
    trainer, rules = (dict(read(b"".join(v for n, v in fields if n == which))) for which in (TRAINER, NORMALIZER))
    pieces = [dict(read(value)) for number, value in fields if number == PIECES]
    words = [piece[PIECE].decode() for piece in pieces]
    scores = [struct.unpack("<f", piece.get(SCORE, b"\0" * 4))[0] for piece in pieces]
    types = [piece.get(TYPE, NORMAL) for piece in pieces]
    kind = trainer.get(MODEL_TYPE, UNIGRAM)
    if kind not in (UNIGRAM, BPE) or trainer.get(SUFFIX) or not rules.get(ESCAPE, 1):
        raise Mismatch("this SentencePiece model is neither unigram nor BPE, or cuts spaces in another way than tokenizers can")
    model = unigram(words, scores, types) if kind == UNIGRAM else merged(words, scores, types)
    added = [token(i, word, types[i] != USER) for i, word in enumerate(words) if types[i] in (UNKNOWN, CONTROL, USER)]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": normalizer(rules),
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": decoder(rules),
            "model": model,
        }
    ).encode()


def read(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one message: bytes, or an integer of a varint."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = varint(data, at)
            yield key >> 3, value
            continue
        size, at = {1: (8, at), 5: (4, at)}.get(wire) or varint(data, at)
        yield key >> 3, data[at : at + size]
        at += size


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value, shift = value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at


def token(i: int, word: str, special: bool) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": word, "special": special} | flags


def normalizer(rules: dict) -> dict:
    """What is done to a text before it is cut, which is never cut at spaces first: a space is a character of the pieces."""
    steps: list[dict] = []
    if rules.get(CHARSMAP):
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(rules[CHARSMAP]).decode()})
    if rules.get(REMOVE_EXTRA, 1):
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if rules.get(DUMMY_PREFIX, 1):
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps}


def decoder(rules: dict) -> dict:
    """Spaces and bytes back to text; the space before the first word is dropped."""
    steps: list[dict] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if rules.get(DUMMY_PREFIX, 1):
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def unigram(words: list[str], scores: list[float], types: list[int]) -> dict:
    unknown = types.index(UNKNOWN) if UNKNOWN in types else None
    return {"type": "Unigram", "unk_id": unknown, "vocab": list(zip(words, scores)), "byte_fallback": BYTE in types}


def merged(words: list[str], scores: list[float], types: list[int]) -> dict:
    """BPE: each pair of pieces that makes a piece is a merge, in the order of the piece's score."""
    ids = {word: i for i, word in enumerate(words)}
    normal = {word for word, kind in zip(words, types) if kind == NORMAL}
    merges = []
    for word in sorted(normal, key=lambda word: (-scores[ids[word]], ids[word])):
        pairs = [(word[:n], word[n:]) for n in range(1, len(word)) if word[:n] in normal and word[n:] in normal]
        merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": words[types.index(UNKNOWN)] if UNKNOWN in types else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": BYTE in types,
        "ignore_merges": False,
        "vocab": ids,
        "merges": merges,
    }
