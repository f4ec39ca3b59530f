"""Text to tokens: JSON Lines or plain text, also gzipped, to PREFIX_<key>_document.bin and .idx in Megatron's format.

    python tools/preprocess_data.py --input corpus.jsonl --output-prefix data/corpus --append-eod --workers 8

The order of the input is kept and the output is the same for any number of workers.
"""
from __future__ import annotations

import argparse
import functools
import glob
import gzip
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO, get_args, get_type_hints

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))           # run from a checkout that is not installed

from megatron.config import Data  # noqa: E402
from megatron.data.indexed import IndexedWriter, best_dtype  # noqa: E402
from megatron.data.tokenizer import Tokenizer, build_tokenizer  # noqa: E402
from megatron.errors import BadData, CannotWrite, MissingInput, Refusal, exits  # noqa: E402
from megatron.files import staged  # noqa: E402

CHUNK_BYTES = 1 << 19                   # of input a task: a fraction of a second of work
CHUNKS_A_WORKER = 3                     # in flight, which bounds the memory
BOM = b"\xef\xbb\xbf"


class BadLine(ValueError):
    """One input line that is no document: of what kind, and why."""


@dataclass(frozen=True)
class Recipe:
    """What turns a line into ids."""
    tokenizer_type: str
    vocab_file: str | None
    merge_file: str | None
    tokenizer_model: str | None
    keys: tuple[str, ...]
    append_eod: bool


@functools.cache
def tokenizer_of(recipe: Recipe) -> Tokenizer:
    """Built once in each process."""
    return build_tokenizer(recipe.tokenizer_type, recipe.vocab_file, recipe.merge_file, recipe.tokenizer_model)


@dataclass(frozen=True)
class Line:
    """One raw document and where it stands; line 0 is a whole plain-text file."""
    path: str
    line: int
    raw: bytes


@dataclass(frozen=True)
class Chunk:
    lines: list[Line]
    position: int                       # bytes of all input files, as they lie on disk, read so far


@dataclass(frozen=True)
class Reject:
    """A line that is no document."""
    file: str
    line: int
    kind: str
    reason: str


@dataclass
class Encoded:
    """A chunk's documents: the ids of each key, one array a document."""
    position: int
    ids: list[list[np.ndarray]]
    text_bytes: int = 0
    rejects: list[Reject] = field(default_factory=list)


# ---- reading

def input_files(patterns: Sequence[str]) -> list[str]:
    """The files that names and globs stand for: in the order given, a glob's sorted, each once."""
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


def is_plain_text(path: str) -> bool:
    return path.removesuffix(".gz").endswith(".txt")


def read_lines(path: str, file: BinaryIO) -> Iterator[Line]:
    """The documents of one open file, without its byte-order mark; blank lines are none."""
    if is_plain_text(path):
        yield Line(path, 0, file.read().removeprefix(BOM))
        return
    for number, raw in enumerate(file, 1):
        raw = raw.removeprefix(BOM) if number == 1 else raw
        if raw.strip():
            yield Line(path, number, raw)


def read_documents(path: str) -> Iterator[tuple[Line, int]]:
    """Documents of one file, each with the position on disk that reading has reached."""
    try:
        with open(path, "rb") as disk, (gzip.open(disk) if path.endswith(".gz") else disk) as file:
            for line in read_lines(path, file):
                yield line, disk.tell() if disk.seekable() else 0       # a pipe has no position
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadData(f"{path}: the gzip stream is damaged or cut short ({error}); fetch the file again") from error
    except OSError as error:
        raise MissingInput(f"--input {path}: {error.strerror}") from error


def read_chunks(paths: Sequence[str]) -> Iterator[Chunk]:
    """Consecutive documents of all files, in chunks of about CHUNK_BYTES."""
    lines, size, before, position = [], 0, 0, 0
    for path in paths:
        for line, reached in read_documents(path):
            lines.append(line)
            size, position = size + len(line.raw), before + reached
            if size >= CHUNK_BYTES:
                yield Chunk(lines, position)
                lines, size = [], 0
        before += os.path.getsize(path)
    if lines:
        yield Chunk(lines, position)


# ---- encoding, in worker processes

def texts_of(line: Line, keys: tuple[str, ...]) -> list[str]:
    """The text under each key; BadLine says why a line is no document."""
    try:
        text = line.raw.decode()
    except UnicodeDecodeError as error:
        raise BadLine("invalid UTF-8", f"byte {line.raw[error.start]:#04x} at column {error.start + 1}") from error
    if not line.line:
        return [text]
    try:
        record = json.loads(text.strip())
    except RecursionError as error:
        raise BadLine("bad JSON", "nested too deeply") from error
    except json.JSONDecodeError as error:
        raise BadLine("bad JSON", f"{error.msg} at column {error.pos + 1}") from error
    except ValueError as error:
        raise BadLine("bad JSON", str(error)) from error
    if not isinstance(record, dict):
        raise BadLine("bad JSON", f"expected an object with {', '.join(keys)}, found {type(record).__name__}")
    return [string_at(record, key) for key in keys]


