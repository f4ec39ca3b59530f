"""GPT-2's byte-level BPE by gigatoken, which is ten times as fast as tiktoken and gives the same ids.

What holds with gigatoken 0.10 and tiktoken 0.14, and what the tests compare: both cut text the same around every character of
Unicode, on published texts and on hostile ones. For vocabularies other than GPT-2's own a sample is compared at every start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from megatron.errors import Mismatch, MissingInput

PROBES = 1500  # tokens on which gigatoken is compared with the library that training takes
Encode = Callable[[str], np.ndarray]


def gigatoken_encoder(spec: dict[str, Any] | None, plain: Encode | None, tokens: list[bytes], backend: str) -> Encode | None:
    """The ids of a GPT-2-like tokenizer.json by gigatoken; nothing when it is not there, or does not give the ids of `plain`,
    the library that training takes (none: they are known to agree).  Raises MissingInput or Mismatch where it is forced.

    gigatoken takes special tokens that a tokenizer file declares for what they stand for wherever a text spells them. So it
    is given a file that declares none: a literal `<|endoftext|>` has no other way to become ids than the merges.
    """
    try:
        import gigatoken
    except ModuleNotFoundError as error:
        if backend == "gigatoken":
            raise MissingInput("--bpe-backend gigatoken needs the Python package gigatoken: pip install -e '.[data]'") from error
        return None
    try:
        encode = Gigatoken(gigatoken.Tokenizer.from_json, json.dumps(spec)) if spec else None
    except (ValueError, RuntimeError):  # a file that it does not understand
        encode = None
    differs = first_difference(encode, plain, tokens) if encode and plain else None
    if backend == "gigatoken" and (encode is None or differs is not None):
        why = "this tokenizer is not of GPT-2's kind" if encode is None else f"gigatoken cuts {differs!r} differently"
        raise Mismatch(f"--bpe-backend gigatoken: {why}; use --bpe-backend tiktoken, the ids that training takes")
    return None if differs is not None else encode


def byte_level_spec(vocab: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """A tokenizer.json of GPT-2's kind, without added tokens."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def gpt2_kind(spec: dict[str, Any]) -> dict[str, Any] | None:
    """A tokenizer.json without its special tokens, when nothing but GPT-2's rules is left of it."""
    model, level, added = spec["model"], spec.get("pre_tokenizer") or {}, spec.get("added_tokens") or []
    plain = level.get("type") == "ByteLevel" and level.get("use_regex", True) and not level.get("add_prefix_space", True)
    asked = [
        key
        for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
        if model.get(key)
    ]
    if model.get("type") != "BPE" or not plain or asked or spec.get("normalizer") or not all(one["special"] for one in added):
        return None
    names = {one["content"] for one in added}
    vocab = {word: i for word, i in model["vocab"].items() if word not in names}
    return {
        **spec,
        "added_tokens": [],
        "post_processor": None,
        "truncation": None,
        "padding": None,
        "model": {**model, "vocab": vocab},
    }


def first_difference(one: Encode, other: Encode, tokens: list[bytes]) -> str | None:
    """A text made of tokens that the two encode differently: each of some thousands alone, before the next and after one far
    away.

    tiktoken merges whatever gives a token, gigatoken only the pair that is listed: a list of merges that was not learned
    from text, in the order in which it was learned, may tell them apart.
    """
    words = [token.decode(errors="ignore") for token in tokens]
    far = words[len(words) // 2 :] + words
    texts = (
        text
        for i in range(0, len(words), len(words) // PROBES + 1)
        for text in (words[i], words[i] + words[(i + 1) % len(words)], far[i] + words[i])
    )
    return next((text for text in texts if not np.array_equal(one(text), other(text))), None)


class Gigatoken:
    """gigatoken's ids of a text, with a bound on the memory of its cache.

    It remembers every word it has met, 100 MiB for 5 million; when the process has grown too far it is built anew, which
    takes 0.13 s and which text as people write it needs about once a gigabyte.
    """

    PAUSE, LIMIT = 1 << 20, 180 << 20  # characters between two looks; bytes of resident memory

    def __init__(self, build: Callable[[str], Any], spec: str):
        self.build, self.spec = build, spec
        self.encode: Any  # gigatoken has no types
        self.encode_batch: Any
        self.renew()

    def renew(self) -> None:
        self.encode = self.encode_batch = None  # the old cache goes before the new one comes
        built, self.seen = self.build(self.spec), 0
        self.encode, self.encode_batch = built.encode, built.encode_batch
        self.floor = resident_bytes()  # what cannot be freed this way does not count
        self.next_look = self.PAUSE

    def __call__(self, text: str) -> np.ndarray:
        self.look(len(text))
        return self.encode(text)

    def many(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of texts back to back, and how many each has: one call, where calls cost more than short texts themselves."""
        self.look(sum(map(len, texts)))
        found = self.encode_batch(list(texts), parallel=False).layout
        return np.asarray(found.content.data), np.diff(np.asarray(found.offsets.data))

    def look(self, characters: int) -> None:
        """Build it anew when the process has grown too far."""
        self.seen += characters
        if self.seen >= self.next_look:
            self.next_look = self.seen + self.PAUSE
            if resident_bytes() > max(self.LIMIT, self.floor + (self.LIMIT >> 1)):
                self.renew()


def resident_bytes() -> int:
    """The memory of this process that is in use now; 0 where the system does not say it so."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
