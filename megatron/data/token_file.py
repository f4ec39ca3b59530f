"""Tokens without an index: plain files of ids, and the two folders that other trainers keep them in.

A token folder holds one long text a split, as int32 (or whatever its config.json says):

    train_tokens.bin  val_tokens.bin  config.json {"dtype", "vocab_size", ...}  tokenizer.json

A paper folder holds many documents with categories and splits; offsets and lengths count tokens:

    tokens.bin (uint16)  index.jsonl {"paper_id", "cat", "offset", "length"} a line  splits.json {split: [paper_id, ...]}
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron.data.indexed import RawFile
from megatron.errors import BadData, CannotWrite, MissingInput
from megatron.files import read_json, staged

DTYPES = ("uint16", "int32", "uint32", "int64")
EDGE = 1 << 18  # tokens of each end of a file that its checks and its fingerprint read
LEAST_PROOF = 64  # tokens below which a file does not betray that its type is a wider one
LONE = re.compile("[\ud800-\udfff]")  # half a character, which JSON can spell and no file can hold
SPLITS = {"train": "train_tokens.bin", "val": "val_tokens.bin"}


# Ids and nothing else


class TokenFile:
    """A file of token ids, read as one document; every array handed out is a copy.

    `path` may leave out `.bin`. The type comes from `dtype`, else from the config.json beside the file ("dtype", or
    "vocab_size", with which the ids themselves tell int32 from uint16). Raises MissingInput or BadData.
    """

    num_documents, meta = 1, None

    def __init__(self, path: str | Path, dtype: str | np.dtype | None = None):
        self.path = bin_of(Path(path))
        self.prefix = str(self.path).removesuffix(".bin")
        num_bytes, config = size_of(self.path), read_config(self.path.with_name("config.json"))
        self.dtype = chosen_dtype(self.path, dtype, config)
        self.num_tokens, rest = divmod(num_bytes, self.dtype.itemsize)
        if rest or not num_bytes:
            raise BadData(
                f"{self.path}: has {num_bytes} bytes, expected a multiple of {self.dtype.itemsize} above 0 "
                f"({self.dtype}); copy the file again, or give its type"
            )
        self.file = RawFile(str(self.path))
        check_type(self.path, self.tokens(0, min(EDGE, self.num_tokens)))
        stated = config.get(self.path.stem)
        if type(stated) is int and stated != self.num_tokens:
            raise BadData(
                f"{self.path}: holds {self.num_tokens} tokens of {self.dtype}, expected the {stated} of its "
                "config.json; copy both again"
            )

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each sequence: there is one.  -> int64 [1]"""
        return np.array([self.num_tokens])

    @property
    def document_starts(self) -> np.ndarray:
        """The first token of each document: there is one.  -> int64 [1]"""
        return np.zeros(1, np.int64)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop), copied.  Raises IndexError outside the file."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start}:{stop} of {self.path}, which has {self.num_tokens}")
        return self.file.fill(np.empty(stop - start, self.dtype), start * self.dtype.itemsize)

    def fingerprint(self) -> str:
        """Names the content without reading all of it: sha256 over type, token count, first and last EDGE tokens."""
        digest, edge = hashlib.sha256(f"{self.dtype} {self.num_tokens}".encode()), min(EDGE, self.num_tokens)
        digest.update(self.tokens(0, edge))
        digest.update(self.tokens(self.num_tokens - edge, self.num_tokens))
        return digest.hexdigest()


def bin_of(path: Path) -> Path:
    beside = path.with_name(path.name + ".bin")
    return beside if not path.exists() and beside.exists() else path


def size_of(path: Path) -> int:
    try:
        if path.is_file():
            return path.stat().st_size
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror}") from None
    raise MissingInput(f"{path}: {'is no file' if path.exists() else 'No such file'}, expected token ids")


