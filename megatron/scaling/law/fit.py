"""Fit a law to observations: Huber loss on log residuals, many starts, resampled clusters, profiles, and what to distrust."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megatron.errors import BadData, Refusal
from megatron.scaling.law.diagnosis import diagnose, vanished
from megatron.scaling.law.expression import read_form
from megatron.scaling.law.fitted import OBJECTIVES, Fit, load_fit, save_fit
from megatron.scaling.law.form import Form, Parameter, Rows
from megatron.scaling.law.forms import FORMS
from megatron.scaling.law.intervals import (
    OVERSAMPLING,
    bootstrap,
    delta_method,
    percentiles,
    profiles,
    replicate_scatter,
    resample,
    rescale,
    sandwich,
)
from megatron.scaling.law.many_rows import SCOUTED, counting_for_all, normal_draws, sampled, settle
from megatron.scaling.law.observations import AXES, Observations, held_out, observe, relabelled, stated_errors
from megatron.scaling.law.solver import Ends, Problem, minimise, persist

__all__ = ["Fit", "fit_chinchilla", "fit_law", "load_fit", "save_fit"]
HELD = ("E", "A", "B", "alpha", "beta")  # by a two-stage fit
METHODS = ("percentile", "delta", "profile")
WEIGHTS = ("equal", "se")
ABSOLUTE = 1e-6  # of the median loss: a delta so small that Huber's loss is the absolute value
LEAST_SCATTER = 0.1  # of the median stated variance, that no row is taken to be without
SAME_BASIN = 0.02  # largest distance, in centred parameters, of two descriptions of one optimum
NUM_BASINS = 5
RIVAL = 1.05  # objectives up to this multiple of the least also start every resample


def fit_law(
    table,
    form: str | Form = "chinchilla",
    *,
    delta: float = 1e-3,
    residual: str = "huber-log",
    weights="equal",
    reduction: str = "sum",
    starts="default",
    num_resamples: int = 1000,
    ci: str = "percentile",
    holdout=None,
    seed: int = 0,
    cluster=None,
    chinchilla=None,
) -> Fit:
    """Minimise the sum over rows of Huber_delta(ln L - ln loss) (Hoffmann et al., arXiv:2203.15556, approach 3), or of another
    `residual`: mse-log its square, mse and mae the square and the size of L - loss. `weights`: equal; se, by the errors that rows
    state (`_stated_weights`); or [n].

    form: the name of one of FORMS, a formula such as "E + A/N^alpha", or a form of your own. table: a Table, rows as dicts, or
    columns {params, tokens, loss, unique_tokens?, flops?, run?, cluster?} of [n], and those that the form is a law of; `cluster`
    [n] overrides its column. `starts`: "default", "grid" (as published), how many to draw, or theta [m, p] with terms at N = D =
    1. `reduction` mean reports the same optimum: the solver does not depend on it. `holdout`: a condition such as "flops>=1e21",
    whose rows are predicted instead of fitted. `chinchilla`: a Fit or {E, A, B, alpha, beta} whose part of a data-constrained law
    is held, resample by resample where it has draws; "single-epoch" fits it on rows that repeat nothing; None fits everything
    jointly. Intervals are 95 %.

    Raises BadData for values that no law can have or too few rows, Refusal when no start converges.
    """
    law, observed = _form(form), observe(table, cluster)
    left_out, condition = held_out(holdout, observed)
    rows, clusters = observed.rows(~left_out, law), relabelled(observed.cluster[~left_out])
    _check(law, rows, ci, reduction, observed.record["sources"])
    first = _starts(law, rows, starts, seed)
    few, problem, pilot, scout = _problems(law, rows, observed, ~left_out, first, weights, residual, delta, seed)
    more = {"delta": delta, "residual": residual, "num_resamples": num_resamples, "seed": seed, "weights": problem.row_weights}
    chinchilla = _first_stage(chinchilla, law, observed, ~left_out, more)
    low, high = _hold(law.bounds(rows).T, chinchilla, rows)
    if law.simpler and starts == "default":
        first = np.concatenate([first, _from_simpler(law, few, low, high, residual, delta)])
    ends = _descend((scout, pilot, problem), first, low, high, law.name)
    theta = ends.theta[0]
    off = law.log_loss(theta[None], rows)[0][0] - rows.loss
    fitted = law.from_values(law.values(theta, rows))
    found = {
        **_optimum(problem, law, rows, ends, len(first), low < high, OBJECTIVES[residual].scale(problem.delta)),
        "residual_rms": float(np.sqrt(np.mean(off**2))),
        "residuals": _residual_table(observed, law.predict(fitted, observed.of(law)), left_out, law),
        **_intervals(problem, pilot, law, rows, ends, first[0], low, high, clusters, num_resamples, ci, seed, chinchilla),
    }
    asked = {"form": law.name, "law_form": law, "delta": problem.delta, "reduction": reduction, "seed": seed}
    asked |= {"residual_kind": residual, "weights": weights if isinstance(weights, str) else "given"}
    fit = _record(asked | {"held": _held_params(chinchilla)}, found, rows, clusters, observed, left_out, condition)
    _open_vanished(fit, rows)
    fit.warnings.extend(diagnose(fit, law, rows, theta, low, high, off))
    return fit


def fit_chinchilla(N, D, loss, delta=1e-3, starts=None, seed=0, run=None, num_resamples=1000) -> Fit:
    """`fit_law` of the form chinchilla on columns [n]: checkpoints of one `run` [n] are one cluster.

    `starts` [m, 5] as (ln A, ln B, ln E, alpha, beta) replaces the default ones.
    """
    columns = {"params": N, "tokens": D, "loss": loss} | ({} if run is None else {"run": run})
    return fit_law(columns, delta=delta, starts="default" if starts is None else starts, seed=seed, num_resamples=num_resamples)


def _record(asked: dict, found: dict, rows: Rows, clusters, observed: Observations, left_out, condition) -> Fit:
    """What was asked and found, with what the rows themselves say."""
    settings = [np.unique(column, return_inverse=True)[1].ravel() for column in rows.covariates.values()]
    return Fit(
        **asked,
        **found,
        rows_used=len(rows),
        num_runs=int(clusters.max()) + 1,
        noise_floor=replicate_scatter(rows.loss, clusters, rows.params, rows.tokens, rows.unique, *settings),
        holdout=_holdout_error(found["residuals"], condition),
        range=observed.range(~left_out, asked["law_form"]),
        **observed.record,
    )


def _open_vanished(fit: Fit, rows: Rows) -> None:
    """Resamples that agree on no E at all say nothing of how large it may be."""
    if vanished(fit, rows):
        for intervals in (fit.ci, fit.profile):
            intervals |= {"E": [None, None]} if intervals else {}
        fit.se.pop("E", None)


# ---- what is fitted


def _form(form: str | Form) -> Form:
    if isinstance(form, Form):
        return form
    return read_form(form, FORMS)


def _check(law: Form, rows: Rows, ci: str, reduction: str, sources: list[dict]) -> None:
    if len(rows) < len(law.solved):
        of = f" of {sources[0]['path']}{' and others' * (len(sources) > 1)}" if sources else ""
        raise BadData(
            f"{law.name} has {len(law.solved)} parameters and there are {len(rows)} runs{of}: "
            "add runs (15 or more, over 3 budgets)."
        )
    if ci not in METHODS or reduction not in ("sum", "mean"):
        raise BadData(f"found ci {ci} and reduction {reduction}, expected one of {', '.join(METHODS)}, and sum or mean.")


def _problems(law: Form, rows: Rows, observed: Observations, fitted, first, weights, residual: str, delta: float, seed):
    """(rows of the pilot, problem of all rows, that of the pilot, that of the scout): one and the same but for very many rows, of
    which the pilot is a sample, and the scout a part of that."""
    chosen = sampled(len(rows), seed)
    few = rows if chosen is None else rows.only(chosen)
    problem = _problem(law, rows, residual, delta)
    pilot = problem if chosen is None else counting_for_all(_problem(law, few, residual, delta), problem, chosen)
    problem = replace(problem, row_weights=_row_weights(weights, observed, law, rows, pilot, first, fitted))
    if chosen is None:
        return few, problem, problem, problem
    part = chosen[::SCOUTED]
    scout = counting_for_all(_problem(law, rows.only(part), residual, delta), problem, part)
    return few, problem, counting_for_all(pilot, problem, chosen), scout


def _problem(law: Form, rows: Rows, residual: str, delta: float) -> Problem:
    """What is minimised; squares are Huber's loss with a delta that no residual reaches. Raises BadData."""
    if residual not in OBJECTIVES:
        raise BadData(f"residual {residual}: expected one of {', '.join(OBJECTIVES)}.")
    loss = np.exp(rows.loss)
    if residual == "huber-log":
        return Problem(lambda theta: law.log_loss(theta, rows), rows.loss, delta)
    if residual == "mse-log":
        return Problem(lambda theta: law.log_loss(theta, rows), rows.loss, 10 * max(float(np.ptp(rows.loss)), 0.1))

    def plain_loss(theta):
        value, gradient = law.log_loss(theta, rows)
        level = np.exp(np.minimum(value, rows.loss.max() + 10))  # a start far away is far away
        return level, level[..., None, :] * gradient

    wide = 10 * max(float(np.ptp(loss)), 0.1 * float(loss.max()))
    return Problem(plain_loss, loss, wide if residual == "mse" else ABSOLUTE * float(np.median(loss)))


