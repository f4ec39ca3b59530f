"""Fits of the parts of one table that --by made: what their parameters differ by, and laws of the parameters over the flags.

Parts are independent runs, so that the k-th draw of one goes with the k-th of another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from megatron.scaling.answers.compare import Side, compare
from megatron.scaling.law.fit import Fit
from megatron.scaling.law.intervals import percentile_interval
from megatron.scaling.table.covariates import column_of, spelled


def compare_parts(fits: dict[str, Fit]) -> list[dict]:
    """The first of these fits {what was fitted: Fit} with each of the others: `compare` where their laws have an optimum, and
    `differences`."""
    (name, first), *others = fits.items()
    reference, found = Side(name, [first.conventions], fit=first), []
    for label, fit in others:
        other = Side(label, [fit.conventions], fit=fit)
        optimum = first.law.exponents is not None and fit.law.exponents is not None
        nothing: dict = {"reference": reference.label, "other": other.label, "compute": [], "params": []}
        pair = compare(reference, other) if optimum else nothing
        found.append(pair | {"differences": differences(first, fit)})
    return found


def differences(reference: Fit, other: Fit) -> list[dict]:
    """Of every parameter that is not the same in both, as one that was held, and of the loss in the middle of both fits' data:
    [{name, values, difference, ci}]."""
    names = [name for name in reference.names if name in other.names and reference.params[name] != other.params[name]]
    found = [
        _difference(
            name,
            [fit.params[name] for fit in (reference, other)],
            [None if fit.draws is None else fit.draws[:, fit.names.index(name)] for fit in (reference, other)],
            [fit.ci.get(name, (None, None)) for fit in (reference, other)],
        )
        for name in names
    ]
    middle = _middle(reference, other)
    shared = {name: _shared(name, reference, other) for name in reference.law_form.columns.values()}
    if middle is None or None in shared.values():
        return found
    columns = {name: (ends[0] + ends[1]) / 2 for name, ends in shared.items() if ends}
    fits = [fit.given(columns) for fit in (reference, other)]
    losses = [float(fit.predict(*middle)) for fit in fits]
    draws = [None if fit.draws is None else fit.predict_draws(*middle) for fit in fits]
    where = " ".join(f"{sign}={value:.3g}" for sign, value in (*zip("NDU", middle), *columns.items()))
    return [*found, _difference(f"loss at {where}", losses, draws)]


def _difference(name: str, values: list[float], draws: list, own: list | None = None) -> dict:
    """`own`: each one's interval; an end that the data leave open there is a limit of the fit in the draws."""
    ci = None
    if all(one is not None and len(one) for one in draws):
        count = min(map(len, draws))
        low, high = percentile_interval(draws[1][:count] - draws[0][:count])
        if own is not None:
            low = None if own[1][0] is None or own[0][1] is None else low
            high = None if own[1][1] is None or own[0][0] is None else high
        ci = [low, high]
    return {"name": name, "values": values, "difference": values[1] - values[0], "ci": ci}


def _middle(reference: Fit, other: Fit) -> list[float] | None:
    """N, D and U in the middle of what both were fitted to, in the logarithm; None where a fit does not say or they are apart."""
    shared = [_shared(name, reference, other) for name in ("params", "tokens", "unique_tokens")]
    middle = [math.sqrt(ends[0] * ends[1]) for ends in shared if ends]
    return [middle[0], middle[1], min(middle[1:])] if len(middle) == len(shared) else None


def _shared(name: str, reference: Fit, other: Fit) -> tuple[float, float] | None:
    """The least and the largest value of a column that both were fitted to; None where a fit does not say or they are apart."""
    ends = [fit.range.get(name) for fit in (reference, other)]
    low, high = max((end[0] for end in ends if end), default=1.0), min((end[1] for end in ends if end), default=0.0)
    return (low, high) if all(ends) and low <= high else None


