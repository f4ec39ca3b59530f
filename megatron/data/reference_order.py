"""Megatron's order of samples, bit for bit, so that runs of Megatron-DeepSpeed and megatron-core can be continued and compared.

A corpus of N sequences (Megatron calls them documents here) and T tokens gives n samples from E epochs:

    E          the least e >= 1 with (eT - 1) // s >= n
    documents  the sequences' numbers, E times over, shuffled together: repeats are scattered over the whole run
    samples    [(ET - 1) // s + 1, 2] where sample k begins, at token ks of the documents in that order: place in `documents`
               and offset there; sample k ends with the first token of sample k + 1, its last target
    shuffle    the order in which samples are drawn

If the last epoch gives less than 80 % of its samples, its documents and its samples are shuffled apart, behind the others. All
shuffles are numpy's legacy ones, from one RandomState(seed): documents first. So a run planned for more samples is another
run from its first sample on; PackedDataset's own order is not so.

Two Megatrons differ in what they ask of a corpus, and each rule is here by name: "deepspeed" (Megatron-DeepSpeed, and
Megatron-LM before megatron-core) and "core" (megatron-core 0.16).
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from megatron.data.blend import Rule, normalized
from megatron.data.compiled import compiled
from megatron.data.indexed import IndexedDataset
from megatron.data.token_file import TokenFile
from megatron.errors import BadData, CannotWrite, Mismatch
from megatron.files import staged

SEPARATE_BELOW = 0.80  # of an epoch's samples
SURPLUS = 0.005  # samples asked of each corpus of a blend beyond its share
SAMPLE_BLOCK = 1 << 22  # documents that the numpy twin walks at once
FORMAT = 1  # of the cached arrays
PARTS = ("document", "sample", "shuffle")

# The three indices


def num_epochs(num_tokens: int, seq_length: int, num_samples: int) -> int:
    """The least number of epochs, 1 or more, that hold so many samples of seq_length tokens and one more."""
    return max(1, -(-(num_samples * seq_length + 1) // num_tokens))


def separate_from(num_tokens: int, seq_length: int, num_samples: int) -> int | None:
    """The sample at which a last epoch that is shuffled apart begins; None where all epochs are shuffled together."""
    before = ((num_epochs(num_tokens, seq_length, num_samples) - 1) * num_tokens - 1) // seq_length
    few = num_samples - before < int(SEPARATE_BELOW * ((num_tokens - 1) // seq_length))
    return before if before >= 0 and few else None


def build_document_index(documents: np.ndarray, epochs: int, rng: np.random.RandomState, separate: bool) -> np.ndarray:
    """Sequence numbers in the order that their tokens are walked; `separate` keeps the last epoch apart.  -> int32 [e x d]"""
    index = np.tile(documents.astype(np.int32), epochs)
    shuffle_apart(index, len(documents) * (epochs - 1) if separate else len(index), rng)
    return index


def shuffle_apart(index: np.ndarray, border: int, rng: np.random.RandomState) -> None:
    """Shuffle in place what is before the border, then what is behind it."""
    for part in (index[:border], index[border:]):
        shuffle(part, rng)


def shuffle(index: np.ndarray, rng: np.random.RandomState) -> None:
    """rng.shuffle(index), in C++ where that is built: the cache misses of a long array then overlap."""
    fast = compiled("shuffle_words") if index.itemsize == 4 and len(index) < 2**32 else None
    if fast is None:
        return rng.shuffle(index)
    state = rng.get_state(legacy=False)
    state["state"]["pos"] = fast(index.view(np.uint32), state["state"]["key"], state["state"]["pos"])
    rng.set_state(state)


def build_sample_index(sizes: np.ndarray, document_index: np.ndarray, seq_length: int, num_samples: int) -> np.ndarray:
    """Where each sample begins, and the end of the last: place in the document index, offset there.  -> [num_samples + 1, 2]

    int32, or int64 where the document index is too long for it.  Raises ValueError when the documents hold fewer tokens than
    num_samples x seq_length + 1, or are no entries of `sizes`.
    """
    dtype = sample_index_dtype(len(document_index))
    fast = compiled(f"build_sample_idx_{dtype.__name__}")
    if fast:
        return fast(sizes, document_index, seq_length, num_samples)
    return build_sample_idx(sizes, document_index, seq_length, num_samples, dtype)


def sample_index_dtype(num_entries: int) -> type:
    return np.int32 if num_entries <= np.iinfo(np.int32).max else np.int64


def build_sample_idx(sizes: np.ndarray, document_index: np.ndarray, seq_length: int, num_samples: int, dtype: type) -> np.ndarray:
    """The twin of helpers.cpp.  int32 [n], int32 [d] -> dtype [num_samples + 1, 2]"""
    if seq_length < 1 or num_samples < 0:
        raise ValueError(f"{num_samples} samples of {seq_length} tokens: expected 0 or more of at least 1")
    index: np.ndarray = np.zeros((num_samples + 1, 2), dtype)  # sample 0 begins in document 0 even where that is empty
    known, end = 1, 0  # samples whose beginning is found, tokens walked
    for at in range(0, len(document_index), SAMPLE_BLOCK):
        if known > num_samples:
            break
        documents = document_index[at : at + SAMPLE_BLOCK]
        if documents.min() < 0 or documents.max() >= len(sizes) or sizes[documents].min() < 0:
            raise ValueError("a document is outside `sizes`, or has a size below 0")
        ends = end + sizes[documents].cumsum(dtype=np.int64)
        upto = min(num_samples, int(ends[-1] - 1) // seq_length)
        begins = np.arange(known, upto + 1, dtype=np.int64) * seq_length
        within = ends.searchsorted(begins, side="right")
        index[known : upto + 1, 0] = at + within
        index[known : upto + 1, 1] = begins - (ends - sizes[documents])[within]
        known, end = max(known, upto + 1), int(ends[-1])
    if known <= num_samples:
        raise ValueError(f"the documents end before sample {num_samples} begins")
    return index


def build_shuffle_index(num_together: int, num_samples: int, rng: np.random.RandomState) -> np.ndarray:
    """The first `num_together` samples shuffled, then the others.  -> uint32 [num_samples], int64 when that is too small"""
    index = np.arange(num_samples, dtype=np.int64 if num_samples >= np.iinfo(np.uint32).max - 1 else np.uint32)
    shuffle_apart(index, num_together, rng)
    return index


def build_indices(sizes: np.ndarray, documents: np.ndarray, s: int, seed: int, num_samples: int) -> dict[str, np.ndarray]:
    """All three, by the names in PARTS, of the sequences `documents`.  int32 [n], int32 [d]"""
    num_tokens = int(sizes[documents].sum(dtype=np.int64))
    epochs, apart = num_epochs(num_tokens, s, num_samples), separate_from(num_tokens, s, num_samples)
    rng = np.random.RandomState(seed)
    order = build_document_index(documents, epochs, rng, apart is not None)
    total = (epochs * num_tokens - 1) // s
    samples = build_sample_index(sizes, order, s, total)
    return dict(zip(PARTS, (order, samples, build_shuffle_index(total if apart is None else apart, total, rng)), strict=True))


# What Megatron asks of each corpus


def blended_samples(num_samples: int, weights: list[float], rule: Rule, blended: bool = False) -> list[int]:
    """The samples that each corpus is indexed for: its share and 0.5 % of a blend, exactly num_samples where nothing is blended.

    Both Megatrons blend a single corpus too that --data-path names with a weight, and then may cross into another epoch; one
    that is named without, or for one split only, they do not. "core" rounds the share up before it adds the 0.5 %.
    """
    if len(weights) == 1 and not blended:
        return [num_samples]
    shares = normalized(weights, rule)
    if rule == "core":
        return [math.ceil(math.ceil(num_samples * share) * (1 + SURPLUS)) for share in shares]
    return [math.ceil(num_samples * share * (1 + SURPLUS)) for share in shares]


def sequence_split(num_sequences: int, shares: list[float], rule: Rule) -> list[int]:
    """Where --split cuts between sequences: part i is [cuts[i], cuts[i + 1]).

    "core" rounds each cut; "deepspeed" rounds each part, adds them up, and takes what is too much in all off every cut.
    """
    parts = normalized(shares, rule)
    if rule == "core":
        return [round(edge * float(num_sequences)) for edge in np.cumsum([0.0, *parts]).tolist()]
    cuts = np.cumsum([round(part * float(num_sequences)) for part in parts])
    return [0, *(cuts - (cuts[-1] - num_sequences)).tolist()]


def document_split(corpus: IndexedDataset | TokenFile, shares: list[float], rule: Rule) -> list[tuple[int, int]]:
    """Megatron's --split in tokens: [start, stop) of each share.

    Raises BadData where a cut falls beside an empty sequence, because tokens cannot say whose that is.
    """
    borders = sequence_borders(corpus.sizes)
    cuts = sequence_split(len(borders) - 1, shares, rule)
    for cut in cuts[1:-1]:
        if 0 < cut < len(borders) - 1 and borders[cut] in (borders[cut - 1], borders[-1]):
            raise BadData(
                f"{corpus.prefix}: --split cuts beside an empty sequence, at {cut}: whose it is cannot be said in "
                "tokens, and Megatron's order depends on it; leave empty documents out, or name a corpus a split"
            )
    marks = borders[cuts].tolist()
    return list(zip(marks, marks[1:]))


def sequence_borders(sizes: np.ndarray) -> np.ndarray:
    """The first token of each sequence, and the end of the last.  int32 [n] -> int64 [n + 1]"""
    borders = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=borders[1:])
    return borders


def sequences_within(borders: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """[first, last) of the sequences that have tokens in [start, stop); an empty one belongs to the range that begins with it."""
    first, last = borders[:-1].searchsorted([start, stop]).tolist()
    if first == len(borders) - 1 or borders[first] > start:  # one begins before the range and reaches into it
        first -= 1
    return first, len(borders) - 1 if stop == borders[-1] else last


# One corpus


class ReferenceOrder:
    """A corpus, or its tokens [start, stop), in Megatron's order for `num_samples` samples of seq_length + 1 tokens.

    The sequences at the ends of a range are clipped; an empty one at a border belongs to what follows. Without a `cache`
    folder each process builds the indices in memory.  Raises BadData for a range of 0 tokens, which Megatron would walk for
    ever.
    """

    def __init__(
        self,
        corpus: IndexedDataset | TokenFile,
        start: int,
        stop: int,
        seq_length: int,
        seed: int,
        num_samples: int,
        cache: str | Path | None = None,
    ):
        self.corpus, self.start, self.stop, self.seq_length, self.seed = corpus, start, stop, seq_length, seed
        self.num_tokens, self.num_requested = stop - start, num_samples
        if self.num_tokens < 1:
            raise BadData(f"{corpus.prefix}, tokens {start}:{stop}: there is none to train on; give a longer range")
        self.num_epochs = num_epochs(self.num_tokens, seq_length, num_samples)
        borders = sequence_borders(corpus.sizes)
        self.used = sequences_within(borders, start, stop)
        self.borders = borders.clip(start, stop, out=borders)
        found = self.build() if cache is None else cached(Path(cache), self.key(), self.build)
        self.documents, self.samples, self.shuffle = (found[part] for part in PARTS)
        self.num_samples = len(self.shuffle)

    def build(self) -> dict[str, np.ndarray]:
        """The three indices.  Raises BadData for a sequence that Megatron's 32 bits cannot count."""
        sizes = np.diff(self.borders)
        if sizes.max() > np.iinfo(np.int32).max:
            raise BadData(
                f"{self.corpus.prefix}: a sequence has {sizes.max()} tokens, of which Megatron's order counts at most "
                "2^31 - 1; cut it, or use --epoch-order strict"
            )
        return build_indices(
            sizes.astype(np.int32), np.arange(*self.used, dtype=np.int32), self.seq_length, self.seed, self.num_requested
        )

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Samples by number.  int64 [b] -> int64 [b, s+1].  Raises Mismatch behind the last one that was planned."""
        if len(numbers) and numbers.max() >= self.num_samples:
            raise Mismatch(
                f"{self.corpus.prefix}: sample {numbers.max()} is asked for, but --epoch-order reference has an order "
                f"of {self.num_samples} samples, planned for {self.num_requested}: start with the length that the "
                "run shall have, because this order depends on it"
            )
        at = self.shuffle[numbers].astype(np.int64)
        rows = np.empty((len(numbers), self.seq_length + 1), np.int64)
        for row, (first, offset), (last, end) in zip(rows, self.samples[at].tolist(), self.samples[at + 1].tolist(), strict=True):
            self.fill(row, self.documents[first : last + 1], offset, end + 1)
        return rows

    def fill(self, row: np.ndarray, documents: np.ndarray, offset: int, end: int) -> None:
        """Join documents to a row, from `offset` in the first to `end` in the last."""
        begins, ends = self.borders[documents].tolist(), self.borders[1:][documents].tolist()
        ends[-1] = begins[-1] + end
        begins[0] += offset
        filled = 0
        for begin, stop in zip(begins, ends, strict=True):
            row[filled : filled + stop - begin] = self.corpus.tokens(begin, stop)
            filled += stop - begin

    def identity(self) -> list:
        """What names the tokens that are walked, and their order."""
        return [self.corpus.fingerprint(), self.start, self.stop, "reference", self.seed, self.num_requested]

    def key(self) -> str:
        """The name of the indices in a cache: sha256 over all that they depend on."""
        return hashlib.sha256(json.dumps([FORMAT, self.seq_length, *self.identity()]).encode()).hexdigest()


# The indices on disk


def cached(folder: Path, key: str, build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays under `key`, memory-mapped; built and kept where they are absent or damaged.

    Any number of processes may do so at once: all write the same bytes, aside, and the checksums come last.
    """
    found = read_arrays(folder, key)
    if found is None:
        arrays = build()
        try:
            write_arrays(folder, key, arrays)
        except CannotWrite as error:
            print(f"--data-cache-path: {error}; the order of samples is held in memory", file=sys.stderr)
            return arrays
        found = read_arrays(folder, key) or arrays
    return found