def _row_weights(weights, observed: Observations, law: Form, rows: Rows, problem: Problem, first, chosen):
    """How much each of the rows that are fitted counts, [n] or 1."""
    if not isinstance(weights, str):
        return np.asarray(weights, np.float64)
    if weights not in WEIGHTS:
        raise BadData(f"weights {weights}: expected one of {', '.join(WEIGHTS)}.")
    if weights == "equal":
        return 1.0
    low, high = law.bounds(rows).T
    pilot = minimise(problem, first, low, high)
    off = law.log_loss(pilot.theta[pilot.objective.argmin()][None], rows)[0][0] - rows.loss
    return _stated_weights(stated_errors(observed, chosen) / np.exp(rows.loss), off)


def _stated_weights(errors, off) -> np.ndarray:
    """1 / (scatter^2 + error^2) of relative errors [n], the mean 1. The scatter of runs is what residuals `off` [n] of a fit with
    equal weights show beyond the median stated error: errors that are far too small leave the weights equal."""
    usual = np.median(errors**2)
    scatter = max((1.4826 * np.median(np.abs(off))) ** 2 - usual, LEAST_SCATTER * usual)
    counts = 1 / (scatter + errors**2)
    return counts / counts.mean()


# ---- the two-stage fit


def _first_stage(chinchilla, law: Form, observed: Observations, chosen, more: dict):
    """The Fit (or plain parameters) that a two-stage fit holds, None for a joint one; `more` is what both stages share."""
    if chinchilla is None:
        return None
    own = FORMS["chinchilla"].solved
    if law.solved[: len(own)] != own or law.solved == own:
        raise BadData(f"--chinchilla holds a part of the data-constrained forms, not of {law.name}: leave it out.")
    if chinchilla == "single-epoch":
        single = chosen & (observed.columns["tokens"] <= observed.columns["unique_tokens"] * (1 + 1e-6))
        columns = {name: column[single] for name, column in observed.columns.items()}
        more = more | {"weights": np.broadcast_to(more["weights"], chosen.sum())[single[chosen]]}
        return fit_law(columns, cluster=observed.cluster[single], **more)
    found = chinchilla if isinstance(chinchilla, Fit) else Fit(form="chinchilla", params=dict(chinchilla))
    missing = [name for name in HELD if name not in found.params]
    if missing:
        raise BadData(f"--chinchilla: its params lack {', '.join(missing)}; give a fit of the form chinchilla.")
    if beyond := [name for name in HELD if not found.params[name] > 0]:
        raise BadData(
            f"--chinchilla: {beyond[0]} is {found.params[beyond[0]]:g}, and no law holds one that is not positive; fit again."
        )
    return found


