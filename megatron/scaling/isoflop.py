"""IsoFLOP analysis: a parabola per compute budget, its minimum, and how the minima grow with compute.

Hoffmann et al., arXiv:2203.15556, approach 2. Intervals come from a parametric bootstrap: a budget has 4 or 5 sizes and
its parabola 3 coefficients, so that runs drawn with replacement would often leave no parabola at all. Instead every
run's loss is drawn anew around the fitted curve with sigma = max(scatter, the run's own `se_noise`), where the scatter is
that of the residuals pooled over the budgets and is itself drawn (chi-squared with its degrees of freedom). A draw whose
minimum leaves its data, or whose parabola is concave, makes the interval open on that side (None). The error of the
evaluation rows is the same for all runs, does not move a minimum, and is left out.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from megatron.errors import BadData

LEAST_SIZES = 3
SAME_BUDGET = 0.1               # largest gap in ln C between neighbours of one budget
WIDEST_BUDGET = 0.25            # largest spread in ln C of one budget


@dataclass(frozen=True)
class Minimum:
    """The vertex of one budget's parabola loss = c0 + c1 x + c2 x^2, x = log10 N - shift. `reason` says why it is not used."""
    flops: float
    params: float
    tokens: float
    loss: float
    coefficients: tuple[float, float, float]
    shift: float
    params_range: tuple[float, float]       # of the data
    num_runs: int
    reason: str | None
    params_ci: tuple = (None, None)         # None: open, the data do not bound it
    tokens_ci: tuple = (None, None)
    loss_ci: tuple = (None, None)
    share_interior: float | None = None     # of the draws

    def curve(self, params):
        """The fitted loss at these parameter counts."""
        return np.polynomial.polynomial.polyval(np.log10(params) - self.shift, self.coefficients)


@dataclass(frozen=True)
class IsoFlop:
    """The minima by rising budget and the exponents of N* ~ C^a, D* ~ C^b; None where fewer than two minima are inside."""
    minima: list[Minimum]
    exponents: dict[str, float | None]
    ci: dict[str, list | None]
    scatter: float | None                   # residual standard deviation, nats; None without degrees of freedom
    degrees_of_freedom: int
    num_resamples: int
    failed_resamples: int                   # draws with fewer than two minima inside
    seed: int
    draws: dict[str, np.ndarray] = field(repr=False)        # params, tokens, loss: [resamples, budgets], NaN outside
    warnings: list[str] = field(default_factory=list)

    @property
    def interior(self) -> list[Minimum]:
        """The minima that the exponents use."""
        return [minimum for minimum in self.minima if minimum.reason is None]


def group_budgets(flops) -> list[np.ndarray]:
    """Row numbers of each compute budget, by rising C: a gap above 10 % starts a new one."""
    order = np.argsort(flops, kind="stable")
    gaps = np.diff(np.log(np.asarray(flops, np.float64)[order])) > SAME_BUDGET
    return np.split(order, np.flatnonzero(gaps) + 1)


def fit_isoflop(flops, N, D, loss, se_noise=None, num_resamples=1000, seed=0) -> IsoFlop:
    """Fit the minima of loss over log10 N at each budget, and the exponents by least squares over the interior ones.

    All columns [n]; `se_noise` is each loss's own standard error in nats (0 where unknown). Raises BadData for values
    without a logarithm; budgets that cannot carry a parabola are named in `warnings`.
    """
    columns = [np.asarray(column, np.float64) for column in (flops, N, D, loss)]
    if not all(np.all(np.isfinite(column) & (column > 0)) for column in columns):
        raise BadData("flops, params, tokens and loss must be positive numbers: leave out unfinished runs.")
    columns.append(np.zeros_like(columns[0]) if se_noise is None else np.asarray(se_noise, np.float64))
    groups, warnings = _usable(columns[0], columns[1])
    budgets = [tuple(column[rows] for column in columns) for rows in groups]
    minima = [_minimum(*budget[:4]) for budget in budgets]
    warnings += [f"budget {m.flops:.3g}: {m.reason}; left out of the exponents." for m in minima if m.reason]
    scatter, freedom = _scatter(minima, budgets)
    draws = _resample(minima, budgets, scatter, freedom, num_resamples, seed)
    minima = [_with_intervals(minimum, draws, number) for number, minimum in enumerate(minima)]
    exponents, ci, failed = _exponents(minima, draws)
    if minima and draws["loss"].size == 0:
        warnings.append("no intervals: every parabola passes through its points and no run states its noise.")
    if failed > 0.05 * num_resamples:
        warnings.append(f"{failed} of {num_resamples} draws had fewer than two minima inside their data.")
    return IsoFlop(minima=minima, exponents=exponents, ci=ci, scatter=scatter, degrees_of_freedom=freedom,
                   num_resamples=len(draws["loss"]), failed_resamples=failed, seed=seed, draws=draws, warnings=warnings)


