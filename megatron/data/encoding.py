"""Blocks of raw documents to token ids, in this process or in workers; what is no document comes back as a reject.

The ids of a document depend on nothing but its text, so the result is the same for any number of workers.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron.data.indexed import best_dtype
from megatron.data.text_files import BOM, Block, Mark
from megatron.data.tokenizer import Tokenizer, build_tokenizer
from megatron.errors import BadData, Refusal
from megatron.stopping import held_back

BLOCKS_A_WORKER = 3  # in flight, which bounds the memory
SAFELY_CUT = ("GPT2BPETokenizer", "TikTokenizer", "ByteTokenizer")  # a letter or digit and a line feed never share a token


ANOTHER_ENCODING = "; text in another encoding is converted by iconv -f LATIN1 -t UTF-8"  # said where a line is refused


SCAN = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # json.loads without what it does before and after


class BadLine(ValueError):
    """One input line that is no document: of what kind, and why."""


@dataclass(frozen=True)
class Recipe:
    """What turns a line into ids."""

    tokenizer_type: str
    vocab_file: str | None = None
    merge_file: str | None = None
    tokenizer_model: str | None = None
    bpe_backend: str = "auto"
    keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    max_line_bytes: int = 16 << 20


@functools.cache
def tokenizer_of(recipe: Recipe) -> Tokenizer:
    """Built once in each process."""
    return build_tokenizer(
        recipe.tokenizer_type, recipe.vocab_file, recipe.merge_file, recipe.tokenizer_model, recipe.bpe_backend
    )


@dataclass(frozen=True)
class Reject:
    """A line that is no document; line 0 is a whole plain-text file."""

    file: str
    line: int
    kind: str
    reason: str

    def refusal(self) -> BadData:
        place = f"{self.file}:{self.line}" if self.line else self.file
        known = any(end in self.file for end in (".json", ".ndjson", ".parquet", ".txt", ".csv", ".tsv"))
        encoding = ANOTHER_ENCODING if self.kind == "invalid UTF-8" else ""
        hint = "" if known else " (files not named .txt, .csv, .json or .parquet are read as JSON Lines)"
        return BadData(
            f"{place}: {self.kind}: {self.reason}{encoding}{hint}; nothing was written: mend the line, or pass --on-bad-line skip"
        )


@dataclass
class Encoded:
    """A block's documents: for each key their ids back to back, and their lengths.  Plain text that goes on is not ended."""

    after: Mark
    position: int
    ids: list[np.ndarray]
    lengths: list[np.ndarray]
    text_bytes: int = 0
    rejects: list[Reject] = field(default_factory=list)
    plain: bool = False  # a part of a plain text, which goes on when there is `more`
    more: bool = False


def encode_block(recipe: Recipe, block: Block) -> Encoded:
    """The ids of a block. An empty document has none, not even an eod, as in Megatron."""
    rejects: list[Reject] = []
    texts = list(documents_of(recipe, block, rejects))
    tokenizer, columns = tokenizer_of(recipe), zip(*texts, strict=True) if texts else ((),) * len(recipe.keys)
    ends = recipe.append_eod and block.line > 0  # plain text is ended where its parts come together
    joined = [joined_ids(tokenizer, column, ends) for column in columns]
    return Encoded(
        block.after,
        block.position,
        [ids for ids, _ in joined],
        [lengths for _, lengths in joined],
        sum(utf8_length(text) for row in texts for text in row),
        rejects,
        not block.line,
        block.more,
    )


def joined_ids(tokenizer: Tokenizer, texts: Sequence[str], append_eod: bool) -> tuple[np.ndarray, np.ndarray]:
    """-> ids of all texts back to back, in the type they have on disk, and the length of each that is not empty"""
    dtype = best_dtype(tokenizer.vocab_size)
    ids, lengths = tokenizer.encode_all(texts)
    lengths = lengths[lengths > 0]
    if not append_eod:
        return ids.astype(dtype, copy=False), lengths
    ends = (lengths + 1).cumsum() - 1
    ended: np.ndarray = np.full(len(ids) + len(ends), tokenizer.eod, dtype)
    text = np.ones(len(ended), bool)
    text[ends] = False
    ended[text] = ids
    return ended, lengths + 1