def _hold(bounds, chinchilla, rows: Rows):
    """Bounds (low, high) [p], equal where the first stage holds a parameter."""
    low, high = (np.array(bound) for bound in bounds)
    if chinchilla is not None:
        low[:5] = high[:5] = FORMS["chinchilla"].theta(chinchilla.params, rows)
    return low, high


def _hold_draws(low, high, chinchilla, rows: Rows, num_resamples: int, seed):
    """Bounds [r, p] of the resamples: each holds another draw of the first stage, so that its error is passed on."""
    low, high = (np.repeat(bound[None], num_resamples, axis=0) for bound in (low, high))
    if chinchilla is not None and chinchilla.draws is not None and len(chinchilla.draws):
        chosen = np.random.default_rng([seed, 1]).integers(len(chinchilla.draws), size=num_resamples)
        named = dict(zip(chinchilla.names, chinchilla.draws[chosen].T))
        low[:, :5] = high[:, :5] = FORMS["chinchilla"].theta(named, rows)
    return low, high


def _held_params(chinchilla) -> dict:
    return {} if chinchilla is None else {name: chinchilla.params[name] for name in HELD}


# ---- the optimum


def _starts(law: Form, rows: Rows, starts, seed) -> np.ndarray:
    if isinstance(starts, str) and starts not in ("default", "grid"):
        raise BadData(f"starts {starts!r}: expected default, grid, or how many.")
    if isinstance(starts, str):
        return law.starts(rows) if starts == "default" else law.published_grid(rows)
    if isinstance(starts, (int, np.integer)):
        first = law.starts(rows)
        drawn = np.random.default_rng(seed).uniform(first.min(axis=0), first.max(axis=0), (max(starts - 1, 0), first.shape[1]))
        return np.concatenate([first[:1], drawn])
    return law.centred(np.asarray(starts, np.float64), rows)


