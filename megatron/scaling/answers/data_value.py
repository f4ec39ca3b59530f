"""What a repeated token is worth: D'/D by number of epochs, from the fitted R_D* and, independently, run by run.

D' = U + U R_D* (1 - exp(-(e - 1) / R_D*)) fresh tokens do as much as e epochs over U unique ones (Muennighoff et al.,
arXiv:2305.16264, equation 5), so a token of the D = e U seen ones is worth D'/D. A run measures the same without that form:
its loss, put into the law of fresh data at its N and solved for D, is the amount of fresh data that it equals.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import isotonic_regression

from megatron.errors import BadData
from megatron.scaling.answers.predict import NORMAL_975
from megatron.scaling.law.fit import fit_law
from megatron.scaling.table.labels import label_of

LEAST_EXCESS = 1.5  # of the scatter of values about the curve over their errors, before the band is widened
LEAST_SIZES, LEAST_FRESH = 3, 8  # for L(N, D) of fresh data: otherwise runs are compared with runs
FRESH = 1 + 1e-6  # epochs, up to which no token was seen twice
CURVED = 3  # parameters of a parabola
R_D_GRID = np.geomspace(1e-2, 1e6, 1601)  # one point a 1.2 %


@dataclass(frozen=True)
class DataValue:
    """One objective's curve with its 95 % band, and its runs. None in an interval is an open end."""

    label: str
    R_D: float
    R_D_ci: list | None  # None without an interval
    epochs: np.ndarray  # [n]
    value: np.ndarray  # D'/D, [n]
    low: np.ndarray | None  # [n], None without an interval
    high: np.ndarray | None
    points: list[dict] = field(default_factory=list)  # run, params, tokens, unique_tokens, epochs, loss, value, ci
    warnings: list[str] = field(default_factory=list)


def value_of_repeated(epochs, R_D):
    """D'/D after this many epochs: 1 up to one epoch, 1/e for R_D = 0 and 1 for R_D = inf. Arrays broadcast."""
    repeats = np.maximum(np.float64(epochs) - 1, 0)
    R_D = np.float64(R_D)
    with np.errstate(divide="ignore", invalid="ignore"):
        extra = np.where(np.isinf(R_D), repeats, np.where(R_D > 0, -np.expm1(-repeats / R_D) * R_D, 0.0))
    return (1 + extra) / (1 + repeats)


def curves_of(fits: dict, table, max_epochs: float, num_resamples: int, seed: int) -> dict[str, DataValue]:
    """objective -> curve: of each fit {path: Fit}, and of each objective of the table (or None) that no fit is about.

    Raises BadData where nothing repeats its data.
    """
    objectives = table.objectives if table else []
    furthest = np.max(_epochs(table)) if table else 1.0
    epochs = np.geomspace(1, max(max_epochs, furthest, 2), 201)
    curves = {}
    for path, fit in fits.items():
        objective = fit.conventions.get("objective") or (objectives[0] if len(objectives) == 1 else str(path))
        runs = table.only(objective) if objective in objectives else None
        curves[objective] = curve_from_fit(fit, epochs, label_of(objective, fit.conventions), runs)
    for objective in (one for one in objectives if one not in curves):
        curves[objective] = curve_of_table(table.only(objective), epochs, num_resamples, seed)
    return curves


def curve_of_table(table, epochs, num_resamples: int, seed: int) -> DataValue:
    """D'/D of runs of one objective: by a law that is fitted here or, where fresh runs are too few for L(N, D), run by run."""
    label = label_of(table.rows[0]["objective"], table.rows[0])
    fresh = _epochs(table) <= FRESH
    if fresh.all():
        raise BadData(
            f"{label}: none of the {len(table)} runs repeats its data (tokens above unique_tokens); "
            "add runs of several epochs, or name the column with --map unique_tokens=..."
        )
    if fresh.sum() < LEAST_FRESH or len(set(table.column("params")[fresh])) < LEAST_SIZES:
        return curve_from_runs(table, epochs, label, num_resamples, seed)
    fit = fit_law(table, "data-constrained", num_resamples=num_resamples, seed=seed)
    return curve_from_fit(fit, epochs, label, table)


