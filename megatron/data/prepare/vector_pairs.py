"""Folders of token files and vectors to one corpus: every pair read once, checked and written in the natural order of ids."""

from __future__ import annotations

import io
import os
import re
import struct
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron.data.indexed import IndexedWriter, best_dtype
from megatron.data.lineage import folder_record
from megatron.data.pairs import NO_NPY, checksums, moments, vectors_path
from megatron.errors import BadData, MissingInput
from megatron.progress import ProgressLine

DAMAGE = (*NO_NPY, OSError, MemoryError, KeyError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)


class BadPair(ValueError):
    """A pair that cannot be used: of what kind, and the sentence that says why."""


@dataclass(frozen=True)
class Found:
    """The two files of one id; None where there is none."""

    name: str
    tokens: Path | None
    vector: Path | None


# ---- which files belong together


def natural(name: str) -> list:
    """Sorts text10 behind text2; names that differ only in leading zeros by their text."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if n % 2 else (1, 0, part) for n, part in enumerate(parts)] + [(2, 0, name)]


def files_of(folder: Path, flag: str, suffix: str) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.name.endswith(suffix)]
    except OSError as error:
        raise MissingInput(f"{flag} {folder}: {error.strerror}") from None


def find_pairs(tokens: Path, vectors: Path) -> list[Found]:
    """Every id of either folder, in natural order.  Raises MissingInput, and BadData for an id with two token files."""
    texts: dict[str, Path] = {}
    for path in files_of(tokens, "--tokens", ".npz"):
        name = path.name.removesuffix(".npz").removesuffix("_tokens")
        if name in texts:
            raise BadData(f"{path} and {texts[name].name} are both the tokens of {name}: delete one of the two")
        texts[name] = path
    latents = {path.name.removesuffix(".npy"): path for path in files_of(vectors, "--vectors", ".npy")}
    if not texts or not latents:
        raise MissingInput(
            f"--tokens {tokens} has {len(texts)} .npz files and --vectors {vectors} has {len(latents)} .npy "
            "files, expected as many of both"
        )
    return [Found(name, texts.get(name), latents.get(name)) for name in sorted(texts.keys() | latents.keys(), key=natural)]


# ---- one pair


def load(path: Path, read: Callable[[object], object]):
    """What `read` takes out of a file of arrays.  Raises BadPair for a damaged file; objects are never unpickled."""
    try:
        found = np.load(path)
        try:
            return read(found)
        finally:
            if isinstance(found, np.lib.npyio.NpzFile):
                found.close()
    except BadPair:
        raise
    except FileNotFoundError as error:  # a link that leads nowhere: the folder lists it
        raise MissingInput(f"{path}: {error.strerror}, though its folder lists it; mend the link, or delete it") from None
    except DAMAGE as error:
        raise BadPair("damaged file", f"{path}: cannot be read as arrays ({' '.join(str(error).split())[:120]})") from None


def flat(path: Path, what: str, found: object, kinds: str, expected: str) -> np.ndarray:
    """An array of one dimension, or of one row.  Raises BadPair."""
    if not isinstance(found, np.ndarray) or found.dtype.kind not in kinds:
        kind = found.dtype if isinstance(found, np.ndarray) else type(found).__name__
        raise BadPair("wrong type", f"{path}: {what} is {kind}, expected {expected}")
    if found.ndim != 1 and not (found.ndim == 2 and len(found) == 1):
        raise BadPair("wrong shape", f"{path}: {what} has shape {list(found.shape)}, expected one text, [n] or [1, n]")
    return found.reshape(-1)


def archive(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """input_ids and attention_mask.  -> int [n], int or bool [n]"""

    def read(found):
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise BadPair("wrong type", f"{path}: is a single array, expected an .npz with input_ids and attention_mask")
        if missing := [key for key in ("input_ids", "attention_mask") if key not in found]:
            raise BadPair("missing array", f"{path}: has no {missing[0]} among {', '.join(found.files)[:80]}")
        return (
            flat(path, "input_ids", found["input_ids"], "iu", "integers"),
            flat(path, "attention_mask", found["attention_mask"], "iub", "integers of 0 and 1"),
        )

    return load(path, read)


def read_ids(path: Path, vocab_size: int) -> np.ndarray:
    """The ids under the mask.  -> int64 [n].  Raises BadPair."""
    ids, mask = archive(path)
    if len(ids) != len(mask):
        raise BadPair("wrong shape", f"{path}: input_ids has {len(ids)} entries and attention_mask {len(mask)}, expected as many")
    if ((mask != 0) & (mask != 1)).any():
        raise BadPair("odd mask", f"{path}: attention_mask holds {mask[(mask != 0) & (mask != 1)][0]}, expected 0 and 1")
    inside = np.flatnonzero(mask)
    if not len(inside):
        raise BadPair("empty text", f"{path}: attention_mask leaves none of {len(ids)} ids, expected a text")
    if inside[-1] - inside[0] + 1 != len(inside):
        raise BadPair("odd mask", f"{path}: attention_mask has a hole between {inside[0]} and {inside[-1]}, expected one text")
    ids = ids[inside]
    if ids.min() < 0 or ids.max() >= vocab_size:
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise BadPair("id outside", f"{path}: has id {wrong}, expected 0 or more and below --vocab-size {vocab_size}")
    return ids.astype(np.int64)


def read_vector(path: Path, width: int | None) -> np.ndarray:
    """-> float32 [d].  Raises BadPair for one that is not finite in float32, or not as wide as those before."""

    def read(found):
        return flat(path, "the vector", found, "f", "floats")

    found = load(path, read)
    if not len(found) or width not in (None, len(found)):
        raise BadPair("wrong shape", f"{path}: has {len(found)} numbers, expected {width or 'at least 1'}, as all vectors")
    with np.errstate(over="ignore"):
        vector = found.astype("<f4")
    if not np.isfinite(vector).all():
        at = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise BadPair("not finite", f"{path}: number {at} is {found[at]}, expected a finite float32")
    return vector


@dataclass(frozen=True)
class PairFolders:
    """Where the pairs lie, the size of their vocabulary, and whether bad ones are left out."""

    tokens: Path
    vectors: Path
    vocab_size: int
    skip_bad: bool = False


def read_pair(pair: Found, width: int | None, given: PairFolders) -> tuple[np.ndarray, np.ndarray]:
    if not pair.vector:
        raise BadPair("no vector", f"{pair.tokens}: has no vector, expected {given.vectors / (pair.name + '.npy')}")
    if not pair.tokens:
        raise BadPair("no tokens", f"{pair.vector}: has no tokens, expected {given.tokens / (pair.name + '_tokens.npz')}")
    return read_ids(pair.tokens, given.vocab_size), read_vector(pair.vector, width)


# ---- all of them


def matrix_header(rows: int, width: int) -> bytes:
    """What a .npy of float32 [rows, width] begins with; numpy leaves room for any number of rows."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
    return out.getvalue()


