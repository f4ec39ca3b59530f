"""Corpus files as blocks of raw documents: JSON Lines and arrays, CSV, plain text (one document a file), .gz and .zst of all,
and parquet.

A block says where reading goes on after it, so that a run that was ended can go on there; memory is bounded by the block.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron.errors import BadData, MissingInput

BLOCK_BYTES = 1 << 20  # of text a task: a fraction of a second of work
PARQUET_ROWS, MOST_ROWS = 64, 4096  # read at a time, so that long documents fit as well; and in a block
BOM = b"\xef\xbb\xbf"
PACKED = (".gz", ".zst")
TABLES = {".csv": ",", ".tsv": "\t"}
OTHER_KINDS = (  # how files begin that are read under another name, or not at all: (first bytes, kind, what to do)
    (b"BZh", "bzip2", "unpack it, or pack it as .zst or .gz"),
    (b"\xfd7zXZ\x00", "xz", "unpack it, or pack it as .zst or .gz"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"\x1f\x8b", "gzip", "name it .gz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "name it .zst"),
    (b"PAR1", "parquet", "name it .parquet"),
    (b"\xff\xfe\x00\x00", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
)


@dataclass(frozen=True)
class Mark:
    """Where reading goes on: in which file, after how many of its bytes as decompressed (rows of parquet) and lines."""

    file: int = 0
    offset: int = 0
    line: int = 0


@dataclass(frozen=True)
class Block:
    """Consecutive raw documents of one file.

    Lines, and the elements of an array: `data` is their bytes. Plain text: a part of the file, and `line` is 0. Tables
    (parquet, CSV): `rows` are the values under each key. `too_long` is the bytes of a line that was passed over because it is
    longer than the limit.
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
    files: list[str] = []
    for pattern in patterns:
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        for path in found:
            refuse_dangling(path, "--input")
        found = [path for path in found if not (os.path.isdir(path) and path != pattern)]
        if not found:
            raise MissingInput(f"--input {pattern}: no such file")
        if os.path.isdir(found[0]):
            raise MissingInput(f"--input {pattern} is a folder: name its files, for example {pattern.rstrip('/')}/*.jsonl")
        files += found
    return list(dict.fromkeys(files))


def refuse_dangling(path: str, flag: str) -> None:
    """A link that leads nowhere names no input.  Raises MissingInput."""
    if os.path.islink(path) and not os.path.exists(path):
        raise MissingInput(f"{flag} {path}: is a link to {os.readlink(path)}, which is not there; mend the link, or leave it out")


def refuse_other_kind(path: str) -> None:
    """A file begins as its name says: not packed otherwise, and no text of another encoding.  Raises BadData."""
    if path.lower().endswith((*PACKED, ".parquet")) or not os.path.isfile(path):
        return
    with open(path, "rb") as file:
        head = file.read(1 << 12)
    for start, kind, remedy in OTHER_KINDS:
        if head.startswith(start):
            raise BadData(f"{path}: is {kind}, expected UTF-8 text by its name; {remedy}")
    if len(head) > 8 and head.count(0) > len(head) // 4:
        raise BadData(f"{path}: every second byte is 0, as in UTF-16, expected UTF-8; convert it: iconv -f UTF-16LE -t UTF-8")


def unpacked_suffix(path: str) -> str:
    """`.jsonl` of `a.jsonl.gz`, in lower case."""
    name = path.lower()
    return Path(next((name.removesuffix(end) for end in PACKED if name.endswith(end)), name)).suffix


def is_plain_text(path: str) -> bool:
    return unpacked_suffix(path) == ".txt"


def is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")


def begins_array(path: str) -> bool:
    """The first character of a file opens a JSON array; a pipe is not looked into."""
    if not os.path.isfile(path):
        return False
    with reading(path), open(path, "rb") as disk:
        return first_character(byte_blocks(path, disk)) == b"["


def first_character(blocks: Iterable[bytes]) -> bytes:
    """The first byte that is neither a byte-order mark nor white space; none of an empty file."""
    return next((start[:1] for start in (data.removeprefix(BOM).lstrip() for data in blocks) if start), b"")


def identity(path: str) -> list[Any] | None:
    """Path, size and time of change of a file; nothing for a pipe, which cannot be read twice."""
    state = os.stat(path)
    return [os.path.abspath(path), state.st_size, state.st_mtime_ns] if os.path.isfile(path) else None