def _from_simpler(law: Form, rows: Rows, low, high, residual: str, delta: float) -> np.ndarray:
    """Starts at the optimum of the form that this one extends, so that it is never worse, [m, p]."""
    simpler = law.simpler or law
    own = slice(len(simpler.solved))
    problem = _problem(simpler, rows, residual, delta)
    ends = minimise(problem, simpler.starts(rows), low[own], high[own])
    return law.extended(ends.theta[ends.objective.argmin()][None], rows)


def _descend(problems: Sequence[Problem], first, low, high, name: str) -> Ends:
    """The converged ends of the last of these problems, best first; those before it, of fewer rows, find where to look."""
    ends = minimise(problems[0], first, low, high)
    ends = persist(problems[0], ends, ends.objective < RIVAL * ends.objective.min(), low, high)
    for before, problem in zip(problems, problems[1:]):
        if problem is not before:
            ends = settle(problem, ends, low, high, RIVAL, SAME_BASIN)
    good = np.flatnonzero(ends.converged)
    if not len(good):
        raise Refusal(
            f"{name} did not converge from any of {len(first)} starts on {len(problems[-1].ln_loss)} rows: "
            "give other starts or more runs."
        )
    order = good[np.argsort(ends.objective[good], kind="stable")]
    return Ends(ends.theta[order], ends.objective[order], ends.converged[order])


def _optimum(problem: Problem, law: Form, rows: Rows, ends: Ends, num_starts: int, free, scale: float) -> dict:
    """What a Fit says of the best end, its objective times `scale`, and of the others; `free` [p] are what was fitted."""
    basins, share = _basins(law, rows, ends, num_starts)
    for basin in basins:
        basin["objective"] *= scale
    return {
        "params": dict(zip(law.names, law.values(ends.theta[0], rows).tolist())),
        "objective": float(ends.objective[0]) * scale,
        "num_starts": num_starts,
        "share_at_optimum": share,
        "basins": basins,
        "condition": _condition(problem.residuals(ends.theta[:1])[1][0][free]),
    }


def _basins(law: Form, rows: Rows, ends: Ends, num_starts: int) -> tuple[list[dict], float]:
    """The other optima that starts ended in, with their objective, parameters and number of starts; the share at the best."""
    theta, objective = ends.theta, ends.objective
    found: list[dict] = []
    while len(theta) and len(found) <= NUM_BASINS:
        same = np.max(np.abs(theta - theta[0]), axis=1) < SAME_BASIN
        found.append(
            {
                "objective": float(objective[0]),
                "starts": int(same.sum()),
                "params": dict(zip(law.names, law.values(theta[0], rows).tolist())),
            }
        )
        theta, objective = theta[~same], objective[~same]
    return found[1:], found[0]["starts"] / num_starts


