"""Corpus files as blocks of raw documents: JSON Lines, plain text (one document a file), .gz and .zst of both, and parquet.

A block says where reading goes on after it, so that a run that was ended can go on there; memory is bounded by the block.
"""

from __future__ import annotations

import glob
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron.errors import BadData, MissingInput

BLOCK_BYTES = 1 << 20  # of text a task: a fraction of a second of work
PARQUET_ROWS, MOST_ROWS = 64, 4096  # read at a time, so that long documents fit as well; and in a block
BOM = b"\xef\xbb\xbf"
PACKED = (".gz", ".zst")


@dataclass(frozen=True)
class Mark:
    """Where reading goes on: in which file, after how many of its bytes as decompressed (rows of parquet) and lines."""

    file: int = 0
    offset: int = 0
    line: int = 0


@dataclass(frozen=True)
class Block:
    """Consecutive raw documents of one file.

    Lines: `data` is their bytes. Plain text: a part of the file, and `line` is 0. Parquet: `rows` are the values under
    each key. `too_long` is the bytes of a line that was passed over because it is longer than the limit.
    """

    path: str
    line: int  # the number of the first line or row
    after: Mark
    position: int  # bytes of all files, as they lie on disk, read so far
    data: bytes = b""
    rows: tuple[tuple[bytes | None, ...], ...] | None = None
    more: bool = False  # plain text: the document goes on in the next block
    begin: int = 0  # plain text: bytes of the document before this part
    too_long: int = 0


@dataclass(frozen=True)
class Reading:
    """What decides how files become blocks."""

    keys: tuple[str, ...] = ("text",)
    max_line_bytes: int = 16 << 20
    whole_texts: bool = False  # plain text must not be cut, because the tokenizer has no place where that is safe


# ---- which files


def input_files(patterns: Sequence[str]) -> list[str]:
    """The files that names and globs stand for: in the order given, a glob's sorted, each once.  Raises MissingInput."""
    files = []
    for pattern in patterns:
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        found = [path for path in found if not (os.path.isdir(path) and path != pattern)]
        if not found:
            raise MissingInput(f"--input {pattern}: no such file")
        if os.path.isdir(found[0]):
            raise MissingInput(f"--input {pattern} is a folder: name its files, for example {pattern.rstrip('/')}/*.jsonl")
        files += found
    return list(dict.fromkeys(files))


def unpacked_suffix(path: str) -> str:
    """`.jsonl` of `a.jsonl.gz`, in lower case."""
    name = path.lower()
    return Path(next((name.removesuffix(end) for end in PACKED if name.endswith(end)), name)).suffix


def is_plain_text(path: str) -> bool:
    return unpacked_suffix(path) == ".txt"


def is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")


def identity(path: str) -> list[Any] | None:
    """Path, size and time of change of a file; nothing for a pipe, which cannot be read twice."""
    state = os.stat(path)
    return [os.path.abspath(path), state.st_size, state.st_mtime_ns] if os.path.isfile(path) else None


# ---- bytes, decompressed