# ---- bytes, decompressed


@contextmanager
def reading(path: str, flag: str = "--input") -> Iterator[None]:
    """What a damaged or unreadable file raises becomes BadData or MissingInput."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadData(f"{path}: the gzip stream is damaged or cut short ({error}); fetch the file again") from error
    except OSError as error:
        raise MissingInput(f"{flag} {path}: {error.strerror or error}") from error


def byte_blocks(path: str, disk: BinaryIO, offset: int = 0) -> Iterator[bytes]:
    """The bytes of an open file, decompressed, from `offset` on, in pieces of about BLOCK_BYTES."""
    if path.lower().endswith(PACKED):
        blocks = zstd_blocks(path, disk) if path.lower().endswith(".zst") else file_blocks(gzip.open(disk))
        yield from after_bytes(blocks, offset)
        return
    if offset:
        disk.seek(offset)
    yield from file_blocks(disk)


def file_blocks(file: Any) -> Iterator[bytes]:
    while data := file.read(BLOCK_BYTES):
        yield data


class BlockFile(io.RawIOBase):
    """Blocks of bytes, read as a file."""

    def __init__(self, blocks: Iterator[bytes]):
        self.blocks, self.held = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.held:
            block = next(self.blocks, None)
            if block is None:
                return 0
            self.held = memoryview(block)
        count = min(len(buffer), len(self.held))
        buffer[:count], self.held = self.held[:count], self.held[count:]
        return count


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
                yield from parquet_blocks(path, begin, before, how)
            else:
                refuse_other_kind(path)
                with open(path, "rb") as disk:
                    yield from blocks_of_kind(path)(path, disk, begin, before, how)
            before += os.path.getsize(path)


def blocks_of_kind(path: str) -> Callable[[str, BinaryIO, Mark, int, Reading], Iterator[Block]]:
    if is_plain_text(path):
        return text_blocks
    if unpacked_suffix(path) in TABLES:
        return table_blocks
    return array_blocks if unpacked_suffix(path) == ".json" and begins_array(path) else line_blocks


def reached(disk: BinaryIO, before: int) -> int:
    return before + (disk.tell() if disk.seekable() else 0)  # a pipe has no position


def line_blocks(path: str, disk: BinaryIO, start: Mark, before: int, how: Reading) -> Iterator[Block]:
    """Whole lines; of one beyond the limit nothing is held but its length."""
    held: list[bytes] = []
    size, offset, line = 0, start.offset, start.line  # `held`: the line that is not yet whole
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


# ---- arrays and tables


class JsonArray:
    """The elements of a JSON array, one at a time: what is held is one element, not the file.

    Raises BadData where the text is no array, or an element is longer than `longest` characters.
    """

    def __init__(self, path: str, blocks: Iterable[bytes], longest: int):
        self.path, self.blocks, self.longest = path, iter(blocks), longest
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.held, self.at, self.ended = "", 0, False

    def __iter__(self) -> Iterator[Any]:
        try:
            self.take("[")
            if self.next_character() == "]":
                return
            while True:
                yield self.element()
                if self.take(",]") == "]":
                    return
        except UnicodeDecodeError as error:
            raise self.wrong(f"byte {error.object[error.start]:#04x} is not UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise self.wrong(str(error)) from error

    def wrong(self, why: str) -> BadData:
        return BadData(f"{self.path}: begins as a JSON array and is none ({why}); mend it, or fetch the file again")

    def read(self) -> None:
        """Hold more, and forget what was passed."""
        data = next(self.blocks, None)
        self.ended = data is None
        self.held, self.at = self.held[self.at :] + self.decode(data or b"", self.ended), 0

    def next_character(self) -> str:
        while True:
            rest = self.held[self.at : self.at + 4096].lstrip(" \t\r\n")
            self.at = min(len(self.held), self.at + 4096) - len(rest)
            if rest:
                return rest[0]
            if self.at == len(self.held):
                if self.ended:
                    raise ValueError("it ends before its last bracket")
                self.read()

    def take(self, one_of: str) -> str:
        found = self.next_character()
        if found not in one_of:
            raise ValueError(f"found {found!r}, expected {' or '.join(one_of)}")
        self.at += 1
        return found

    def element(self) -> Any:
        self.next_character()
        while True:
            try:
                found, end = json.JSONDecoder().raw_decode(self.held, self.at)
                if end < len(self.held) or self.ended:
                    self.at = end
                    return found
            except json.JSONDecodeError:
                if self.ended:
                    raise
            held = len(self.held) - self.at
            if held > self.longest:
                raise ValueError(f"an element is longer than the {self.longest:,} of --max-line-bytes, or damaged")
            while len(self.held) - self.at < 2 * held and not self.ended:
                self.read()


def array_blocks(path: str, disk: BinaryIO, start: Mark, before: int, how: Reading) -> Iterator[Block]:
    """The elements of an array as lines; marks and line numbers count elements."""
    held: list[bytes] = []
    size = number = 0
    for number, element in enumerate(JsonArray(path, byte_blocks(path, disk), how.max_line_bytes), 1):
        if number <= start.offset:
            continue
        held.append(json.dumps(element).encode() + b"\n")
        size += len(held[-1])
        if size >= BLOCK_BYTES:
            yield element_block(path, start, number, held, reached(disk, before))
            held, size = [], 0
    if held:
        yield element_block(path, start, number, held, reached(disk, before))


def element_block(path: str, start: Mark, number: int, held: list[bytes], position: int) -> Block:
    return Block(path, number - len(held) + 1, Mark(start.file, number, number), position, b"".join(held))


def table_rows(path: str, disk: BinaryIO, longest: int) -> Iterator[dict[str, bytes | None]]:
    """Rows of a CSV or TSV file by the names of its first; values as bytes, None where a row is short.  Raises BadData."""
    csv.field_size_limit(longest)
    text = io.TextIOWrapper(
        io.BufferedReader(BlockFile(byte_blocks(path, disk))), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )
    reader = csv.DictReader(text, delimiter=TABLES[unpacked_suffix(path)], restkey=None)
    try:
        for row in reader:
            yield {
                name: None if value is None else value.encode("utf-8", "surrogateescape")
                for name, value in row.items()
                if name is not None
            }
    except csv.Error as error:
        raise BadData(f"{path}:{reader.line_num}: {error}, expected rows of comma- or tab-separated values") from error


def table_blocks(path: str, disk: BinaryIO, start: Mark, before: int, how: Reading) -> Iterator[Block]:
    """Rows of a CSV or TSV file; marks and line numbers count rows without the first.  Raises BadData for a missing column."""
    held: list[tuple[bytes | None, ...]] = []
    size = number = 0
    for number, row in enumerate(table_rows(path, disk, how.max_line_bytes), 1):
        for key in how.keys:
            if key not in row:
                raise BadData(f"{path}: missing key: no {key!r} among its columns {', '.join(map(repr, list(row)[:8]))}")
        if number <= start.offset:
            continue
        held.append(tuple(row[key] for key in how.keys))
        size += sum(len(value or b"") for value in held[-1])
        if size >= BLOCK_BYTES or len(held) >= MOST_ROWS:
            yield row_block(path, start, number, held, reached(disk, before))
            held, size = [], 0
    if held:
        yield row_block(path, start, number, held, reached(disk, before))


def row_block(path: str, start: Mark, number: int, held: list[tuple[bytes | None, ...]], position: int) -> Block:
    return Block(path, number - len(held) + 1, Mark(start.file, number, number), position, rows=tuple(held))


def parquet_blocks(path: str, start: Mark, before: int, how: Reading) -> Iterator[Block]:
    """Rows of a parquet file, as bytes whatever their string type; a null is None.  Raises BadData."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingInput(f"{path} needs the Python package pyarrow: pip install -e '.[data]'") from error
    rows: list[tuple[bytes | None, ...]] = []
    done, size, held = 0, os.path.getsize(path), 0
    try:
        with parquet.ParquetFile(path, buffer_size=BLOCK_BYTES, pre_buffer=False) as file:
            check_columns(path, file.schema_arrow, how.keys)
            for batch in file.iter_batches(PARQUET_ROWS, columns=list(how.keys), use_threads=False):
                batch, done = batch.slice(max(0, start.offset - done)), done + len(batch)
                fresh = list(zip(*(column_bytes(batch.column(key)) for key in how.keys), strict=True))
                rows, held = [*rows, *fresh], held + sum(len(text or b"") for row in fresh for text in row)
                if rows and (held >= BLOCK_BYTES or len(rows) >= MOST_ROWS or done == file.metadata.num_rows):
                    yield row_block(path, start, done, rows, before + size * done // file.metadata.num_rows)
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