def string_at(record: dict, key: str) -> str:
    if key not in record:
        raise BadLine("missing key", f"no {key!r} among {', '.join(map(repr, list(record)[:8]))}")
    if not isinstance(record[key], str):
        raise BadLine("not a string", f"{key!r} holds {type(record[key]).__name__}")
    return record[key]


def utf8_length(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise BadLine("invalid UTF-8", f"lone surrogate {text[error.start]!r} at character {error.start + 1}") from error


def encode_chunk(recipe: Recipe, chunk: Chunk) -> Encoded:
    """The ids of a chunk. An empty document has none, not even an eod, as in Megatron."""
    tokenizer = tokenizer_of(recipe)
    dtype = best_dtype(tokenizer.vocab_size)
    end = np.array([tokenizer.eod] if recipe.append_eod else [], dtype=dtype)
    out = Encoded(chunk.position, [[] for _ in recipe.keys])
    for line in chunk.lines:
        try:
            texts = texts_of(line, recipe.keys)
            out.text_bytes += sum(map(utf8_length, texts))
        except BadLine as error:
            out.rejects.append(Reject(line.path, line.line, *error.args))
            continue
        for documents, text in zip(out.ids, texts, strict=True):
            ids = tokenizer.encode(text).astype(dtype)
            if len(ids):
                documents.append(np.concatenate([ids, end]))
    return out


def end_with_parent() -> None:
    """A worker leaves Ctrl-C to its parent, and ends with it: else it would wait for work for ever when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def encode_all(recipe: Recipe, chunks: Iterable[Chunk], workers: int) -> Iterator[Encoded]:
    """Every chunk encoded, in order, with a bounded number of them in flight."""
    if workers == 1:
        yield from (encode_chunk(recipe, chunk) for chunk in chunks)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent)
    pending = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(encode_chunk, recipe, chunk))
            if len(pending) >= CHUNKS_A_WORKER * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise Refusal("a worker process died, perhaps for lack of memory; nothing was written: try fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


# ---- writing

@dataclass
class Tally:
    """What has been done so far."""
    total_bytes: int
    log_interval: int
    documents: list[int]
    tokens: list[int]
    text_bytes: int = 0
    rejects: Counter = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    def megabytes_per_second(self) -> float:
        return self.text_bytes / 1e6 / max(time.monotonic() - self.started, 1e-9)

    def show(self, position: int) -> None:
        """The progress line, on a terminal only."""
        seconds = (time.monotonic() - self.started) * (self.total_bytes / max(position, 1) - 1)
        print(f"\r{self.documents[0]:,} documents, {self.tokens[0]:,} tokens, {self.megabytes_per_second():.1f} MB/s, "
              f"{position / max(self.total_bytes, 1):.0%}, {seconds:.0f} s left\033[K", end="", file=sys.stderr, flush=True)


def write_all(encoded: Iterable[Encoded], writers: list[IndexedWriter], rejects: TextIO | None, tally: Tally) -> None:
    """Append every document; bad lines go to `rejects`, or end the run when there is none."""
    shown = 0
    for part in encoded:
        for bad in part.rejects:
            refuse_or_note(bad, rejects, tally)
        for number, (writer, documents) in enumerate(zip(writers, part.ids, strict=True)):
            for ids in documents:
                writer.add_document(ids)
            tally.documents[number] += len(documents)
            tally.tokens[number] += sum(map(len, documents))
        tally.text_bytes += part.text_bytes
        if sys.stderr.isatty() and tally.documents[0] - shown >= tally.log_interval:
            tally.show(part.position)
            shown = tally.documents[0]
    if shown:
        print("\r\033[K", end="", file=sys.stderr)


def refuse_or_note(bad: Reject, rejects: TextIO | None, tally: Tally) -> None:
    if rejects is None:
        place = f"{bad.file}:{bad.line}" if bad.line else bad.file
        hint = "" if ".json" in bad.file else " (files not named .txt or .txt.gz are read as JSON Lines)"
        raise BadData(f"{place}: {bad.kind}: {bad.reason}{hint}; nothing was written: mend the line, or pass --on-bad-line skip")
    tally.rejects[bad.kind] += 1
    rejects.write(json.dumps(asdict(bad)) + "\n")


def output_name(args: argparse.Namespace, key: str) -> str:
    return f"{Path(args.output_prefix).name}_{key}_document"


def preprocess(args: argparse.Namespace, files: list[str]) -> Tally:
    """Encode all files into a folder aside, then move every output into place at once."""
    folder, keys = Path(args.output_prefix).parent, args.json_keys
    recipe = Recipe(args.tokenizer_type, args.vocab_file, args.merge_file, args.tokenizer_model, tuple(keys), args.append_eod)
    dtype = best_dtype(tokenizer_of(recipe).vocab_size)     # a tokenizer that cannot be built is refused before any work
    tally = Tally(sum(map(os.path.getsize, files)), args.log_interval, [0] * len(keys), [0] * len(keys))
    with staged(folder) as stage:
        reject_path = stage / f"{Path(args.output_prefix).name}.rejects.jsonl"
        with ExitStack() as stack:
            rejects = stack.enter_context(open(reject_path, "w", encoding="ascii")) if args.on_bad_line == "skip" else None
            writers = [stack.enter_context(IndexedWriter(str(stage / output_name(args, key)), dtype)) for key in keys]
            write_all(encode_all(recipe, read_chunks(files), args.workers), writers, rejects, tally)
            for key, documents in zip(keys, tally.documents, strict=True):
                if not documents:
                    raise BadData(f"the input holds no document with text under {key!r}: {', '.join(files[:3])}"
                                  f"{' ...' if len(files) > 3 else ''}{rejected(tally)}; nothing was written")
            if rejects:
                counts = {"rejected": tally.rejects.total(), "documents": tally.documents[0], "kinds": tally.rejects}
                rejects.write(json.dumps(counts) + "\n")
        if not tally.rejects:
            reject_path.unlink(missing_ok=True)
        for path in outputs(args):                          # --overwrite: never a new .bin beside an old .idx, nor old rejects
            if path.suffix != ".bin":
                path.unlink(missing_ok=True)
    return tally


def rejected(tally: Tally) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in tally.rejects.items())
    return f", {tally.rejects.total()} lines skipped ({kinds})" if kinds else ""


def outputs(args: argparse.Namespace) -> list[Path]:
    folder = Path(args.output_prefix).parent
    return [folder / f"{output_name(args, key)}{end}" for key in args.json_keys for end in (".bin", ".idx")] + [
        Path(f"{args.output_prefix}.rejects.jsonl")]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--input", nargs="+", action="extend", required=True, metavar="FILE",
        help="files or quoted globs; .txt is one document a file, anything else JSON Lines; .gz of both")
    add("--json-keys", nargs="+", default=["text"], metavar="KEY", help="one output a key [text]")
    add("--output-prefix", required=True, metavar="PREFIX", help="writes PREFIX_<key>_document.bin and .idx")
    add("--overwrite", action="store_true", help="replace an output that exists")
    add("--tokenizer-type", default="GPT2BPETokenizer", choices=get_args(get_type_hints(Data)["tokenizer_type"]),
        help="as when training [GPT2BPETokenizer]")
    add("--vocab-file", help="GPT-2 vocabulary (vocab.json) [found, see tools/fetch_tokenizer.py]")
    add("--merge-file", help="GPT-2 merges (merges.txt)")
    add("--tokenizer-model", help="file of TikTokenizer, SentencePieceTokenizer or HFTokenizer")
    add("--append-eod", action="store_true", help="end each document with the end-of-document id")
    add("--on-bad-line", choices=["fail", "skip"], default="fail",
        help="fail: stop at the first line that is no document; skip: list such lines in PREFIX.rejects.jsonl")
    add("--workers", type=int, default=1, help="processes that tokenize [1]")
    add("--log-interval", type=int, default=1000, help="documents between progress updates on a terminal [1000]")
    add("--dataset-impl", choices=["mmap"], default="mmap", help="the one format there is")
    args = parser.parse_args(argv)
    if args.workers < 1 or args.log_interval < 1:
        parser.error("--workers and --log-interval must be at least 1")
    if len(set(args.json_keys)) < len(args.json_keys):
        parser.error("--json-keys names a key twice")
    if not Path(args.output_prefix).name or args.output_prefix.endswith("/"):
        parser.error(f"--output-prefix {args.output_prefix} is a folder: add the start of a file name")
    return args


@exits
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    files = input_files(args.input)
    plain = [path for path in files if is_plain_text(path)]
    if plain and len(args.json_keys) > 1:
        raise BadData(f"{plain[0]} is plain text and has no keys: give one --json-keys, or JSON Lines only")
    taken = [path for path in outputs(args) if path.exists()]
    if taken and not args.overwrite:
        raise CannotWrite(f"{taken[0]} exists: choose another --output-prefix, or pass --overwrite")
    tally = preprocess(args, files)
    for key, documents, tokens in zip(args.json_keys, tally.documents, tally.tokens, strict=True):
        print(f"{Path(args.output_prefix).parent / output_name(args, key)}: {documents:,} documents, {tokens:,} tokens, "
              f"{tally.megabytes_per_second():.1f} MB/s{rejected(tally)}")


if __name__ == "__main__":
    sys.exit(main())
