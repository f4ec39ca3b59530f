"""Which corpus each sample of a blend comes from, by Megatron's greedy rule: the one that is furthest behind its share."""

from __future__ import annotations

from typing import Literal

import numpy as np

from megatron.data.compiled import compiled

BLEND_BLOCK = 65536  # samples of a blend that are drawn at once
Rule = Literal["deepspeed", "core"]  # of two Megatrons, whose shares differ in their last bits: see reference_order.py


def normalized(weights: list[float], rule: Rule) -> list[float]:
    """Shares that sum to 1, each with the rounding of its Megatron: one adds from left to right, the other by numpy."""
    total = float(np.sum(np.array(weights, np.float64))) if rule == "core" else float(np.cumsum(weights)[-1])
    return [weight / total for weight in weights]


def blend_shares(weights: list[float], rule: Rule) -> list[float]:
    """The shares that Megatron's greedy rule compares: normalized when they are read, and again when they are blended.

    The last bits count: where corpora are equally far behind their shares, they decide which one is drawn.
    """
    return normalized(normalized(weights, rule), "core")


def fill_blend(weights: np.ndarray, counts: np.ndarray, first: int, dataset_ids: np.ndarray, positions: np.ndarray) -> None:
    """Sample i comes from argmax_d(weights[d] max(i, 1) - counts[d]), the lowest d in a tie; the twin of helpers.cpp.

    Fills samples `first` and on: dataset_ids int32 [n], positions int64 [n]; counts int64 [d] goes along.
    """
    for i in range(len(positions)):
        best = int(np.argmax(weights * float(max(first + i, 1)) - counts))
        dataset_ids[i], positions[i] = best, counts[best]
        counts[best] += 1


class Blend:
    """Which corpus each sample comes from. Drawn in blocks; only the counts at each block's start are kept."""

    def __init__(self, weights: list[float], rule: Rule = "core"):
        self.weights = np.array(blend_shares(weights, rule))
        self.counts = [np.zeros(len(weights), np.int64)]  # samples of each corpus before block 0, 1, ...
        self.held: tuple[int, np.ndarray, np.ndarray] | None = None

    def block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Dataset ids int32 and positions int64 of samples [number, number + 1) x BLEND_BLOCK."""
        if self.held is None or self.held[0] != number:
            for at in range(min(number, len(self.counts) - 1), number):
                self.draw(at)
            self.held = number, *self.draw(number)
        return self.held[1:]

    def draw(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        counts = self.counts[number].copy()
        dataset_ids, positions = np.empty(BLEND_BLOCK, np.int32), np.empty(BLEND_BLOCK, np.int64)
        (compiled("fill_blend") or fill_blend)(self.weights, counts, number * BLEND_BLOCK, dataset_ids, positions)
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