def _condition(gradient) -> float:
    size = np.linalg.norm(gradient, axis=1, keepdims=True)
    return float(np.linalg.cond(gradient / np.where(size > 0, size, 1)))


# ---- intervals


def _intervals(
    problem, pilot, law, rows, ends: Ends, first, low, high, clusters, num_resamples, method, seed, chinchilla
) -> dict:
    """What a Fit says about its errors: ci, se, draws, profile and how they were made."""
    theta, objective = ends.theta[0], ends.objective[0]
    if not num_resamples and method == "percentile":
        return {}
    dof = max(int(clusters.max()) + 1 - int(np.sum(low < high)), 1)
    covariance, inverse = sandwich(problem, theta, low, high, clusters)
    wanted = [index for index, one in enumerate(law.parameters) if not one.exponent and low[index] < high[index]]
    centre, least = (theta, objective) if pilot is problem else (part[0] for part in _own_optimum(pilot, theta, low, high))
    found = profiles(pilot, centre, least, wanted, low, high, covariance, inverse, dof)
    found = [[None if end is None else end + float(theta[i] - centre[i]) for end in pair] for i, pair in zip(wanted, found)]
    profiled = {law.solved[index]: _published_ends(law.parameters[index], pair) for index, pair in zip(wanted, found)}
    if pilot is not problem and num_resamples and (chinchilla is None or chinchilla.draws is None):
        drawn = np.clip(normal_draws(theta, covariance, dof, num_resamples, [seed, 2]), low, high)
        made = {"num_resamples": num_resamples, "failed_resamples": 0} | _percentiles(law, rows, drawn, low, high)
        made["ci_method"] = "normal"
    else:
        made = _resampled(problem, law, rows, ends, first, low, high, clusters, num_resamples, seed, chinchilla)
    if method != "percentile":
        ci, se = _by_delta(law, rows, theta, covariance, dof, _held_params(chinchilla))
        instead = {name for name, pair in profiled.items() if method == "profile" or _at_bound(law, theta, low, high, name)}
        ci |= {name: profiled[name] for name in instead}
        made |= {"ci": ci, "se": {name: error for name, error in se.items() if None not in ci[name]}, "ci_method": method}
    return {"ci_method": method} | made | {"profile": profiled}


def _own_optimum(pilot: Problem, theta, low, high) -> tuple[np.ndarray, np.ndarray]:
    """(theta [1, p], objective [1]) of a sample, next to the optimum of all rows."""
    ends = minimise(pilot, theta[None], low, high)
    return ends.theta, ends.objective


def _at_bound(law: Form, theta, low, high, name: str) -> bool:
    index = law.solved.index(name)
    return not low[index] < theta[index] < high[index]


def _published_ends(parameter: Parameter, ends: list) -> list:
    return [end if end is None or parameter.linear else float(np.exp(end)) for end in ends]


def _by_delta(law: Form, rows: Rows, theta, covariance, dof: int, held) -> tuple[dict, dict]:
    """(ci, se) of the published parameters that were fitted, from the covariance of theta."""
    step = 1e-6 * np.eye(len(theta))
    as_they_are = {parameter.name for parameter in law.parameters if parameter.linear}
    values, logarithmic = law.values(theta, rows), np.array([name not in as_they_are for name in law.names])
    slopes = (law.values(theta + step, rows) - law.values(theta - step, rows)).T / 2e-6
    slopes = slopes / np.where(logarithmic, values, 1)[:, None]
    intervals, errors = delta_method(values, slopes, covariance, dof, logarithmic)
    fitted = [(name, *rest) for name, *rest in zip(law.names, intervals, errors) if name not in held]
    return (
        {name: [float(end) if np.isfinite(end) and end else None for end in ends] for name, ends, _ in fitted},
        {name: float(error) for name, _, error in fitted},
    )


