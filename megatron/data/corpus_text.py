"""The documents of a corpus gathered into one JSON Lines file a split, so that an interrupted gathering goes on.

A corpus' own splits are kept. What it lacks is held out by a rule that needs no second look and no generator's history:
of every block of `period` consecutive documents one goes to each missing split, at a place drawn from the block's number.
So a longer run of the same documents holds out the same ones, and what validates one subset never trains a larger one.
Of fewer documents than two blocks the last ones are held out, 1/period of them and at least one. Prompts and responses are
held out by the hash of the prompt, whole prompts at a time: the same prompt is never on two sides.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron.data.corpora import OnBad
from megatron.data.instruct import pair_of, recognized
from megatron.data.samples import hash64
from megatron.errors import BadData, CannotWrite
from megatron.files import json_if_whole, replace_file

HOLDING = 120  # what a random number is for
SAVE_BYTES = 1 << 26  # of text between two notes of how far it has come

Document = dict[str, Any]


@dataclass(frozen=True)
class Stream:
    """One of the corpus' own splits, and the splits that are held out of it."""

    split: str
    documents: Callable[[OnBad], Iterator[Document]]
    held: tuple[str, ...] = ()
    period: int = 100
    by_prompt: bool = False
    asked: bool = True  # every held-out split was asked for; else test is given up where documents are too few for it

    def assigned(self, on_bad: OnBad) -> Iterator[tuple[str, Document]]:
        """Every document with the split that it belongs to.  Raises BadData when there are too few to hold any out."""
        documents = self.documents(on_bad)
        if not self.held:
            return ((self.split, document) for document in documents)
        if self.by_prompt:
            return zip(*self.prompts_held(list(documents)))
        head = list(itertools.islice(documents, 2 * self.period))
        if len(head) < 2 * self.period:
            return zip(self.last_held(len(head)), head)
        return self.in_blocks(itertools.chain(head, documents))

    def in_blocks(self, documents: Iterator[Document]) -> Iterator[tuple[str, Document]]:
        """One document of every block to each split that is held out, at a place drawn from the block's number."""
        for block in itertools.count():
            order = np.argsort(hash64(HOLDING, block, np.arange(self.period)), kind="stable")
            taken = dict(zip(order.tolist(), self.held))
            here = list(itertools.islice(documents, self.period))
            yield from ((taken.get(place, self.split), document) for place, document in enumerate(here))
            if not here:
                return

    def last_held(self, count: int) -> list[str]:
        """The splits of `count` documents, the last ones held out.  Raises BadData when there are too few."""
        each, held = max(1, round(count / self.period)), self.held
        if count and count <= len(held) and self.split != "train":
            return [self.split] * count  # one document of the corpus' own validation is not cut
        if not self.asked and count - each * len(held) < each:
            held = held[:1]
        if count and count - each * len(held) < 1:
            share, unit = f"1/{self.period}", "prompt" if self.by_prompt else "document"
            raise BadData(
                f"{count} {unit}{'s are' if count > 1 else ' is'} too few: {' and '.join(held)} of {share} each would take "
                f"{each * len(held)} and leave {self.split} none; give more {unit}s, a smaller --held-out, or --held-out 0"
            )
        return [self.split] * (count - each * len(held)) + [name for name in held for _ in range(each)]

    def prompts_held(self, documents: list[Document]) -> tuple[list[str], list[Document]]:
        """The prompts with the smallest hashes are held out, all pairs of one prompt together."""
        prompts = [pair_of(document, recognized("a record", document)).prompt for document in documents]
        hashes = {prompt: hashlib.sha256(prompt.encode()).digest() for prompt in prompts}
        order = sorted(hashes, key=hashes.__getitem__)
        splits = dict(zip(order, reversed(self.last_held(len(order)))))
        return [splits[prompt] for prompt in prompts], documents


@dataclass(frozen=True)
class Limits:
    """Where to stop: documents by split, and tokens of any one split, with what counts a document's."""

    documents: dict[str, int] = field(default_factory=dict)
    tokens: int | None = None
    count: Callable[[Document], int] | None = None


