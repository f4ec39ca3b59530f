"""Where a loss comes from: by place in the row, noise level, how frequent a token is in training, and corpus."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from megatron.batch import Batch
from megatron.data.datasets import build_datasets
from megatron.data.loader import micro_batches
from megatron.data.samples import Samples
from megatron.flags import ConfigError
from megatron.likelihood.scores import Draw
from megatron.standard_errors import combined
from megatron.training.evaluate import Slice, data_error, noise_error
from megatron.training.trained import Trained, sample_spec

BY = ("position", "level", "frequency", "category")
NUM_LEVELS = 8
COUNTED_TOKENS = 1 << 20  # of the training data, for frequencies


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Places in groups, or with `number` None draws by their noise level."""

    name: str
    labels: list[str]
    number: np.ndarray | None  # int [rows, s], the group of each place; -1: none
    scored: np.ndarray  # bool [rows, s]


def groupings(trained: Trained, data: Slice, asked: Batch, by: tuple[str, ...]) -> tuple[Grouping, ...]:
    """By names of BY. `asked`: the rows as validation poses them. Raises ConfigError."""
    width = data.seq_length  # block diffusion reads a row twice
    scored, targets = asked.scored[:, :width].numpy(), asked.targets[:, :width].numpy()
    made = {
        "position": lambda: by_position(scored, shift=int(trained.reference.causal)),
        "level": lambda: by_level(scored),
        "frequency": lambda: by_frequency(trained, targets, scored),
        "category": lambda: by_category(data, scored),
    }
    for name in by:
        if name not in made:
            raise ConfigError([f"--by {name}: expected any of {', '.join(BY)}"])
    if "level" in by and trained.reference.exact:
        raise ConfigError(["--by level: an autoregressive model has no noise level; leave it out"])
    return tuple(made[name]() for name in by)


def by_position(scored: np.ndarray, shift: int) -> Grouping:
    """By the place in its row of the token that is predicted: 1, 2-3, 4-7, ...; it is the input's place + `shift`."""
    rows, width = scored.shape
    last = width - 1 + shift
    edges = [0, 1, *(1 << n for n in range(1, last.bit_length())), last + 1]
    number = np.searchsorted(edges, np.arange(width) + shift, side="right") - 1
    labels = [f"{low}" if low == high - 1 else f"{low}-{high - 1}" for low, high in pairwise(edges)]
    return Grouping(name="position", labels=labels, number=np.broadcast_to(number, (rows, width)), scored=scored)


def by_level(scored: np.ndarray) -> Grouping:
    labels = [f"{n / NUM_LEVELS:g}-{(n + 1) / NUM_LEVELS:g}" for n in range(NUM_LEVELS)]
    return Grouping(name="level", labels=labels, number=None, scored=scored)


def by_frequency(trained: Trained, targets: np.ndarray, scored: np.ndarray) -> Grouping:
    """By the share of the training tokens that are this one, in decades. MissingInput, ConfigError without training data."""
    data = build_datasets(trained.cfg.data, sample_spec(trained.cfg, trained.tokenizer))["train"]
    if data is None:
        raise ConfigError(["--by frequency: the run has no training data to count tokens in; leave it out"])
    counts = token_counts(data, trained.cfg.model.vocab_size)
    share = counts / counts.sum()
    with np.errstate(divide="ignore"):
        decade = np.where(counts > 0, np.floor(np.log10(share)), -np.inf)[targets]  # [rows, s]
    known = sorted({int(d) for d in decade[scored & np.isfinite(decade)]}, reverse=True)
    labels = [f"{10.0**d:g} to {10.0 ** (d + 1):g}" for d in known] + ["not seen"]
    number = np.select([decade == d for d in known], range(len(known)), default=-1)
    number[~np.isfinite(decade)] = len(known)
    return Grouping(name="frequency", labels=labels, number=number, scored=scored)


def token_counts(data: Samples, vocab_size: int) -> np.ndarray:
    """Of the scored tokens of the first COUNTED_TOKENS of an epoch.  -> [v]"""
    rows = min(data.rows_in_first_epoch, max(1, COUNTED_TOKENS // data.seq_length))
    counts = np.zeros(vocab_size, np.int64)
    for clean in micro_batches(data, 0, rows, 1024):
        counts += np.bincount(clean.tokens[clean.scored].numpy(), minlength=vocab_size)
    return counts


def by_category(data: Slice, scored: np.ndarray) -> Grouping:
    names = [data.dataset.category(number) for number in range(len(scored))]
    labels = list(dict.fromkeys(names))
    number = np.array([labels.index(name) for name in names])
    return Grouping(name="category", labels=labels, number=np.broadcast_to(number[:, None], scored.shape), scored=scored)


def split(grouping: Grouping, draws: list[Draw], scored: np.ndarray) -> list[dict] | None:
    """The loss of each group that has tokens, in nats a token of its own; None where draws have no level.  scored [rows]"""
    if grouping.number is None:
        return split_by_level(grouping, draws, scored)
    found = []
    for n, label in enumerate(grouping.labels):
        inside = grouping.number == n
        tokens = (grouping.scored & inside).sum(1)  # [rows]
        if tokens.sum():
            nll = np.stack([(draw.places[:, : inside.shape[1]] * inside).sum(1) for draw in draws if draw.places is not None])
            noise = noise_error(nll, tokens)
            found.append(part(label, nll, tokens, noise, float(tokens.sum() / scored.sum())))
    return found


def split_by_level(grouping: Grouping, draws: list[Draw], scored: np.ndarray) -> list[dict] | None:
    """What a token costs at a noise level t: the mean over levels is the bound. Draws of a row count as one, of that row."""
    levels = [draw.level for draw in draws if draw.level is not None]
    if not levels:
        return None
    level = np.stack(levels)  # [draws, rows]
    number = np.minimum(np.ceil(level * NUM_LEVELS).astype(int) - 1, NUM_LEVELS - 1)
    nll, found = np.stack([draw.nll for draw in draws]), []
    for n, label in enumerate(grouping.labels):
        inside = number == n
        tokens = (inside * scored).sum(0)  # [rows]
        if tokens.sum():
            whole = float(tokens.sum() / (len(draws) * scored.sum()))
            found.append(part(label, (nll * inside).sum(0)[None], tokens, (None, None), whole))
    return found


def part(label: str, nll: np.ndarray, tokens: np.ndarray, noise: tuple[float | None, float | None], share: float) -> dict:
    """nll [draws, rows], tokens [rows]"""
    there = tokens > 0
    rows = data_error(nll[:, there], tokens[there])
    error, df = combined(noise, (rows, float(there.sum() - 1)))
    value = float(nll.mean(0).sum() / tokens.sum())
    return {"group": label, "share": share, "nats_per_token": value, "se": error, "se_df": df}