def documents_of(recipe: Recipe, block: Block, rejects: list[Reject]) -> Iterator[tuple[str, ...]]:
    """The text under each key of each document of a block; what is none is added to `rejects`."""
    if block.too_long:
        rejects.append(Reject(block.path, block.line, "too long", too_long(block.too_long, recipe.max_line_bytes)))
        return
    whole: Iterable[bytes | tuple[bytes | None, ...]] = raw_lines(block) if block.rows is None else block.rows
    for number, raw in enumerate(whole, block.line):
        if not isinstance(raw, tuple) and block.line:
            if quick := plain_texts(recipe, raw):
                yield quick
                continue
            if not raw.strip():
                continue
        try:
            yield texts_of(recipe, raw, block)
        except BadLine as error:
            rejects.append(Reject(block.path, number, *error.args))


def plain_texts(recipe: Recipe, raw: bytes) -> tuple[str, ...] | None:
    """What `texts_of` gives of an ordinary line, in half the time of json.loads; None where that function has to say."""
    try:
        line = raw.decode().strip()
        record, end = SCAN(line, 0)
        if end != len(line) or len(raw) > recipe.max_line_bytes:
            return None
        texts = tuple([record[key] for key in recipe.keys])
        for text in texts:
            if not text.isascii():
                text.encode()
        return texts
    except (StopIteration, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None


def raw_lines(block: Block) -> Iterable[bytes]:
    """The lines of a block, or all of it when it is plain text; a byte-order mark at the start of a file is no text."""
    first = block.line == 1 or block.line == block.begin == 0
    data = block.data.removeprefix(BOM) if first else block.data
    return data.split(b"\n") if block.line else [data]


def texts_of(recipe: Recipe, raw: bytes | tuple[bytes | None, ...], block: Block) -> tuple[str, ...]:
    """The text under each key; BadLine says why a line is no document."""
    if isinstance(raw, tuple):
        return tuple(value_text(value, key, recipe.max_line_bytes) for value, key in zip(raw, recipe.keys, strict=True))
    if not block.line:
        return (decoded(raw, block.begin),)
    record = record_of(raw, recipe.max_line_bytes)
    return tuple(string_at(record, key) for key in recipe.keys)


def record_of(raw: bytes, longest: int) -> dict[str, Any]:
    """The object that a line holds; BadLine says why it holds none."""
    if len(raw) > longest:
        raise BadLine("too long", too_long(len(raw), longest))
    record = parsed(decoded(raw))
    if isinstance(record, dict):
        return record
    hint = " (an array is read from a file named .json)" if isinstance(record, list) else ""
    raise BadLine("bad JSON", f"expected an object, found {type(record).__name__}{hint}")


def value_text(value: bytes | None, key: str, limit: int) -> str:
    """One value of a parquet file."""
    if value is None:
        raise BadLine("not a string", f"{key!r} holds null")
    if len(value) > limit:
        raise BadLine("too long", too_long(len(value), limit))
    return decoded(value)


def too_long(found: int, limit: int) -> str:
    return f"{found:,} bytes, more than the {limit:,} of --max-line-bytes"


def decoded(raw: bytes, begin: int = 0) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadLine("invalid UTF-8", f"byte {raw[error.start]:#04x} at column {begin + error.start + 1}") from error


def parsed(text: str) -> object:
    try:
        return json.loads(text.strip())
    except RecursionError as error:
        raise BadLine("bad JSON", "nested too deeply") from error
    except json.JSONDecodeError as error:
        spread = text.strip() in ("{", "[") or text.lstrip()[:1] in ("{", "[") and text.rstrip().endswith(",")
        hint = "; an object over several lines is written on one by jq -c . FILE" if spread else ""
        raise BadLine("bad JSON", f"{error.msg} at column {error.pos + 1}{hint}") from error
    except ValueError as error:
        raise BadLine("bad JSON", str(error)) from error


def string_at(record: dict, key: str) -> str:
    if key not in record:
        raise BadLine("missing key", f"no {key!r} among {', '.join(map(ascii, list(record)[:8])):.300}")
    text = record[key]
    if not isinstance(text, str):
        raise BadLine("not a string", f"{key!r} holds {type(text).__name__}")
    try:
        utf8_length(text)
    except UnicodeEncodeError as error:
        raise BadLine("invalid UTF-8", f"lone surrogate {text[error.start]!a} at character {error.start + 1}") from error
    return text


def utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


# ---- all blocks, here or in worker processes


def encode_all(recipe: Recipe, blocks: Iterable[Block], workers: int) -> Iterator[Encoded]:
    """Every block encoded, in order, the parts of a plain text put together.  Raises Refusal when a worker dies."""
    held, size = bytearray(), 0
    rejects: list[Reject] = []
    for part in encode_blocks(recipe, blocks, workers):
        if not part.plain:
            yield part
            continue
        held += part.ids[0].data
        rejects, size = rejects + part.rejects, size + part.text_bytes
        if not part.more:
            yield whole_text(recipe, part, b"" if rejects else held, 0 if rejects else size, rejects[:1])
            held, rejects, size = bytearray(), [], 0


def whole_text(recipe: Recipe, last: Encoded, held: bytes | bytearray, size: int, rejects: list[Reject]) -> Encoded:
    """A plain text as the one document it is, from the ids of all its parts."""
    tokenizer = tokenizer_of(recipe)
    dtype = best_dtype(tokenizer.vocab_size)
    if held and recipe.append_eod:
        held += np.array([tokenizer.eod], dtype).data
    ids: np.ndarray = np.frombuffer(held, dtype)
    return Encoded(last.after, last.position, [ids], [np.array([len(ids)] if len(ids) else [], np.int64)], size, rejects)


def encode_blocks(recipe: Recipe, blocks: Iterable[Block], workers: int) -> Iterator[Encoded]:
    """Every block encoded, in order, with a bounded number of them in flight: block i is worker i mod `workers`'s."""
    if workers == 1:
        yield from (encode_block(recipe, block) for block in blocks)
        return
    pool = [Worker(recipe) for _ in range(workers)]
    try:
        sent = got = 0
        for sent, block in enumerate(blocks, 1):
            pool[(sent - 1) % workers].send(block)
            if sent - got == BLOCKS_A_WORKER * workers:
                yield pool[got % workers].receive()
                got += 1
        for number in range(got, sent):
            yield pool[number % workers].receive()
    finally:
        for worker in pool:
            worker.pipe.close()
        for worker in pool:
            worker.end()


class Worker:
    """A process that encodes blocks, at the other end of a pipe of its own.

    A queue that processes share hangs when one of them is killed while it holds the lock or has sent half a message; the end
    of a pipe that nobody else has is noticed at once.
    """

    def __init__(self, recipe: Recipe):
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(recipe, other), daemon=True)
        with held_back():
            self.process.start()
        other.close()

    def send(self, block: Block) -> None:
        """Never waits for long: a worker takes in what it is sent, BLOCKS_A_WORKER at most, while it encodes."""
        try:
            self.pipe.send(block)
        except OSError as error:
            raise self.died() from error

    def receive(self) -> Encoded:
        try:
            out = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self.died() from error
        if isinstance(out, Exception):
            raise out
        return out

    def died(self) -> Refusal:
        self.process.join(5)
        return Refusal(
            f"a worker process died (exit code {self.process.exitcode}), perhaps for lack of memory; nothing was "
            "published: start it again, with fewer --workers if memory is short"
        )

    def end(self) -> None:
        """Wait for the process, whose pipe is closed, to notice."""
        self.process.join(5)
        self.process.kill()


def serve(recipe: Recipe, pipe) -> None:
    """A worker's life: it ends when the pipe does, also when the parent was killed."""
    blocks: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=take_in, args=(pipe, blocks), daemon=True).start()
    while True:
        out: Encoded | Exception
        try:
            out = encode_block(recipe, blocks.get())
        except Exception as error:
            out = error
        with end_of_pipe():
            pipe.send(out)


def take_in(pipe, blocks: queue.SimpleQueue) -> None:
    with end_of_pipe():
        while True:
            blocks.put(pipe.recv())


@contextmanager
def end_of_pipe() -> Iterator[None]:
    """Nobody is there to work for any more: leave without a word."""
    try:
        yield
    except (EOFError, OSError):
        os._exit(0)
