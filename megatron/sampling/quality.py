"""What can be said of texts without a model: how often they repeat themselves and each other. Rows are lists of ids.

None of it is good or bad by itself: it is to be read beside the same of real text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

MOST_WORDS = 4  # of the n-grams of BLEU
UNSEEN = 0.1  # matches that stand for none (the first smoothing of Chen and Cherry, 2014)

Row = Sequence[int]


def ngrams(row: Row, n: int) -> list[tuple[int, ...]]:
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


def distinct(rows: Sequence[Row], n: int) -> float:
    """Different n-grams of all rows over all of their n-grams (Li et al., arXiv:1510.03055)."""
    found = [gram for row in rows for gram in ngrams(row, n)]
    return len(set(found)) / len(found) if found else math.nan


def entropies(rows: Sequence[Row]) -> np.ndarray:
    """Entropy of the ids of each row, as frequent as they are in it.  -> [rows] nats"""
    found = []
    for row in rows:
        p = np.array(list(Counter(row).values())) / max(1, len(row))
        found.append(float(-(p * np.log(p)).sum()))
    return np.array(found)


def repeats(rows: Sequence[Row]) -> float:
    """Share of ids that are the one before."""
    pairs = [a == b for row in rows for a, b in zip(row, row[1:])]
    return float(np.mean(pairs)) if pairs else math.nan


def self_bleu(rows: Sequence[Row]) -> np.ndarray:
    """BLEU-4 of each row with all others as references (Zhu et al., arXiv:1802.01886).  -> [rows], of 2 rows or more

    An n-gram of a row counts as often as the other row has it that has most of it; a row pays for being shorter than the other
    row of nearest length.
    """
    logs = np.zeros(len(rows))
    for n in range(1, MOST_WORDS + 1):
        counts = [Counter(ngrams(row, n)) for row in rows]
        top = most_two(counts)
        for number, own in enumerate(counts):
            matches = sum(min(count, other(top[gram], number)) for gram, count in own.items())
            logs[number] += math.log((matches or UNSEEN) / max(1, own.total())) / MOST_WORDS
    lengths = [len(row) for row in rows]
    for number, length in enumerate(lengths):
        nearest = min((abs(one - length), one) for i, one in enumerate(lengths) if i != number)[1]
        logs[number] += min(0.0, 1 - nearest / max(1, length))
    return np.exp(logs)


def most_two(counts: Sequence[Counter]) -> dict[tuple[int, ...], list[tuple[int, int]]]:
    """Of each n-gram the two rows that have most of it: [(count, row)]."""
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for number, own in enumerate(counts):
        for gram, count in own.items():
            found[gram] = sorted([*found.get(gram, []), (count, number)], reverse=True)[:2]
    return found


def other(top: list[tuple[int, int]], number: int) -> int:
    """The most that a row other than this one has."""
    return next((count for count, row in top if row != number), 0)
