"""Files of multiple-choice questions: a JSON object a line with query, choices and gold, the number of the right choice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron.data.tokenizer import Tokenizer
from megatron.errors import BadData, MissingInput


@dataclass(frozen=True, kw_only=True)
class Question:
    query: str
    choices: tuple[str, ...]
    gold: int


def read_questions(path: Path) -> list[Question]:
    """Raises MissingInput, BadData with file and line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror}; expected a JSONL file of questions") from None
    found = [question(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise BadData(f"{path} holds no question: expected a JSON object a line with query, choices and gold")
    return found


def question(where: str, line: bytes) -> Question:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise BadData(f"{where}: not JSON; expected an object with query, choices and gold") from None
    if not isinstance(row, dict):
        raise BadData(f"{where}: found a {type(row).__name__}, expected an object with query, choices and gold")
    if missing := [name for name in ("query", "choices", "gold") if name not in row]:
        raise BadData(f"{where}: no {missing[0]} (found {', '.join(row) or 'nothing'}); name the keys query, choices and gold")
    query, choices, gold = row["query"], row["choices"], row["gold"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise BadData(f"{where}: choices must be two texts or more, none of them empty")
    if not isinstance(query, str) or isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise BadData(f"{where}: gold is {gold!r} and query a {type(query).__name__}, expected 0..{len(choices) - 1} and a text")
    return Question(query=query, choices=tuple(choices), gold=gold)


def joined(query: str, choice: str) -> tuple[str, str]:
    """Context and continuation: a space between, where the query does not end in one."""
    return query, choice if query[-1:].isspace() or not query else f" {choice}"


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of both, encoded together and cut where the context alone would end; its last spaces belong to the continuation.

    So lm-eval does it. An empty context is the end-of-document token, behind which a document begins.  -> [c], [n]
    """
    end = len(context.rstrip())
    context, continuation = context[:end], context[end:] + continuation
    first = tokenizer.encode(context) if context else np.empty(0, np.int64)
    whole = tokenizer.encode(context + continuation)
    ids = np.asarray(first if len(first) else [tokenizer.eod], np.int64)
    return ids, np.asarray(whole[len(first) :], np.int64)
