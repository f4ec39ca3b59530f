"""Where a corpus' documents come from: the Hub or files at hand; what is held out of them, and how much is taken."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron.data import remote
from megatron.data.corpora import (
    CORPORA,
    BytesRead,
    Corpus,
    HubSplit,
    Manner,
    OnBad,
    file_documents,
    source_files,
    split_of,
    suffix_of,
)
from megatron.data.corpus_text import Document, Stream, count_documents
from megatron.data.text_files import identity
from megatron.errors import Mismatch, MissingInput
from megatron.files import sha256

SPLITS = ("train", "valid", "test")
HELD_OUT = 0.01  # of the documents, for each split that a corpus lacks


@dataclass(frozen=True)
class Origin:
    """The corpus' documents by split, and how they are described in corpus.json."""

    documents: Mapping[str, Callable[[OnBad], Iterator[Document]]]
    described: dict[str, Any]
    known: dict[str, Any]  # what of the description must not differ when a preparation is repeated
    num_records: Callable[[str], int | None] = lambda split: None
    read: BytesRead = field(default_factory=BytesRead)
    num_bytes: int | None = None  # of all files, where they are known
    fetched: dict[str, Path] = field(default_factory=dict)  # URLs, and the folders that their files go to
    seen: list = field(default_factory=list)  # what tells that a file at hand is still the same one


@dataclass(frozen=True)
class File:
    """One file to read: of which split, if its name says so."""

    split: str | None
    path: str
    num_bytes: int


def from_hub(corpus: Corpus) -> Origin:
    splits = {split: HubSplit(corpus, split) for split in corpus.splits}
    described = {"hub": corpus.hub, "config": corpus.config, "splits": corpus.splits}
    return Origin(
        {split: part.documents for split, part in splits.items()},
        described,
        described,
        lambda split: splits[split].num_records() if corpus.layout != "articles" else None,
    )


def from_files(corpus: Corpus, places: Sequence[str], manner: Manner, folder: Path) -> Origin:
    """Files at hand or at URLs; the latter are listed now, and go to `folder` when they are needed."""
    fetched = {
        url: folder / hashlib.sha256(url.encode()).hexdigest()[:16]
        for _, url in map(split_and_path, places)
        if remote.is_url(url)
    }
    files = named(places, [file for place in places for file in listed(place, fetched)])
    refuse_twice(files)
    of = {split: [file for file in files if file.split == split] for split in SPLITS}
    documents = {
        split: functools.partial(file_documents, corpus, [file.path for file in part], manner=manner)
        for split, part in of.items()
        if part
    }
    sizes = {split: [[Path(file.path).name, file.num_bytes] for file in of[split]] for split in documents}
    seen = [identity(file.path) for file in files if os.path.exists(file.path)] if not fetched else []
    return Origin(
        documents,
        {"from": list(places), "files": sizes},
        {"files": sizes},
        fetched=fetched,
        seen=seen,
        read=manner.read,
        num_bytes=sum(file.num_bytes for part in of.values() for file in part),
    )


def listed(place: str, fetched: dict[str, Path]) -> list[File]:
    """The files of one --from, each with the split that `SPLIT=` or its name says."""
    split, path = split_and_path(place)
    if path in fetched:
        found = [(name, str(fetched[path] / name), size) for name, size in remote.sizes(path) if suffix_of(name)]
        if not found:
            raise MissingInput(f"--from {path}: no file of a kind that is read here (JSON, parquet, text)")
    else:
        above = path if os.path.isdir(path) else os.path.dirname(path)
        found = [(os.path.relpath(file, above or "."), file, os.path.getsize(file)) for file in source_files(path)]
    return [File(split or split_of(name), file, size) for name, file, size in found]


def named(places: Sequence[str], files: list[File]) -> list[File]:
    """Every file with a split: all of them train where none is named train.  Raises MissingInput for a name that says nothing."""
    if "train" not in {file.split for file in files}:
        if any(split_and_path(place)[0] for place in places):
            raise MissingInput("--from names no file for train: add train=PATH")
        return [replace(file, split="train") for file in files]
    nameless = next((file.path for file in files if file.split is None), None)
    if nameless:
        raise MissingInput(f"--from {nameless}: its name says no split while others do; write train={nameless}, or leave it out")
    return files


def refuse_twice(files: list[File]) -> None:
    """No file is read twice, and no text is in two splits by a file or a copy of it.  Raises Mismatch."""
    sizes, found = Counter(file.num_bytes for file in files), dict[str, File]()
    for file in files:
        alike = os.path.isfile(file.path) and file.num_bytes and sizes[file.num_bytes] > 1
        before = found.setdefault(sha256(Path(file.path)) if alike else os.path.realpath(file.path), file)
        again = before is not file and os.path.realpath(before.path) == os.path.realpath(file.path)
        if again or before.split != file.split:
            places = f"{before.path} for {before.split} and {file.path} for {file.split}"
            raise Mismatch(f"--from: the same text is {places}: name each text once, and hold out validation by --held-out")


def split_and_path(place: str) -> tuple[str | None, str]:
    """`valid=a.jsonl` -> valid, a.jsonl."""
    name, equals, path = place.partition("=")
    return (split_of(name), path) if equals and name in ("train", "valid", "validation", "val", "test") else (None, place)


def streams_of(corpus: Corpus, origin: Origin, held_out: float | None) -> list[Stream]:
    """The splits there are, with those there are not held out: validation of train, test of validation, else of train too.

    `held_out` None is a hundredth, without a test split where there are too few documents for one.  Raises Mismatch when a
    share is asked for that no split lacks.
    """
    by_prompt, period = corpus.kind == "instruct", round(1 / (HELD_OUT if held_out is None else held_out)) if held_out != 0 else 0
    missing = tuple(split for split in SPLITS if split not in origin.documents) if period else ()
    if held_out and not missing:
        raise Mismatch(f"--held-out {held_out:g}: {corpus.name} has its own train, valid and test: leave it out, or give 0")
    held: dict[str, tuple[str, ...]] = {"train": missing}
    if missing == ("test",):
        held = {"valid": ("test",)}
    return [
        Stream(split, documents, held.get(split, ()), 2 if split == "valid" else period, by_prompt, held_out is not None)
        for split, documents in origin.documents.items()
    ]


def rule_of(stream: Stream) -> str:
    """How a stream is cut, in words."""
    if not stream.held:
        return "the corpus' own"
    names = " and ".join(stream.held) + (" each" if len(stream.held) > 1 else "")
    if stream.by_prompt:
        return f"{names} 1/{stream.period} of the prompts, by their hash"
    return (
        f"{names} one document of every {stream.period}, at a place drawn from the block's number; "
        f"of fewer than {2 * stream.period} the last 1/{stream.period}, at least one"
        + ("" if stream.asked else ", and no test where they are too few for it")
    )


def subset_documents(tokens: int | None, corpus: Corpus) -> int | None:
    """The published rule: tokens over the corpus' mean tokens a document, to the nearest document."""
    if tokens is None:
        return None
    if not corpus.tokens_per_document:
        known = ", ".join(name for name, one in CORPORA.items() if one.tokens_per_document)
        raise Mismatch(
            f"--subset: there are published subsets of {known} only, not of {corpus.name}: use --max-documents or --max-tokens"
        )
    return max(1, round(tokens / corpus.tokens_per_document))


def all_documents(origin: Origin, streams: list[Stream]) -> int:
    """How many documents train has: as the Hub says, else counted."""
    train = next(stream for stream in streams if stream.split == "train")
    told = origin.num_records("train") if not train.held else None
    return told or count_documents(train, "train")
