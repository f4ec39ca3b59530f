"""Several scores of one model on the same rows: values with errors, paired differences, and whether the bounds are in order."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from megatron.batch import Noise
from megatron.likelihood.rows import read_rows
from megatron.likelihood.scores import MIXTURE, Draw, Estimators, Score, drawn, predicted_gap
from megatron.standard_errors import combined, half_width
from megatron.training.evaluate import data_error, noise_error
from megatron.training.trained import Trained

SURE = 0.9973  # coverage of three standard errors, when they are well known


def measure(
    trained: Trained,
    names: list[str] | None = None,
    which: str = "valid",
    rows: int | None = None,
    last: int | None = None,
    num_mc: int | None = None,
    tolerance: float | None = None,
) -> dict:
    """Scores of a run on one of its sets; the first is what the others are compared with [its validation's own score].

    `last`: only so many tokens of each row, given all before. `num_mc`: draws, and orders of `chain` [the run's own].
    `tolerance`: draw until the standard error from noise is at most this, in nats a token. Raises BadData.
    """
    objective, data = trained.reference, trained.slice(which, rows, num_mc)
    read = read_rows(data, objective.causal, last)
    asked = objective.pose(read.clean, Noise(data.seed, read.clean.index), 1.0)
    num_bytes = trained.tokenizer.token_bytes()[asked.targets[asked.scored].numpy()].sum()
    found = compare(
        Estimators(trained.engine, objective, read, data.seed, trained.cfg.model.padded_vocab_size),
        names or ["exact" if objective.exact else "nelbo"],
        asked.scored.sum(1).numpy(),
        data.num_mc,
        tolerance,
        float(num_bytes),
    )
    return {
        "objective": trained.cfg.objective.objective,
        "checkpoint": str(trained.checkpoint.path),
        "step": trained.checkpoint.step,
        "set": which,
        "last": last,
        "convention": data.convention(objective) | ({"scored_tokens": f"the last {last} of each row"} if last else {}),
        **found,
    }


def compare(
    estimators: Estimators,
    names: list[str],
    scored: np.ndarray,
    num_mc: int = 2,
    tolerance: float | None = None,
    num_bytes: float | None = None,
) -> dict:
    """Each score with its errors and its difference from the first, and the sandwich of the bounds.  scored [rows] tokens

    num_bytes: behind all scored tokens.
    """
    scores = [estimators.score(name) for name in names]
    most = max([num_mc, *(score.orders for score in scores)])
    all_draws = []
    for score in scores:
        least = {"chain": most}.get(score.name, 1 if score.orders > 1 else num_mc)
        all_draws.append(drawn(score, partial(enough, scored=scored, least=least, tolerance=tolerance)))
    bits = scored.sum() / (math.log(2) * num_bytes) if num_bytes else None
    means = [np.mean([draw.nll for draw in draws], 0) for draws in all_draws]
    records = [record(score, draws, scored, bits) for score, draws in zip(scores, all_draws)]
    for entry, mean in zip(records[1:], means[1:]):
        entry[f"minus_{names[0]}"] = difference(mean, means[0], scored)
    for entry, score, draws, mean in zip(records, scores, all_draws, means):
        if score.orders > 1:
            orders = np.mean([estimators.order(n).nll for n in range(len(draws) * score.orders)], 0)
            entry["minus_mean_of_its_orders"] = difference(mean, orders, scored)
    sandwich = in_order(scores, means, scored)
    return {
        "scores": records,
        "sandwich": sandwich,
        "in_order": all(pair["in_order"] for pair in sandwich),
        "predicted_gap_to_mixture": predicted_gap(estimators.orders, scored.sum()),
        "rows": len(scored),
        "tokens": int(scored.sum()),
        "num_orders": len(estimators.orders),
    }


def enough(nll: np.ndarray, scored: np.ndarray, least: int, tolerance: float | None) -> bool:
    """Whether these draws are as many as asked for, and their noise as small.  nll [draws, rows]"""
    if tolerance is None:
        return len(nll) >= least
    error, _ = noise_error(nll, scored)
    return len(nll) >= max(2, least) and error is not None and error <= tolerance


def record(score: Score, draws: list[Draw], scored: np.ndarray, bits: float | None) -> dict:
    """What is written of one score. `bits`: bits a byte of one nat a token."""
    nll = np.stack([draw.nll for draw in draws])
    noise, noise_df = noise_error(nll, scored) if score.random else (0.0, None)
    rows = data_error(nll, scored)
    error, df = combined((noise, noise_df), (rows, len(scored) - 1.0))
    value = float(nll.mean(0).sum() / scored.sum())
    return {
        "score": score.name,
        "value": score.value,
        "of": score.of,
        "nats_per_token": value,
        "bits_per_byte": None if bits is None else value * bits,
        "se": error,
        "se_df": df,
        "se_noise": noise,
        "se_noise_df": noise_df,
        "se_rows": rows,
        "draws": len(draws),
        "forwards_per_row": sum(draw.forwards for draw in draws),
        "cpu_seconds": sum(draw.seconds for draw in draws),
    }


def difference(a: np.ndarray, b: np.ndarray, scored: np.ndarray) -> dict:
    """a - b of the same rows in nats a token, with the error that rows and noise leave in it.  [rows] each"""
    return {
        "nats_per_token": float((a - b).sum() / scored.sum()),
        "se": data_error((a - b)[None], scored),
        "se_df": len(scored) - 1.0,
    }


def in_order(scores: list[Score], means: list[np.ndarray], scored: np.ndarray) -> list[dict]:
    """Neighbours of the sandwich NELBO >= K-order >= mixture, with their differences, and whether none is surely wrong."""
    bounds = [(score, mean) for score, mean in zip(scores, means) if score.of == MIXTURE]
    bounds.sort(key=lambda one: math.inf if one[0].value == "exact" else one[0].orders)
    found = []
    for (above, high), (below, low) in zip(bounds, bounds[1:]):
        gap = difference(high, low, scored)
        same = above.orders == below.orders and above.value == below.value
        wide = half_width(gap["se"], gap["se_df"], SURE) if gap["se"] is not None else math.inf
        right = abs(gap["nats_per_token"]) <= wide if same else gap["nats_per_token"] >= -wide
        found.append(
            {"above": above.name, "below": below.name, **gap, "expected": "equal" if same else "not negative", "in_order": right}
        )
    return found