@dataclass
class Part:
    """What a split holds so far; full: a limit was reached."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    file_bytes: int = 0
    full: bool = False


class Gathering:
    """SPLIT.jsonl files in a folder, with gathered.json saying how much of them counts; run() goes on from there."""

    def __init__(self, folder: Path, limits: Limits, on_bad: OnBad, show: Callable[[dict[str, Part]], None]):
        self.folder, self.limits, self.on_bad, self.show = folder, limits, on_bad, show
        self.state = folder / "gathered.json"
        saved = json_if_whole(self.state) or {}
        if not all(self.size(split) >= part["file_bytes"] for split, part in saved.get("parts", {}).items()):
            saved = {}  # text that was noted is gone: from the start, then
        self.parts = {split: Part(**part) for split, part in saved.get("parts", {}).items()}
        self.consumed: dict[str, int] = saved.get("consumed", {})
        self.finished: list[str] = saved.get("finished", [])
        self.files: dict[str, BinaryIO] = {}

    def size(self, split: str) -> int:
        path = self.folder / f"{split}.jsonl"
        return path.stat().st_size if path.exists() else 0

    def run(self, streams: list[Stream]) -> dict[str, Part]:
        """Read all streams to their ends or limits.  -> the parts that have documents.  Raises CannotWrite."""
        try:
            with ExitStack() as stack:
                for split in (name for stream in streams for name in (stream.split, *stream.held)):
                    self.open(split, stack)
                for stream in streams:
                    if stream.split not in self.finished:
                        self.pour(stream)
        except OSError as error:
            raise CannotWrite(f"{self.folder}: {error.strerror}; make room and run it again, it goes on") from error
        return {split: part for split, part in self.parts.items() if part.documents}

    def open(self, split: str, stack: ExitStack) -> None:
        """Append to a split's file behind what counts; text that a killed run wrote after its last note goes."""
        part = self.parts.setdefault(split, Part())
        self.files[split] = stack.enter_context(open(self.folder / f"{split}.jsonl", "ab"))
        self.files[split].truncate(part.file_bytes)

    def pour(self, stream: Stream) -> None:
        before = self.consumed.get(stream.split, 0)
        saved = self.written()
        for split, document in itertools.islice(stream.assigned(self.on_bad), before, None):
            if self.enough(stream):
                break
            self.add(split, document)
            self.consumed[stream.split] = before = before + 1
            if self.written() - saved >= SAVE_BYTES:
                self.save()
                saved = self.written()
            self.show(self.parts)
        self.finished.append(stream.split)
        self.save()

    def enough(self, stream: Stream) -> bool:
        """The stream's own split is full, and none held out of it is empty."""
        return self.parts[stream.split].full and all(self.parts[split].documents for split in stream.held)

    def add(self, split: str, document: Document) -> None:
        """Write a document, unless its split is full, or would have more than its tokens with it."""
        part, most = self.parts[split], self.limits.documents.get(split)
        if part.full:
            return
        tokens = self.limits.count(document) if self.limits.tokens and self.limits.count else 0
        if self.limits.tokens and part.tokens + tokens > self.limits.tokens and (part.documents or split == "train"):
            if not part.documents:
                raise BadData(
                    f"--max-tokens {self.limits.tokens}: the first document has {tokens} tokens; raise it, "
                    "or cut by --unique-tokens when training"
                )
            part.full = True
            return
        line = json.dumps(document).encode() + b"\n"
        self.files[split].write(line)
        part.documents, part.tokens, part.file_bytes = part.documents + 1, part.tokens + tokens, part.file_bytes + len(line)
        part.text_bytes += sum(len(text.encode()) for text in parts_of(document))
        part.full = part.documents == most

    def written(self) -> int:
        return sum(part.file_bytes for part in self.parts.values())

    def save(self) -> None:
        """Note how far it has come, once that much is on the disk."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        known = {
            "parts": {split: asdict(part) for split, part in self.parts.items()},
            "consumed": self.consumed,
            "finished": self.finished,
        }
        replace_file(self.state, json.dumps(known).encode())


def training_texts(stream: Stream, limits: Limits, most_bytes: int, on_bad: OnBad) -> Iterator[str]:
    """What a tokenizer is trained on: the first documents of the train split, within its limit, about `most_bytes` of them."""
    texts = (document for split, document in stream.assigned(on_bad) if split == "train")
    for document in itertools.islice(texts, limits.documents.get("train")):
        for text in parts_of(document):
            yield text
            most_bytes -= len(text.encode())
        if most_bytes <= 0:
            return


def parts_of(document: Document) -> Iterable[str]:
    """The text of a document; of a record its prompt and its response, as they will be tokenized."""
    if "text" in document:
        return (document["text"],)
    pair = pair_of(document, recognized("a record", document))
    return pair.prompt, pair.response


def count_documents(stream: Stream, split: str) -> int:
    """How many documents of a stream belong to a split: a pass over all of it, in which bad ones count for nothing."""
    return sum(name == split for name, _ in stream.assigned(lambda bad: None))
