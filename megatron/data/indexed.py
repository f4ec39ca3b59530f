"""Token corpora on disk, in Megatron's format, little-endian:

PREFIX.bin  token ids, documents back to back, no header
PREFIX.idx  magic 9 | version u64 | dtype code u8 | N u64 | D u64 | sizes i32[N] | byte offsets i64[N] | documents i64[D]

N sequences, D - 1 documents: document i is the sequences documents[i] to documents[i + 1]. Files that IndexedWriter
writes have one sequence a document.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from array import array
from pathlib import Path

import numpy as np

from megatron.errors import BadData, CannotWrite, MissingInput
from megatron.files import sync_folder

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: np.dtype("u1"), 2: np.dtype("i1"), 3: np.dtype("<i2"), 4: np.dtype("<i4"), 5: np.dtype("<i8"), 8: np.dtype("<u2")}
CODES = {dtype: code for code, dtype in DTYPES.items()}
BLOCK = 1 << 20             # entries checked at a time: opening a corpus of any size takes a few MiB
EDGE_BYTES = 1 << 20        # of each end of the .bin, in the fingerprint


def best_dtype(vocab_size: int) -> type:
    """Megatron's choice of the type of a token id on disk."""
    return np.uint16 if vocab_size < 65500 else np.int32


class IndexedDataset:
    """A corpus, memory-mapped; the whole index is checked when it is opened, and every array handed out is a copy.

    Raises MissingInput when a file is absent, BadData when one is damaged.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = str(prefix)
        idx, bin_ = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        idx_bytes, bin_bytes = size_on_disk(idx), size_on_disk(bin_)
        self.dtype, num_sequences, num_entries = read_header(idx, idx_bytes)
        at = HEADER.size
        self._sizes = np.memmap(idx, "<i4", "r", at, num_sequences)
        self._offsets = np.memmap(idx, "<i8", "r", at + 4 * num_sequences, num_sequences)
        self._documents = np.memmap(idx, "<i8", "r", at + 12 * num_sequences, num_entries)
        self.num_tokens = check_sizes(idx, self._sizes, self._offsets, self.dtype.itemsize)
        check_documents(idx, self._documents, num_sequences)
        if bin_bytes != self.num_tokens * self.dtype.itemsize:
            raise damaged(bin_, "the file size", f"{bin_bytes} bytes",
                          f"{self.num_tokens * self.dtype.itemsize} ({self.num_tokens} tokens of {self.dtype})")
        if not self.num_tokens:
            raise damaged(idx, "the number of tokens", 0, "at least 1")
        self._tokens = np.memmap(bin_, self.dtype, "r")
        self.num_documents = num_entries - 1

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each sequence.  -> int32 [N]"""
        return np.array(self._sizes)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the flat stream, copied.  Raises IndexError outside it."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start}:{stop} of {self.prefix}, which has {self.num_tokens}")
        return np.array(self._tokens[start:stop])

    def document(self, number: int) -> np.ndarray:
        """All tokens of one document, copied.  Raises IndexError."""
        if not 0 <= number < self.num_documents:
            raise IndexError(f"document {number} of {self.prefix}, which has {self.num_documents}")
        first, last = (int(i) for i in self._documents[number:number + 2])
        if first == last:
            return self.tokens(0, 0)
        start = int(self._offsets[first]) // self.dtype.itemsize
        return self.tokens(start, start + int(self._sizes[first:last].sum(dtype=np.int64)))

    def fingerprint(self) -> str:
        """Names the content without reading all of it: sha256 over sizes, token count, first and last MiB of the .bin.

        A change in the middle of a .bin that moves no document border goes unnoticed.
        """
        edge = EDGE_BYTES // self.dtype.itemsize
        digest = hashlib.sha256(self._sizes)
        digest.update(b"%d" % self.num_tokens)
        digest.update(self._tokens[:edge])
        digest.update(self._tokens[-edge:])
        return digest.hexdigest()


def damaged(path: Path, what: str, found, expected) -> BadData:
    return BadData(f"{path}: {what} is {found}, expected {expected}; "
                   "copy the corpus again, or rebuild it with tools/preprocess_data.py")


def size_on_disk(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror}; a corpus is named by its path without .bin and .idx") from None


def read_header(path: Path, num_bytes: int) -> tuple[np.dtype, int, int]:
    """-> dtype, number of sequences, length of the document index; both counts agree with the file's size."""
    if num_bytes < HEADER.size:
        raise damaged(path, "the file size", f"{num_bytes} bytes", f"at least {HEADER.size}")
    try:
        with open(path, "rb") as file:
            magic, version, code, num_sequences, num_entries = HEADER.unpack(file.read(HEADER.size))
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror}") from None
    if magic != MAGIC:
        hint = " (the old lazy or cached format is not read)" if magic.startswith(b"TNTIDX") else ""
        raise damaged(path, "the magic", f"{magic!r}{hint}", repr(MAGIC))
    if version != VERSION:
        raise damaged(path, "the version", version, VERSION)
    if code not in DTYPES:
        raise damaged(path, "the dtype code", code, "an integer type: " + ", ".join(f"{c} {d}" for c, d in DTYPES.items()))
    counts = f"{num_sequences} sequences, {num_entries} document entries"
    if num_sequences < 1 or num_entries < 2:
        raise damaged(path, "the corpus", f"empty ({counts})", "at least 1 and 2")
    expected = HEADER.size + 12 * num_sequences + 8 * num_entries
    if num_bytes != expected:
        raise damaged(path, "the file size", f"{num_bytes} bytes", f"{expected} ({counts})")
    return DTYPES[code], num_sequences, num_entries


