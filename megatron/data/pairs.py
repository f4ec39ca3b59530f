"""Texts paired with vectors: one document and one row of a float matrix each.

PREFIX.bin  PREFIX.idx      the texts, one document a pair
PREFIX.vectors.npy          float32 [D, d], row i belonging to document i, read by position
PREFIX.meta.json            under extra.vectors the checksum of each MiB of the matrix, which is tested when it is first read,
                            and each number's mean and standard deviation over all vectors
"""

from __future__ import annotations

import hashlib
import json
import tokenize
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron.data.indexed import RawFile
from megatron.data.padded import RULE, Padded
from megatron.data.sidecar import BLOCK_BYTES
from megatron.errors import BadData, MissingInput

EDGE_BYTES = 1 << 20  # of each end of the matrix, in the fingerprint
NO_NPY = (ValueError, EOFError, SyntaxError, TypeError, RecursionError, tokenize.TokenError)  # what numpy raises for a header
ROWS_AT_ONCE = 4096  # whose moments are taken
AGAIN = "import the pairs again with tools/import_pairs.py"


@dataclass(frozen=True)
class Standard:
    """Each number's mean and standard deviation over a corpus, 1 where it is constant.  float32 [d] each"""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def read(cls, said: dict) -> Standard:
        """What `said` gave."""
        return cls(np.array(said["mean"], "<f4"), np.array(said["std"], "<f4"))

    def said(self) -> dict[str, list[float]]:
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Raw vectors, standardised.  float32 [b, d] -> [b, d]"""
        return (rows - self.mean) / self.std

    def raw(self, rows: np.ndarray) -> np.ndarray:
        """The inverse of `of`."""
        return rows * self.std + self.mean


def moments(path: Path) -> Standard:
    """Of a matrix that is on the disk, in two passes and float64."""
    matrix = np.load(path, mmap_mode="r")
    parts = [slice(at, at + ROWS_AT_ONCE) for at in range(0, len(matrix), ROWS_AT_ONCE)]
    mean = sum(matrix[part].sum(0, dtype=np.float64) for part in parts) / len(matrix)
    variance = sum(((matrix[part] - mean) ** 2).sum(0) for part in parts) / len(matrix)
    std = np.sqrt(variance).astype("<f4")
    return Standard(mean.astype("<f4"), np.where(std > 0, std, np.float32(1)))


def vectors_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.vectors.npy")


def checksums(path: Path) -> list[int]:
    """The crc32 of each MiB of a file."""
    file = RawFile(str(path))
    return [zlib.crc32(block) for _, block in file.blocks(0, file.num_bytes, np.uint8, BLOCK_BYTES)]


def read_layout(path: Path, mend: str = AGAIN) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """A .npy's type, shape, whether columns come first, and where its numbers start.  Raises MissingInput or BadData."""
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_column, dtype = read(file)
            return dtype, shape, by_column, file.tell()
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror}, expected vectors: {mend}") from None
    except NO_NPY as error:
        raise BadData(f"{path}: does not begin like a .npy file ({' '.join(str(error).split())[:120]}); {mend}") from None


