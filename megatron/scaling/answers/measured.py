"""Where masked diffusion passes the autoregressive model, measured: between runs of equal C and U, without a law.

At each U and C the run of least loss stands for its objective, over all sizes and settings that were trained; the crossing lies
where the difference of these, on straight lines over ln C, first falls to 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron.errors import BadData
from megatron.scaling.law.intervals import percentile_interval
from megatron.scaling.table.covariates import expected_minimum, levels, run_scatter
from megatron.scaling.table.labels import kind_of

ONCE = 1.02  # epochs, up to which no token is repeated: such runs are of no U
SAME = 0.05  # largest gap in ln U and in ln C of runs of one place


def measured_crossover(ar: Sequence[dict], mdm: Sequence[dict], num_draws: int = 1000, seed: int = 0) -> dict:
    """As find_crossover has it, over the U and C at which both have runs; `difference` is None where one has none.

    Intervals: losses drawn with the scatter between equal runs; none where nothing says what that is. Raises BadData where no U
    has two such C.
    """
    sides = [[row for row in rows if row["tokens"] > ONCE * row["unique_tokens"]] for rows in (ar, mdm)]
    if not all(sides):
        raise BadData(
            "both need runs that repeat their data (tokens above unique_tokens): their crossing is one over unique tokens."
        )
    both = [*sides[0], *sides[1]]
    (u_of, unique), (c_of, flops) = _grouped(both, "unique_tokens"), _grouped(both, "flops")
    random, (scatter, basis) = np.random.default_rng(seed), run_scatter([*ar, *mdm])
    num_draws = 0 if scatter is None else num_draws
    least, most = [], 0  # of each objective [draws + 1, u, c], the runs themselves first
    for rows, at in zip(sides, (slice(len(sides[0])), slice(len(sides[0]), None))):
        place = list(zip(u_of[at].tolist(), c_of[at].tolist()))
        losses = np.array([row["loss"] for row in rows]) + (scatter or 0.0) * random.standard_normal((num_draws + 1, len(rows)))
        losses[0] = [row["loss"] for row in rows]
        best = np.full((num_draws + 1, len(unique), len(flops)), np.inf)
        for number, (u, c) in enumerate(place):
            best[:, u, c] = np.minimum(best[:, u, c], losses[:, number])
        most = max(most, max(place.count(one) for one in place))
        least.append(np.where(np.isinf(best), np.nan, best))
    difference = least[1] - least[0]
    critical = [_critical(float(np.exp(U)), flops, difference[:, row]) for row, U in enumerate(unique)]
    if all(point["searched"] is None for point in critical):
        raise BadData("AR and MDM have no two budgets over the same unique tokens: run both at every C and U.")
    return {
        "label": f"The best run of each C and U.  AR: {kind_of(ar[0])}, MDM: {kind_of(mdm[0])}.",
        "critical": [point for point in critical if point["searched"]],
        "power_law": None,
        "num_draws": num_draws,
        "unique_tokens": np.exp(unique).tolist(),
        "flops": np.exp(flops).tolist(),
        "difference": difference[0].tolist(),
        "warnings": [
            "no intervals: there are no replicates and no stated errors, so that nothing says how far equal runs differ."
            if scatter is None
            else f"intervals rest on a scatter of {scatter:.2g} between equal runs ({basis}); the best of {most} runs is low "
            f"by up to {-expected_minimum(most) * scatter:.2g}."
        ],
    }


def _grouped(rows: Sequence[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(the number of each row's value among those of the column [n]; the logarithms of these values, rising)."""
    ln_values = np.log([row[name] for row in rows])
    number = levels(ln_values, SAME)
    return number, np.bincount(number, ln_values) / np.bincount(number)


def _critical(U: float, ln_flops: np.ndarray, difference: np.ndarray) -> dict:
    """The crossing at one U from the differences [draws + 1, c]."""
    known = ~np.isnan(difference[0])
    point: dict = {"unique_tokens": U, "flops": None, "low": None, "high": None, "searched": None, "reason": None}
    if known.sum() < 2:
        return point
    ln_flops, difference = ln_flops[known], difference[:, known]
    roots = np.array([_first_root(ln_flops, row) for row in difference])
    searched = np.exp(ln_flops[[0, -1]]).tolist()
    point |= {"searched": searched, "share_of_draws": None}
    if len(roots) > 1:
        low, high = percentile_interval(np.exp(roots[1:]))
        low = searched[1] if np.mean(roots[1:] == np.inf) > 0.975 else low or None  # beyond the runs, almost for certain
        high = None if high is None else max(high, searched[0])
        point |= {"low": low, "high": high, "share_of_draws": float(np.mean(np.isfinite(roots[1:])))}
    if roots[0] == -np.inf:
        return point | {"reason": f"none in range: MDM leads already at {searched[0]:.3g} FLOPs"}
    if roots[0] == np.inf:
        return point | {"reason": f"none in range: AR leads up to {searched[1]:.3g} FLOPs"}
    return point | {"flops": float(np.exp(roots[0]))}


def _first_root(ln_flops: np.ndarray, difference: np.ndarray) -> float:
    """-inf where the difference begins at or below 0, inf where it does not fall to it."""
    if difference[0] <= 0:
        return -np.inf
    falls = np.flatnonzero(difference[1:] <= 0)
    if not len(falls):
        return np.inf
    at = falls[0]
    share = difference[at] / (difference[at] - difference[at + 1])
    return float(ln_flops[at] + share * (ln_flops[at + 1] - ln_flops[at]))
