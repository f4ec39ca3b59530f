"""Packed samples of s + 1 tokens, each a pure function of (seed, sample number): no index is built, stored or cached.

A corpus (or its range [start, stop)) of T tokens is a circle, and training walks it epoch after epoch. Epoch e enters the
circle at a rotation drawn from (seed, e), so that sample borders differ between epochs. Sample k visits the s tokens
[ks, (k + 1)s) of the endless walk; its last, extra token is only the target of the one before. Within epoch e

    the first c = (-eT) mod s tokens     finish the sample that began in epoch e - 1,
    m = (T - c) // s whole windows       follow in an order drawn from (seed, e), a keyed permutation computed in place,
    the remaining tokens                 begin the sample that epoch e + 1 finishes.

So every token is visited exactly once an epoch, only the one sample on the border of two epochs is not contiguous
text, and a run planned for 500 epochs begins exactly like one planned for 4.

Several corpora are blended by Megatron's greedy rule: sample i comes from the corpus that is furthest behind its share.
"""
from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megatron.config import Data
from megatron.data.indexed import IndexedDataset
from megatron.errors import BadData, MissingInput
from megatron.flags import parse_count

SPLITS = ("train", "valid", "test")
BLEND_BLOCK = 65536                             # samples of a blend that are drawn at once
NUMBER = r"[-+]?\.?\d[\w.+-]*"
FEISTEL_ROUNDS = 8                              # of two halves each: all 120 orders of 5 windows come up alike
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ROTATION, ORDER = 0, 1                          # what an epoch's random number is for


# Randomness: an address, not a history

def hash64(*words: int | np.ndarray) -> np.ndarray:
    """Integers mixed into uniform 64-bit ones by splitmix64 (Steele et al. 2014).  [b] ... -> uint64 [b]"""
    h = np.zeros(1, np.uint64)
    for word in words:
        h = h + np.asarray(word).astype(np.uint64) + GOLDEN
        h = (h ^ (h >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> 27)) * np.uint64(0x94D049BB133111EB)
        h = h ^ (h >> 31)
    return h


