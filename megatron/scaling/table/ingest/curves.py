"""The curves of one run, whatever logged them: a step counts once, as it was last written, and has its tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from megatron.errors import BadData

# What trainers call the same quantity, first choice first, as `slug` spells it.
VALIDATION = ("val-loss", "lm-loss-validation", "valid-loss", "validation-loss", "eval-loss")
TRAINING = ("train-loss", "lm-loss", "lm-loss-training", "training-loss", "loss")
SYNONYMS = {
    "loss": (*VALIDATION, *TRAINING),
    "tokens": ("tokens", "consumed-tokens", "num-tokens", "tokens-seen", "y-tokens-x-steps"),
    "samples": ("samples", "consumed-samples", "consumed-train-samples", "y-samples-x-steps"),
    "step": ("iteration", "step", "global-step", "iterations"),
    "flops": ("flops", "total-flops"),
    "run": ("run", "name", "run-name"),
    "seq_length": ("seqlen", "actual-seq-length", "actual-seqlen"),
}


def slug(name: str) -> str:
    """`lm loss validation` and `lm_loss-Validation` are one name: lower case, words joined by dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def find(names: Iterable[str], wanted: str) -> list[str]:
    """The names that `wanted` may mean: itself, those spelled alike, or those whose part after (then before) a slash is."""
    names = list(names)
    if wanted in names:
        return [wanted]
    meant = slug(wanted)
    parts = (slug, lambda name: slug(name.rpartition("/")[2]), lambda name: slug(name.partition("/")[0]))
    return next((alike for part in parts if (alike := [name for name in names if part(name) == meant])), [])


def find_one(names: Iterable[str], wanted: str, column: str, where: str | Path) -> str:
    """What `--map column=wanted` means among these names: one of them, or a synonym. Raises BadData."""
    names = list(names)
    found = find(names, wanted)
    if not found:
        found = [
            name for quantity, synonyms in SYNONYMS.items() if slug(wanted) in synonyms if (name := find_synonym(names, quantity))
        ]
    if len(found) != 1:
        said = f"{wanted!r} may be {_some(found)}" if found else f"there is no {wanted!r}; it has {_some(names)}"
        raise BadData(f"{where}: {said}; name one in --map {column}=...")
    return found[0]


def find_synonym(names: Iterable[str], quantity: str) -> str | None:
    """The first of a quantity's SYNONYMS that is among the names."""
    names = list(names)
    by_slug = {slug(name.rpartition("/")[2]): name for name in reversed(names)} | {slug(name): name for name in reversed(names)}
    return next((by_slug[synonym] for synonym in SYNONYMS[quantity] if synonym in by_slug), None)


@dataclass
class Curves:
    """Metrics of one run by step. `key`: sources with the same key are the same run. `facts`: columns that hold for the whole
    run; `arguments`: what the trainer was called with, as it logged it."""

    run: str
    path: Path
    files: list[Path]
    key: str = ""
    facts: dict = field(default_factory=dict)
    arguments: dict = field(default_factory=dict)
    chunks: dict[str, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)  # name -> (steps, values) as written
    num_overwritten: int = 0

    def __post_init__(self):
        self.key = self.key or str(self.path.resolve())

    def add(self, name: str, steps: Iterable[int], values: Iterable[float]) -> None:
        """Append points in the order of writing. Integer steps [n], float64 values [n]."""
        chunk = np.asarray(steps, np.int64), np.asarray(values, np.float64)
        if len(chunk[0]):
            self.chunks.setdefault(name, []).append(chunk)

    def forget_from(self, step: int) -> None:
        """Drop the points at `step` and later: their process started over before them."""
        for name, chunks in self.chunks.items():
            self.chunks[name] = [(steps[steps < step], values[steps < step]) for steps, values in chunks]

    def follow(self, later: Curves) -> None:
        """Take in what a later process of the same run wrote."""
        self.facts |= later.facts
        self.arguments |= later.arguments
        self.files += later.files
        for name, chunks in later.chunks.items():
            self.chunks.setdefault(name, []).extend(chunks)

    @property
    def names(self) -> list[str]:
        return [name for name, chunks in self.chunks.items() if any(len(steps) for steps, _ in chunks)]

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(rising steps int64 [n], values float64 [n]); of a step written more than once the last counts."""
        steps, values = (np.concatenate(parts) for parts in zip(*self.chunks[name]))
        if (np.diff(steps) > 0).all():
            return steps, values
        kept, last = np.unique(steps[::-1], return_index=True)
        return kept, values[::-1][last]

    def metric(self, column: str, mapping: dict[str, tuple[str, float]]) -> tuple[str | None, float]:
        """(name, factor) of a column's metric: what `mapping` names, else a synonym. Raises BadData."""
        if column not in mapping:
            return (find_synonym(self.names, column) if column in SYNONYMS else None), 1.0
        wanted, factor = mapping[column]
        return find_one(self.names, wanted, column, self.path), factor

    def at(self, name: str, steps: np.ndarray) -> np.ndarray:
        """Values of a metric at these steps [n], NaN where it has none."""
        known, values = self.curve(name)
        where = np.searchsorted(known, steps).clip(max=len(known) - 1)
        return np.where(known[where] == steps, values[where], np.nan)

    def progress_at(self, name: str, steps: np.ndarray) -> np.ndarray:
        """Samples or tokens at these steps [n]: 0 at step 0, even between two records, NaN beyond the last."""
        known, values = self.curve(name)
        if known[0] > 0:
            known, values = np.append(0, known), np.append(0.0, values)
        return np.interp(steps, known, values, right=np.nan)


def trailing_mean(values: np.ndarray, k: int) -> np.ndarray:
    """The mean of every value and up to k - 1 before it, [n]."""
    padded = np.append(np.zeros(k - 1), values)
    return sliding_window_view(padded, k).sum(axis=1) / np.minimum(np.arange(len(values)) + 1, k)


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"
