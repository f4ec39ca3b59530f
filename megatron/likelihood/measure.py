"""Several scores of one model on the same rows: values with errors, paired differences, and whether the bounds are in order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from megatron.batch import Batch, Noise
from megatron.catalogue import need_likelihood
from megatron.flags import ConfigError
from megatron.likelihood.parts import Grouping, groupings, split
from megatron.likelihood.rows import Rows, read_rows
from megatron.likelihood.scores import Draw, Estimators, Score, drawn, predicted_gap
from megatron.score_names import ScoreName
from megatron.standard_errors import combined, half_width
from megatron.training.evaluate import Slice, data_error, noise_error
from megatron.training.trained import Trained

SURE = 0.9973  # coverage of three standard errors, when they are well known


@dataclass(frozen=True, kw_only=True)
class Read:
    """One model on one set of rows."""

    trained: Trained
    data: Slice
    estimators: Estimators
    asked: Batch  # the rows as validation poses them

    @property
    def scored(self) -> np.ndarray:
        """Scored tokens of each row.  -> [rows]"""
        return self.asked.scored.sum(1).numpy()

    @property
    def bits(self) -> float | None:
        """Bits a byte of one nat a token, by the bytes of the scored tokens."""
        ids = self.asked.targets[self.asked.scored].numpy()
        num_bytes = self.trained.tokenizer.token_bytes()[ids].sum()
        return float(len(ids) / (math.log(2) * num_bytes)) if num_bytes else None

    @property
    def plain(self) -> str:
        """The score that validation measures."""
        return "exact" if self.estimators.objective.exact else "nelbo"


def read(
    trained: Trained,
    which: str = "valid",
    rows: int | None = None,
    last: int | None = None,
    num_mc: int | None = None,
    seed: int | None = None,
    by_place: bool = False,
) -> Read:
    """`seed`: of the noise [the run's own]. Raises ConfigError."""
    need_likelihood(trained.cfg.objective.objective, "a score")
    objective, data = trained.reference, trained.slice(which, rows, num_mc)
    found = read_rows(data, objective.causal, last)
    estimators = Estimators(
        trained.engine, objective, found, data.seed if seed is None else seed, trained.cfg.model.padded_vocab_size, by_place
    )
    return Read(trained=trained, data=data, estimators=estimators, asked=asked_of(estimators, found))


def asked_of(estimators: Estimators, rows: Rows) -> Batch:
    posed = estimators.objective.pose(rows.clean, Noise(estimators.seed, rows.clean.index), 1.0)
    return rows.borders.apply(posed, rows.clean)


def measure(
    trained: Trained,
    names: list[str] | None = None,
    which: str = "valid",
    rows: int | None = None,
    last: int | None = None,
    num_mc: int | None = None,
    tolerance: float | None = None,
    by: tuple[str, ...] = (),
) -> dict:
    """Scores of a run on one of its sets; the first is what the others are compared with [its validation's own score].

    `last`: only so many tokens of each row, given all before. `num_mc`: draws, and orders of `chain` [the run's own].
    `tolerance`: draw until the standard error from noise is at most this, in nats a token. `by`: names of parts.py by which the
    scores that are sums are split. Raises ConfigError.
    """
    one = read(trained, which, rows, last, num_mc, by_place=bool(by))
    names = names or [one.plain]
    refuse_idle_draws([one.estimators.score(name) for name in names], num_mc, tolerance)
    found = compare(
        one.estimators, names, one.scored, one.data.num_mc, tolerance, one.bits, groupings(trained, one.data, one.asked, by)
    )
    return described(one, which, last) | found


def refuse_idle_draws(scores: list[Score], num_mc: int | None, tolerance: float | None) -> None:
    """Raises ConfigError for a number of draws, or what decides it, where nothing is drawn."""
    if any(score.random for score in scores):
        return
    said = ("--num-mc", num_mc), ("--nll-tolerance", tolerance)
    names = ", ".join(dict.fromkeys(score.name.text for score in scores))
    if idle := [f"{flag} {value} acts on draws, and {names} has none: leave it out" for flag, value in said if value is not None]:
        raise ConfigError(idle)


def described(one: Read, which: str, last: int | None) -> dict:
    """What was scored."""
    trained, data = one.trained, one.data
    return {
        "objective": trained.cfg.objective.objective,
        "checkpoint": str(trained.checkpoint.path),
        "step": trained.checkpoint.step,
        **trained.averaged,
        "set": which,
        "last": last,
        "convention": data.convention(trained.reference) | ({"scored_tokens": f"the last {last} of each row"} if last else {}),
    }


def compare(
    estimators: Estimators,
    names: list[str],
    scored: np.ndarray,
    num_mc: int = 2,
    tolerance: float | None = None,
    bits: float | None = None,
    by: tuple[Grouping, ...] = (),
) -> dict:
    """Each score with its errors and its difference from the first, and the sandwich of the bounds.  scored [rows] tokens

    bits: a byte, of one nat a token.
    """
    scores = [estimators.score(name) for name in names]
    most = max([num_mc, *(estimators.num_orders(score.name) for score in scores)])
    all_draws = []
    for score in scores:
        least = {"chain": most, "korder": 1, "tangent": 1}.get(score.name.kind, num_mc)
        all_draws.append(drawn(score, partial(enough, scored=scored, least=least, tolerance=tolerance)))
    means = [mean_of(draws) for draws in all_draws]
    records = [record(score, draws, scored, bits) for score, draws in zip(scores, all_draws)]
    for entry, mean in zip(records[1:], means[1:]):
        entry[f"minus_{names[0]}"] = difference(mean, means[0], scored)
    for entry, score, draws, mean in zip(records, scores, all_draws, means):
        entry |= beside(estimators, score, draws, mean, scored)
        if by:
            entry["by"] = {group.name: split(group, draws, scored) for group in by} if draws[0].places is not None else None
    sandwich = in_order([score.name for score in scores], means, scored)
    return {
        "scores": records,
        "sandwich": sandwich,
        "in_order": all(pair["in_order"] for pair in sandwich),
        "rows": len(scored),
        "tokens": int(scored.sum()),
    }


def mean_of(draws: list[Draw]) -> np.ndarray:
    """-> [rows]"""
    return np.mean([draw.nll for draw in draws], 0)


def enough(draws: list[Draw], scored: np.ndarray, least: int, tolerance: float | None) -> bool:
    """Whether these draws are as many as asked for, and their noise as small."""
    return small_enough(np.stack([d.nll for d in draws]), scored, least, tolerance)


def small_enough(nll: np.ndarray, scored: np.ndarray, least: int, tolerance: float | None) -> bool:
    """nll [draws, rows]"""
    if tolerance is None:
        return len(nll) >= least
    error, _ = noise_error(nll, scored)
    return len(nll) >= max(2, least) and error is not None and error <= tolerance


def record(score: Score, draws: list[Draw], scored: np.ndarray, bits: float | None) -> dict:
    """What is written of one score."""
    nll = np.stack([draw.nll for draw in draws])
    value = float(nll.mean(0).sum() / scored.sum())
    return {
        "score": score.name.text,
        "value": score.name.value,
        "of": score.name.of,
        "nats_per_token": value,
        "bits_per_byte": None if bits is None else value * bits,
        **errors(nll, scored, score.random),
        "draws": len(draws),
        "forwards_per_row": sum(draw.forwards for draw in draws),
        "cpu_seconds": sum(draw.seconds for draw in draws),
        **({} if score.pilot is None else {"pilot": score.pilot}),
    }


def errors(nll: np.ndarray, scored: np.ndarray, random: bool) -> dict:
    """nll [draws, rows], scored [rows]"""
    noise, noise_df = noise_error(nll, scored) if random else (0.0, None)
    rows = data_error(nll, scored)
    error, df = combined((noise, noise_df), (rows, len(scored) - 1.0))
    return {"se": error, "se_df": df, "se_noise": noise, "se_noise_df": noise_df, "se_rows": rows}


def difference(a: np.ndarray, b: np.ndarray, scored: np.ndarray) -> dict:
    """a - b of the same rows in nats a token, with the error that rows and noise leave in it.  [rows] each"""
    return {
        "nats_per_token": float((a - b).sum() / scored.sum()),
        "se": data_error((a - b)[None], scored),
        "se_df": len(scored) - 1.0,
    }


def beside(estimators: Estimators, score: Score, draws: list[Draw], mean: np.ndarray, scored: np.ndarray) -> dict:
    """Of a score by several orders: what it takes off the NELBO of the same ones, and how far off their scatter says it is."""
    if score.name.kind not in ("chain", "korder", "tangent"):
        return {}
    orders = [estimators.order(score.name, n) for n in range(len(draws) * estimators.num_orders(score.name))]
    found: dict = {"predicted_gap_to_mixture": predicted_gap(orders, int(scored.sum())), "num_orders": len(orders)}
    if score.name.kind != "chain":
        found["minus_mean_of_its_orders"] = difference(mean, estimators.summed(score.name, mean_of(orders)), scored)
    return found


def in_order(names: list[ScoreName], means: list[np.ndarray], scored: np.ndarray) -> list[dict]:
    """Neighbours of each distribution's sandwich NELBO >= K-order >= mixture >= tangent, and whether none is surely wrong."""
    found = []
    for of in dict.fromkeys(name.of for name in names if not name.of_sampler):
        bounds = sorted(((place_of(name), n) for n, name in enumerate(names) if name.of == of), key=lambda one: one[0])
        for (place, n), (next_place, m) in zip(bounds, bounds[1:]):
            gap, same = difference(means[n], means[m], scored), place == next_place
            wide = half_width(gap["se"], gap["se_df"], SURE) if gap["se"] is not None else math.inf
            right = abs(gap["nats_per_token"]) <= wide if same else gap["nats_per_token"] >= -wide
            expected = "equal" if same else "not negative"
            found.append({"above": names[n].text, "below": names[m].text, **gap, "expected": expected, "in_order": right})
    return found


def place_of(name: ScoreName) -> tuple[int, int]:
    """Where a score stands in the sandwich, from above: upper bounds by their orders, the value, lower bounds by theirs."""
    rank = ("upper bound", "exact", "lower bound").index(name.value)
    return rank, name.orders if rank == 0 else -name.orders if rank == 2 else 0