def check_sizes(path: Path, sizes: np.ndarray, offsets: np.ndarray, itemsize: int) -> int:
    """Sizes are not negative and offsets are their exclusive sum in bytes.  -> number of tokens"""
    total = 0
    for at in range(0, len(sizes), BLOCK):
        block = sizes[at:at + BLOCK].astype(np.int64)
        if block.min() < 0:
            wrong = int((block < 0).argmax())
            raise damaged(path, f"the size of sequence {at + wrong}", block[wrong], "0 or more")
        ends = total + block.cumsum()
        expected = (ends - block) * itemsize
        differs = offsets[at:at + BLOCK] != expected
        if differs.any():
            wrong = int(differs.argmax())
            raise damaged(path, f"the byte offset of sequence {at + wrong}", offsets[at + wrong], expected[wrong])
        total = int(ends[-1])
    return total


def check_documents(path: Path, documents: np.ndarray, num_sequences: int) -> None:
    """The document index rises from 0 to the number of sequences."""
    for at, expected in ((0, 0), (len(documents) - 1, num_sequences)):
        if documents[at] != expected:
            raise damaged(path, f"entry {at} of the document index", documents[at], expected)
    for at in range(0, len(documents), BLOCK):
        block = np.array(documents[at:at + BLOCK + 1])
        falls = block[1:] < block[:-1]
        if falls.any():
            wrong = int(falls.argmax()) + 1
            raise damaged(path, f"entry {at + wrong} of the document index", block[wrong], f"at least {block[wrong - 1]}")


class IndexedWriter:
    """Writes a corpus document by document: `with IndexedWriter(prefix, dtype) as w: w.add_document(ids)`.

    PREFIX.bin and PREFIX.idx appear, complete, on a clean exit; on any other nothing is left behind.
    Raises BadData for an id that the dtype cannot hold or for a corpus without tokens, CannotWrite when the disk fails.
    """

    def __init__(self, prefix: str | Path, dtype=np.uint16):
        self.prefix, self.dtype = str(prefix), np.dtype(dtype).newbyteorder("<")
        self.code = CODES[self.dtype]
        self.sizes, self.num_tokens = array("i"), 0

    @property
    def num_documents(self) -> int:
        return len(self.sizes)

    def temporary(self, suffix: str) -> Path:
        return Path(f"{self.prefix}.{suffix}.{os.getpid()}.tmp")

    def __enter__(self) -> "IndexedWriter":
        with self.guarded(".bin"):
            self.file = open(self.temporary("bin"), "wb", buffering=1 << 20)
        return self

    def add_document(self, ids: np.ndarray) -> None:
        """Append one document, any one-dimensional array of integers.  Raises TypeError for another."""
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise TypeError(f"a document is a one-dimensional array of integers, not {ids.dtype} {list(ids.shape)}")
        limit = np.iinfo(self.dtype).max
        if ids.size and (ids.min() < 0 or ids.max() > limit):
            wrong = int(ids[(ids < 0) | (ids > limit)][0])
            raise BadData(f"{self.prefix}: document {self.num_documents} has id {wrong}, expected 0 to {limit} ({self.dtype}); "
                          "check the tokenizer, or write with a wider dtype")
        if ids.size > np.iinfo(np.int32).max:
            raise BadData(f"{self.prefix}: document {self.num_documents} has {ids.size} tokens, at most 2^31 - 1 fit; split it")
        self.sizes.append(ids.size)
        self.num_tokens += ids.size
        with self.guarded(".bin"):
            self.file.write(ids.astype(self.dtype).tobytes())

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                self.publish()
        finally:
            with contextlib.suppress(OSError):
                self.file.close()               # flushes again, and fails again, on a full disk
            for suffix in ("bin", "idx"):
                self.temporary(suffix).unlink(missing_ok=True)

    def publish(self) -> None:
        if not self.num_tokens:
            raise BadData(f"{self.prefix}: {self.num_documents} documents have 0 tokens, expected at least 1; check the input")
        with self.guarded(".bin"):
            close_synced(self.file)
        with self.guarded(".idx"), open(self.temporary("idx"), "wb") as file:
            self.write_index(file)
            close_synced(file)
        with self.guarded(""):
            # An old .idx never stands beside the new .bin: a crash in between leaves a corpus that is refused.
            Path(f"{self.prefix}.idx").unlink(missing_ok=True)
            os.replace(self.temporary("bin"), f"{self.prefix}.bin")
            os.replace(self.temporary("idx"), f"{self.prefix}.idx")
            sync_folder(Path(self.prefix).parent)

    def write_index(self, file) -> None:
        sizes = np.frombuffer(self.sizes, np.int32)
        ends = sizes.cumsum(dtype=np.int64)
        file.write(HEADER.pack(MAGIC, VERSION, self.code, len(sizes), len(sizes) + 1))
        file.write(sizes.astype("<i4").tobytes())
        file.write(((ends - sizes) * self.dtype.itemsize).astype("<i8").tobytes())
        file.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())

    @contextlib.contextmanager
    def guarded(self, suffix: str):
        """An OSError inside becomes CannotWrite."""
        try:
            yield
        except OSError as error:
            num_bytes = self.num_tokens * self.dtype.itemsize
            raise CannotWrite(f"{self.prefix}{suffix}: {error.strerror} while writing {num_bytes} bytes of tokens; "
                              "nothing is published: make room or choose another place, and write it again") from error


def close_synced(file) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
