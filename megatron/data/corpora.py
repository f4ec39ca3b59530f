"""The corpora that tools/prepare_corpus.py knows, and their documents from Hugging Face `datasets` or from files at hand.

A document is a dict: {"text": ...} for running text, with "id" and "category" for papers, and the corpus' own keys for
instructions. Files are JSON Lines, a JSON array, CSV (.gz and .zst of these), parquet or plain text. In plain text
byte-order marks are dropped and CRLF becomes LF; what is one document there depends on the corpus:

    articles    a WikiText title line, ` = Title = ` behind a blank line, begins one
    stories     a line `<|endoftext|>` ends one; in a file with no such line, a line that directly follows another, not a blank
                one, begins one, once the story before has 200 characters (TinyStories with its marks lost: about right)
    files       a line `<|endoftext|>` ends one; a file with no such line is one document
"""

from __future__ import annotations

import glob
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from megatron.data.encoding import BadLine, raw_lines, record_of, too_long
from megatron.data.text_files import (
    TABLES,
    Block,
    BlockFile,
    JsonArray,
    Mark,
    Reading,
    begins_array,
    byte_blocks,
    line_blocks,
    reading,
    refuse_dangling,
    refuse_other_kind,
    table_rows,
    unpacked_suffix,
)
from megatron.data.tokenizer import END_OF_TEXT
from megatron.errors import BadData, MissingInput