def curve_from_fit(fit, epochs, label: str, table=None) -> DataValue:
    """D'/D of a data-constrained fit at `epochs` [n], and of every run of `table` that repeats its data.

    D'/D rises with R_D*, so that its band is the interval of R_D* carried over, end by end. Raises BadData where the fit
    has no R_D.
    """
    if "R_D" not in fit.params:
        raise BadData(f"{label}: found a fit of the form {fit.form}, which has no R_D*; fit the form data-constrained.")
    points = _points_from_law(fit, table) if table else []
    R_D = fit.params["R_D"]
    ci, said = _widened(R_D, fit.ci.get("R_D"), points)
    return replace(curve_at(epochs, label, R_D, ci), points=points, warnings=[*fit.warnings, *said])


def _widened(R_D: float, ci: list | None, points: list[dict]) -> tuple[list | None, list[str]]:
    """The interval of R_D*, by Birge's ratio wider where runs scatter about the curve by more than theirs say, and a sentence."""
    excess, said = _excess_scatter(points, R_D), []
    if ci and excess > LEAST_EXCESS:
        ci = [None if end is None else float(R_D * (end / R_D) ** excess) for end in ci]
        said.append(
            f"runs of equal epochs scatter: their values lie {excess:.3g} times further from the curve than their intervals say; "
            "the interval of R_D* is wider by that factor (Birge's ratio). Add seeds."
        )
    known = [point for point in points if point["value"]]
    apart = sum(_apart(point, ci) for point in known) if ci else 0
    if apart > len(known) / 2:
        said.append(
            f"{apart} of {len(known)} runs and their intervals lie outside of the band: the curve does not describe them, by "
            "sizes, epochs or what else they differ in."
        )
    return ci, said


def _apart(point: dict, ci: list) -> bool:
    """Whether the interval of a run, or its value without one, lies outside of the band of R_D*."""
    band = [value_of_repeated(point["epochs"], end if end is not None else open_end) for end, open_end in zip(ci, (0.0, np.inf))]
    low, high = (point["value"] if end is None else end for end in point["ci"])
    return high < band[0] or low > band[1]


def _excess_scatter(points: list[dict], R_D: float) -> float:
    """Birge's ratio: the root mean square of (ln value - ln curve) over its standard error, of points with both; else 1."""
    squares = []
    for point in points:
        ends = [end for end in point["ci"] if end]
        if point["value"] and ends:
            error = max(abs(np.log(end / point["value"])) for end in ends) / NORMAL_975
            off = np.log(point["value"] / value_of_repeated(point["epochs"], R_D))
            squares.append((off / max(error, 1e-12)) ** 2)
    return float(np.sqrt(np.sum(squares) / (len(squares) - 1))) if len(squares) > 1 else 1.0


def curve_from_runs(table, epochs, label: str, num_resamples: int = 400, seed: int = 0) -> DataValue:
    """D'/D without a law: each size's fresh runs, interpolated in (ln D, ln loss), say what a repeating run is worth.

    R_D* then fits those values by least squares of ln D'/D. Its interval, and those of the values, are of the same with the
    losses of all runs, fresh ones too, drawn anew with the scatter of one run (`_loss_scatter`); where nothing tells that, a
    bootstrap over the repeating runs is all there is. Raises BadData where no repeating run lies between two fresh ones of its
    size.
    """
    values, warnings = _values_from_fresh_runs(table)
    repeating = np.flatnonzero(~np.isnan(values))
    used = repeating[np.isfinite(values[repeating])]
    points = [_point(table.rows[row], values[row], [np.nan, np.nan]) for row in repeating]
    if not len(used):
        raise BadData(
            f"{label}: none of the {len(points)} runs that repeat data has a loss between those of two fresh runs of "
            "its size, and the table is too small for L(N, D); add fresh runs of that size with fewer tokens."
        )
    epochs_of = _epochs(table)
    ci: list | None
    R_D, ci = _fit_repeats(epochs_of[used], values[used], num_resamples, seed)
    known = _loss_scatter(table)
    if known and num_resamples:
        drawn = _redrawn_values(table, *known, num_resamples, seed)
        ci = _ends(np.array([_least(_misfit(epochs_of[used], draw[used])) for draw in drawn]))
        low, high = (np.quantile(drawn[:, repeating], share, axis=0, method="nearest") for share in (0.025, 0.975))
        points = [_point(table.rows[row], values[row], ends) for row, *ends in zip(repeating, low, high)]
        ci, said = _widened(R_D, ci, points)
        warnings += said
    else:
        warnings.append(
            "no equal runs and no four fresh lengths of one size tell how far a run scatters: the interval of R_D* holds the "
            "scatter of the repeating runs about the curve alone. Add seeds."
        )
    if len(used) < len(points):
        warnings.append(
            f"{len(points) - len(used)} of {len(points)} repeating runs lie outside the losses of the fresh runs of "
            "their size: no value for them."
        )
    return replace(curve_at(epochs, label, R_D, ci), points=points, warnings=warnings)