def read_text(path: Path, what: str) -> str:
    """A text file whole.  Raises MissingInput or BadData."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror}, expected {what}") from None
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: byte {error.start} is not UTF-8, expected {what}") from None


def read_config(path: Path) -> dict:
    return (
        read_json(path, "repair it", 'how the tokens beside it are stored, such as {"dtype": "int32"}') if path.exists() else {}
    )


def chosen_dtype(path: Path, dtype: str | np.dtype | None, config: dict) -> np.dtype:
    """The type given or configured, little-endian.  Raises BadData when neither names one."""
    named = config.get("dtype") if dtype is None else np.dtype(dtype).name
    if named in DTYPES:
        return np.dtype(named).newbyteorder("<")
    if named is not None:
        raise BadData(f"{path}: its type is given as {named!r}, expected one of {', '.join(DTYPES)}")
    vocab_size = config.get("vocab_size")
    if type(vocab_size) is int and vocab_size > 0:
        return fitting_dtype(path, vocab_size)
    raise BadData(
        f'{path}: the type of its ids is not known; put a config.json beside it with "dtype" '
        f'({", ".join(DTYPES)}) or "vocab_size"'
    )


def fitting_dtype(path: Path, vocab_size: int) -> np.dtype:
    """int32 where the first ids then lie below `vocab_size`, else uint16 where they do: pairs of uint16 ids make huge int32."""
    for name in ("int32", "uint16"):
        head = np.fromfile(path, np.dtype(name).newbyteorder("<"), EDGE)
        if head.size and head.min() >= 0 and head.max() < vocab_size:
            return head.dtype
    raise BadData(
        f"{path}: its first ids are below the vocabulary size {vocab_size} of its config.json neither as int32 nor "
        "as uint16; it belongs to another tokenizer or is damaged"
    )


def check_type(path: Path, head: np.ndarray) -> None:
    """Ids stored in twice the width leave every second one 0.  Raises BadData."""
    if len(head) >= LEAST_PROOF and head.dtype.itemsize < 8 and not head[1::2].any() and head[::2].any():
        raise BadData(
            f"{path}: read as {head.dtype} every second id is 0, expected ids; it holds a type twice as wide: correct the dtype"
        )


# The token folder


def write_token_folder(
    folder: str | Path,
    train: Iterable[np.ndarray],
    valid: Iterable[np.ndarray],
    vocab_size: int,
    tokenizer_json: bytes | None = None,
    dtype: str = "int32",
    **facts,
) -> dict[str, int]:
    """Write train_tokens.bin, val_tokens.bin, config.json and tokenizer.json together; arrays of ids are joined end to end.

    `facts` (JSON values, such as the eod) go into config.json too. Returns the token counts by split.
    Raises CannotWrite, also when the folder holds tokens already, and BadData for an id outside the vocabulary or no token.
    """
    folder = Path(folder)
    refuse_taken(folder / SPLITS["train"])
    with staged(folder) as stage:
        counts = {
            split: write_ids(stage / name, part, dtype, vocab_size, folder / name)
            for (split, name), part in zip(SPLITS.items(), (train, valid), strict=True)
        }
        stated = {f"{split}_tokens": count for split, count in counts.items()}
        config = {"dtype": dtype, "vocab_size": vocab_size, **stated, **facts}
        (stage / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        if tokenizer_json is not None:
            (stage / "tokenizer.json").write_bytes(tokenizer_json)
    return counts


def refuse_taken(path: Path) -> None:
    if path.exists():
        raise CannotWrite(f"{path} exists: choose another folder, or delete it")


def write_ids(path: Path, parts: Iterable[np.ndarray], dtype: str, vocab_size: int, name: Path) -> int:
    """All ids end to end.  -> how many"""
    count = 0
    with open(path, "xb") as file:
        for ids in parts:
            file.write(as_stored(ids, dtype, vocab_size, f"{name}: token {count} on").tobytes())
            count += len(ids)
    if not count:
        raise BadData(f"{name}: would hold 0 tokens, expected at least 1; give more data or another share to validation")
    return count


def as_stored(ids: np.ndarray, dtype: str, vocab_size: int, where: str) -> np.ndarray:
    """Ids in the type of the file, little-endian.  [n] -> [n].  Raises BadData for one outside the vocabulary or the type."""
    ids, limit = np.asarray(ids), min(vocab_size, np.iinfo(dtype).max + 1)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" and ids.size:
        raise TypeError(f"{where}: ids are a one-dimensional array of integers, not {ids.dtype} {list(ids.shape)}")
    if ids.size and (ids.min() < 0 or ids.max() >= limit):
        wrong = ids[(ids < 0) | (ids >= limit)][0]
        raise BadData(f"{where}: has id {wrong}, expected 0 or more and below {limit} (vocabulary {vocab_size}, {dtype})")
    return ids.astype(np.dtype(dtype).newbyteorder("<"))


def token_chunks(corpus, chunk: int = 1 << 20) -> Iterator[np.ndarray]:
    """A corpus' tokens end to end, `chunk` at a time: what write_token_folder takes."""
    for start in range(0, corpus.num_tokens, chunk):
        yield corpus.tokens(start, min(start + chunk, corpus.num_tokens))


# The paper folder


@dataclass(frozen=True)
class Paper:
    """A row of index.jsonl."""

    paper_id: str
    cat: str
    offset: int
    length: int