def feistel(at: np.ndarray, height: np.ndarray, width: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A keyed permutation of [0, height x width): rows and columns shift one another.  uint64 [b] -> [b]"""
    row, column = at // width, at % width
    for _ in range(FEISTEL_ROUNDS):
        row = (row + hash64(key + column) % height) % height
        key = key + GOLDEN
        column = (column + hash64(key + row) % width) % width
        key = key + GOLDEN
    return row * width + column


def permute(place: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A keyed permutation of [0, size): cycle walking on a barely larger rectangle (Black & Rogaway 2002).  [b] -> uint64 [b]"""
    place, size = place.astype(np.uint64), size.astype(np.uint64)
    height = np.ceil(np.sqrt(size)).astype(np.uint64)
    width = (size + height - 1) // height
    at = feistel(place, height, width, key)
    while (outside := at >= size).any():
        at[outside] = feistel(at[outside], height[outside], width[outside], key[outside])
    return at


# Which corpora, and how much of each

@dataclass(frozen=True)
class Source:
    """One entry of a data path. In start and stop a float is a share of the corpus, an int counts tokens."""
    weight: float
    start: float | int
    stop: float | int
    prefix: str


def parse_paths(words: list[str], where: str = "the data path") -> list[Source]:
    """`[weight] [start:end] prefix` entries; either all have a weight, or all count the same.

    start:end are shares when both are at most 1 (0.9:1, :0.5), else tokens (0:100M).  Raises BadData.
    """
    entries: list[tuple[float | None, str, str]] = []
    weight = marks = None
    for word in words:
        if weight is None and marks is None and is_number(word):
            weight = float(word)
        elif marks is None and re.fullmatch(f"({NUMBER})?:({NUMBER})?", word):
            marks = word
        else:
            entries.append((weight, marks or ":", word))
            weight = marks = None
    if weight is not None or marks is not None:
        raise BadData(f"{where}: {words[-1]} stands at the end, expected a prefix after it")
    check_weights(entries, where)
    return [Source(1.0 if weight is None else weight, *parse_range(marks, prefix, where), prefix)
            for weight, marks, prefix in entries]


def is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def check_weights(entries: list[tuple[float | None, str, str]], where: str) -> None:
    if not entries:
        raise BadData(f"{where}: names no corpus, expected `weight [start:end] prefix`")
    missing = [prefix for weight, _, prefix in entries if weight is None]
    if missing and len(missing) < len(entries):
        raise BadData(f"{where}: {missing[0]} has no weight while others have one: give every corpus a weight, or none")
    for weight, _, prefix in entries:
        if weight is not None and not 0 <= weight < math.inf:
            raise BadData(f"{where}: the weight of {prefix} is {weight:g}, expected a finite number, 0 or more")
    if not missing and not any(weight for weight, _, _ in entries):
        raise BadData(f"{where}: every weight is 0 ({', '.join(prefix for _, _, prefix in entries)}), expected one above 0")


def parse_range(marks: str, prefix: str, where: str) -> tuple[float | int, float | int]:
    """`0.9:1`, `:0.5` -> two shares; `1e6:100M` -> two counts; `5M:` -> from there to the end."""
    first, last = marks.split(":")
    try:
        start, stop = parse_count(first or "0"), parse_count(last) if last else None
        if not 0 <= start < (math.inf if stop is None else stop):
            raise ValueError
        if max(start, stop or 0) <= 1:
            return float(start), 1.0 if stop is None else float(stop)
        if start % 1 or (stop or 0) % 1:
            raise ValueError
        return int(start), 1.0 if stop is None else int(stop)
    except (ValueError, OverflowError):
        raise BadData(f"{where}: the range {marks} of {prefix} is not two shares such as 0.9:1, "
                      "or two token counts such as 0:100M, the first below the second") from None


def read_path_file(path: str | Path) -> list[Source]:
    """Entries of a file: one a line with # comments, or the reference's single line `"1.0 a" "0.5 b"`.

    Raises MissingInput or BadData.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror}; it should list the corpora, `weight [start:end] prefix` a line") from None
    except UnicodeDecodeError:
        raise BadData(f"{path}: is not text, expected `weight [start:end] prefix` a line") from None
    return parse_paths([word for line in lines for word in re.sub(r"(^|\s)#.*", "", line).replace('"', " ").split()], str(path))


def token_range(source: Source, num_tokens: int) -> tuple[int, int]:
    """The source's [start, stop) in tokens.  Raises BadData when the corpus is shorter."""
    start, stop = (round(mark * num_tokens) if isinstance(mark, float) else mark for mark in (source.start, source.stop))
    if max(start, stop) > num_tokens:
        raise BadData(f"{source.prefix}: the range {start}:{stop} ends behind the last of {num_tokens} tokens; "
                      "shorten it or add data")
    return start, stop


# One corpus

class Circle:
    """A corpus, or its range, as the endless walk that the module's first lines describe."""

    def __init__(self, source: Source, seq_length: int, key: np.ndarray):
        self.corpus, self.seq_length, self.key = IndexedDataset(source.prefix), seq_length, key
        self.start, self.stop = token_range(source, self.corpus.num_tokens)
        self.num_tokens = self.stop - self.start
        if self.num_tokens < seq_length + 1:
            raise BadData(f"{source.prefix}, tokens {self.start}:{self.stop}: --seq-length {seq_length} needs at least "
                          f"{seq_length + 1} tokens, has {self.num_tokens}; lower --seq-length or add data "
                          "(or give it more by its range or --split)")

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Samples by number.  int64 [b] -> int64 [b, s+1]"""
        entries, stays, returns = self.place(numbers)
        rows = np.empty((len(numbers), self.seq_length + 1), np.int64)
        for row, entry, stay, again in zip(rows, entries.tolist(), stays.tolist(), returns.tolist(), strict=True):
            self.copy(row[:stay], entry)
            if stay < len(row):
                self.copy(row[stay:], again)
        return rows

    def place(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where a sample begins on the circle, how many tokens it reads there, where the next epoch has the rest.  3 x [b]"""
        size, s = self.num_tokens, self.seq_length
        epoch = numbers * s // size
        head = -epoch * size % s
        num_whole = (size - head) // s
        place = numbers - (epoch * size + head) // s
        whole = place < num_whole
        window = num_whole.copy()                                   # the sample on the border starts behind all whole ones
        window[whole] = permute(place[whole], num_whole[whole], hash64(self.key, epoch[whole], ORDER))
        entry = (self.rotation(epoch) + head + window * s) % size
        return entry, np.where(whole, s + 1, size - head - num_whole * s), self.rotation(epoch + 1)

    def rotation(self, epoch: np.ndarray) -> np.ndarray:
        return (hash64(self.key, epoch, ROTATION) % np.uint64(self.num_tokens)).astype(np.int64)

    def copy(self, row: np.ndarray, at: int) -> None:
        """Fill `row` with the tokens that follow from `at` on the circle."""
        first = min(len(row), self.num_tokens - at)
        row[:first] = self.corpus.tokens(self.start + at, self.start + at + first)
        row[first:] = self.corpus.tokens(self.start, self.start + len(row) - first)


# Several corpora

def fill_blend(weights: np.ndarray, counts: np.ndarray, first: int, dataset_ids: np.ndarray, positions: np.ndarray) -> None:
    """Sample i comes from argmax_d(weights[d] max(i, 1) - counts[d]), the lowest d in a tie; the twin of helpers.cpp.

    Fills samples `first` and on: dataset_ids int32 [n], positions int64 [n]; counts int64 [d] goes along.
    """
    for i in range(len(positions)):
        best = int(np.argmax(weights * float(max(first + i, 1)) - counts))
        dataset_ids[i], positions[i] = best, counts[best]
        counts[best] += 1


@functools.cache
def blend_filler() -> Callable[..., None]:
    """The compiled fill_blend, or the one above where the installation had no compiler (said once)."""
    try:
        from megatron.data._helpers import fill_blend as compiled
    except ImportError:
        print("megatron.data._helpers is not built: corpora are blended in Python, slower, with the same result", file=sys.stderr)
        return fill_blend
    return compiled


class Blend:
    """Which corpus each sample comes from. Drawn in blocks; only the counts at each block's start are kept."""

    def __init__(self, weights: list[float]):
        self.weights = np.array(weights, np.float64) / sum(weights)
        self.counts = [np.zeros(len(weights), np.int64)]            # samples of each corpus before block 0, 1, ...
        self.held: tuple[int, np.ndarray, np.ndarray] | None = None

    def block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Dataset ids int32 and positions int64 of samples [number, number + 1) x BLEND_BLOCK."""
        if self.held is None or self.held[0] != number:
            for at in range(min(number, len(self.counts) - 1), number + 1):
                self.held = at, *self.draw(at)
        return self.held[1:]

    def draw(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        counts = self.counts[number].copy()
        dataset_ids, positions = np.empty(BLEND_BLOCK, np.int32), np.empty(BLEND_BLOCK, np.int64)
        blend_filler()(self.weights, counts, number * BLEND_BLOCK, dataset_ids, positions)
        if number + 1 == len(self.counts):
            self.counts.append(counts)
        return dataset_ids, positions

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The corpus of each sample, and how many samples of that corpus came before.  int64 [b] -> int32 [b], int64 [b]"""
        if len(self.weights) == 1:
            return np.zeros(len(numbers), np.int32), numbers
        dataset_ids, positions = np.empty(len(numbers), np.int32), np.empty(len(numbers), np.int64)
        blocks, within = np.divmod(numbers, BLEND_BLOCK)
        for number in np.unique(blocks).tolist():
            here = blocks == number
            dataset_ids[here], positions[here] = (drawn[within[here]] for drawn in self.block(number))
        return dataset_ids, positions

    def samples_before(self, limits: np.ndarray) -> int:
        """How many samples come before one whose position reaches its corpus' limit.  int64 [d] -> count"""
        if len(self.weights) == 1:
            return int(limits[0])
        number = 0
        while True:
            dataset_ids, positions = self.block(number)
            beyond = positions >= limits[dataset_ids]
            if beyond.any():
                return number * BLEND_BLOCK + int(beyond.argmax())
            number += 1


class PackedDataset:
    """Samples of seq_length + 1 tokens from one or several corpora; a source of weight 0 is as good as absent.

    Raises MissingInput or BadData for a corpus that is absent, damaged or too short.
    """

    def __init__(self, sources: list[Source], seq_length: int, seed: int, vocab_size: int | None = None):
        used = [source for source in sources if source.weight]
        self.sources, self.seq_length, self.seed, self.vocab_size = sources, seq_length, seed, vocab_size
        self.circles = [Circle(source, seq_length, hash64(seed, place)) for place, source in enumerate(used)]
        self.blend = Blend([source.weight for source in used])
        self.tokens_per_epoch = sum(circle.num_tokens for circle in self.circles)
        self.samples_per_epoch = self.tokens_per_epoch / seq_length

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Samples by number.  int64 [b] -> int64 [b, s+1]"""
        numbers = np.asarray(numbers, np.int64)
        if numbers.size and numbers.min() < 0:
            raise IndexError(f"sample {numbers.min()}: numbers start at 0")
        dataset_ids, positions = self.blend.locate(numbers)
        rows = np.empty((len(numbers), self.seq_length + 1), np.int64)
        for d in np.unique(dataset_ids).tolist():
            here = dataset_ids == d
            rows[here] = self.circles[d].rows(positions[here])
        return rows

    def check_ids(self, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Every id of the rows of samples `numbers` is one of the vocabulary's.  Raises BadData with the corpus and the id."""
        limit = math.inf if self.vocab_size is None else self.vocab_size
        if not rows.size or (rows.min() >= 0 and rows.max() < limit):
            return
        row, column = np.argwhere((rows < 0) | (rows >= limit))[0]
        circle = self.circles[self.blend.locate(numbers[row:row + 1])[0][0]]
        raise BadData(f"{circle.corpus.prefix}: sample {numbers[row]} holds id {rows[row, column]}, expected 0 or more and below "
                      f"the vocabulary size {self.vocab_size}; give the tokenizer that made the corpus")

    def epoch(self, number: int) -> float:
        """Passes over all tokens together before sample `number`; weights may walk one corpus faster than another."""
        return number / self.samples_per_epoch

    @functools.cached_property
    def rows_in_first_epoch(self) -> int:
        """Samples from 0 on that visit no token twice."""
        return self.blend.samples_before(np.array([circle.num_tokens // self.seq_length for circle in self.circles]))

    def describe(self) -> str:
        """A line for each source: prefix, documents, tokens, weight, range."""
        circles = iter(self.circles)
        return "\n".join(describe(source, next(circles) if source.weight else None) for source in self.sources)

    def fingerprint(self) -> str:
        """Names the samples: sha256 over seed, length, and each corpus' content (IndexedDataset.fingerprint), range and share."""
        parts = [[c.corpus.fingerprint(), c.start, c.stop, share]
                 for c, share in zip(self.circles, self.blend.weights.tolist(), strict=True)]
        return hashlib.sha256(json.dumps([self.seed, self.seq_length, parts]).encode()).hexdigest()


def describe(source: Source, circle: Circle | None) -> str:
    if circle is None:
        return f"{source.prefix}: weight 0, not used"
    return (f"{source.prefix}: {circle.corpus.num_documents} documents, {circle.corpus.num_tokens} tokens, "
            f"weight {source.weight:g}, range {circle.start}:{circle.stop}")


# From flags to datasets

def build_datasets(data: Data, seq_length: int, seed: int, eval_seed: int,
                   vocab_size: int | None = None) -> dict[str, PackedDataset | None]:
    """{"train", "valid", "test"} -> dataset, or None where the flags name none; `vocab_size` is what batches are checked against.

    Raises MissingInput or BadData, also when training and evaluation share tokens.
    """
    if data.data_path:
        chosen = cut(parse_paths(data.data_path, "--data-path"), data.split)
        if sum(source.stop - source.start for source in chosen["test"]) <= seq_length:
            chosen["test"] = []                         # the default split's thousandth of a small corpus holds no sample
    else:
        chosen = {split: named(data, split) for split in SPLITS}
    seeds = {"train": seed, "valid": eval_seed, "test": eval_seed}
    built = {split: PackedDataset(sources, seq_length, seeds[split], vocab_size) if sources else None
             for split, sources in chosen.items()}
    for split in ("valid", "test"):
        if built["train"] and built[split]:
            refuse_shared(built["train"], built[split], split)
    return built


def named(data: Data, split: str) -> list[Source]:
    """The sources of --SPLIT-data-path or --SPLIT-data-path-file; none without either flag."""
    words, path = getattr(data, f"{split}_data_path"), getattr(data, f"{split}_data_path_file")
    if words:
        return parse_paths(words, f"--{split}-data-path")
    return read_path_file(path) if path else []


def cut(sources: list[Source], split: str) -> dict[str, list[Source]]:
    """--split: of each corpus the first tokens train, the next validate, the last test; a share of 0 gives none."""
    shares = ([float(share) for share in split.split(",")] + [0.0, 0.0])[:3]
    edges = np.cumsum([0.0, *shares])
    chosen: dict[str, list[Source]] = {name: [] for name in SPLITS}
    for source in sources:
        start, stop = token_range(source, IndexedDataset(source.prefix).num_tokens)
        marks = [start + round((stop - start) * edge) for edge in (edges / edges[-1]).tolist()]
        for name, share, first, last in zip(SPLITS, shares, marks, marks[1:], strict=False):
            if share:
                chosen[name].append(replace(source, start=first, stop=last))
    return chosen


def refuse_shared(train: PackedDataset, other: PackedDataset, split: str) -> None:
    for a in train.circles:
        for b in other.circles:
            same = os.path.samefile(f"{a.corpus.prefix}.bin", f"{b.corpus.prefix}.bin")
            if same and a.start < b.stop and b.start < a.stop:
                shared = f"{max(a.start, b.start)}:{min(a.stop, b.stop)}"
                raise BadData(f"{b.corpus.prefix}: tokens {shared} are both in the train and in the {split} data; "
                              "give ranges that do not overlap, such as 0:0.9 and 0.9:1")
