"""The work folder of a preparation: what is done stays when the run is ended, and the same command goes on from there.

    FOLDER/.NAME.work/   lock            held by the run that works here
                         key.json        arguments, tokenizer and input files; work of another key is thrown away
                         journal.jsonl   a line a second: where reading goes on, counts, and a checksum of the ids since
                         N.ids, N.sizes  tokens and document lengths of the N-th key; the first is a second name (a hard
                                         link) of the file that the IndexedWriter fills, so nothing is written twice
                         N.kept          those ids of the run before, while they are taken over into a new file
                         rejects.jsonl   lines that are no documents
                         out/            the finished files, which move to FOLDER when all are there
                         finished        they are

A journal line counts only if the ids on disk reach it and have its checksum, so neither kill -9 nor a power cut, which may
leave a later line or a part of one, makes a wrong corpus.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron.data.indexed import IndexedWriter
from megatron.data.text_files import Mark
from megatron.errors import BadData, CannotWrite
from megatron.files import json_if_whole, own_folder, replace_file
from megatron.locks import Held, held

SECONDS, TOKENS = 1.0, 1 << 23  # of work between two journal lines, whichever comes first


@dataclass
class Progress:
    """What has been done: where reading goes on, documents and tokens of each key, bytes of text, bad lines by kind."""

    documents: list[int]
    tokens: list[int]
    mark: Mark = Mark()
    position: int = 0
    text_bytes: int = 0
    rejects: dict[str, int] = field(default_factory=dict)


class WorkFolder:
    """A context: the one run that may work on an output.  Raises CannotWrite when another does, or the disk does not let it.

    Kept on exit when there is something to go on from; not kept after BadData, because the input has to change.
    """

    def __init__(self, folder: Path, name: str, key: dict[str, Any]):
        self.folder, self.key = folder / f".{name}.work", key
        self.notes, self.dropped, self.done, self.lock = 0, False, False, contextlib.ExitStack()

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    @property
    def finished(self) -> bool:
        return self.path("finished").exists()

    def __enter__(self) -> WorkFolder:
        try:
            self.lock.enter_context(held(own_folder(self.folder), "lock"))
            if json_if_whole(self.path("key.json")) != json.loads(json.dumps(self.key)):
                self.dropped = self.path("journal.jsonl").exists()
                self.clear()
            self.path("out").mkdir(exist_ok=True)
            self.notes = size_of(self.path("journal.jsonl"))  # kept as well when this run is refused for another reason
        except Held:
            raise CannotWrite(
                f"{self.folder}: another run is preparing this output; wait for it, or choose another --output-prefix"
            ) from None
        except OSError as error:
            self.lock.close()
            raise CannotWrite(f"{self.folder}: {error.strerror or error}") from error
        return self

    def clear(self) -> None:
        """Start afresh, with this run's key."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith("lock"):
                path.unlink()
        replace_file(self.path("key.json"), json.dumps(self.key).encode())

    def __exit__(self, kind, *_) -> None:
        resumable = None not in self.key["inputs"]
        if self.done or not resumable or not self.notes or (kind and issubclass(kind, BadData)):
            aside = self.folder.with_name(f"{self.folder.name}.{os.getpid()}")
            with contextlib.suppress(OSError):  # away at once: the next run may begin while this one clears up
                os.replace(self.folder, aside)
            shutil.rmtree(aside, ignore_errors=True)
        self.lock.close()

    def finish(self) -> None:
        replace_file(self.path("finished"), b"")

    def publish(self, folder: Path, endings: Sequence[str]) -> None:
        """Move the finished files, those with the last of `endings` last.  Raises CannotWrite."""
        try:
            for ending in endings:
                for path in sorted(self.path("out").glob(f"*{ending}")):
                    os.replace(path, folder / path.name)
        except OSError as error:
            raise CannotWrite(f"{folder}: {error.strerror}; start again to go on") from error
        self.done = True


