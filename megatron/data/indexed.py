"""Token corpora on disk, in Megatron's format, little-endian:

PREFIX.bin  token ids, documents back to back, no header
PREFIX.idx  magic 9 | version u64 | dtype code u8 | N u64 | D u64 | sizes i32[N] | byte offsets i64[N] | documents i64[D]

N sequences, D - 1 documents: document i is the sequences documents[i] to documents[i + 1]. A third file, PREFIX.meta.json,
vouches for both (sidecar.py); files from elsewhere lack it, and are read with what their structure alone can prove.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from megatron.data import sidecar
from megatron.data.sidecar import check_belongs, read_sidecar, sealed, sidecar_path
from megatron.errors import BadData, CannotWrite, MissingInput
from megatron.files import sync_folder, write_synced
from megatron.rundir.index import HEADER, MAGIC, VERSION

DTYPES: dict[int, np.dtype] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
BLOCK = 1 << 16  # entries checked at a time: they stay in the cache, and opening a corpus of any size takes 2 MiB
EDGE_BYTES = 1 << 20  # of each end of the .bin, in the fingerprint
LONGEST = 2**31 - 1  # tokens of a sequence


def best_dtype(vocab_size: int) -> type:
    """Megatron's choice of the type of a token id on disk."""
    return np.uint16 if vocab_size < 65500 else np.int32