def _usable(flops, params):
    """The budgets that can carry a parabola, and a sentence for each that cannot."""
    usable, warnings = [], []
    for rows in group_budgets(flops):
        low, high, sizes = flops[rows].min(), flops[rows].max(), len(np.unique(params[rows]))
        if sizes < LEAST_SIZES:
            warnings.append(f"budget {low:.3g}: {sizes} size(s), a parabola needs {LEAST_SIZES}; left out.")
        elif np.log(high / low) > WIDEST_BUDGET:
            warnings.append(f"{len(rows)} runs from {low:.3g} to {high:.3g} FLOPs leave no gap and are not one budget; left out.")
        else:
            usable.append(rows)
    return usable, warnings


def _minimum(flops, params, tokens, loss) -> Minimum:
    shift = float(np.log10(params).mean())
    x = np.log10(params) - shift
    coefficients = np.linalg.lstsq(_design(x), loss, rcond=None)[0]
    low, high, budget = x.min(), x.max(), float(np.median(flops))
    vertex = _vertex(coefficients)
    if np.isnan(vertex):
        reason = "concave parabola, no minimum"
    else:
        reason = None if low < vertex < high else "minimum outside the data"
    # without a minimum in the data, the place shown is the end of the data where the curve is lowest
    at = vertex if reason is None else min(low, high, key=lambda end: float(_curve(end, coefficients)))
    return Minimum(flops=budget, params=float(10 ** (at + shift)), tokens=_tokens_at(at, x, tokens), num_runs=len(loss),
                   loss=float(_curve(at, coefficients)), coefficients=tuple(coefficients.tolist()), shift=shift,
                   params_range=(float(params.min()), float(params.max())), reason=reason)


def _design(x):
    return np.stack([np.ones_like(x), x, x * x], axis=1)


def _curve(x, coefficients):
    return coefficients[..., 0] + x * (coefficients[..., 1] + x * coefficients[..., 2])


def _vertex(coefficients):
    """x of the minimum, NaN where the parabola [..., 3] is not convex."""
    slope, bend = coefficients[..., 1], coefficients[..., 2]
    return np.where(bend > 0, -slope / np.where(bend > 0, 2 * bend, 1), np.nan)


def _tokens_at(at, x, tokens):
    """D at these x, between the runs of the budget (exact under C = 6 N D, right under any convention)."""
    order = np.argsort(x, kind="stable")
    found = np.exp(np.interp(at, x[order], np.log(tokens[order])))
    return float(found) if np.ndim(found) == 0 else found


def _scatter(minima, budgets):
    """Residual standard deviation pooled over the budgets, in nats, and its degrees of freedom."""
    freedom = sum(max(0, len(budget[3]) - 3) for budget in budgets)
    squares = sum(np.sum((minimum.curve(budget[1]) - budget[3]) ** 2) for minimum, budget in zip(minima, budgets))
    return (float(np.sqrt(squares / freedom)), freedom) if freedom else (None, 0)


def _resample(minima, budgets, scatter, freedom, num_resamples, seed):
    """Draws [resamples, budgets]: params (-inf, inf where the minimum leaves the data), tokens, and loss."""
    random = np.random.default_rng(seed)
    if not scatter and not any(np.any(budget[4] > 0) for budget in budgets):
        num_resamples = 0
    drawn_scatter = np.zeros(num_resamples)
    if scatter:
        drawn_scatter = scatter * np.sqrt(freedom / random.chisquare(freedom, num_resamples))
    columns = [_resample_budget(minimum, budget, drawn_scatter, random) for minimum, budget in zip(minima, budgets)]
    shape = (num_resamples, len(minima))
    names = ("params", "tokens", "loss")
    return {name: np.array([column[i] for column in columns]).T.reshape(shape) for i, name in enumerate(names)}


def _resample_budget(minimum, budget, drawn_scatter, random):
    _, params, tokens, _, se_noise = budget
    x = np.log10(params) - minimum.shift
    sigma = np.maximum(drawn_scatter[:, None], se_noise)
    losses = minimum.curve(params) + sigma * random.standard_normal(sigma.shape)
    coefficients = losses @ np.linalg.pinv(_design(x)).T
    vertex, low, high = _vertex(coefficients), x.min(), x.max()
    falls_right = _curve(high, coefficients) < _curve(low, coefficients)
    inside = (low < vertex) & (vertex < high)
    at = np.where(inside, vertex, np.where(falls_right, high, low))
    open_end = np.where(falls_right, np.inf, -np.inf)
    found_params = np.where(inside, 10 ** (at + minimum.shift), open_end)
    found_tokens = np.where(inside, _tokens_at(at, x, tokens), -open_end)
    return found_params, found_tokens, _curve(at, coefficients)