class Journal:
    """Notes what has been written, and gives it back to new writers. One journal a run, inside its WorkFolder."""

    def __init__(self, work: WorkFolder, writers: list[IndexedWriter]):
        self.work, self.writers = work, writers
        self.progress = Progress([0] * len(writers), [0] * len(writers))
        self.crcs, self.noted, self.noted_tokens = [[0, 0] for _ in writers], time.monotonic(), 0  # of ids and sizes

    def __enter__(self) -> Journal:
        with written(self.work.folder):
            self.take_over()
            self.sizes = [open(self.name(number, "sizes"), "ab") for number in range(len(self.writers))]
            self.rejects = open(self.work.path("rejects.jsonl"), "ab")
            self.lines = open(self.work.path("journal.jsonl"), "ab")
        return self

    def __exit__(self, *_) -> None:
        for file in (*self.sizes, self.rejects, self.lines):
            with contextlib.suppress(OSError):  # a full disk: what was not noted is done again
                file.close()

    def name(self, number: int, kind: str) -> Path:
        return self.work.path(f"{number}.{kind}")

    def add(self, number: int, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Whole documents of one key.  Raises CannotWrite, and BadData for an id that does not fit."""
        sizes = lengths.astype("<i4").tobytes()
        self.writers[number].add_documents(ids, lengths)
        with written(self.work.folder):
            self.sizes[number].write(sizes)
        ids_crc, sizes_crc = self.crcs[number]
        self.crcs[number] = [zlib.crc32(ids, ids_crc), zlib.crc32(sizes, sizes_crc)]
        self.progress.documents[number] += len(lengths)
        self.progress.tokens[number] += len(ids)

    def add_reject(self, kind: str, line: dict[str, Any]) -> None:
        with written(self.work.folder):
            self.rejects.write(json.dumps(line).encode() + b"\n")
        self.progress.rejects[kind] = self.progress.rejects.get(kind, 0) + 1

    def note_sometimes(self) -> None:
        """A journal line, when the last is long ago."""
        if time.monotonic() - self.noted >= SECONDS or sum(self.progress.tokens) - self.noted_tokens >= TOKENS:
            self.note()

    def note(self) -> None:
        line = asdict(self.progress) | {"crcs": self.crcs, "reject_bytes": self.rejects.tell()}
        with written(self.work.folder):
            for file in (*(writer.bin for writer in self.writers), *self.sizes, self.rejects):
                file.flush()
            self.lines.write(json.dumps(line).encode() + b"\n")
            self.lines.flush()
        self.crcs = [[0, 0] for _ in self.writers]
        self.noted, self.noted_tokens = time.monotonic(), sum(self.progress.tokens)
        self.work.notes += 1

    # ---- going on

    def take_over(self) -> None:
        """Copy what an earlier run has left into the new writers, and cut its files to what is right."""
        for number, writer in enumerate(self.writers):
            ids, kept = self.name(number, "ids"), self.name(number, "kept")
            if ids.exists() and not kept.exists():
                os.replace(ids, kept)
            ids.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a file system without links: such a run starts afresh
                os.link(writer.temporary("bin"), ids)
        good, reject_bytes, self.work.notes = [], 0, 0
        for raw, line in self.lines_before():
            parts = [self.part(number, line) for number in range(len(self.writers))]
            whole = [part for part in parts if part is not None]
            if len(whole) < len(parts) or size_of(self.work.path("rejects.jsonl")) < line["reject_bytes"]:
                break
            for writer, (tokens, sizes) in zip(self.writers, whole, strict=True):
                writer.add_documents(tokens, sizes)
            reject_bytes = line["reject_bytes"]
            good.append(raw)
            self.progress = Progress(**{name: line[name] for name in asdict(self.progress)})
            self.progress.mark = Mark(**line["mark"])
            self.work.notes += 1
        self.cut(b"".join(good), reject_bytes)

    def lines_before(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Journal lines; a last one that was not written whole is none."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            with open(self.work.path("journal.jsonl"), "rb") as file:
                for raw in file:
                    yield raw, json.loads(raw)

    def part(self, number: int, line: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """The ids and document lengths that a journal line stands for; nothing when they are not there whole."""
        dtype, before = self.writers[number].dtype, self.progress
        ids = read_part(self.name(number, "kept"), dtype, before.tokens[number], line["tokens"][number])
        sizes = read_part(self.name(number, "sizes"), np.dtype("<i4"), before.documents[number], line["documents"][number])
        whole = [zlib.crc32(ids), zlib.crc32(sizes)] == line["crcs"][number] and sizes.sum(dtype=np.int64) == len(ids)
        return (ids, sizes) if whole else None

    def cut(self, good: bytes, reject_bytes: int) -> None:
        replace_file(self.work.path("journal.jsonl"), good)
        for number, documents in enumerate(self.progress.documents):
            truncate(self.name(number, "sizes"), 4 * documents)
        truncate(self.work.path("rejects.jsonl"), reject_bytes)
        for writer in self.writers:
            writer.bin.flush()
        for number in range(len(self.writers)):
            self.name(number, "kept").unlink(missing_ok=True)


def read_part(path: Path, dtype: np.dtype, start: int, stop: int) -> np.ndarray:
    """Entries [start, stop) of a file, or as many of them as are there."""
    if not path.exists():
        return np.empty(0, dtype)
    return np.fromfile(path, dtype, stop - start, offset=start * dtype.itemsize)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def truncate(path: Path, size: int) -> None:
    with open(path, "ab") as file:
        file.truncate(size)


@contextlib.contextmanager
def written(folder: Path) -> Iterator[None]:
    """An OSError inside becomes CannotWrite."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(f"{folder}: {error.strerror}; nothing is published: make room, and start again to go on") from error