def _resampled(problem, law, rows, ends, first, low, high, clusters, num_resamples, seed, chinchilla) -> dict:
    """Percentile intervals, standard errors and draws of resampled clusters, and how many resamples failed."""
    if not num_resamples or clusters.max() < np.sum(low < high):  # an interpolation has no scatter
        return {"num_resamples": num_resamples, "failed_resamples": num_resamples}
    optimum = ends.theta[0]
    rival = (ends.objective < RIVAL * ends.objective[0]) & (np.max(np.abs(ends.theta - optimum), axis=1) > SAME_BASIN)
    starts = np.concatenate([optimum[None], first[None], ends.theta[rival][:1]])
    # scaling supposes a scatter about one optimum
    single = not law.several_optima and np.all((optimum > low) & (optimum < high))
    oversampling = OVERSAMPLING if single else 1
    data = zlib.crc32(rows.loss.tobytes())  # laws of other runs are paired draw by draw, as independent ones
    weights = resample(clusters, num_resamples, [seed, data], oversampling)
    lowest, highest = _hold_draws(low, high, chinchilla, rows, num_resamples, seed)
    found = bootstrap(problem, starts, lowest, highest, weights)
    theta = found.theta[found.converged]
    if single:
        theta = rescale(theta, optimum, low, high)
    failed = num_resamples - len(theta)
    made = {"num_resamples": num_resamples, "failed_resamples": failed, "ci": {}}
    if failed >= num_resamples / 2:
        return made
    return made | _percentiles(law, rows, theta, low, high)


def _percentiles(law: Form, rows: Rows, theta, low, high) -> dict:
    """Draws of the published parameters, percentile intervals and standard errors of draws theta [r, p]."""
    draws = law.values(theta, rows)
    varies = draws.std(axis=0) > 1e-9 * np.abs(draws).mean(axis=0)  # a held parameter without draws does not
    pairs = percentiles(draws, _outside(law, theta, low, high))
    ci = {
        name: [float(end) if np.isfinite(end) else None for end in pair]
        for name, pair, wanted in zip(law.names, pairs, varies)
        if wanted
    }
    errors = zip(law.names, draws.std(axis=0, ddof=1).tolist())
    return {"draws": draws, "ci": ci, "se": {name: error for name, error in errors if None not in ci.get(name, [None])}}


def _outside(law: Form, theta, low, high) -> np.ndarray:
    """For each draw and published parameter the end (-1, 1) at which it only met a bound of ours, else 0, [r, names].

    A term follows its exponent: A is not known where alpha is not.
    """
    free = low < high
    sides = {
        name: np.where(theta[:, i] >= high[i] - 1e-9, 1, np.where(theta[:, i] <= low[i] + 1e-9, -1, 0)) * free[i]
        for i, name in enumerate(law.solved)
    }
    for one in law.parameters:
        if one.exponent:
            sides[one.name] = np.where(sides[one.name] == 0, sides[one.exponent], sides[one.name])
    return np.stack([sides.get(name, np.zeros(len(theta))) for name in law.names], axis=1)


# ---- what else is reported


def _residual_table(observed: Observations, predicted, left_out, law: Form) -> list[dict]:
    columns = observed.of(law)
    return [
        {
            "run": name,
            "cluster": str(observed.cluster[i]),
            **{axis: float(columns[axis][i]) for axis in (*AXES, *law.columns.values())},
            "predicted": float(predicted[i]),
            "residual": float(np.log(columns["loss"][i] / predicted[i])),
            "held_out": bool(left_out[i]),
        }
        for i, name in enumerate(observed.names)
    ]


def _holdout_error(residuals: list[dict], condition: str | None) -> dict | None:
    if condition is None:
        return None
    error = np.array([row["residual"] for row in residuals if row["held_out"]])
    if not np.isfinite(error).all():
        raise BadData(
            f"--holdout {condition}: the law gives no number for {np.sum(~np.isfinite(error))} of {len(error)} held-out rows."
        )
    return {
        "condition": condition,
        "rows": len(error),
        "rms": float(np.sqrt(np.mean(error**2))),
        "mean": float(error.mean()),
        "largest": float(np.max(np.abs(error))),
    }