@contextmanager
def reading(path: str) -> Iterator[None]:
    """What a damaged or unreadable file raises becomes BadData or MissingInput."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadData(f"{path}: the gzip stream is damaged or cut short ({error}); fetch the file again") from error
    except OSError as error:
        raise MissingInput(f"--input {path}: {error.strerror or error}") from error


def byte_blocks(path: str, disk: BinaryIO, offset: int = 0) -> Iterator[bytes]:
    """The bytes of an open file, decompressed, from `offset` on, in pieces of about BLOCK_BYTES."""
    if path.lower().endswith(PACKED):
        blocks = zstd_blocks(path, disk) if path.lower().endswith(".zst") else pieces(gzip.open(disk))
        yield from after_bytes(blocks, offset)
        return
    if offset:
        disk.seek(offset)
    yield from pieces(disk)


def pieces(file: Any) -> Iterator[bytes]:
    while data := file.read(BLOCK_BYTES):
        yield data


def after_bytes(blocks: Iterator[bytes], skip: int) -> Iterator[bytes]:
    """The blocks without their first `skip` bytes."""
    for data in blocks:
        if skip < len(data):
            yield data[skip:]
        skip = max(0, skip - len(data))


def zstd_blocks(path: str, disk: BinaryIO) -> Iterator[bytes]:
    """All frames of a .zst; its own stream reader would take one that is cut short for a whole one.  Raises BadData."""
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise MissingInput(f"{path} needs the Python package zstandard: pip install -e '.[data]'") from error
    frame, held = None, io.BytesIO()
    try:
        while data := disk.read(1 << 16):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                held.write(frame.decompress(data))
                data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
                if held.tell() >= BLOCK_BYTES:
                    yield held.getvalue()
                    held = io.BytesIO()
    except zstandard.ZstdError as error:
        raise BadData(f"{path}: the zstd stream is damaged ({error}); fetch the file again") from error
    if frame is not None:
        raise BadData(f"{path}: the zstd stream is cut short; fetch the file again")
    if held.tell():
        yield held.getvalue()


# ---- blocks of documents


def read_blocks(paths: Sequence[str], start: Mark = Mark(), how: Reading = Reading()) -> Iterator[Block]:
    """The documents of all files from `start` on.  Raises BadData for a damaged file, MissingInput for one that is gone."""
    before = sum(map(os.path.getsize, paths[: start.file]))
    for number in range(start.file, len(paths)):
        path, begin = paths[number], start if number == start.file else Mark(number)
        with reading(path):
            if is_parquet(path):
                yield from row_blocks(path, begin, before, how)
            else:
                with open(path, "rb") as disk:
                    kind = text_blocks if is_plain_text(path) else line_blocks
                    yield from kind(path, disk, begin, before, how)
            before += os.path.getsize(path)


def reached(disk: BinaryIO, before: int) -> int:
    return before + (disk.tell() if disk.seekable() else 0)  # a pipe has no position


def line_blocks(path: str, disk: BinaryIO, start: Mark, before: int, how: Reading) -> Iterator[Block]:
    """Whole lines; of one beyond the limit nothing is held but its length."""
    held, size, offset, line = [], 0, start.offset, start.line  # `held`: the line that is not yet whole
    for data in byte_blocks(path, disk, start.offset):
        cut = data.rfind(b"\n") + 1
        if cut and size > how.max_line_bytes:  # the end of a line that is passed over
            rest = data.index(b"\n") + 1
            offset, line, data, cut = offset + size + rest, line + 1, data[rest:], cut - rest
            yield Block(path, line, Mark(start.file, offset, line), reached(disk, before), too_long=size + rest)
            held, size = [], 0
        if cut:
            lines = b"".join([*held, data[:cut]])
            first, offset, line = line + 1, offset + len(lines), line + lines.count(b"\n")
            held, size = [], 0  # not two copies of a long line
            yield Block(path, first, Mark(start.file, offset, line), reached(disk, before), lines)
        size += len(data) - cut
        held = [*held, data[cut:]] if size <= how.max_line_bytes else []
    if size:
        last, too_long = b"".join(held), size * (size > how.max_line_bytes)
        yield Block(path, line + 1, Mark(start.file, offset + size, line + 1), reached(disk, before), last, too_long=too_long)


def text_blocks(path: str, disk: BinaryIO, start: Mark, before: int, how: Reading) -> Iterator[Block]:
    """One document, cut where every tokenizer that reads words of its own begins a new one: between a letter or digit
    and a line feed.  Reading goes on after it only when it is whole."""
    held, begin = bytearray(), 0
    for data in byte_blocks(path, disk):
        held += data
        cut = 0 if how.whole_texts else safe_cut(held, len(held) - len(data))
        if cut:
            yield Block(path, 0, start, reached(disk, before), bytes(held[:cut]), more=True, begin=begin)
            begin += cut
            del held[:cut]
    yield Block(path, 0, Mark(start.file + 1), reached(disk, before), bytes(held), begin=begin)


def safe_cut(data: bytearray, since: int) -> int:
    """The last place in `data` from `since` on between an ASCII letter or digit and a line feed; 0 where there is none."""
    at = len(data)
    while (at := data.rfind(b"\n", since, at)) > 0:
        if data[at - 1 : at].isalnum():
            return at
    return 0


def row_blocks(path: str, start: Mark, before: int, how: Reading) -> Iterator[Block]:
    """Rows of a parquet file, as bytes whatever their string type; a null is None.  Raises BadData."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingInput(f"{path} needs the Python package pyarrow: pip install -e '.[data]'") from error
    done, size, rows, held = 0, os.path.getsize(path), [], 0
    try:
        with parquet.ParquetFile(path, buffer_size=BLOCK_BYTES, pre_buffer=False) as file:
            check_columns(path, file.schema_arrow, how.keys)
            for batch in file.iter_batches(PARQUET_ROWS, columns=list(how.keys), use_threads=False):
                batch, done = batch.slice(max(0, start.offset - done)), done + len(batch)
                fresh = list(zip(*(column_bytes(batch.column(key)) for key in how.keys), strict=True))
                rows, held = [*rows, *fresh], held + sum(len(text or b"") for row in fresh for text in row)
                if rows and (held >= BLOCK_BYTES or len(rows) >= MOST_ROWS or done == file.metadata.num_rows):
                    share = before + size * done // file.metadata.num_rows
                    yield Block(path, done - len(rows) + 1, Mark(start.file, done, done), share, rows=tuple(rows))
                    rows, held = [], 0
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        said = str(error).splitlines()[0]
        raise BadData(f"{path}: is no parquet file, or a damaged one ({said:.200}); fetch the file again") from error


def check_columns(path: str, schema: Any, keys: Sequence[str]) -> None:
    """Every key is a column of strings or bytes.  Raises BadData."""
    from pyarrow import types

    for key in keys:
        if key not in schema.names:
            raise BadData(f"{path}: missing key: no {key!r} among its columns {', '.join(map(repr, schema.names[:8]))}")
        kind = schema.field(key).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
        if not any(test(kind) for test in tests):
            raise BadData(f"{path}: not a string: column {key!r} holds {kind}; name a text column with --json-keys")


def column_bytes(column: Any) -> list[bytes | None]:
    """Values as bytes, so that what is not UTF-8 is found where lines are checked as well."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pyarrow.large_binary()).to_pylist()
