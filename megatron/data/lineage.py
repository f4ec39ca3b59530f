"""What a corpus shares with others: its tokens, those of corpora that it was cut out of (`subset_of`), and its input files."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.errors import BadData

if TYPE_CHECKING:
    from megatron.data.indexed import IndexedDataset
    from megatron.data.token_file import TokenFile

RANGE = {"name": str, "fingerprint": str, "start": int, "stop": int}
ENDS = 64 << 10  # bytes at either end of an input file that its mark is taken from
SPLIT = ("inputs", "json_key", "split")  # how files were parted in two that have nothing in common; `part` says which one it is
HANDED_ON = ("subset_of", *SPLIT, "part")  # what a subset's record says of its parent's own origin


@dataclass(frozen=True)
class Span:
    """Tokens [start, stop) of one corpus, by its fingerprint."""

    name: str
    fingerprint: str
    start: int
    stop: int


def origin_of(corpus: IndexedDataset, start: int, stop: int) -> dict[str, Any]:
    """What the sidecar of a subset says of where its tokens come from, its parent's own origin included."""
    origin = {"name": Path(corpus.prefix).name, "fingerprint": corpus.fingerprint(), "start": start, "stop": stop}
    return origin | {name: value for name, value in extra_of(corpus).items() if name in HANDED_ON}


def extra_of(corpus: IndexedDataset | TokenFile) -> dict[str, Any]:
    return (corpus.meta or {}).get("extra") or {}


def origins(corpus: IndexedDataset | TokenFile) -> list[dict[str, Any]]:
    """The records of a corpus' ancestors, parent first.  Raises BadData for one that is none."""
    found, about = [], extra_of(corpus)
    while "subset_of" in about:
        about = about["subset_of"]
        if not isinstance(about, dict) or any(type(about.get(name)) is not kind for name, kind in RANGE.items()):
            raise BadData(
                f"{corpus.prefix}.meta.json: subset_of is {str(about)[:80]}, expected an object with {', '.join(RANGE)}"
            )
        found.append(about)
    return found


def spans(corpus: IndexedDataset | TokenFile, start: int, stop: int) -> list[Span]:
    """What tokens [start, stop) of a corpus are in itself and in every corpus that it was cut out of."""
    found = [Span(corpus.prefix, corpus.fingerprint(), start, stop)]
    for origin in origins(corpus):
        start, stop = start + origin["start"], stop + origin["start"]
        found.append(Span(origin["name"], origin["fingerprint"], start, stop))
    return found


def input_record(path: str) -> dict[str, Any]:
    """What a sidecar says of a file that a corpus was made from; `ends_sha256` knows it by any other name.  Raises OSError."""
    size = os.path.getsize(path)
    if not os.path.isfile(path):  # a pipe, which has other contents each time
        return {"path": path, "bytes": size}
    with open(path, "rb") as file:
        mark = hashlib.sha256(file.read(ENDS))
        file.seek(max(0, size - ENDS))
        mark.update(file.read(ENDS))
    return {"path": path, "bytes": size, "ends_sha256": mark.hexdigest()}


def folder_record(folder: str | Path, files: Iterable[str | Path]) -> dict[str, Any]:
    """What a sidecar says of many small files of one folder, which has one record: their sum, and a mark of their marks in order.

    Raises OSError.
    """
    about = [input_record(str(path)) for path in files]
    mark = hashlib.sha256("".join(str(one.get("ends_sha256")) for one in about).encode())
    return {
        "path": str(folder),
        "files": len(about),
        "bytes": sum(one["bytes"] for one in about),
        "ends_sha256": mark.hexdigest(),
    }


def inputs(corpus: IndexedDataset | TokenFile) -> dict[tuple[Any, ...], str]:
    """The files that a corpus or an ancestor of it was made from, as far as that is on record: size, mark and key to the path.

    Raises BadData for a record of another shape.
    """
    found = {}
    for about in (extra_of(corpus), *origins(corpus)):
        files = about.get("inputs") or []
        if not isinstance(files, list) or any(not isinstance(file, dict) or not {"path", "bytes"} <= {*file} for file in files):
            raise BadData(f"{corpus.prefix}.meta.json: inputs is {str(files)[:80]}, expected a list of objects with path, bytes")
        for file in files:
            if file["bytes"]:  # nothing is known of a pipe
                mark = str(file.get("ends_sha256", file["path"]))
                found[str(file["bytes"]), mark, str(about.get("json_key"))] = str(file["path"])
    return found


def are_parted(one: IndexedDataset | TokenFile, other: IndexedDataset | TokenFile) -> bool:
    """Whether they come from the two sides of one split.  Raises BadData."""
    mine, theirs = ([about for about in (extra_of(found), *origins(found)) if "part" in about] for found in (one, other))
    return any(
        a["part"] != b["part"] and all(a.get(name) == b.get(name) for name in SPLIT) for a, b in itertools.product(mine, theirs)
    )


def shared(one: tuple[IndexedDataset | TokenFile, int, int], other: tuple[IndexedDataset | TokenFile, int, int]) -> str | None:
    """In words, what tokens [start, stop) of two corpora have in common; None where nothing is known to be.  Raises BadData."""
    mine, theirs = spans(*one), {span.fingerprint: span for span in spans(*other)}
    related = [(span, theirs[span.fingerprint]) for span in mine if span.fingerprint in theirs]
    for span, twin in related:
        if span.start < twin.stop and twin.start < span.stop:
            of = "" if twin.name == other[0].prefix else f" of {twin.name}, which it was cut out of,"
            return f"tokens {max(span.start, twin.start)}:{min(span.stop, twin.stop)}{of}"
    files = {} if related or are_parted(one[0], other[0]) else inputs(one[0])
    common = files.keys() & inputs(other[0]).keys() if files else set()
    return f"the documents of {min(files[key] for key in common)}" if common else None
