"""Two models on the same rows with the same draws: their difference has less noise than either."""

from __future__ import annotations

import numpy as np
import torch

from megatron.errors import Mismatch
from megatron.flags import ConfigError
from megatron.likelihood.measure import Read, described, errors, read, record, refuse_idle_draws, small_enough
from megatron.likelihood.scores import MOST_DRAWS, Draw, Score
from megatron.training.trained import Trained


def compare(
    a: Trained,
    b: Trained,
    names: list[str] | None = None,
    which: str = "valid",
    rows: int | None = None,
    last: int | None = None,
    num_mc: int | None = None,
    tolerance: float | None = None,
) -> dict:
    """Each score of both, and B minus A by row: an autoregressive model has `exact` in the place of every one.

    Draws have A's seed and numbers in both. `tolerance`: draw until the difference's error from noise is at most this.
    Raises Mismatch where the tokens are not the same ones, ConfigError.
    """
    refuse_other_tokenizer(a, b)
    draws = num_mc or max(x.cfg.objective.num_mc for x in (a, b))
    rows = rows or min(x.slice(which).rows for x in (a, b))
    one = read(a, which, rows, last, draws)
    other = read(b, which, rows, last, draws, seed=one.data.seed)
    refuse_other_rows(one, other)
    asked = names or [next((x.plain for x in (one, other) if x.plain != "exact"), "exact")]
    pairs = dict.fromkeys((own(one, name), own(other, name)) for name in asked)
    refuse_idle_draws([x.estimators.score(name) for pair in pairs for x, name in zip((one, other), pair)], num_mc, tolerance)
    return {
        "a": described(one, which, last) | counted(one),
        "b": described(other, which, last) | counted(other),
        "scores": [paired(one, other, pair, tolerance) for pair in pairs],
    }


def own(one: Read, name: str) -> str:
    """The score that stands for this one."""
    return "exact" if one.plain == "exact" else name


def counted(read: Read) -> dict:
    run = read.trained.checkpoint.path
    return {"run": f"{run.parent.name}/{run.name}", "rows": len(read.scored), "tokens": int(read.scored.sum())}


def refuse_other_tokenizer(a: Trained, b: Trained) -> None:
    said = [trained.tokenizer.fingerprint() for trained in (a, b)]
    if said[0] != said[1]:
        raise Mismatch(
            f"{a.checkpoint.path} has the tokenizer {said[0]} and {b.checkpoint.path} {said[1]}: their tokens are not the same; "
            "compare the bits/byte of `evaluate.py likelihood` on the same text"
        )


def refuse_other_rows(one: Read, other: Read) -> None:
    """Both must predict the same tokens."""
    tokens = [x.estimators.rows.tokens for x in (one, other)]
    wanted = [x.asked.targets[x.asked.scored] for x in (one, other)]
    if tokens[0].shape != tokens[1].shape or not torch.equal(*tokens):
        what = f"{tuple(tokens[0].shape)} tokens of {one.data.dataset.fingerprint()} and {tuple(tokens[1].shape)} of "
        raise Mismatch(
            f"the rows are not the same: {what}{other.data.dataset.fingerprint()}; compare runs that validate on one set"
        )
    if wanted[0].shape != wanted[1].shape or not torch.equal(*wanted) or (one.scored != other.scored).any():
        raise Mismatch(
            "the two runs do not score the same tokens of their rows (--score-first-token or --eod-mask-loss of one of them): "
            "compare runs that validate alike"
        )


def paired(one: Read, other: Read, names: tuple[str, str], tolerance: float | None) -> dict:
    """One score of each, draw by draw."""
    scores = [x.estimators.score(name) for x, name in zip((one, other), names)]
    least = max(1 if score.name.orders > 1 else one.data.num_mc for score in scores)
    draws = drawn_together(scores, one.scored, least, tolerance)
    nll = [np.stack([draw.nll for draw in some]) for some in draws]
    random = any(score.random for score in scores)
    return {
        "a": record(scores[0], draws[0], one.scored, one.bits),
        "b": record(scores[1], draws[1], one.scored, one.bits),
        "b_minus_a": gap(nll[1] - nll[0], one.scored, random, one.bits),
    }


def gap(nll: np.ndarray, scored: np.ndarray, random: bool, bits: float | None) -> dict:
    """The difference with the error that rows and noise leave in it.  nll [draws, rows], scored [rows]"""
    value = float(nll.mean(0).sum() / scored.sum())
    return {"nats_per_token": value, "bits_per_byte": None if bits is None else value * bits, **errors(nll, scored, random)}


def drawn_together(scores: list[Score], scored: np.ndarray, least: int, tolerance: float | None) -> list[list[Draw]]:
    """Draws of both, as many of one as of the other; one of what is not random. Raises ConfigError."""
    draws: list[list[Draw]] = [[], []]
    for number in range(MOST_DRAWS):
        for score, some in zip(scores, draws):
            if score.random or not some:
                some.append(score.draw(number))
        apart = np.stack([d.nll for d in draws[1]]) - np.stack([d.nll for d in draws[0]])
        if not any(score.random for score in scores) or small_enough(apart, scored, least, tolerance):
            return draws
    raise ConfigError(
        [f"--nll-tolerance {tolerance}: not reached after {MOST_DRAWS} draws of {scores[1].name.text}; give a larger one"]
    )