class PaperFolder:
    """Papers with categories and splits over one token file, checked whole when it is opened.

    Every paper lies inside the file, no two overlap, ids are unique, and a paper is in one split at most.
    Raises MissingInput or BadData.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        config = read_config(self.folder / "config.json")
        self.file = TokenFile(self.folder / "tokens.bin", None if config.get("dtype") else "uint16")
        self.papers = read_papers(self.folder / "index.jsonl", self.file.num_tokens)
        check_overlaps(self.folder / "index.jsonl", self.papers)
        self.splits = read_splits(self.folder / "splits.json", {paper.paper_id: n for n, paper in enumerate(self.papers)})
        self.categories = sorted({paper.cat for paper in self.papers})

    def split(self, name: str) -> list[Paper]:
        """The papers of one split, in its own order.  Raises BadData for an unknown one."""
        if name not in self.splits:
            raise BadData(f"{self.folder / 'splits.json'}: has no split {name!r}, only {', '.join(map(repr, self.splits))}")
        return [self.papers[n] for n in self.splits[name]]

    def tokens(self, paper: Paper) -> np.ndarray:
        return self.file.tokens(paper.offset, paper.offset + paper.length)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over index and splits as they were read, and the token file's fingerprint."""
        known = [[[p.paper_id, p.cat, p.offset, p.length] for p in self.papers], self.splits, self.file.fingerprint()]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def read_papers(path: Path, num_tokens: int) -> list[Paper]:
    """The rows of index.jsonl.  Raises BadData with file and line."""
    papers: list[Paper] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(read_text(path, "a paper a line").split("\n"), 1):
        if not line.strip():
            continue
        paper = read_paper(f"{path}:{number}", line, num_tokens)
        if paper.paper_id in lines:
            raise BadData(
                f"{path}:{number}: paper_id {paper.paper_id!r} stands in line {lines[paper.paper_id]} already, expected each once"
            )
        lines[paper.paper_id] = number
        papers.append(paper)
    if not papers:
        raise BadData(f"{path}: names no paper, expected one a line")
    return papers


def read_paper(where: str, line: str, num_tokens: int) -> Paper:
    shape = '{"paper_id": text, "cat": text, "offset": tokens, "length": tokens}'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadData(f"{where}: is not JSON ({error}), expected {shape}") from None
    if not isinstance(row, dict):
        raise BadData(f"{where}: holds a {type(row).__name__}, expected {shape}")
    for key, kind in (("paper_id", str), ("cat", str), ("offset", int), ("length", int)):
        if type(row.get(key)) is not kind or kind is str and LONE.search(row[key]):
            found = f"{key} is {row[key]!r}"[:80] if key in row else f"{key} is missing"
            raise BadData(f"{where}: {found}, expected {shape}")
    paper = Paper(row["paper_id"], row["cat"], row["offset"], row["length"])
    if paper.offset < 0 or paper.length < 0 or paper.offset + paper.length > num_tokens:
        raise BadData(
            f"{where}: paper {paper.paper_id!r} is tokens {paper.offset}:{paper.offset + paper.length}, "
            f"expected a range inside the {num_tokens} of tokens.bin; index and tokens do not belong together"
        )
    return paper


def check_overlaps(path: Path, papers: list[Paper]) -> None:
    filled = sorted((paper for paper in papers if paper.length), key=lambda paper: paper.offset)
    for before, paper in zip(filled, filled[1:]):
        if paper.offset < before.offset + before.length:
            raise BadData(
                f"{path}: papers {before.paper_id!r} and {paper.paper_id!r} share token {paper.offset}, "
                "expected papers one behind another"
            )


def read_splits(path: Path, known: dict[str, int]) -> dict[str, list[int]]:
    """splits.json with papers by their place in the index.  Raises BadData."""
    splits: dict[str, list[int]] = {}
    taken: dict[str, str] = {}
    for split, members in read_json(path, "repair it", "{split: [paper_id, ...]}").items():
        if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise BadData(f"{path}: split {split!r} is not a list of paper_ids, expected {{split: [paper_id, ...]}}")
        for member in members:
            if member not in known:
                raise BadData(f"{path}: split {split!r} names {member!r}, which index.jsonl does not have")
            if member in taken:
                raise BadData(f"{path}: {member!r} is in split {taken[member]!r} and again in {split!r}, expected once")
            taken[member] = split
        splits[split] = [known[member] for member in members]
    if not splits:
        raise BadData(f"{path}: names no split, expected {{split: [paper_id, ...]}}")
    return splits


def write_paper_folder(folder: str | Path, papers: Iterable[tuple[str, str, str, np.ndarray]], vocab_size: int) -> int:
    """Write (split, paper_id, cat, ids) one by one as uint16; the files appear together.  -> number of papers

    Raises CannotWrite, also when the folder holds tokens already, and BadData for an id that does not fit or a paper twice.
    """
    splits: dict[str, list[str]] = {}
    folder, names = Path(folder), set()
    refuse_taken(folder / "tokens.bin")
    with staged(folder) as stage:
        offset = 0
        with open(stage / "tokens.bin", "xb") as file, open(stage / "index.jsonl", "x", encoding="utf-8") as index:
            for split, paper_id, cat, ids in papers:
                if paper_id in names:
                    raise BadData(f"{folder}: paper_id {paper_id!r} comes twice, expected each once")
                names.add(paper_id)
                file.write(as_stored(ids, "uint16", vocab_size, f"{folder}: paper {paper_id!r}").tobytes())
                index.write(json.dumps({"paper_id": paper_id, "cat": cat, "offset": offset, "length": len(ids)}) + "\n")
                splits.setdefault(split, []).append(paper_id)
                offset += len(ids)
        if not offset:
            raise BadData(f"{folder}: {len(names)} papers have 0 tokens, expected at least 1; check the input")
        (stage / "splits.json").write_text(json.dumps(splits) + "\n", encoding="utf-8")
        (stage / "config.json").write_text(json.dumps({"dtype": "uint16", "vocab_size": vocab_size, "tokens": offset}) + "\n")
    return len(names)