@dataclass
class Tally:
    pairs: int = 0
    tokens: int = 0
    width: int | None = None


def import_all(pairs: Sequence[Found], given: PairFolders, prefix: Path, skipped: Counter[str]) -> Tally:
    """Read, check and write every pair, one at a time; bad ones end it or are counted in `skipped`."""
    tally, line = Tally(), ProgressLine(len(pairs), "pairs")
    with IndexedWriter(prefix, best_dtype(given.vocab_size)) as writer:
        with open(vectors_path(prefix), "xb") as matrix:
            for number, pair in enumerate(pairs, 1):
                try:
                    ids, vector = read_pair(pair, tally.width, given)
                except BadPair as error:
                    refuse_or_count(error, given, skipped)
                    continue
                if tally.width is None:
                    matrix.write(matrix_header(len(pairs), len(vector)))
                writer.add_document(ids)
                matrix.write(vector.tobytes())
                tally = Tally(tally.pairs + 1, tally.tokens + len(ids), len(vector))
                line.show(number)
            line.clear()
            if not tally.pairs or tally.width is None:
                raise BadData(
                    f"--tokens {given.tokens}: none of {len(pairs)} pairs can be used{counted(skipped)}; nothing was written"
                )
            matrix.seek(0)
            matrix.write(matrix_header(tally.pairs, tally.width))
        path = vectors_path(prefix)
        writer.extra = {"vectors": {"width": tally.width, "block_crc32": checksums(path)} | moments(path).said()}
        writer.extra["inputs"] = [
            folder_record(given.tokens, [pair.tokens for pair in pairs if pair.tokens]),
            folder_record(given.vectors, [pair.vector for pair in pairs if pair.vector]),
        ]
    return tally


def refuse_or_count(error: BadPair, given: PairFolders, skipped: Counter[str]) -> None:
    kind, sentence = error.args
    if not given.skip_bad:
        raise BadData(f"{sentence}; nothing was written: mend the file, or pass --on-bad skip")
    skipped[kind] += 1
    print(f"skipped: {sentence}", file=sys.stderr)


def counted(skipped: Counter[str]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
    return f", {skipped.total()} pairs skipped ({kinds})" if kinds else ""
