"""Prompts and responses: the prompt is read, the loss is on the response alone.

On disk a pair is a document of two sequences, prompt and response, in Megatron's own format. In a row the two follow each
other, cut to s tokens at the response's end, with at least one token of it left; pairs whose prompt alone fills a row are
left out and counted. A response ends with its first end token, which is scored with it. The two parts are tokenized apart,
so that the border between them is a border of tokens for every tokenizer, and sampling after a prompt meets the ids that
training saw.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron.data.padded import RULE, Padded
from megatron.errors import BadData, MissingInput

# Records


@dataclass(frozen=True)
class Keys:
    """Where a record keeps its parts. Without `context` there is none; `templated`: the instruction is a whole prompt."""

    instruction: str
    response: str
    context: str | None = None
    templated: bool = False


FORMATS = {
    "alpaca": Keys("instruction", "output", "input"),
    "dolly": Keys("instruction", "response", "context"),
    "pairs": Keys("prompt", "response", templated=True),
}


@dataclass(frozen=True)
class Pair:
    """A prompt as the model reads it, and the response it should give, without the eod."""

    prompt: str
    response: str


class BadRecord(ValueError):
    """A record that is no pair: of what kind, and why."""


def prompt_of(instruction: str, context: str = "") -> str:
    """The template of instruction tuning. Without input its block is left out, as in Alpaca."""
    block = f"### Input:\n{context}\n\n" if context.strip() else ""
    return f"### Instruction:\n{instruction}\n\n{block}### Response:\n"


def read_records(path: str | Path) -> Iterator[tuple[str, object]]:
    """The records of a JSON array or of JSON Lines, each with its place; a line that is no JSON comes as a BadRecord.

    Raises MissingInput, or BadData for a file that is not text or a damaged array.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror}, expected a JSON array or JSON Lines of prompts and responses") from None
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: byte {error.start} is not UTF-8, expected a JSON array or JSON Lines") from None
    if text.lstrip().startswith("["):
        yield from ((f"{path}: record {number}", record) for number, record in enumerate(whole_array(path, text), 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", parsed(line)


def whole_array(path: str | Path, text: str) -> list:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadData(f"{path}: begins like a JSON array and is not one ({error}); fetch the file again") from None


def parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRecord("bad JSON", str(error))


def recognized(where: str, record: object) -> Keys:
    """The format whose keys a record has.  Raises BadData."""
    for keys in FORMATS.values():
        if isinstance(record, dict) and keys.instruction in record and keys.response in record:
            return keys
    found = f"the keys {', '.join(map(repr, list(record)[:8]))}" if isinstance(record, dict) else type(record).__name__
    known = "; ".join(f"{keys.instruction} and {keys.response} ({name})" for name, keys in FORMATS.items())
    raise BadData(f"{where}: has {found}, expected {known}; name the format, or the keys of your own")


def pair_of(record: object, keys: Keys) -> Pair:
    """A record as prompt and response.  Raises BadRecord."""
    if isinstance(record, BadRecord):
        raise record
    if not isinstance(record, dict):
        raise BadRecord("no object", f"holds a {type(record).__name__}, expected an object")
    instruction, response = text_at(record, keys.instruction), text_at(record, keys.response)
    context = ""
    if keys.context is not None and value_at(record, keys.context) is not None:
        context = text_at(record, keys.context, may_be_empty=True)
    return Pair(instruction if keys.templated else prompt_of(instruction, context), response)


def value_at(record: dict, key: str) -> object:
    """What a record holds under a key, or under a path into what is nested, such as instances.0.output; None for nothing."""
    if key in record:
        return record[key]
    found: object = record
    for part in key.split("."):
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict):
            found = found.get(part)
        else:
            return None
    return found


def text_at(record: dict, key: str, may_be_empty: bool = False) -> str:
    text = value_at(record, key)
    if text is None and key not in record:
        raise BadRecord("missing key", f"has no {key!r} among {', '.join(map(repr, list(record)[:8]))}")
    if not isinstance(text, str):
        raise BadRecord("not a string", f"{key!r} holds {type(text).__name__}, expected text")
    if not may_be_empty and not text.strip():
        raise BadRecord("no text", f"{key!r} is blank, expected text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord("invalid UTF-8", f"{key!r} has a lone surrogate at character {error.start + 1}") from None
    return text


def encode_pair(pair: Pair, encode: Callable[[str], np.ndarray], eod: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids of prompt and response, the eod behind it.  -> int64 [p], int64 [r]"""
    prompt, response = (np.asarray(encode(text), np.int64) for text in (pair.prompt, pair.response))
    return prompt, np.append(response, eod)


# Samples


class Instruct(Padded):
    """Rows of one pair each: prompt, response, padding.  Raises MissingInput, or BadData for a corpus not made of pairs."""

    def __init__(self, prefix: str, seq_length: int, seed: int, vocab_size: int | None, end: int):
        super().__init__(prefix, seq_length, seed, vocab_size, end)
        fits = (self.given < seq_length) & (self.given > 0) & (self.lengths > self.given)
        self.kept = np.flatnonzero(fits)
        if not len(self.kept):
            raise BadData(
                f"{prefix}: none of {len(fits)} pairs has a prompt of 1 to {seq_length - 1} tokens and a response; "
                f"raise --seq-length {seq_length}"
            )

    def num_given(self) -> np.ndarray:
        """The tokens of each prompt.  -> int64 [D]"""
        return prompt_lengths(self.corpus, self.lengths)

    def event(self, first: int, last: int) -> tuple[str, str]:
        """As in Samples; places do not matter, because a prompt comes first and no token last."""
        return f"the response and its end, as far as it fits into {self.seq_length} tokens", "the prompt"

    def describe(self) -> str:
        """Pairs, those cut or left out, and what of an epoch is scored."""
        scored = int((self.filled(self.kept) - self.given[self.kept]).sum())
        return (
            f"{self.corpus.prefix}: {len(self.kept)} pairs of {len(self.lengths)}, {scored} response tokens in rows of "
            f"{self.seq_length}; {self.said_of_ends('responses')}, {len(self.lengths) - len(self.kept)} pairs left out "
            f"(no prompt, no response, or a prompt of {self.seq_length} tokens or more)"
        )

    def fingerprint(self) -> str:
        """Names the samples: sha256 over seed, length, the corpus' content and where its prompts end."""
        known = ["pairs", RULE, self.end, self.seed, self.seq_length, self.corpus.fingerprint()]
        digest = hashlib.sha256(json.dumps(known).encode())
        digest.update(self.given)
        return digest.hexdigest()


def prompt_lengths(corpus, lengths: np.ndarray) -> np.ndarray:
    """Tokens of each document's first sequence of two.  int64 [D] -> int64 [D].  Raises BadData for other documents."""
    sizes = np.asarray(corpus.sizes, np.int64)
    if len(sizes) != 2 * len(lengths) or not np.array_equal(sizes.reshape(-1, 2).sum(1), lengths):
        raise BadData(
            f"{corpus.prefix}: has {len(sizes)} sequences in {len(lengths)} documents, expected a prompt and a "
            "response in each; prepare the corpus with tools/prepare_instruct.py"
        )
    return np.ascontiguousarray(sizes[0::2])