class Vectors:
    """The matrix of a corpus of `num_documents`, read row by row; `block_crc32` are the sidecar's checksums, if it has any.

    Raises MissingInput, or BadData for a file that is damaged or belongs to another corpus.
    """

    def __init__(self, prefix: str, num_documents: int, block_crc32: list[int] | None):
        self.path = vectors_path(prefix)
        dtype, shape, by_column, self.start = read_layout(self.path)
        if dtype != np.dtype("<f4") or len(shape) != 2 or by_column or not shape[1]:
            raise BadData(f"{self.path}: holds {dtype} {list(shape)}, expected float32 [{num_documents}, d] by rows; {AGAIN}")
        if shape[0] != num_documents:
            raise BadData(
                f"{self.path}: has {shape[0]} vectors, expected {num_documents}, one a document of {prefix}.bin; "
                f"the two do not belong together: {AGAIN}"
            )
        self.width, self.file = shape[1], RawFile(str(self.path))
        expected = self.start + 4 * num_documents * self.width
        if self.file.num_bytes != expected:
            raise BadData(f"{self.path}: has {self.file.num_bytes} bytes, expected {expected} for {list(shape)}; {AGAIN}")
        if block_crc32 is not None and len(block_crc32) != -(-expected // BLOCK_BYTES):
            raise BadData(f"{self.path}: has {expected} bytes, but its sidecar vouches for {len(block_crc32)} MiB; {AGAIN}")
        self.unread = dict(enumerate(block_crc32 or ()))

    def rows(self, documents: np.ndarray) -> np.ndarray:
        """int64 [b] -> float32 [b, d].  Raises BadData for a damaged block or a number that is not finite."""
        out = np.empty((len(documents), self.width), "<f4")
        for row, document in zip(out, documents.tolist(), strict=True):
            at = self.start + 4 * self.width * document
            self.check_blocks(at // BLOCK_BYTES, (at + 4 * self.width - 1) // BLOCK_BYTES)
            self.file.fill(row, at)
        if not np.isfinite(out).all():
            raise BadData(f"{self.path}: vector {documents[~np.isfinite(out).all(1)][0]} is not finite; {AGAIN}")
        return out

    def check_blocks(self, first: int, last: int) -> None:
        """Blocks first to last, where not read before, have the sidecar's checksums.  Raises BadData."""
        for number in range(first, last + 1):
            if number in self.unread:
                start = number * BLOCK_BYTES
                block = self.file.fill(np.empty(min(BLOCK_BYTES, self.file.num_bytes - start), np.uint8), start)
                if zlib.crc32(block) != self.unread[number]:
                    raise BadData(
                        f"{self.path}: the crc32 of bytes {start}:{start + len(block)} is {zlib.crc32(block):08x}, "
                        f"expected {self.unread[number]:08x} by the sidecar; {AGAIN}"
                    )
                del self.unread[number]

    def fingerprint(self) -> str:
        """sha256 over size, shape, and first and last MiB."""
        edge = min(EDGE_BYTES, self.file.num_bytes)
        digest = hashlib.sha256(f"{self.file.num_bytes} {self.width}".encode())
        for at in (0, self.file.num_bytes - edge):
            digest.update(self.file.fill(np.empty(edge, np.uint8), at))
        return digest.hexdigest()


class Pairs(Padded):
    """A text and its vector a row; texts longer than s tokens are cut.  Raises MissingInput or BadData."""

    def __init__(self, prefix: str, seq_length: int, seed: int, vocab_size: int | None, end: int):
        super().__init__(prefix, seq_length, seed, vocab_size, end)
        self.stated = ((self.corpus.meta or {}).get("extra") or {}).get("vectors") or {}
        self.matrix = Vectors(prefix, self.corpus.num_documents, self.stated.get("block_crc32"))
        self.kept = np.flatnonzero(self.lengths > 0)
        self.standard: Standard | None = None  # by which vectors are read, at a place of their own before the text

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.matrix.width

    @property
    def tokens_per_epoch(self) -> int:
        return len(self.kept) * (self.seq_length + (self.standard is not None))

    def moments(self) -> Standard:
        """As the sidecar states them, or taken from the matrix."""
        return Standard.read(self.stated) if "mean" in self.stated else moments(self.matrix.path)

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """The vectors of samples by number.  int64 [b] -> float32 [b, d].  Raises BadData for one that is damaged."""
        rows = self.matrix.rows(self.documents(numbers))
        return self.standard.of(rows) if self.standard else rows

    def noted(self) -> dict:
        return {"standard": self.standard.said()} if self.standard else {}

    def event(self, first: int, last: int) -> tuple[str, str]:
        """As in Samples, and where a row ends."""
        places, given = super().event(first, last)
        return f"{places}, as far as the text and its end reach", given

    def describe(self) -> str:
        """Texts, the size of their vectors, and how many are cut or left out."""
        return (
            f"{self.corpus.prefix}: {len(self.kept)} texts of {len(self.lengths)} with vectors of {self.width}, "
            f"{int(self.filled(self.kept).sum())} tokens in rows of {self.seq_length}; {self.said_of_ends('texts')}, "
            f"{len(self.lengths) - len(self.kept)} empty ones left out"
        )

    def fingerprint(self) -> str:
        """Names the samples: sha256 over seed, length, and the content of texts and vectors."""
        known = ["vectors", RULE, self.end, self.seed, self.seq_length, self.corpus.fingerprint(), self.matrix.fingerprint()]
        known += [self.standard.said()] if self.standard else []
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()