def array_file(folder: Path, key: str, part: str) -> Path:
    return folder / f"{key}.{part}.npy"


def write_arrays(folder: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Publish the arrays and their checksums together.  Raises CannotWrite."""
    with staged(folder) as stage:
        for part, array in arrays.items():
            np.save(array_file(stage, key, part), array, allow_pickle=False)
        sums = {part: checksum(array_file(stage, key, part)) for part in arrays}
        (stage / f"{key}.sums.json").write_text(json.dumps(sums))  # sorts behind the arrays, so it is moved last


def read_arrays(folder: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays, mapped, when all are there as they were written; None when not, said in a line where they are damaged."""
    sums_file = folder / f"{key}.sums.json"
    if not sums_file.exists():
        return None
    try:
        sums = json.loads(sums_file.read_text(encoding="utf-8"))
        for part in PARTS:
            if checksum(array_file(folder, key, part)) != sums[part]:
                raise ValueError(f"{part} index is not what was written")
        return {part: np.lib.format.open_memmap(array_file(folder, key, part), "r") for part in PARTS}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        print(f"--data-cache-path {folder}: {key[:16]} is damaged ({error}) and is built again", file=sys.stderr)
        return None


def checksum(path: Path) -> int:
    return zlib.crc32(np.memmap(path, np.uint8, "r"))