def as_record(curve: DataValue) -> dict:
    """A curve as JSON takes it: lists, and None for what is not there."""
    arrays = {name: getattr(curve, name) for name in ("epochs", "value", "low", "high")}
    return vars(curve) | {name: None if array is None else array.tolist() for name, array in arrays.items()}


def curve_at(epochs, label: str, R_D: float, ci) -> DataValue:
    """The curve without runs; an open end of the interval of R_D* is carried to its limit (1/e below, 1 above)."""
    epochs = np.asarray(epochs, np.float64)
    ends = (0.0 if ci[0] is None else ci[0], np.inf if ci[1] is None else ci[1]) if ci else ()
    low, high = [value_of_repeated(epochs, end) for end in ends] or (None, None)
    return DataValue(label, R_D, list(ci) if ci else None, epochs, value_of_repeated(epochs, R_D), low, high)


def _epochs(table):
    return table.column("tokens") / table.column("unique_tokens")


def _points_from_law(fit, table) -> list[dict]:
    """Each repeating run's loss turned into fresh tokens by the law at its N, after its size's fresh runs have set the level."""
    params, tokens, unique, loss = (table.column(name) for name in ("params", "tokens", "unique_tokens", "loss"))
    epochs = tokens / unique
    fresh = epochs <= FRESH
    off = np.log(loss) - np.log(fit.predict(params, tokens, unique))
    scatter = float(np.std(off[fresh])) if fresh.sum() > 2 else float(np.sqrt(np.mean(off**2)))
    level = np.array([np.mean(off[same]) if np.any(same := fresh & (params == size)) else 0.0 for size in params])
    loss = loss * np.exp(-level)
    value = _invert(fit.params, fit.predict(params, tokens, unique), loss, tokens, epochs)
    low, high = _drawn_values(fit, params, tokens, unique, loss, scatter)
    return [_point(table.rows[row], value[row], [low[row], high[row]]) for row in np.flatnonzero(~fresh)]


def _drawn_values(fit, params, tokens, unique, loss, scatter: float):
    """The 95 % interval of every run's value, [2, n]: over the draws of the law and the scatter of ln loss; NaN without draws."""
    if fit.draws is None:
        return np.full((2, len(loss)), np.nan)
    law = dict(zip(fit.names, fit.draws.T[:, :, None]))
    noise = np.exp(scatter * np.random.default_rng(fit.seed).standard_normal((len(fit.draws), len(loss))))
    drawn = _invert(law, fit.predict_draws(params, tokens, unique), loss * noise, tokens, tokens / unique)
    return np.stack([np.quantile(drawn, 0.025, axis=0, method="lower"), np.quantile(drawn, 0.975, axis=0, method="higher")])


def _invert(law, predicted, loss, tokens, epochs):
    """D'/D at which the law gives this loss: B / D'^beta is what the law leaves it above its other terms. inf: nothing left."""
    data_term = law["B"] * (tokens * value_of_repeated(epochs, law["R_D"])) ** -law["beta"]
    left = loss - (predicted - data_term)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(left > 0, (law["B"] / np.where(left > 0, left, 1)) ** (1 / law["beta"]) / tokens, np.inf)


def _values_from_fresh_runs(table, loss=None) -> tuple[np.ndarray, list[str]]:
    """D'/D of every run [n], by these losses or its own: NaN of fresh runs, inf where the fresh ones of its size do not say."""
    params, tokens, epochs = (*(table.column(name) for name in ("params", "tokens")), _epochs(table))
    loss = table.column("loss") if loss is None else loss
    values, warnings = np.full(len(params), np.nan), []
    for size in np.unique(params):
        fresh = (params == size) & (epochs <= FRESH)
        repeating = np.flatnonzero((params == size) & ~fresh)
        if len(repeating) and len(np.unique(tokens[fresh])) < 2:
            warnings.append(f"N = {size:,.0f}: fewer than two fresh runs to compare its repeating runs with.")
        values[repeating] = _interpolate(loss[repeating], tokens[fresh], loss[fresh]) / tokens[repeating]
    return values, warnings