def trends(fits: dict[str, Fit], rows: Sequence[dict], flags: Sequence[str]) -> list[dict]:
    """How each parameter goes with the flags of --by, for every objective with more parts than unknowns.

    ln P (or P, where it may be 0 or below) = k + sum of slopes times ln of a flag (or the flag, where a value is 0), by least
    squares weighted by the scatter of each part's draws; intervals from the draws, widened where the parts scatter by more.
    [{objective, parameter, parts, of: "ln P" | "P", constant, slopes: [{flag, of, value, ci}], constant_ci, excess}].
    """
    columns = [column_of(flag, rows) for flag in flags]
    members: dict[str, dict[str, dict]] = {}
    for row in rows:
        members.setdefault(row["trained_objective"], {})[row["objective"]] = row
    found = []
    for objective, parts in members.items():
        numeric = [
            name
            for name in columns
            if all(isinstance(row.get(name), (int, float)) for row in parts.values())
            and len({row[name] for row in parts.values()}) > 1
        ]
        known = [name for name in parts if fits[name].draws is not None]
        logs = [all(parts[name][flag] > 0 for name in known) for flag in numeric]
        if not numeric or len(known) < len(numeric) + 2:
            continue
        values = [[parts[name][flag] for flag in numeric] for name in known]
        x = np.array([[math.log(value) if log else value for value, log in zip(row, logs)] for row in values])
        for parameter in fits[known[0]].names:
            if any(None in fits[name].ci.get(parameter, ()) for name in known):
                continue  # draws of a part stand at the limits of the fit
            line = _trend(x, [fits[name] for name in known], parameter)
            if line is not None:
                of = [f"ln {spelled(flag)}" if log else spelled(flag) for flag, log in zip(numeric, logs)]
                slopes = [
                    {"flag": spelled(flag), "of": term, "value": value, "ci": ci}
                    for flag, term, value, ci in zip(numeric, of, line.pop("slopes"), line.pop("slopes_ci"))
                ]
                found.append({"objective": objective, "parameter": parameter, "parts": len(known)} | line | {"slopes": slopes})
    return found


def _trend(x: np.ndarray, fits: list[Fit], parameter: str) -> dict | None:
    """The line of one parameter over x [parts, flags]; None where it is one value, or x does not tell the slopes apart."""
    count = min(len(fit.draws) for fit in fits if fit.draws is not None)
    draws = np.array([fit.draws[:count, fit.names.index(parameter)] for fit in fits if fit.draws is not None])  # [parts, r]
    values = np.array([fit.params[parameter] for fit in fits])
    design = np.column_stack([np.ones(len(x)), x - x.mean(axis=0)])
    if not count or np.ptp(values) == 0 or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    log = bool((values > 0).all() and (np.quantile(draws, 0.025, axis=1) > 0).all())
    if log:
        values, draws = np.log(values), np.log(np.maximum(draws, np.finfo(float).tiny))
    spread = np.subtract(*np.quantile(draws, [0.84, 0.16], axis=1)) / 2  # of the normal distribution: its standard deviation
    if not (spread > 0).all():
        return None
    solve = np.linalg.pinv(design / spread[:, None]) / spread
    line = solve @ values
    excess = float(np.sum(((values - design @ line) / spread) ** 2) / (len(x) - design.shape[1]))
    moved = line[:, None] + (solve @ (draws - values[:, None])) * math.sqrt(max(1.0, excess))
    moved[0] -= x.mean(axis=0) @ moved[1:]
    return {
        "of": f"ln {parameter}" if log else parameter,
        "constant": float(line[0] - x.mean(axis=0) @ line[1:]),
        "constant_ci": percentile_interval(moved[0]),
        "excess": excess,
        "slopes": line[1:].tolist(),
        "slopes_ci": [percentile_interval(one) for one in moved[1:]],
    }


def trend_line(trend: dict) -> str:
    """ln P = -3.1 - 0.52 ln weight-decay + ..., for people."""
    terms = [f"{'+' if one['value'] >= 0 else '-'} {abs(one['value']):.3g} {one['of']}" for one in trend["slopes"]]
    return f"{trend['objective']}: {trend['of']} = {trend['constant']:.4g} {' '.join(terms)}"