class RawFile:
    """A file read by position. Not a memory map: a file cut short or a failing disk then ends in a sentence, not in SIGBUS.

    Raises MissingInput when it is absent, BadData when it is no regular file or cannot be read.
    """

    def __init__(self, path: str):
        self.path = path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe by that name does not hold us up
        except OSError as error:
            raise MissingInput(f"{path}: {error.strerror}; a corpus is named by its path without .bin and .idx") from None
        self.descriptor, self.close = descriptor, weakref.finalize(self, os.close, descriptor)
        status = os.fstat(descriptor)
        self.num_bytes = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise BadData(f"{path}: is not a regular file; a corpus is named by its path without .bin and .idx")

    def fill(self, out: np.ndarray, at: int) -> np.ndarray:
        """Fill an array with the bytes from `at` on."""
        try:
            done = os.preadv(self.descriptor, [out], at)
            while done < out.nbytes:
                more = os.preadv(self.descriptor, [memoryview(out).cast("B")[done:]], at + done)
                if not more:
                    raise damaged(self.path, "the file size", f"{at + done} bytes", f"at least {at + out.nbytes}, as at first")
                done += more
        except OSError as error:
            raise BadData(f"{self.path}: {error.strerror} at byte {at}; copy the corpus again") from None
        return out

    def blocks(self, at: int, count: int, dtype, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """`count` entries from byte `at` on, `size` at a time in one buffer: (number of the first, entries)."""
        buffer = np.empty(min(size, count), dtype)
        for first in range(0, count, size):
            yield first, self.fill(buffer[: count - first], at + first * buffer.itemsize)


class IndexedDataset:
    """A corpus; the whole index is checked when it is opened, each block of tokens when it is first read.

    `meta` holds the sidecar's facts, None without one: then ids are not vouched for. Every array handed out is a copy.
    Raises MissingInput when a file is absent, BadData when one is damaged or belongs to another corpus.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = str(prefix)
        # In this order, a corpus that is replaced meanwhile (publish) is the old one, the new one, or refused.
        self._bin, self._idx = RawFile(f"{prefix}.bin"), RawFile(f"{prefix}.idx")
        self.dtype, self.num_sequences, num_entries = read_header(self._idx)
        self.num_documents = num_entries - 1
        self.sizes_at = HEADER.size  # the byte of the .idx where int32 sizes begin; int64 offsets follow them
        self._offsets_at = HEADER.size + 4 * self.num_sequences
        self._documents_at = HEADER.size + 12 * self.num_sequences
        bin_bytes, sizes_crc = check_sizes(self._idx, self.num_sequences, self.dtype.itemsize)
        documents_crc = check_documents(self._idx, self._documents_at, num_entries, self.num_sequences)
        self.num_tokens = bin_bytes // self.dtype.itemsize
        if self._bin.num_bytes != bin_bytes:
            raise damaged(
                self._bin.path,
                "the file size",
                f"{self._bin.num_bytes} bytes",
                f"{bin_bytes} ({self.num_tokens} tokens of {self.dtype})",
            )
        if not self.num_tokens:
            raise damaged(self._idx.path, "the number of tokens", 0, "at least 1")
        self.meta = read_sidecar(self.prefix)
        if self.meta:
            check_belongs(
                self.prefix,
                self.meta,
                {
                    ".bin": {"bin_bytes": bin_bytes},
                    ".idx": {
                        "idx_bytes": self._idx.num_bytes,
                        "dtype": self.dtype.name,
                        "documents": self.num_documents,
                        "sequences": self.num_sequences,
                        "tokens": self.num_tokens,
                        "sizes_crc32": sizes_crc,
                        "documents_crc32": documents_crc,
                    },
                },
            )
        self._expected: list[int] = self.meta["block_crc32"] if self.meta else []  # a crc32 a block
        self._unread = bytearray(b"\1") * len(self._expected)
        self._block_bytes = self.meta["block_bytes"] if self.meta else 0

    def close(self) -> None:
        self._idx.close()
        self._bin.close()

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each sequence.  -> int32 [N]"""
        return self._idx.fill(np.empty(self.num_sequences, "<i4"), HEADER.size)

    @functools.cached_property
    def document_starts(self) -> np.ndarray:
        """The first token of each document, read-only; read when first asked for.  -> int64 [D - 1]"""
        starts = self._idx.fill(np.empty(self.num_documents, "<i8"), self._documents_at)
        offsets = self._idx.fill(np.empty(self.num_sequences + 1, "<i8"), self._offsets_at)
        offsets //= self.dtype.itemsize
        offsets[-1] = self.num_tokens
        starts = offsets[starts]
        starts.flags.writeable = False
        return starts

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the flat stream, copied.  Raises IndexError outside it, BadData for a damaged block."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start}:{stop} of {self.prefix}, which has {self.num_tokens}")
        itemsize = self.dtype.itemsize
        if self._unread:
            first, last = start * itemsize // self._block_bytes, (stop * itemsize - 1) // self._block_bytes
            if 1 in self._unread[first : last + 1]:
                self.check_blocks(self._unread, first, last)
        return self._bin.fill(np.empty(stop - start, self.dtype), start * itemsize)

    def check_blocks(self, unread: bytearray, first: int, last: int) -> None:
        """Blocks first to last, where not read before, have the sidecar's checksums.  Raises BadData."""
        for number in range(first, last + 1):
            if unread[number]:
                start = number * self._block_bytes
                stop = min(start + self._block_bytes, self._bin.num_bytes)
                found = zlib.crc32(self._bin.fill(np.empty(stop - start, np.uint8), start))
                expected = self._expected[number]
                if found != expected:
                    raise damaged(
                        self._bin.path,
                        f"the crc32 of block {number} (bytes {start}:{stop})",
                        f"{found:08x}",
                        f"{expected:08x} by {sidecar_path(self.prefix)}",
                    )
                unread[number] = 0

    def verify(self, show: Callable[[int], None] = lambda num_bytes: None) -> int:
        """Read everything that the sidecar vouches for, also what was read before.  -> blocks checked, 0 without a sidecar

        `show` is told now and then how many bytes of the .bin are checked.  Raises BadData.
        """
        if not self.meta:
            return 0
        digest = hashlib.sha256()
        for _, block in self._idx.blocks(0, self._idx.num_bytes, np.uint8, 1 << 20):
            digest.update(block)
        check_belongs(self.prefix, self.meta, {".idx": {"idx_sha256": digest.hexdigest()}})
        unread = self._unread = bytearray(b"\1") * len(self._expected)
        for number in range(len(unread)):
            self.check_blocks(unread, number, number)
            show((number + 1) * self._block_bytes)
        return len(unread)

    def document(self, number: int) -> np.ndarray:
        """All tokens of one document, copied.  Raises IndexError."""
        start, sizes = self.extent(number)
        return self.tokens(start, start + int(sizes.sum(dtype=np.int64)))

    def sequences(self, number: int) -> list[np.ndarray]:
        """The sequences of one document, each copied.  Raises IndexError."""
        start, sizes = self.extent(number)
        ends = start + sizes.cumsum(dtype=np.int64)
        return [self.tokens(end - size, end) for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)]

    def extent(self, number: int) -> tuple[int, np.ndarray]:
        """Where a document begins, and the sizes of its sequences.  Raises IndexError."""
        if not 0 <= number < self.num_documents:
            raise IndexError(f"document {number} of {self.prefix}, which has {self.num_documents}")
        first, last = self._idx.fill(np.empty(2, "<i8"), self._documents_at + 8 * number).tolist()
        sizes = self._idx.fill(np.empty(last - first, "<i4"), HEADER.size + 4 * first)
        if not len(sizes):
            return 0, sizes
        return int(self._idx.fill(np.empty(1, "<i8"), self._offsets_at + 8 * first)[0]) // self.dtype.itemsize, sizes

    def fingerprint(self) -> str:
        """Names the content without reading all of it: sha256 over sizes, token count, first and last MiB of the .bin.

        The same with and without a sidecar. A change in the middle of a .bin that moves no document border goes unnoticed.
        """
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        edge = min(EDGE_BYTES // self.dtype.itemsize, self.num_tokens)
        digest = hashlib.sha256()
        for _, sizes in self._idx.blocks(HEADER.size, self.num_sequences, "<i4", BLOCK):
            digest.update(sizes)
        digest.update(b"%d" % self.num_tokens)
        digest.update(self.tokens(0, edge))
        digest.update(self.tokens(self.num_tokens - edge, self.num_tokens))
        return digest.hexdigest()


def damaged(path: str, what: str, found, expected) -> BadData:
    return BadData(
        f"{path}: {what} is {found}, expected {expected}; copy the corpus again, or rebuild it with tools/preprocess_data.py"
    )


def read_header(idx: RawFile) -> tuple[np.dtype, int, int]:
    """-> dtype, number of sequences, length of the document index; both counts agree with the file's size."""
    if idx.num_bytes < HEADER.size:
        raise damaged(idx.path, "the file size", f"{idx.num_bytes} bytes", f"at least {HEADER.size}")
    magic, version, code, num_sequences, num_entries = HEADER.unpack(idx.fill(np.empty(HEADER.size, np.uint8), 0))
    if magic != MAGIC:
        hint = " (the old lazy or cached format is not read)" if magic.startswith(b"TNTIDX") else ""
        raise damaged(idx.path, "the magic", f"{magic!r}{hint}", repr(MAGIC))
    if version != VERSION:
        raise damaged(idx.path, "the version", version, VERSION)
    if code not in DTYPES:
        raise damaged(idx.path, "the dtype code", code, "an integer type: " + ", ".join(f"{c} {d}" for c, d in DTYPES.items()))
    counts = f"{num_sequences} sequences, {num_entries} document entries"
    if num_sequences < 1 or num_entries < 2:
        raise damaged(idx.path, "the corpus", f"empty ({counts})", "at least 1 and 2")
    expected = HEADER.size + 12 * num_sequences + 8 * num_entries
    if idx.num_bytes != expected:
        raise damaged(idx.path, "the file size", f"{idx.num_bytes} bytes", f"{expected} ({counts})")
    return DTYPES[code], num_sequences, num_entries


def check_sizes(idx: RawFile, num_sequences: int, itemsize: int) -> tuple[int, int]:
    """Sizes are not negative and offsets are their exclusive sum in bytes.  -> bytes of the .bin, crc32 of the sizes"""
    crc = reached = 0
    offsets_at = HEADER.size + 4 * num_sequences
    all_offsets = idx.blocks(offsets_at, num_sequences, "<i8", BLOCK)
    lengths, steps = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    for (at, sizes), (_, offsets) in zip(idx.blocks(HEADER.size, num_sequences, "<i4", BLOCK), all_offsets, strict=True):
        crc = zlib.crc32(sizes, crc)
        if sizes.min() < 0:
            wrong = int((sizes < 0).argmax())
            raise damaged(idx.path, f"the size of sequence {at + wrong}", sizes[wrong], "0 or more")
        bytes_of = np.multiply(sizes, itemsize, out=lengths[: len(sizes)], dtype=np.int64)
        step = np.subtract(offsets[1:], offsets[:-1], out=steps[: len(sizes) - 1])
        if offsets[0] != reached or not np.array_equal(step, bytes_of[:-1]):
            expected = reached + bytes_of.cumsum() - bytes_of
            wrong = int((offsets != expected).argmax())
            raise damaged(idx.path, f"the byte offset of sequence {at + wrong}", offsets[wrong], expected[wrong])
        reached = int(offsets[-1]) + int(bytes_of[-1])
    return reached, crc


def check_documents(idx: RawFile, at: int, num_entries: int, num_sequences: int) -> int:
    """The document index rises from 0 to the number of sequences.  -> its crc32"""
    for number, expected in ((0, 0), (num_entries - 1, num_sequences)):
        found = idx.fill(np.empty(1, "<i8"), at + 8 * number)[0]
        if found != expected:
            raise damaged(idx.path, f"entry {number} of the document index", found, expected)
    crc = before = 0
    for first, block in idx.blocks(at, num_entries, "<i8", BLOCK):
        crc = zlib.crc32(block, crc)
        if block[0] < before or (block[1:] < block[:-1]).any():
            block = np.insert(block, 0, before)
            wrong = int((block[1:] < block[:-1]).argmax())
            raise damaged(idx.path, f"entry {first + wrong} of the document index", block[wrong + 1], f"at least {block[wrong]}")
        before = int(block[-1])
    return crc


class IndexedWriter:
    """Writes a corpus document by document: `with IndexedWriter(prefix, dtype) as w: w.add_document(ids)`.

    PREFIX.bin, PREFIX.idx and PREFIX.meta.json appear, complete, on a clean exit; on any other nothing is left behind. The
    memory does not grow with the corpus. `tokenizer` is {"type", "fingerprint", "vocab_size", "eod"}; `extra` (also set later, as
    an attribute) is any JSON object; both go into the sidecar.
    Raises BadData for an id that the dtype cannot hold or for a corpus without tokens, CannotWrite when the disk fails.
    """

    def __init__(self, prefix: str | Path, dtype=np.uint16, tokenizer: dict | None = None, extra: dict | None = None):
        self.prefix, self.dtype = str(prefix), np.dtype(dtype).newbyteorder("<")
        self.code = CODES[self.dtype]
        self.tokenizer, self.extra = tokenizer, extra
        fault = sidecar.fault_of_tokenizer(tokenizer)
        if fault:
            raise TypeError(fault)
        self.num_documents = self.num_sequences = self.num_tokens = self.largest_id = 0
        self.ends: array | None = None  # the document index, once it is more than a range
        self.block_bytes = sidecar.BLOCK_BYTES
        self.crcs: list[int] = []  # of the blocks that are written
        self.filled = self.crc = 0  # of the block that is being written

    def temporary(self, suffix: str) -> Path:
        return Path(f"{self.prefix}.{suffix}.{os.getpid()}.tmp")

    def __enter__(self) -> "IndexedWriter":
        with self.guarded(".bin"):
            self.temporary("bin").unlink(missing_ok=True)  # and never through a link that somebody put there
            self.bin = open(self.temporary("bin"), "xb", buffering=1 << 20)
        try:
            with self.guarded(".idx"):
                self.temporary("idx").unlink(missing_ok=True)
                self.idx = open(self.temporary("idx"), "x+b", buffering=1 << 18)
                self.idx.write(bytes(HEADER.size))  # the sizes follow as they come
        except CannotWrite:
            self.discard()
            raise
        return self

    def add_document(self, ids, lengths=None) -> None:
        """Append one document, any one-dimensional array of integers; `lengths` cut it into that many sequences.

        Raises TypeError for another array, ValueError when the lengths are not the document's.
        """
        ids = integers(ids, "a document")
        sizes = integers([len(ids)] if lengths is None else lengths, "lengths")
        self.append(ids, sizes, one=True)
        if len(sizes) != 1 and self.ends is None:
            self.ends = array("q", range(1, self.num_documents + 1))
        self.num_documents += 1
        if self.ends is not None:
            self.ends.append(self.num_sequences)

    def add_documents(self, ids, lengths) -> None:
        """Append many documents of one sequence each: ids back to back [n], lengths [d] summing to n.  Raises as add_document."""
        ids, sizes = integers(ids, "documents"), integers(lengths, "lengths")
        self.append(ids, sizes, one=False)
        if self.ends is not None:
            self.ends.extend(range(self.num_sequences - len(sizes) + 1, self.num_sequences + 1))
        self.num_documents += len(sizes)

    def append(self, ids: np.ndarray, sizes: np.ndarray, one: bool) -> None:
        """Write the tokens and sizes of `one` document's sequences, or of one document each."""
        if sizes.size and (sizes.min() < 0 or sizes.max() > LONGEST):
            wrong = int(((sizes < 0) | (sizes > LONGEST)).argmax())
            raise BadData(
                f"{self.prefix}: document {self.num_documents + (0 if one else wrong)} has {sizes[wrong]} tokens, "
                "at most 2^31 - 1 fit; split it"
            )
        if sizes.sum(dtype=np.int64) != len(ids):
            raise ValueError(f"lengths sum to {sizes.sum(dtype=np.int64)}, but there are {len(ids)} ids")
        if ids.size:
            self.check_ids(ids, sizes, one)
        self.num_tokens += ids.size
        self.num_sequences += len(sizes)
        with self.guarded(".idx"):
            self.idx.write(sizes.astype("<i4").tobytes())
        with self.guarded(".bin"):
            self.write(np.ascontiguousarray(ids, self.dtype))

    def check_ids(self, ids: np.ndarray, sizes: np.ndarray, one: bool) -> None:
        limit, largest = np.iinfo(self.dtype).max, int(ids.max())
        if largest > limit or ids.dtype.kind == "i" and ids.min() < 0:
            at = int(((ids < 0) | (ids > limit)).argmax())
            owner = 0 if one else int(np.searchsorted(sizes.cumsum(dtype=np.int64), at, side="right"))
            raise BadData(
                f"{self.prefix}: document {self.num_documents + owner} has id {ids[at]}, expected 0 to {limit} "
                f"({self.dtype}); check the tokenizer, or write with a wider dtype"
            )
        self.largest_id = max(self.largest_id, largest)

    def write(self, ids: np.ndarray) -> None:
        """Append to the .bin, and to the checksum of the block it falls in."""
        rest = ids.view(np.uint8).data
        while rest:
            part, rest = rest[: self.block_bytes - self.filled], rest[self.block_bytes - self.filled :]
            self.crc = zlib.crc32(part, self.crc)
            self.filled += len(part)
            self.bin.write(part)
            if self.filled == self.block_bytes:
                self.end_block()

    def end_block(self) -> None:
        self.crcs.append(self.crc)
        self.filled = self.crc = 0

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                self.publish()
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove whatever is not published."""
        for file in filter(None, (self.bin, getattr(self, "idx", None))):
            with contextlib.suppress(OSError):
                file.close()  # flushes again, and fails again, on a full disk
        for suffix in ("bin", "idx", "meta.json"):
            self.temporary(suffix).unlink(missing_ok=True)

    def publish(self) -> None:
        if not self.num_tokens:
            raise BadData(f"{self.prefix}: {self.num_documents} documents have 0 tokens, expected at least 1; check the input")
        with self.guarded(".bin"):
            if self.filled:
                self.end_block()
            close_synced(self.bin)
        with self.guarded(".idx"):
            about_index = self.write_index()
            close_synced(self.idx)
        with self.guarded(".meta.json"):
            self.temporary("meta.json").unlink(missing_ok=True)
            write_synced(self.temporary("meta.json"), sealed(self.facts() | about_index))
        with self.guarded(""):
            retire(self.prefix)
            for suffix in ("bin", "meta.json", "idx"):  # without its .idx a corpus is not there
                os.replace(self.temporary(suffix), f"{self.prefix}.{suffix}")
            sync_folder(Path(self.prefix).parent)

    def facts(self) -> dict:
        """What the sidecar says of the tokens."""
        return {
            "version": sidecar.VERSION,
            "documents": self.num_documents,
            "sequences": self.num_sequences,
            "tokens": self.num_tokens,
            "dtype": self.dtype.name,
            "largest_id": self.largest_id,
            "tokenizer": self.tokenizer,
            "extra": self.extra or {},
            "bin_bytes": self.num_tokens * self.dtype.itemsize,
            "block_bytes": self.block_bytes,
            "block_crc32": self.crcs,
        }

    def write_index(self) -> dict:
        """Add offsets and documents behind the sizes, and the header before them.  -> what the sidecar says of the index"""
        header = HEADER.pack(MAGIC, VERSION, self.code, self.num_sequences, self.num_documents + 1)
        digest, sizes_crc, documents_crc = hashlib.sha256(header), 0, 0
        self.idx.flush()
        for sizes in self.written_sizes():
            digest.update(sizes)
            sizes_crc = zlib.crc32(sizes, sizes_crc)
        for part in self.offsets():
            digest.update(part)
            self.idx.write(part)
        for part in self.document_index():
            digest.update(part)
            documents_crc = zlib.crc32(part, documents_crc)
            self.idx.write(part)
        num_bytes = self.idx.tell()
        self.idx.seek(0)
        self.idx.write(header)
        return {
            "sizes_crc32": sizes_crc,
            "documents_crc32": documents_crc,
            "idx_bytes": num_bytes,
            "idx_sha256": digest.hexdigest(),
        }

    def written_sizes(self) -> Iterator[np.ndarray]:
        for at in range(0, self.num_sequences, BLOCK):
            count = min(BLOCK, self.num_sequences - at)
            yield np.frombuffer(os.pread(self.idx.fileno(), 4 * count, HEADER.size + 4 * at), "<i4")

    def offsets(self) -> Iterator[np.ndarray]:
        """The byte each sequence starts at."""
        total = 0
        for sizes in self.written_sizes():
            ends = total + sizes.cumsum(dtype=np.int64)
            yield ((ends - sizes) * self.dtype.itemsize).astype("<i8")
            total = int(ends[-1])

    def document_index(self) -> Iterator[np.ndarray]:
        """The sequence each document starts at, and their number."""
        if self.ends is not None:
            yield np.array([0, *self.ends], "<i8")
            return
        for at in range(0, self.num_documents + 1, BLOCK):
            yield np.arange(at, min(at + BLOCK, self.num_documents + 1), dtype="<i8")

    @contextlib.contextmanager
    def guarded(self, suffix: str):
        """An OSError inside becomes CannotWrite."""
        try:
            yield
        except OSError as error:
            num_bytes = self.num_tokens * self.dtype.itemsize
            raise CannotWrite(
                f"{self.prefix}{suffix}: {error.strerror} while writing {num_bytes} bytes of tokens; "
                "nothing is published: make room or choose another place, and write it again"
            ) from error


def integers(values, what: str) -> np.ndarray:
    """A one-dimensional array of integers, or TypeError."""
    found = np.asarray(values)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise TypeError(f"{what} must be a one-dimensional array of integers, not {found.dtype} {list(found.shape)}")
    return found if found.size else found.astype(np.int64)


def retire(prefix: str) -> None:
    """Take an old corpus out of sight before its .bin is replaced: no old .idx or sidecar ever stands beside a new .bin.

    A crash after this leaves no corpus, and never one of two halves.  Raises OSError.
    """
    for path in (sidecar_path(prefix), Path(f"{prefix}.idx")):
        path.unlink(missing_ok=True)
    sync_folder(Path(prefix).parent)


def close_synced(file) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