TITLE = re.compile(r" ?= (?!=)\S.*?(?<!=) = ?")
GUTENBERG_START, GUTENBERG_END = (re.compile(rf"\*\*\* ?{word} OF TH(?:E|IS) PROJECT GUTENBERG") for word in ("START", "END"))
SHORTEST_STORY = 200  # characters
TEXT_SUFFIXES, RECORD_SUFFIXES = (".txt", ".tokens", ".raw"), (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
NO_RECORDS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # beside a Hugging Face data set
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
PAIR_KEYS = ("instruction", "input", "context", "output", "prompt", "response")
CATEGORY_KEYS = ("category", "cat", "categories", "label")
ARXIV_LABELS = ("math.AC", "cs.CV", "cs.AI", "cs.SY", "math.GR", "cs.CE", "cs.PL", "cs.IT", "cs.DS", "cs.NE", "math.ST")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One published corpus: where it lies on the Hub, its own splits, and how it is cut into documents."""

    name: str
    hub: str | None  # none: only from files
    config: str | None = None
    revision: str | None = None
    splits: dict[str, str]  # ours -> its own name
    kind: str = "text"  # text, papers or instruct
    layout: str = "files"  # of plain text: files, stories or articles
    keys: tuple[str, ...] = ("text",)  # that a record must have
    tokens_per_document: float | None = None  # GPT-2 tokens, which define the published subsets
    labels: tuple[str, ...] = ()  # names of integer categories


OWN_TRAIN, OWN_TWO = {"train": "train"}, {"train": "train", "valid": "validation"}
OWN_THREE = {**OWN_TWO, "test": "test"}
CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(name="c4", hub="allenai/c4", config="en", splits=OWN_TWO, tokens_per_document=478.625834583),
        Corpus(name="slimpajama", hub="cerebras/SlimPajama-627B", splits=OWN_THREE, tokens_per_document=1058.057342),
        Corpus(name="fineweb", hub="HuggingFaceFW/fineweb", config="sample-10BT", splits=OWN_TRAIN),
        Corpus(name="openwebtext", hub="Skylion007/openwebtext", splits=OWN_TRAIN),
        Corpus(name="wikitext103", hub="Salesforce/wikitext", config="wikitext-103-raw-v1", splits=OWN_THREE, layout="articles"),
        Corpus(name="tinystories", hub="roneneldan/TinyStories", splits=OWN_TWO, layout="stories"),
        # `datasets` runs no loading scripts any more: the Hub's own parquet copy of this one
        Corpus(
            name="arxiv-classification",
            hub="ccdv/arxiv-classification",
            config="no_ref",
            revision="refs/convert/parquet",
            splits=OWN_THREE,
            kind="papers",
            labels=ARXIV_LABELS,
        ),
        Corpus(name="alpaca", hub="tatsu-lab/alpaca", splits=OWN_TRAIN, kind="instruct", keys=("instruction", "output")),
        Corpus(
            name="dolly",
            hub="databricks/databricks-dolly-15k",
            splits=OWN_TRAIN,
            kind="instruct",
            keys=("instruction", "response"),
        ),
    )
}


@dataclass(frozen=True)
class Bad:
    """A record that is no document: where and why."""

    file: str
    line: int  # of parquet and of a JSON array the record's number
    reason: str


OnBad = Callable[[Bad], None]


# ---- files


def source_files(place: str) -> list[str]:
    """The data files that a path, a glob or a folder (searched through) stands for, sorted.  Raises MissingInput."""
    if os.path.isdir(place):
        inside = (path for path in Path(place).rglob("*") if path.is_file() or path.is_symlink() and not path.exists())
        named = (path for path in inside if suffix_of(path.name) and path.name not in NO_RECORDS)
        found = [str(path) for path in named if not path.name.startswith(".")]
    else:
        found = [place] if os.path.exists(place) else glob.glob(place, recursive=True)
    for path in found:
        refuse_dangling(path, "--from")
    if not found:
        what = (
            f"no file named {', '.join('*' + end for end in (*RECORD_SUFFIXES, *TEXT_SUFFIXES))}"
            if os.path.isdir(place)
            else "no such file or folder"
        )
        raise MissingInput(f"--from {place}: {what}")
    return sorted(found)


def suffix_of(name: str) -> str | None:
    """`.jsonl` of `a.jsonl.zst`; nothing for a file of another kind."""
    end = unpacked_suffix(name)
    return end if end in TEXT_SUFFIXES + RECORD_SUFFIXES else None


def split_of(path: str) -> str | None:
    """The split that the last of a path's words names: `c4-validation.00000.json.gz` -> valid."""
    words = [SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", path.lower()) if word in SPLIT_WORDS]
    return words[-1] if words else None


class BytesRead:
    """How far reading has come: bytes of each file as it lies on disk."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    @property
    def total(self) -> int:
        return sum(self.of.values())

    def noted(self, path: str, disk: BinaryIO, blocks: Iterator[bytes]) -> Iterator[bytes]:
        for block in blocks:
            yield block
            self.of[path] = disk.tell() if disk.seekable() else 0


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How the files of a corpus are read."""

    strip_gutenberg: bool = False  # plain text without Project Gutenberg's header and footer
    max_line_bytes: int = 16 << 20  # a longer line is no document
    read: BytesRead = field(default_factory=BytesRead)


@contextmanager
def opened(path: str, manner: Manner) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed.  Raises MissingInput, and BadData for a damaged stream or a file of another kind."""
    with reading(path, "--from"):
        refuse_other_kind(path)
        with open(path, "rb") as disk:
            yield io.BufferedReader(BlockFile(manner.read.noted(path, disk, byte_blocks(path, disk))), 1 << 16)


def read_records(corpus: Corpus, path: str, on_bad: OnBad, manner: Manner) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or record number from 1, record) of one file, whatever its kind; a text's record is {key: text}."""
    end = suffix_of(path)
    if end == ".parquet":
        yield from enumerate(parquet_records(path), 1)
        manner.read.of[path] = os.path.getsize(path)
    elif end in TEXT_SUFFIXES:
        for number, text in enumerate(text_documents(path, corpus.layout, manner, on_bad), 1):
            yield number, {corpus.keys[0]: text}
    elif end in TABLES:
        with reading(path, "--from"), open(path, "rb") as disk:
            refuse_other_kind(path)
            for number, row in enumerate(table_rows(path, disk, manner.max_line_bytes), 1):
                manner.read.of[path] = disk.tell()
                yield number, row
    else:
        yield from json_records(path, on_bad, manner)


def parquet_records(path: str) -> Iterator[dict[str, Any]]:
    """Rows, their texts as bytes, so that what is not UTF-8 is one bad row and not the end."""
    try:
        import pyarrow
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingInput(f"{path} needs the Python package pyarrow: pip install -e '.[data]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            kinds = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
            schema = pyarrow.schema([one.with_type(kinds.get(one.type, one.type)) for one in file.schema_arrow])
            for batch in file.iter_batches(256):
                yield from batch.cast(schema).to_pylist()
    except (ArrowException, OSError) as error:
        if number := getattr(error, "errno", None):
            raise MissingInput(f"--from {path}: {os.strerror(number)}") from error
        raise BadData(
            f"{path}: is no parquet file, or a damaged one ({str(error).splitlines()[0]:.200}); fetch the file again"
        ) from error


def json_records(path: str, on_bad: OnBad, manner: Manner) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records of a JSON array, or of JSON Lines: whichever the first character says."""
    with reading(path, "--from"):
        refuse_other_kind(path)
        array = begins_array(path)
        with open(path, "rb") as disk:
            if array:
                for number, record in enumerate(JsonArray(path, byte_blocks(path, disk), manner.max_line_bytes), 1):
                    manner.read.of[path] = disk.tell()
                    if isinstance(record, dict):
                        yield number, record
                    else:
                        on_bad(Bad(path, number, f"expected an object, found {type(record).__name__}"))
                return
            for block in line_blocks(path, disk, Mark(), 0, Reading(max_line_bytes=manner.max_line_bytes)):
                manner.read.of[path] = block.position
                yield from line_records(block, on_bad, manner.max_line_bytes)


def line_records(block: Block, on_bad: OnBad, longest: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a block's lines; the same lines are bad ones as when text is preprocessed."""
    if block.too_long:
        on_bad(Bad(block.path, block.line, f"too long: {too_long(block.too_long, longest)}"))
        return
    for number, raw in enumerate(raw_lines(block), block.line):
        if raw.strip():
            try:
                record = record_of(raw, longest)
            except BadLine as error:
                on_bad(Bad(block.path, number, ": ".join(error.args)))
                continue
            yield number, record


# ---- plain text


def text_lines(path: str, manner: Manner) -> Iterator[str]:
    """Lines without byte-order mark, all ended by LF but perhaps the last.  Raises UnicodeDecodeError."""
    with opened(path, manner) as file:
        yield from io.TextIOWrapper(file, encoding="utf-8-sig", newline=None)


def text_documents(path: str, layout: str, manner: Manner, on_bad: OnBad) -> Iterator[str]:
    """The documents of a plain-text file, by the layout that the module's first lines describe; none when it is not UTF-8."""
    try:
        is_marked = sum(line.strip() == END_OF_TEXT for line in text_lines(path, manner)) > 0  # all of it is read
    except UnicodeDecodeError as error:
        on_bad(Bad(path, 0, f"is not UTF-8 text (byte {error.object[error.start]:#04x})"))
        return iter(())
    lines = body_of_book(text_lines(path, manner)) if manner.strip_gutenberg else text_lines(path, manner)
    if layout == "articles":
        return articles(lines)
    if is_marked:
        return marked(lines)
    return stories(lines) if layout == "stories" else iter(["".join(lines)])


def marked(lines: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    for line in lines:
        if line.strip() == END_OF_TEXT:
            yield "".join(held)
            held = []
        else:
            held.append(line)
    yield "".join(held)


def articles(lines: Iterable[str]) -> Iterator[str]:
    return between(lines, lambda line, before, _: not before.strip() and bool(TITLE.fullmatch(line.rstrip("\n"))))


def stories(lines: Iterable[str]) -> Iterator[str]:
    return between(lines, lambda line, before, held: bool(line.strip() and before.strip()) and held >= SHORTEST_STORY)


def between(lines: Iterable[str], begins: Callable[[str, str, int], bool]) -> Iterator[str]:
    """Texts whose first lines are those that `begins` says of, given (line, the line before, characters since the last)."""
    held: list[str] = []
    characters, before = 0, ""
    for line in lines:
        if begins(line, before, characters):
            yield "".join(held)
            held, characters = [], 0
        held.append(line)
        characters, before = characters + len(line), line
    yield "".join(held)


def body_of_book(lines: Iterable[str]) -> Iterator[str]:
    """A Project Gutenberg book without its header and footer; all of a text that has neither line."""
    held: list[str] | None = []
    for line in lines:
        if held is None and GUTENBERG_END.match(line):
            return
        if held is None:
            yield line
        elif GUTENBERG_START.match(line):
            held = None
        else:
            held.append(line)
    yield from held or []


# ---- records to documents


def file_documents(corpus: Corpus, files: list[str], on_bad: OnBad, manner: Manner | None = None) -> Iterator[dict[str, Any]]:
    """The documents of files, in their order; texts, prompts and responses of nothing but white space are none."""
    manner = manner or Manner()
    for path in files:
        records = read_records(corpus, path, on_bad, manner)
        if corpus.layout == "articles" and suffix_of(path) not in TEXT_SUFFIXES:
            records = lines_to_articles(records)
        yield from as_documents(corpus, path, records, corpus.labels, on_bad)


def lines_to_articles(records: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records that hold one line each, as WikiText's on the Hub, put together to articles; a longer one is an article itself."""
    number = 0
    lines: list[str] = []
    for number, record in records:
        text = record.get("text")
        if not isinstance(text, str) or "\n" in text.rstrip("\n"):
            yield number, {"text": "".join(lines)}
            yield number, record
            lines = []
            continue
        if lines and not lines[-1].strip() and TITLE.fullmatch(text.rstrip("\n")):
            yield number, {"text": "".join(lines)}
            lines = []
        lines.append(text.rstrip("\n") + "\n")
    yield number, {"text": "".join(lines)}


def as_documents(
    corpus: Corpus, path: str, records: Iterable[tuple[int, dict[str, Any]]], labels: tuple[str, ...], on_bad: OnBad
) -> Iterator[dict[str, Any]]:
    for number, record in records:
        keys = ("prompt", "response") if corpus.kind == "instruct" and "prompt" in record else corpus.keys
        record = {key: decoded_or_bytes(value) for key, value in record.items()}
        if wrong := wrong_strings(record, keys):
            on_bad(Bad(path, number, wrong))
        elif not all(record[key].strip() for key in keys):
            continue
        elif corpus.kind == "instruct":
            yield {key: record[key] for key in PAIR_KEYS if isinstance(record.get(key), str)}
        else:
            yield {"text": record[keys[0]]} | (paper(record, labels) if corpus.kind == "papers" else {})


def decoded_or_bytes(value: Any) -> Any:
    """Text of what a table holds as bytes, which stay when they are not UTF-8."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def wrong_strings(record: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """Why a record is no document, if it is none."""
    for key in keys:
        if key not in record:
            return f"missing key: no {key!r} among {', '.join(map(repr, list(record)[:8]))}"
        if isinstance(record[key], bytes):
            return f"invalid UTF-8: {key!r} holds bytes that are no text"
        if not isinstance(record[key], str):
            return f"not a string: {key!r} holds {type(record[key]).__name__}"
        try:
            record[key].encode()
        except UnicodeEncodeError as error:
            return f"invalid UTF-8: lone surrogate {record[key][error.start]!a} at character {error.start + 1} of {key!r}"
    return None


def paper(record: dict[str, Any], labels: tuple[str, ...]) -> dict[str, str]:
    """The first category a paper names, as `cs.CV`; "unknown" when it names none."""
    found = next((record[key] for key in CATEGORY_KEYS if record.get(key) not in (None, "", [])), "unknown")
    found = found[0] if isinstance(found, list) else found
    if isinstance(found, int) and found in range(len(labels)):
        return {"category": labels[found]}
    return {"category": str(found).split()[0]}


# ---- Hugging Face `datasets`


@dataclass(frozen=True)
class HubSplit:
    """One split of a corpus on the Hub: its documents, streamed, and how many records it has, where that is known."""

    corpus: Corpus
    split: str

    @property
    def where(self) -> str:
        return ":".join(filter(None, (self.corpus.hub, self.corpus.config, self.corpus.splits[self.split])))

    def documents(self, on_bad: OnBad) -> Iterator[dict[str, Any]]:
        with hub_library(self.where) as datasets:
            stream = datasets.load_dataset(
                self.corpus.hub,
                self.corpus.config,
                split=self.corpus.splits[self.split],
                revision=self.corpus.revision,
                streaming=True,
            )
            labels = getattr((getattr(stream, "features", None) or {}).get("label"), "names", None) or self.corpus.labels
            numbered = enumerate(stream, 1)
            records = lines_to_articles(numbered) if self.corpus.layout == "articles" else numbered
            yield from as_documents(self.corpus, self.where, records, tuple(labels), on_bad)

    def num_records(self) -> int | None:
        with hub_library(self.where) as datasets:
            builder = datasets.load_dataset_builder(self.corpus.hub, self.corpus.config, revision=self.corpus.revision)
            known = (builder.info.splits or {}).get(self.corpus.splits[self.split])
            return known.num_examples if known else None


@contextmanager
def hub_library(where: str) -> Iterator[Any]:
    """The library, whose failures (no network, no such data set) become a sentence.  Raises MissingInput."""
    try:
        import datasets
    except ImportError as error:
        raise MissingInput(
            f"{where} is read through the Python package datasets: pip install -e '.[corpora]', or name files with --from"
        ) from error
    try:
        yield datasets
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise MissingInput(
            f"{where} cannot be read from the Hub ({type(error).__name__}: {str(error).splitlines()[0]:.300}); "
            "try again, it goes on where it stopped, or name files with --from"
        ) from error


def pinned_revision(corpus: Corpus) -> str | None:
    """The commit that a corpus' revision names now, so that a preparation can be repeated; unknown without the Hub's API."""
    if not corpus.hub:
        return corpus.revision
    try:
        from huggingface_hub import dataset_info

        return dataset_info(corpus.hub, revision=corpus.revision).sha
    except Exception:  # no library, no network or no such name: reading the data itself will say so
        return corpus.revision
