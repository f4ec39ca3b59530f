"""Forms of law ranked by how well they predict rows that they were not fitted to.

Every form is fitted without a part of the rows and predicts that part: each group of equal FLOPs (or of another column) in turn,
the largest runs, or random parts of whole clusters. The score is the mean of |ln loss - ln L| over all rows that were predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from megatron.errors import BadData, Refusal
from megatron.progress import ProgressLine
from megatron.scaling.law.fit import fit_law
from megatron.scaling.law.form import Form
from megatron.scaling.law.observations import Observations, observe
from megatron.scaling.table.covariates import SAME, levels, unspelled
from megatron.standard_errors import half_width

MOST_PARTS = 12  # of one way of leaving out: more groups are put together, neighbours first
WIDEST = 0.05  # relative spread of one value
LARGEST_SHARE = 0.2  # of the clusters, by FLOPs
SEED = 0  # of the random parts


@dataclass(frozen=True)
class Part:
    """Rows that are left out together, [n] of a mask, and what they have in common."""

    name: str
    rows: np.ndarray


def parts_of(how: str, observed: Observations) -> list[Part]:
    """The parts that are left out in turn, by a word: `largest` or `largest:SHARE` (one part, the clusters with the most FLOPs),
    `random:K` (whole clusters in K parts), or a numeric column (rows of equal value to 1 %; of more than MOST_PARTS values,
    as many bands of neighbours). Raises BadData, too where rows of one cluster would lie in several parts.
    """
    word, _, number = how.partition(":")
    if word == "loss":
        raise BadData("--leave-out loss: what is predicted cannot say what is left out; give another column.")
    if word == "largest":
        return [_largest(observed, float(number or LARGEST_SHARE))]
    if word == "random":
        order = np.random.default_rng(SEED).permutation(int(observed.cluster.max()) + 1)
        if int(number) > len(order):
            raise BadData(f"--leave-out {how}: there are {len(order)} runs; give random:{len(order)} at the most.")
        part = np.empty(len(order), int)
        part[order] = np.arange(len(order)) % int(number)
        return [Part(f"part {k + 1} of {number}", part[observed.cluster] == k) for k in range(int(number))]
    column = unspelled(word)
    values = observed.numbers(column)
    places = levels(np.log(values)) if (values > 0).all() else np.unique(values, return_inverse=True)[1].ravel()
    if any(np.ptp(values[places == k]) > WIDEST * values[places == k].max() for k in range(places.max() + 1)):
        places = np.unique(values, return_inverse=True)[1].ravel()  # so dense that all of them are neighbours
    count = int(places.max()) + 1
    if count < 2:
        raise BadData(f"--leave-out {how}: all rows have one value of {column}; leave out by another column.")
    together = np.array(
        [group for group, found in enumerate(np.array_split(np.arange(count), min(count, MOST_PARTS))) for _ in found]
    )
    if len(np.unique(np.stack([observed.cluster, together[places]]), axis=1).T) > observed.cluster.max() + 1:
        raise BadData(f"--leave-out {how}: rows of one run lie in several parts, which are not independent; give random:K.")
    return [Part(f"{column} {_span(values[together[places] == k])}", together[places] == k) for k in range(together[-1] + 1)]


def _largest(observed: Observations, share: float) -> Part:
    """The clusters of most FLOPs, that share of them."""
    most = np.zeros(int(observed.cluster.max()) + 1)
    np.maximum.at(most, observed.cluster, observed.columns["flops"])
    count = math.ceil(share * len(most) - 1e-9)
    if not 0 < count < len(most):
        raise BadData(f"--leave-out largest:{share:g}: {count} of {len(most)} runs, expected some of them; give a share below 1.")
    limit = np.sort(most)[-count] * (1 - SAME)  # a budget is left out whole
    rows = most[observed.cluster] >= limit
    if rows.all():
        raise BadData("--leave-out largest: all runs have the same FLOPs; leave out by a column, as params.")
    return Part(f"FLOPs of {limit:.3g} and more", rows)


def _span(values) -> str:
    low, high = values.min(), values.max()
    return f"{low:.3g}" if high < 1.02 * low else f"{low:.3g} to {high:.3g}"


def rank_forms(table, forms: Mapping[str, Form], how: str, **fitting) -> dict:
    """Forms in the order of their error on parts that `how` leaves out: {"leave_out", "parts", "rows", "forms": [{"form",
    "parameters", "rms_fitted", "error", "bias", "behind", "ci"}], "not_ranked": [{"form", "reason"}]}.

    `error` is the mean of |ln loss - ln L| over predicted rows, `bias` that of ln loss - ln L, `behind` the error minus that of
    the first form on the same rows, with a 95 % interval that takes parts as the independent units (of one part: its clusters,
    given what was fitted). `fitting`: of `fit_law`. Raises BadData.
    """
    observed = observe(table)
    parts = parts_of(how, observed)
    unit = _units(parts, observed)
    line = ProgressLine(len(forms) * len(parts), "fits")
    found, not_ranked = [], []
    for number, (name, form) in enumerate(forms.items()):
        try:
            residuals = _predicted(table, form, parts, observed, fitting, partial(show, line, name, number * len(parts)))
            fitted = fit_law(table, form, num_resamples=0, **fitting)
        except Refusal as error:
            not_ranked.append({"form": name, "reason": str(error)})
            continue
        found.append((name, form, residuals, fitted))
    line.clear()
    if not found:
        raise BadData(f"--leave-out {how}: no form could be fitted to what is left: {not_ranked[0]['reason']}")
    scored = np.isfinite(found[0][2])
    found.sort(key=lambda one: float(np.mean(np.abs(one[2][scored]))))
    best = np.abs(found[0][2][scored])
    records = []
    for name, form, residuals, fitted in found:
        behind = np.abs(residuals[scored]) - best
        records.append(
            {
                "form": name,
                "form_file": form.origin,
                "parameters": len(form.solved),
                "rms_fitted": fitted.residual_rms,
                "error": float(np.mean(np.abs(residuals[scored]))),
                "bias": float(np.mean(residuals[scored])),
                "behind": float(behind.mean()),
                "ci": None if name == found[0][0] else mean_interval(behind, unit[scored]),
            }
        )
    return {
        "leave_out": how,
        "parts": [{"name": part.name, "rows": int(part.rows.sum())} for part in parts],
        "rows": int(scored.sum()),
        "units": int(len(np.unique(unit[scored]))),
        "forms": records,
        "not_ranked": not_ranked,
    }


def show(line: ProgressLine, name: str, before: int, done: int) -> None:
    line.show(before + done, name)


def _units(parts: Sequence[Part], observed: Observations) -> np.ndarray:
    """What is independent, [n]: a part, as its rows share a fit; the clusters of a part that stands alone."""
    if len(parts) == 1:
        return observed.cluster
    return np.argmax([part.rows for part in parts], axis=0)


def _predicted(table, form: Form, parts: Sequence[Part], observed: Observations, fitting: dict, show) -> np.ndarray:
    """ln loss - ln L of every row by the fit without its part, [n]; NaN of rows that no part has. Raises Refusal."""
    residuals = np.full(len(observed.names), np.nan)
    for number, part in enumerate(parts):
        show(number)
        for column in form.columns.values():
            if len(np.unique(observed.numbers(column)[~part.rows])) < 2:
                raise BadData(f"{column} has one value in what is left without {part.name}.")
        fit = fit_law(table, form, num_resamples=0, holdout=part.rows, **fitting)
        residuals[part.rows] = [row["residual"] for row in fit.residuals if row["held_out"]]
    if not np.isfinite(residuals[np.any([part.rows for part in parts], axis=0)]).all():
        raise BadData(f"{form.name} predicts no number for some of the rows that were left out.")
    return residuals


def mean_interval(values, unit) -> list[float] | None:
    """The 95 % interval of the mean of values [n] whose units [n] are independent, rows of a unit not (cluster-robust: Liang and
    Zeger, Biometrika 73, 1986), by Student's t of one degree of freedom less than units; None of a single unit."""
    names, at = np.unique(unit, return_inverse=True)
    if len(names) < 2:
        return None
    sums = np.bincount(at.ravel(), values - np.mean(values))
    error = math.sqrt(len(names) / (len(names) - 1) * float(np.sum(sums**2))) / len(values)
    wide = half_width(error, len(names) - 1)
    return [float(np.mean(values)) - wide, float(np.mean(values)) + wide]


def usual_forms(table, forms: Mapping[str, Form]) -> list[str]:
    """The names of forms of N and D that these rows can tell apart: with three rows or more for each parameter and, where data
    repeat, also those that know unique tokens."""
    columns = observe(table).columns
    repeats = bool(np.any(columns["tokens"] > columns["unique_tokens"] * (1 + 1e-6)))
    return [
        name
        for name, form in forms.items()
        if not form.columns and "params" in form.axes and len(form.axes) == 2 and (repeats or not form.repeats)
        if 3 * len(form.solved) <= len(columns["loss"])
    ]
