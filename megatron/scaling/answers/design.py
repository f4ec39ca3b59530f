"""The next run: which one would shrink the interval of a chosen quantity most per GPU-hour.

Optimal design on the fitted law (c-optimality, Elfving 1952; local, as the law is not linear). With theta the parameters as the
solver sees them, g = d ln L / d theta at a run and sigma the scatter of ln L, the runs of the fit carry the information
M = sum g g' / sigma^2, a quantity with gradient c has the variance v = c' M^-1 c, and one more run lowers it by
(c' M^-1 g)^2 / (sigma^2 + g' M^-1 g). No run is needed to know that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import erf

from megatron.errors import BadData
from megatron.scaling.answers.predict import NORMAL_975
from megatron.scaling.law.form import Form, Rows

STEP = 1e-4  # of theta, in the central differences of a quantity
OPTIMAL = ("N*", "D*", "epochs", "loss")


@dataclass(frozen=True)
class Knowledge:
    """What a fit knows: theta [p], its covariance [p, p], and the scatter of ln L of one run around the law."""

    form: Form
    rows: Rows
    theta: np.ndarray
    covariance: np.ndarray
    scatter: float


@dataclass(frozen=True)
class Quantity:
    """A name of a parameter, exponent or optimum, and where: at a budget C, or at a run (N, D), with U unique tokens."""

    name: str
    flops: float | None = None
    params: float | None = None
    tokens: float | None = None
    unique_tokens: float | None = None


def parse_quantity(text: str) -> Quantity:
    """`alpha`, `a`, `R_D`, ...; `N*@1e21`, `D*@1e21`, `epochs@1e21,U=1e9`, `loss@1e21` at the optimum of a budget;
    `loss@N=7e9,D=4e12,U=1e11` of a run. Raises BadData."""
    name, at, place = text.partition("@")
    if not at:
        return Quantity(name)
    fields = {"C": "flops", "N": "params", "D": "tokens", "U": "unique_tokens"}
    try:
        items = [item.split("=") if "=" in item else ("C", item) for item in place.split(",")]
        given = {fields[key]: float(value) for key, value in items}
    except (KeyError, ValueError):
        given = {}
    if name not in OPTIMAL or not ({"flops"} <= set(given) or name == "loss" and {"params", "tokens"} <= set(given)):
        raise BadData(
            f"--quantity {text}: expected N*@C, D*@C, epochs@C,U=... or loss@C, each with U=... if tokens repeat, or "
            "loss@N=...,D=...; as N*@1e21 or loss@1e21,U=1e9."
        )
    return Quantity(name, **given)


def weigh_evidence(fit) -> Knowledge:
    """The linearised information of the rows of a fit, rows of one cluster counted by how far their residuals agree.

    Directions that no run constrains are held by a prior as wide as the solver's bounds. Raises BadData without rows.
    """
    if not fit.residuals:
        raise BadData("the fit does not list its rows, so that its information is not known; fit again (residuals.csv).")
    form = fit.law_form
    if form.columns:
        raise BadData(
            f"next chooses runs by N, D and U, and the law {form.name} is one of {', '.join(form.columns.values())} too."
        )
    used = [row for row in fit.residuals if not row.get("held_out")]
    columns = (np.array([float(row[name]) for row in used]) for name in ("params", "tokens", "unique_tokens", "loss"))
    params, tokens, unique, loss = columns
    rows = Rows.of(params, tokens, unique, 6 * params * tokens, loss)
    theta = form.theta(fit.params, rows)
    predicted, gradient = form.log_loss(theta, rows)
    residual = predicted - rows.loss
    scatter = _effective_scatter(np.sqrt(np.sum(residual**2) / max(len(rows) - len(theta), 1)), fit.delta)
    weights = _cluster_weights(np.unique([row.get("cluster", row["run"]) for row in used], return_inverse=True)[1], residual)
    prior = np.diag(16 / np.ptp(form.bounds(rows), axis=1) ** 2)
    covariance = np.linalg.inv((gradient * weights) @ gradient.T / scatter**2 + prior)
    return Knowledge(form, rows, theta, covariance, scatter)


def standard_error(known: Knowledge, quantity: Quantity) -> tuple[float, float]:
    """(the quantity, the standard error of its logarithm)."""
    value, slope = _value_and_slope(known, quantity)
    return value, float(np.sqrt(slope @ known.covariance @ slope))


def rank_runs(known: Knowledge, quantity: Quantity, params, tokens, unique_tokens, flops_per_gpu_hour: float) -> list[dict]:
    """The candidates [n] by the shrinkage of the quantity's interval per GPU-hour, best first.

    `shrinkage` is 1 - (interval after) / (interval now); GPU-hours are 6 N D / `flops_per_gpu_hour`.
    """
    params, tokens, unique = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (params, tokens, unique_tokens)))
    value, slope = _value_and_slope(known, quantity)
    columns = params, tokens, np.minimum(unique, tokens), 6 * params * tokens, np.ones(params.shape)
    ln_params, ln_tokens, ln_unique, ln_flops, ln_loss = np.log(columns)
    runs = Rows(ln_params, ln_tokens, ln_unique, ln_flops, ln_loss, known.rows.centre)
    gradient = known.form.log_loss(known.theta, runs)[1]  # [p, n]
    now = slope @ known.covariance @ slope
    gained = (slope @ known.covariance @ gradient) ** 2
    gained /= known.scatter**2 + np.einsum("pn,pq,qn->n", gradient, known.covariance, gradient)
    after = np.sqrt(np.maximum(now - gained, 0))
    hours = 6 * params * tokens / flops_per_gpu_hour
    shrinkage = 1 - after / np.sqrt(now)
    order = np.argsort(-shrinkage / hours, kind="stable")
    return [
        {
            "params": float(params[i]),
            "tokens": float(tokens[i]),
            "unique_tokens": float(unique[i]),
            "epochs": float(tokens[i] / unique[i]),
            "flops": float(6 * params[i] * tokens[i]),
            "gpu_hours": float(hours[i]),
            "shrinkage": float(shrinkage[i]),
            "shrinkage_per_gpu_hour": float(shrinkage[i] / hours[i]),
            "ci_after": interval_around(value, float(after[i])),
        }
        for i in order
    ]


def candidate_runs(known: Knowledge, max_flops: float, reach: float, epochs, num_sizes: int = 13, num_tokens: int = 25):
    """(params, tokens, unique_tokens), [n] each: a grid over the data of the fit and `reach` times beyond it, to `max_flops`.

    Repetition is offered only where the form's law knows of it. Raises BadData where nothing is affordable.
    """

    def axis(ln_values, count):
        return np.geomspace(np.exp(ln_values.min()) / reach, np.exp(ln_values.max()) * reach, count)

    epochs = np.asarray(epochs if known.form.repeats else [1.0], np.float64)
    grid = np.meshgrid(axis(known.rows.params, num_sizes), axis(known.rows.tokens, num_tokens), epochs, indexing="ij")
    params, tokens, repeats = (values.ravel() for values in grid)
    unique, ln_unique = tokens / repeats, known.rows.unique
    near = (unique >= np.exp(ln_unique.min()) / reach) & (unique <= np.exp(ln_unique.max()) * reach)
    chosen = near & (6 * params * tokens <= max_flops)
    if not chosen.any():
        raise BadData(
            f"no candidate costs less than {max_flops:.3g} FLOPs, the least {np.min(6 * (params * tokens)[near]):.3g}; "
            "raise --max-flops."
        )
    return params[chosen], tokens[chosen], unique[chosen]


def propose(
    fit, quantity: Quantity, flops_per_second: float, max_flops=None, reach=2.0, epochs=(1,), least=0.05, count=5
) -> dict:
    """What one fit says of a quantity, and the `count` runs that would tell most: fields of next.json.

    `max_flops`: of one run (None: the largest of the data); `least`: the shrinkage that is preferred.
    """
    known = weigh_evidence(fit)
    value, error = standard_error(known, quantity)
    params, tokens, unique = candidate_runs(known, max_flops or fit.range["flops"][1], reach, epochs)
    ranked = rank_runs(known, quantity, params, tokens, unique, 3600 * flops_per_second)
    return {
        "objective": fit.conventions.get("objective"),
        "value": value,
        "ci_now": interval_around(value, error),
        "ci_of_fit": fit.ci.get(quantity.name) if quantity.flops is None else None,
        "scatter": known.scatter,
        "num_candidates": len(ranked),
        "runs": choose_runs(ranked, least, count),
        "strongest": max(ranked, key=lambda run: run["shrinkage"]),
    }


def choose_runs(ranked: list[dict], least_shrinkage: float, count: int) -> list[dict]:
    """The best `count` of runs that shrink the interval by `least_shrinkage` or more, one for each size.

    Without that floor the smallest run would always win: its cost falls faster than what it tells. Where none reaches it, the
    runs that shrink the interval most.
    """
    enough = [run for run in ranked if run["shrinkage"] >= least_shrinkage]
    enough = enough or sorted(ranked, key=lambda run: -run["shrinkage"])
    first_of_size = {run["params"]: run for run in reversed(enough)}
    return [run for run in enough if first_of_size[run["params"]] is run][:count]


def interval_around(value: float, error: float) -> list[float]:
    """The 95 % interval of a positive quantity from the standard error of its logarithm."""
    ends = value * np.exp(np.clip(NORMAL_975 * error, 0, 300) * np.array([-1, 1]))
    return [float(end) for end in ends]


def _effective_scatter(rms: float, delta: float) -> float:
    """The scatter that would leave least squares as uncertain as scatter `rms` leaves Huber's loss (Huber 1964, equation 2.5).

    For normal residuals: at delta far below their rms that is sqrt(pi/2) of it, as for least absolute deviations.
    """
    cut = delta / max(rms, 1e-12)
    inside = erf(cut / np.sqrt(2))
    squared = inside - cut * np.sqrt(2 / np.pi) * np.exp(-(cut**2) / 2) + cut**2 * (1 - inside)
    return float(max(rms, 1e-12) * np.sqrt(squared) / inside)


def _cluster_weights(cluster, residual):
    """The weight of each row: 1 / (1 + (m - 1) rho) in a cluster of m, rho the agreement of residuals within clusters."""
    size = np.bincount(cluster)[cluster]
    total = np.bincount(cluster, residual)[cluster]
    agreement = np.sum(residual * (total - residual) / np.maximum(size - 1, 1))  # with the mean of the cluster's others
    rho = np.clip(agreement / np.sum(residual[size > 1] ** 2), 0, 1) if np.any(size > 1) else 0.0
    return 1 / (1 + (size - 1) * rho)


def _value_and_slope(known: Knowledge, quantity: Quantity) -> tuple[float, np.ndarray]:
    """The quantity at theta and the gradient [p] of its logarithm, by central differences."""
    step = STEP * np.eye(len(known.theta))
    ln_value = np.log(_evaluate(known, quantity, np.concatenate([known.theta + step, known.theta - step, known.theta[None]])))
    up, down = np.split(ln_value[:-1], 2)
    return float(np.exp(ln_value[-1])), (up - down) / (2 * STEP)


def _evaluate(known: Knowledge, quantity: Quantity, theta):
    """The quantity [m] at each theta [m, p]."""
    law, unique = known.form.law(theta, known.rows), quantity.unique_tokens
    if quantity.params is not None:
        return law.loss(quantity.params, quantity.tokens, unique)
    if quantity.flops is None:
        if quantity.name not in known.form.names:
            raise BadData(
                f"--quantity {quantity.name}: the form {known.form.name} has {', '.join(known.form.names)}; "
                f"or give one of {', '.join(name + '@C' for name in OPTIMAL)}."
            )
        return known.form.values(theta, known.rows)[:, known.form.names.index(quantity.name)]
    N, D = law.optimum(quantity.flops, unique)
    at = {
        "N*": lambda: N,
        "D*": lambda: D,
        "loss": lambda: law.loss(N, D, unique),
        "epochs": lambda: D / (D if unique is None else np.minimum(unique, D)),
    }
    return at[quantity.name]()