def _loss_scatter(table) -> tuple[float, int] | None:
    """(standard deviation of ln loss of one run, degrees of freedom): of the fresh runs of each size about a parabola in ln D,
    and of repeating runs that agree in N, D and U; None where neither has any."""
    params, tokens, unique, loss = (table.column(name) for name in ("params", "tokens", "unique_tokens", "loss"))
    fresh, squares, freedom = _epochs(table) <= FRESH, 0.0, 0
    for size in np.unique(params):
        x, y = np.log(tokens[fresh & (params == size)]), np.log(loss[fresh & (params == size)])
        if len(np.unique(x)) > CURVED:
            squares += float(np.sum((y - np.polyval(np.polyfit(x - x.mean(), y, CURVED - 1), x - x.mean())) ** 2))
            freedom += len(x) - CURVED
    _, group, counts = np.unique(np.stack([params, tokens, unique])[:, ~fresh], axis=1, return_inverse=True, return_counts=True)
    y = np.log(loss[~fresh])
    squares += float(np.sum((y - (np.bincount(group.ravel(), y) / counts)[group.ravel()]) ** 2))
    freedom += int(np.sum(counts - 1))
    return (float(np.sqrt(squares / freedom)), freedom) if freedom else None


def _redrawn_values(table, scatter: float, freedom: int, num_draws: int, seed: int) -> np.ndarray:
    """`_values_from_fresh_runs` [draws, n] of losses drawn about those of the runs, the scatter with its own error."""
    random, loss = np.random.default_rng(seed), table.column("loss")
    sigma = scatter * np.sqrt(freedom / random.chisquare(freedom, num_draws))
    noise = sigma[:, None] * random.standard_normal((num_draws, len(loss)))
    return np.array([_values_from_fresh_runs(table, loss * np.exp(one))[0] for one in noise])


def _interpolate(loss, fresh_tokens, fresh_loss):
    """The fresh tokens that reach these losses; inf where the fresh runs do not bracket them."""
    if len(fresh_tokens) < 2:
        return np.full(len(loss), np.inf)
    order = np.argsort(fresh_tokens)
    falling = isotonic_regression(np.log(fresh_loss[order]), increasing=False).x  # more fresh data never hurts: a rise is noise
    x, y = falling[::-1], np.log(fresh_tokens[order][::-1])
    return np.exp(np.interp(np.log(loss), x, y, left=np.inf, right=np.inf))


def _point(row: dict, value: float, ci) -> dict:
    """A run with its value; None where no amount of fresh data would do."""
    known, *ends = (float(x) if np.isfinite(x) else None for x in (value, *ci))
    return {
        **{name: row[name] for name in ("run", "params", "tokens", "unique_tokens", "loss")},
        "epochs": row["tokens"] / row["unique_tokens"],
        "value": known,
        "ci": ends,
    }


def _fit_repeats(epochs, value, num_resamples: int, seed: int) -> tuple[float, list]:
    """R_D* of least squared ln D'/D on a fine grid, and its bootstrap interval; an end that met the grid's is open."""
    errors = _misfit(epochs, value)
    counts = np.random.default_rng(seed).multinomial(len(value), np.full(len(value), 1 / len(value)), num_resamples)
    return _least(errors), _ends(R_D_GRID[np.argmin(counts @ errors, axis=1)])


def _misfit(epochs, value) -> np.ndarray:
    """Squared differences of ln D'/D from the curve of every R_D* of the grid, [points, grid]; 0 of a point without a value."""
    known = np.isfinite(value)[:, None]
    return np.where(known, np.log(value_of_repeated(epochs[:, None], R_D_GRID) / np.where(known, value[:, None], 1)) ** 2, 0.0)


def _least(errors) -> float:
    return float(R_D_GRID[np.argmin(errors.sum(axis=0))])


def _ends(drawn) -> list:
    """The 95 % interval of draws of R_D*; an end that met the grid's is open."""
    low, high = np.quantile(drawn, 0.025, method="lower"), np.quantile(drawn, 0.975, method="higher")
    return [None if low == R_D_GRID[0] else float(low), None if high == R_D_GRID[-1] else float(high)]
