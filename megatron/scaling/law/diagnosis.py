"""What a reader must know before using a fitted law, a sentence each."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.special import fdtrc

from megatron.scaling.law.fitted import Fit
from megatron.scaling.law.form import Form, Rows

VANISHED = 1e-3  # of the smallest loss: an E below that is none
CLOSE = 1.01  # objectives within this ratio are equally good
LEVEL_BIAS = 3.0  # standard errors, and
LEAST_BIAS = 2e-3  # of the loss: less than another seed changes
NO_CHANCE = 0.01  # p-value of a pattern in the residuals below which it is none of noise
ROUNDING = 1e-6  # of ln L
OUTLIER = 3.0  # standard deviations, beyond which a residual counts as that far off
LEAST_LEVEL, LEAST_APART = 3, 0.05  # rows of a level, and between two in ln L


def diagnose(fit: Fit, law: Form, rows: Rows, theta, low, high, residual) -> list[str]:
    """The warnings of a fit; theta [p] with its bounds, residual [n] = ln L - ln loss."""
    free = low < high
    found = _few(fit, law, rows, int(free.sum()))
    found += law.doubts(rows) + _at_bounds(law, theta, low, high, free)
    if vanished(fit, rows) and not any("E tends" in w for w in found):
        found.append("E tends to 0: the irreducible loss is not identified.")
    if fit.condition > 1e4:
        found.append(f"condition number {fit.condition:.1e}: some combination of the parameters is not identified.")
    found += _optima(fit)
    found += _open_intervals(fit)
    if fit.failed_resamples > 0.05 * fit.num_resamples:
        effect = "the intervals are too narrow" if fit.ci else "there are no intervals"
        found.append(f"{fit.failed_resamples} of {fit.num_resamples} resamples could not be fitted: {effect}.")
    if fit.held and fit.draws is not None and "alpha" not in fit.ci:
        found.append("the held Chinchilla part came without draws: the intervals take it as exact.")
    return found + _misfit(fit, law, rows, residual) + _pattern(fit, law, rows, theta, free, residual)


def vanished(fit: Fit, rows: Rows) -> bool:
    """Whether the law has an irreducible loss, and the fit of it is none."""
    return "E" in fit.params and fit.params["E"] < VANISHED * np.exp(rows.loss.min())


def _few(fit: Fit, law: Form, rows: Rows, num_free: int) -> list[str]:
    """Too little of anything to show what is asked."""
    found = []
    if fit.num_runs <= num_free:
        found.append(f"{fit.num_runs} runs for {num_free} parameters: the law interpolates, its residuals say nothing.")
    elif fit.num_runs < 3 * num_free:
        found.append(f"only {fit.num_runs} runs for {num_free} parameters: the 95 % intervals cover less than that.")
    if fit.num_runs < fit.rows_used:
        found.append(f"{fit.rows_used} rows are {fit.num_runs} clusters: intervals count clusters.")
    for name, axis in (("N", "params"), ("D", "tokens"), ("C", "flops")):
        values = len(np.unique(np.round(getattr(rows, axis), 6)))
        if axis in law.axes and values < 3:
            found.append(f"only {values} values of {name}: its exponent is not identified.")
    for symbol, column in rows.covariates.items():
        values = len(np.unique(column))
        if values < 3:
            found.append(f"only {values} value{'s' * (values > 1)} of {law.columns[symbol]}: what follows it is not identified.")
    if not law.repeats and rows.repeated.any() and len(law.axes) == 2:
        epochs = np.exp(np.max(rows.tokens - rows.unique))
        found.append(
            f"{rows.repeated.sum()} of {len(rows)} rows repeat their data, up to {epochs:.3g} epochs, which {law.name} takes for "
            "fresh: fit --form data-constrained, or leave them out with --drop 'epochs>1'."
        )
    if "R_D" in law.names and not rows.repeated.any():
        found.append("no row repeats data: R_D and R_N are not identified.")
    if "E" in law.names and len(law.axes) == 2 and _rise_together(rows):
        found.append("N and D rise together in all rows: which of them lowers the loss is not identified.")
    return found


def _rise_together(rows: Rows) -> bool:
    """Whether ln N and ln D lie on one line, neither of them constant."""
    axes = np.stack([rows.centred("params"), rows.centred("tokens")])
    spread = axes.std(axis=1)
    return bool(np.all(spread > 0.01)) and abs(np.mean(axes[0] * axes[1])) > 0.999 * np.prod(spread)


def _at_bounds(law: Form, theta, low, high, free) -> list[str]:
    found = []
    for i, name in enumerate(law.solved):
        side = "low" if theta[i] <= low[i] + 1e-9 else "high" if theta[i] >= high[i] - 1e-9 else None
        if side and free[i]:
            found.append(
                "E tends to 0: the irreducible loss is not identified."
                if (name, side) == ("E", "low")
                else f"{name} stopped at a bound ({side}): it is not identified."
            )
    return found


def _optima(fit: Fit) -> list[str]:
    found = []
    if fit.basins and fit.basins[0]["objective"] < CLOSE * fit.objective:
        found.append("another optimum is within 1 % of this one: see `other optimum` (fit.json: basins).")
    if fit.share_at_optimum < 0.1:
        found.append(f"only {fit.share_at_optimum:.1%} of {fit.num_starts} starts reached the optimum.")
    return found


def _open_intervals(fit: Fit) -> list[str]:
    """Ends that the data do not bound, by the intervals and by the profile."""
    found = []
    for method, intervals in (("95 % interval", fit.ci), ("profile interval", fit.profile)):
        for name, (low, high) in intervals.items():
            if None in (low, high) and (method, name) not in {("profile interval", same) for same in _open_in(fit.ci)}:
                end = "below" if high is not None else "above" if low is not None else "on either side"
                found.append(f"the {method} of {name} is unbounded {end}.")
    return found


def _open_in(intervals: dict) -> list[str]:
    return [name for name, ends in intervals.items() if None in ends]


def _two_levels(residual) -> list[str]:
    """Whether the losses stand on two levels, as two definitions in one column do: nats and bits, a token and a byte."""
    order = np.sort(residual)
    gaps = np.diff(order)[LEAST_LEVEL - 1 : len(order) - LEAST_LEVEL]
    if not len(gaps):
        return []
    place = int(gaps.argmax()) + LEAST_LEVEL
    below, above = order[:place], order[place:]
    spread = np.sqrt((np.sum((below - below.mean()) ** 2) + np.sum((above - above.mean()) ** 2)) / len(order))
    apart = above.mean() - below.mean()
    if apart < LEAST_APART or gaps.max() < max(3 * spread, 0.5 * apart):
        return []
    return [
        f"losses stand on two levels, {len(above)} rows {np.exp(apart):.3g} times lower than the other {len(below)}: two "
        "definitions of the loss in one column (nats and bits differ 1.44 times)? Fit them apart."
    ]


def _misfit(fit: Fit, law: Form, rows: Rows, residual) -> list[str]:
    """Residuals that are more than noise."""
    found = []
    floor = fit.noise_floor
    if floor and floor["degrees_of_freedom"] >= 3 and fit.residual_rms > 2 * floor["rms"]:
        found.append(
            f"the residuals (rms {fit.residual_rms:.2g} of ln L) are {fit.residual_rms / floor['rms']:.2g} times the "
            f"scatter of replicates ({floor['rms']:.2g}): the form does not describe these runs."
        )
    if len(law.axes) > 1:  # of a law of N alone, what D does looks like levels
        found += _two_levels(residual)
    single = ~rows.repeated
    if "R_D" in law.names and single.sum() >= 5 and rows.repeated.any():
        mean, error = residual[single].mean(), residual[single].std(ddof=1) / np.sqrt(single.sum())
        if abs(mean) > max(LEVEL_BIAS * error, LEAST_BIAS):
            found.append(f"level bias: single-epoch losses are predicted {100 * np.expm1(mean):+.2g} % off on average.")
    if fit.holdout and fit.holdout["rms"] > 3 * fit.residual_rms:
        found.append(
            f"the hold-out error (rms {fit.holdout['rms']:.2g} of ln L) is {fit.holdout['rms'] / fit.residual_rms:.2g} "
            "times the residuals of the fit: do not extrapolate that way."
        )
    return found


def _pattern(fit: Fit, law: Form, rows: Rows, theta, free, residual) -> list[str]:
    """Whether squares, products and cubes of the law's variables explain more of the residuals than chance would, beside what a
    move of its parameters explains (F test); of runs that are independent, one row each."""
    if fit.num_runs < len(rows) or np.sqrt(np.mean(residual**2)) < ROUNDING:
        return []
    far = OUTLIER * 1.4826 * np.median(np.abs(residual))  # as the fit itself, the test does not rest on a few rows
    residual = np.clip(residual, -far, far)
    axes = [*law.axes, *(["unique"] if law.repeats and len(law.axes) > 1 else [])]
    x = np.array([*(getattr(rows, axis) for axis in axes), *rows.covariates.values()]).reshape(-1, len(rows))
    x = x[np.ptp(x, axis=1) > 0]
    x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    products = [x[i] * x[j] for i, j in itertools.combinations_with_replacement(range(len(x)), 2)]
    own = law.log_loss(theta[None], rows)[1][0][free]
    own = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), np.finfo(float).tiny)
    before, taken = _left_over(own, residual)
    after, more = _left_over(np.concatenate([own, products, x**3]), residual)
    freedom = len(rows) - more
    if freedom < LEAST_LEVEL or more <= taken:
        return []
    F = (before - after) / (more - taken) / max(after / freedom, np.finfo(float).tiny)
    p = float(fdtrc(more - taken, freedom, max(F, 0.0)))
    if p > NO_CHANCE:
        return []
    return [
        f"lack of fit: the residuals have a pattern (rms {np.sqrt((before - after) / len(rows)):.2g} of ln L) that noise has not "
        f"(F {F:.3g}, p {p:.2g}): the form does not describe these runs over their whole range; try others (`rank`), or leave a "
        "part out with --drop."
    ]


def _left_over(columns, residual) -> tuple[float, int]:
    """(sum of squares that least squares on these columns [k, n] leaves of residual [n], their rank)."""
    coefficients, _, rank, _ = np.linalg.lstsq(columns.T, residual, rcond=1e-8)
    return float(np.sum((residual - columns.T @ coefficients) ** 2)), int(rank)