def _interval(draws) -> tuple:
    """95 % percentile interval; an end that falls on an infinite draw is None: open."""
    if not len(draws):
        return (None, None)
    ends = np.quantile(draws, 0.025, method="lower"), np.quantile(draws, 0.975, method="higher")
    return tuple(float(end) if np.isfinite(end) else None for end in ends)


def _with_intervals(minimum, draws, number) -> Minimum:
    columns = {name: column[:, number] for name, column in draws.items()}
    share = float(np.mean(np.isfinite(columns["params"]))) if len(columns["params"]) else None
    return replace(minimum, share_interior=share, **{f"{name}_ci": _interval(column) for name, column in columns.items()})


def _exponents(minima, draws):
    """Slopes of ln N* and ln D* on ln C over the interior minima, their intervals, and the number of draws without one."""
    used = np.array([minimum.reason is None for minimum in minima], bool)
    if used.sum() < 2:
        return {"a": None, "b": None}, {"a": None, "b": None}, 0
    ln_flops = np.log([minimum.flops for minimum in minima])[used]
    inside = np.isfinite(draws["params"][:, used])
    enough = inside.sum(axis=1) >= 2
    values, ci = {}, {}
    for name, column in (("a", "params"), ("b", "tokens")):
        points = np.log([getattr(minimum, column) for minimum in minima])[used]
        values[name] = float(slope(ln_flops, points)[0])
        drawn = np.log(np.where(inside, draws[column][:, used], 1.0))[enough]
        slopes = slope(ln_flops, drawn, inside[enough])
        ci[name] = list(_interval(slopes)) if len(slopes) else None
    return values, ci, int(np.sum(~enough))


def slope(x, y, used=None):
    """Least-squares slope of y [..., n] on x [n] over the points in `used` [..., n], one for each leading index."""
    y = np.atleast_2d(y)
    weight = np.ones_like(y) if used is None else np.asarray(used, np.float64)
    total = weight.sum(axis=-1, keepdims=True)
    from_mean = x - np.sum(weight * x, axis=-1, keepdims=True) / total
    return np.sum(weight * from_mean * y, axis=-1) / np.sum(weight * from_mean**2, axis=-1)


def equal_loss_ratios(cheap: IsoFlop, dear: IsoFlop) -> list[dict]:
    """At each common interior budget C of both: C / C', where C' is the compute at which `cheap` has the loss `dear` has at C.

    C' comes from the power law ln L = p + q ln C through the interior minima of `cheap` (two or more; the form of
    Nie et al., arXiv:2410.18514, section 4); `extrapolated` where C' lies outside them.
    """
    used = [i for i, minimum in enumerate(cheap.minima) if minimum.reason is None]
    ln_flops = np.log([cheap.minima[i].flops for i in used])
    if len(used) < 2:
        return []
    ln_losses = np.log([[cheap.minima[i].loss for i in used]])
    pairs = min(len(cheap.draws["loss"]), len(dear.draws["loss"]))
    ln_draws = np.log(cheap.draws["loss"][:pairs, used])
    found = []
    for number, minimum in enumerate(dear.minima):
        ln_budget = np.log(minimum.flops)
        if minimum.reason is None and np.min(np.abs(ln_flops - ln_budget)) <= SAME_BUDGET:
            point = _ln_ratio(ln_flops, ln_losses, ln_budget, np.log([minimum.loss]))[0]
            drawn = _ln_ratio(ln_flops, ln_draws, ln_budget, np.log(dear.draws["loss"][:pairs, number]))
            equal = minimum.flops * np.exp(-point)
            outside = not np.exp(ln_flops[0]) * 0.99 <= equal <= np.exp(ln_flops[-1]) * 1.01
            found.append({"flops": minimum.flops, "loss": minimum.loss, "ratio": float(np.exp(point)),
                          "equal_flops": float(equal), "ci": list(_interval(np.exp(drawn))), "extrapolated": outside})
    return found


def _ln_ratio(ln_flops, ln_losses, ln_flops_at, ln_loss_at):
    """ln (C / C') for rows of fitted ln losses [r, budgets] and of the other's ln loss [r] at ln C."""
    steepness = slope(ln_flops, ln_losses)
    level = ln_losses.mean(axis=1) - steepness * ln_flops.mean()
    return ln_flops_at - (ln_loss_at - level) / steepness
