"""IsoFLOP analysis: a curve per compute budget, its minimum, and how the minima grow with compute.

Hoffmann et al., arXiv:2203.15556, approach 2, whose parabolas are biased where a loss is not symmetric about its minimum: they
are tested against the shape that a law in N and D has (see valley.py), which takes their place where the data reject them.
Intervals come from a parametric bootstrap: a budget has 4 or 5 sizes and its curve 3 coefficients, so that runs drawn with
replacement would often leave no curve at all. Instead every run's loss is drawn anew around the fitted curve with
sigma = max(scatter, the run's own `se_noise`), where the scatter is that of the budget's residuals, or of all budgets' where
it has few, and is itself drawn (chi-squared with its degrees of freedom). Draws are around curves of the law's shape, and
fitted by such, wherever that shape can be told: a parabola that the test lets pass may still be biased, by less than such an
interval. A draw whose minimum leaves its data, or has none, makes the interval open on that side (None).
The error of the evaluation rows is the same for all runs, does not move a minimum, and is left out. With many runs a
budget, or several seeds, clusters of rows can be drawn with replacement instead (`ci="cluster"`), within each budget where
no cluster spans two.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import numpy as np

from megatron.errors import BadData
from megatron.progress import ProgressLine
from megatron.scaling.answers.valley import (
    LAW,
    LEAST_FREEDOM,
    PARABOLA,
    Curves,
    Misfit,
    Points,
    Valleys,
    design,
    evaluate,
    fit_law_shape,
    fit_parabolas,
    lack_of_fit,
    vertex,
)
from megatron.scaling.law.intervals import percentile_interval
from megatron.scaling.table.table import Table

LEAST_SIZES = 3
FEW_SIZES = 4  # below it a parabola passes through its points
MOST_NAMED = 3  # budgets with too few sizes, before the rest is a number
SAME_BUDGET = 0.1  # largest gap in ln C between neighbours of one budget
OWN_FREEDOM = 5  # degrees of freedom from which a budget's own residuals say how much it scatters
WIDEST_BUDGET = 0.25  # largest spread in ln C of one budget
CELLS_AT_ONCE = 4_000_000  # rows times resamples that stand in memory
DRAWN = ("params", "tokens", "loss")
EXPONENTS = {"a": ("params", 1.0), "b": ("tokens", 1.0), "g": ("loss", -1.0)}


@dataclass(frozen=True)
class Minimum:
    """The minimum of one budget's curve, a parabola loss = c0 + c1 x + c2 x^2 in x = log10 N - shift or, with the exponents
    (alpha, beta) of `shape`, c0 + c1 (10^(-alpha x) - 1) / alpha + c2 (10^(beta x) - 1) / beta. `reason` says why it is not used.

    Where `axis` is tokens, the curve, its shift and its range are in D instead of N.
    """

    flops: float
    params: float
    tokens: float
    loss: float
    coefficients: tuple[float, float, float]
    shift: float
    params_range: tuple[float, float]  # of the data
    num_runs: int
    reason: str | None
    params_ci: tuple = (None, None)  # None: open, the data do not bound it
    tokens_ci: tuple = (None, None)
    loss_ci: tuple = (None, None)
    share_interior: float | None = None  # of the draws
    axis: str = "params"
    shape: tuple[float, float] | None = None

    def curve(self, sizes):
        """The fitted loss at these parameter counts (token counts where `axis` is tokens)."""
        return evaluate(np.log10(sizes) - self.shift, self.coefficients, self.shape).reshape(np.shape(sizes))


@dataclass(frozen=True)
class IsoFlop:
    """The minima by rising budget and the exponents of N* ~ C^a, D* ~ C^b, L* ~ C^-g; None below two minima inside."""

    minima: list[Minimum]
    exponents: dict[str, float | None]
    ci: dict[str, list | None]
    scatter: float | None  # residual standard deviation, nats; None without degrees of freedom
    degrees_of_freedom: int
    num_resamples: int
    failed_resamples: int  # draws with fewer than two minima inside
    seed: int
    draws: dict[str, np.ndarray] = field(repr=False)  # params, tokens, loss: [resamples, budgets], NaN where failed
    warnings: list[str] = field(default_factory=list)
    left_out: list[tuple[int, str]] = field(default_factory=list)  # (row, reason) of rows in no curve
    ci_method: str = "parametric bootstrap"
    misfit: Misfit | None = None  # of parabolas, where the data can tell

    @property
    def interior(self) -> list[Minimum]:
        """The minima that the exponents use."""
        return [minimum for minimum in self.minima if minimum.reason is None]


@dataclass(frozen=True)
class Lines:
    """ln y = level + slope (ln C - centre): [1 + resamples] lines, the fitted one first."""

    centre: float
    level: np.ndarray
    slope: np.ndarray

    def at(self, flops: float) -> np.ndarray:
        """ln y at this compute."""
        return self.level + self.slope * (np.log(flops) - self.centre)

    def where(self, ln_value) -> np.ndarray:
        """ln C at which ln y has this value (a number, or one for each line)."""
        return self.centre + (ln_value - self.level) / self.slope


def group_budgets(flops) -> list[np.ndarray]:
    """Row numbers of each compute budget, by rising C: a gap above 10 % starts a new one."""
    order = np.argsort(flops, kind="stable")
    gaps = np.diff(np.log(np.asarray(flops, np.float64)[order])) > SAME_BUDGET
    return np.split(order, np.flatnonzero(gaps) + 1)


def fit_isoflop(
    flops,
    N,
    D,
    loss,
    se_noise=None,
    num_resamples=1000,
    seed=0,
    *,
    budget=None,
    window=None,
    x="params",
    ci="parametric",
    cluster=None,
    curve="auto",
) -> IsoFlop:
    """Fit the minima of loss over log10 N at each budget, and the exponents by least squares over the interior ones.

    All columns [n]; `se_noise` is each loss's own standard error in nats (0 where unknown). `budget` [n] names each row's
    budget in FLOPs (None: by gaps in `flops`). `window`: decades of size around a budget's lowest loss, beyond which rows
    are left out. `x`: params or tokens, the curves' axis. `ci`: parametric, or cluster with labels `cluster` [n] (each
    row its own when None). `curve`: parabola, law, or auto, which takes the law's shape where parabolas do not fit. Budgets
    that cannot carry a curve are named in `warnings`. Raises BadData for values without a logarithm, or too few runs.
    """
    columns = _checked(flops, N, D, loss)
    if x == "tokens":
        columns[1], columns[2] = columns[2], columns[1]
    columns.append(np.zeros_like(columns[0]) if se_noise is None else np.asarray(se_noise, np.float64))
    groups, warnings, left_out = _usable(columns, budget, window, {"params": "size", "tokens": "token count"}[x])
    budgets = [tuple(column[rows] for column in columns) for rows in groups]
    if not budgets:
        return _concluded(_without_budgets(seed, warnings, left_out), 0)
    points = [Points.of(_places_of(budget), budget[3], budget[4]) for budget in budgets]
    fitted, around, parabolas, misfit = _choose_curves(budgets, points, curve)
    minima = [_minimum(fitted, number, *budget[:4]) for number, budget in enumerate(budgets)]
    *_, (scatter, freedom) = scatters = _scatter(around, budgets)
    warnings += _said_of_shape(parabolas, minima, misfit, curve, x) + _curved(minima, scatters)
    if ci == "cluster":
        draws = _resample_clusters(around, budgets, groups, cluster, num_resamples, seed)
    else:
        draws = _resample(around, budgets, points, scatters, num_resamples, seed)
    if x == "tokens":
        minima, draws = [_swapped(minimum) for minimum in minima], draws | {"params": draws["tokens"], "tokens": draws["params"]}
    found = IsoFlop(
        minima=minima,
        exponents={},
        ci={},
        scatter=scatter if freedom else None,
        degrees_of_freedom=freedom,
        num_resamples=len(draws["loss"]),
        failed_resamples=0,
        seed=seed,
        draws=draws,
        warnings=warnings,
        left_out=left_out,
        ci_method="parametric bootstrap" if ci == "parametric" else "bootstrap by cluster",
        misfit=misfit,
    )
    return _concluded(found, num_resamples)


def _without_budgets(seed, warnings, left_out) -> IsoFlop:
    return IsoFlop([], {}, {}, None, 0, 0, 0, seed, _drawn_none(0), warnings, left_out)


def _drawn_none(num_budgets: int) -> dict[str, np.ndarray]:
    return {name: np.zeros((0, num_budgets)) for name in DRAWN}


def fit_optima(flops, N, D, loss, num_resamples=1000, seed=0) -> IsoFlop:
    """The exponents of optima that are known already, one row [n] a budget (a published table, a figure).

    Intervals: lines drawn around the fitted ones with the residuals' scatter, of n - 2 degrees of freedom each.
    Raises BadData for values without a logarithm, or two rows of one budget.
    """
    columns = [column[np.argsort(flops, kind="stable")] for column in _checked(flops, N, D, loss)]
    if np.any(np.diff(np.log(columns[0])) <= SAME_BUDGET):
        raise BadData(
            "optima need one row a budget, and two rows are within 10 % of each other's compute; "
            "name objectives in a column objective, or fit the runs themselves."
        )
    minima = [
        Minimum(
            flops=c,
            params=n,
            tokens=d,
            loss=l,
            coefficients=(l, 0.0, 0.0),
            shift=float(np.log10(n)),
            reason=None,
            params_range=(n, n),
            num_runs=1,
        )
        for c, n, d, l in zip(*(column.tolist() for column in columns))
    ]
    draws = _resample_lines(columns, num_resamples if len(minima) > 2 else 0, seed)
    found = IsoFlop(
        minima=minima,
        exponents={},
        ci={},
        scatter=None,
        degrees_of_freedom=max(0, len(minima) - 2),
        seed=seed,
        num_resamples=len(draws["loss"]),
        failed_resamples=0,
        draws=draws,
        ci_method="residuals of the power laws",
    )
    return _concluded(found, num_resamples)


def fit_table(
    table: Table,
    *,
    budgets="auto",
    window=None,
    x="params",
    ci="parametric",
    curve="auto",
    optima=False,
    num_resamples=1000,
    seed=0,
) -> dict[str, IsoFlop]:
    """objective -> `fit_isoflop` of its rows, or `fit_optima` where every row is an optimum.

    `budgets`: auto (gaps in the column budget, where every row has one, or in flops), column (equal values of budget are
    one budget), or the name of another such column. Each objective draws its own noise, so that ratios of two pair
    independent draws. Raises BadData.
    """
    found = {}
    for objective in table.objectives:
        rows = table.only(objective)
        flops, params, tokens, loss = (rows.column(name) for name in ("flops", "params", "tokens", "loss"))
        seeds = [seed, *objective.encode()]
        if optima:
            found[objective] = fit_optima(flops, params, tokens, loss, num_resamples, seeds)
            continue
        named = rows.column("budget" if budgets == "column" else budgets) if budgets != "auto" else None
        if named is None and all(row.get("budget") for row in rows.rows):
            flops = rows.column("budget")
        epochs = max(row["epochs"] for row in rows.rows)
        noise = np.array([row.get("loss_se_noise") or 0.0 for row in rows.rows])
        more = {"se_noise": noise, "num_resamples": num_resamples, "seed": seeds, "cluster": rows.labels("cluster")}
        fitted = fit_isoflop(flops, params, tokens, loss, **more, budget=named, window=window, x=x, ci=ci, curve=curve)
        if epochs > 1.01:
            fitted.warnings.append(
                f"rows of up to {epochs:.3g} epochs stand among the runs: minima mix fresh and repeated data; "
                "--drop 'epochs>1' leaves repeated data out."
            )
        found[objective] = fitted
    return found


def power_law(isoflop: IsoFlop, column: str) -> Lines | None:
    """The line through the interior minima of ln params, tokens or loss over ln C; None below two of them."""
    used = np.array([minimum.reason is None for minimum in isoflop.minima], bool)
    if used.sum() < 2:
        return None
    ln_flops = np.log([minimum.flops for minimum in isoflop.interior])
    points = np.log([[getattr(minimum, column) for minimum in isoflop.interior]])
    inside = np.isfinite(isoflop.draws["params"][:, used])
    drawn = np.log(np.where(inside, isoflop.draws[column][:, used], 1.0))
    inside = np.concatenate([np.ones_like(points, bool), inside])
    weight = np.where(inside.sum(axis=1, keepdims=True) >= 2, inside, np.nan)  # a line needs two points
    return _line(ln_flops, np.concatenate([points, drawn]), weight)


def _line(x, y, weight) -> Lines:
    """Least squares of each row of y [m, n] on x [n] with weights 0 or 1 (NaN: no line)."""
    total = weight.sum(axis=1, keepdims=True)
    middle = (weight * x).sum(axis=1, keepdims=True) / total
    slope = (weight * (x - middle) * y).sum(axis=1) / (weight * (x - middle) ** 2).sum(axis=1)
    centre = float(x.mean())
    level = (weight * y).sum(axis=1) / total[:, 0] + slope * (centre - middle[:, 0])
    return Lines(centre, level, slope)


def _checked(flops, N, D, loss) -> list[np.ndarray]:
    columns = [np.asarray(column, np.float64) for column in (flops, N, D, loss)]
    if not all(np.all(np.isfinite(column) & (column > 0)) for column in columns):
        raise BadData("flops, params, tokens and loss must be positive numbers: leave out unfinished runs.")
    return columns


def _usable(columns, budget, window, noun):
    """(rows of the budgets that can carry a parabola, a sentence for each that cannot or hardly can, rows left out)."""
    flops, sizes, _, loss, _ = columns
    usable, warnings, left_out, small = [], [], [], []
    for rows in group_budgets(flops) if budget is None else [np.flatnonzero(budget == value) for value in np.unique(budget)]:
        near = rows
        if window is not None:
            near = rows[np.abs(np.log10(sizes[rows] / sizes[rows[np.argmin(loss[rows])]])) <= window]
            left_out += [(int(row), f"over {window:g} decades from its budget's lowest loss") for row in np.setdiff1d(rows, near)]
        low, high, distinct = flops[near].min(), flops[near].max(), len(np.unique(sizes[near]))
        reason = None
        if distinct < LEAST_SIZES:
            reason = f"budget {low:.3g}: {distinct} {noun}(s), a parabola needs {LEAST_SIZES}; left out."
            small.append(low)
        elif budget is None and np.log(high / low) > WIDEST_BUDGET:
            reason = f"{len(near)} runs from {low:.3g} to {high:.3g} FLOPs leave no gap and are not one budget; left out."
        elif distinct < FEW_SIZES:
            warnings.append(f"budget {low:.3g}: {distinct} {noun}s, the parabola passes through them; take {FEW_SIZES} or more.")
        if reason:
            if distinct >= LEAST_SIZES or len(small) <= MOST_NAMED:
                warnings.append(reason)
            left_out += [(int(row), reason) for row in near]
        else:
            usable.append(near)
    if len(small) > MOST_NAMED:
        warnings.append(
            f"{len(small) - MOST_NAMED} more budgets up to {max(small):.3g} have fewer than {LEAST_SIZES} {noun}s; left out."
        )
    return usable, warnings, left_out


def _places_of(budget) -> np.ndarray:
    """x = log10 of the sizes about their mean, [n]."""
    x = np.log10(budget[1])
    return x - x.mean()


def _valleys(points: list[Points], factors) -> Valleys:
    """The points of all budgets, those of each counting so many times more."""
    return Valleys.of(
        [one.x for one in points],
        [one.loss[None] for one in points],
        [factor * one.count[None] for one, factor in zip(points, factors)],
    )


def _choose_curves(budgets, points, curve) -> tuple[Curves, Curves, Curves, Misfit | None]:
    """The curves whose minima count, those that losses are drawn around, parabolas, and the test of these."""
    if curve not in ("auto", PARABOLA, LAW):
        raise BadData(f"curve {curve}: expected auto, {PARABOLA} or {LAW}.")
    rows = sum(len(budget[3]) for budget in budgets)
    freedom = rows - 3 * len(budgets) - 2
    if curve == LAW and freedom < 1:
        raise BadData(
            f"--curve {LAW} has 3 coefficients a budget and 2 exponents, and there are {rows} runs in {len(budgets)} budgets: "
            f"add sizes, or give --curve {PARABOLA}."
        )
    parabolas = fit_parabolas(_valleys(points, np.ones(len(budgets))))
    if freedom < (1 if curve == LAW else LEAST_FREEDOM):
        return parabolas, parabolas, parabolas, None
    factors = _precision(parabolas, budgets)
    weighed, beyond = _valleys(points, factors), sum(one.beyond * factor for one, factor in zip(points, factors))
    shaped = fit_law_shape(weighed)
    misfit = lack_of_fit(fit_parabolas(weighed), shaped, rows, beyond)
    rejected = misfit is not None and misfit.rejected
    used = shaped if curve == LAW or curve == "auto" and rejected else parabolas
    return used, parabolas if curve == PARABOLA else shaped, parabolas, misfit


def _precision(curves: Curves, budgets) -> list[float]:
    """The weight of the rows of each budget: a budget that scatters more says less of the exponents that all share."""
    scatters = _scatter(curves, budgets)
    sigma = [own if freedom >= OWN_FREEDOM else scatters[-1][0] for own, freedom in scatters[:-1]]
    least = max(max(sigma), 1e-12)
    return [(least / max(one, 1e-3 * least)) ** 2 for one in sigma]


def _said_of_shape(parabolas: Curves, minima, misfit: Misfit | None, curve: str, x: str) -> list[str]:
    """Which minima do not count, and what the test of parabolas means for the others."""
    outside = [f"budget {m.flops:.3g}: {m.reason}; left out of the exponents." for m in minima if m.reason]
    return outside + _said_of_test(parabolas, minima, misfit, curve, x)


def _said_of_test(parabolas: Curves, minima, misfit: Misfit | None, curve: str, x: str) -> list[str]:
    if misfit is None:
        if curve == "auto" and any(minimum.num_runs > LEAST_SIZES for minimum in minima):
            return [
                f"{sum(minimum.num_runs for minimum in minima)} runs in {len(minima)} budgets cannot tell a parabola from an "
                "asymmetric curve: its bias is not in the intervals; add sizes near the minima."
            ]
        return []
    if not misfit.rejected:
        return []
    vertices = [float(10 ** (at + m.shift)) for at, m in zip(vertex(parabolas.coefficients[0]), minima)]
    used = [(at, m) for at, m in zip(vertices, minima) if m.reason is None and np.isfinite(at)]
    tested = f"parabolas do not describe these curves (lack of fit: F {misfit.F:.3g}, p {misfit.p:.2g})"
    if curve == PARABOLA or not used:
        return [f"{tested}: their minima are biased, by more than the intervals say; leave --curve out, or give --window 0.5."]
    off = [100 * (at / m.params - 1) for at, m in used]
    low, high = min(off), max(off)
    by = f"{low:+.2g} %" if high - low < 1 else f"{low:+.2g} to {high:+.2g} %"
    (alpha, beta), axis = minima[0].shape, "N" if x == "params" else "D"
    return [
        f"{tested}: minima are of curves of the law's shape, c0 + c1 {axis}^-{alpha:.3g} + c2 {axis}^{beta:.3g}; "
        f"parabolas would put them {by} off."
    ]


def _minimum(curves: Curves, number: int, flops, params, tokens, loss) -> Minimum:
    shift = float(np.log10(params).mean())
    x = np.log10(params) - shift
    shape = None if curves.shape is None else tuple(curves.shape[0].tolist())
    coefficients = curves.coefficients[0, number]
    low, high, budget = x.min(), x.max(), float(np.median(flops))
    lowest = float(vertex(coefficients, shape))
    reason: str | None = None
    if np.isnan(lowest):
        reason = "concave parabola, no minimum" if shape is None else "the curve has no minimum"
    else:
        reason = None if low < lowest < high else "minimum outside the data"
    # without a minimum in the data, the place shown is the end of the data where the curve is lowest
    at = lowest if reason is None else min(low, high, key=lambda end: float(evaluate(end, coefficients, shape)[0]))
    return Minimum(
        flops=budget,
        params=float(10 ** (at + shift)),
        tokens=_tokens_at(at, x, tokens),
        num_runs=len(loss),
        loss=float(evaluate(at, coefficients, shape)[0]),
        coefficients=tuple(coefficients.tolist()),
        shift=shift,
        params_range=(float(params.min()), float(params.max())),
        reason=reason,
        shape=shape,
    )


def _tokens_at(at, x, tokens):
    """D at these x, between the runs of the budget (exact under C = 6 N D, right under any convention)."""
    order = np.argsort(x, kind="stable")
    found = np.exp(np.interp(at, x[order], np.log(tokens[order])))
    return float(found) if np.ndim(found) == 0 else found


def _scatter(around: Curves, budgets) -> list[tuple[float, int]]:
    """Residual standard deviation and its degrees of freedom, of each budget and at the end pooled over all."""
    squares = [
        float(np.sum((around.at(number, _places_of(budget))[0] - budget[3]) ** 2)) for number, budget in enumerate(budgets)
    ]
    freedom = [max(0, len(budget[3]) - 3) for budget in budgets]
    squares = [total if count else 0.0 for total, count in zip(squares, freedom)]  # no freedom: rounding errors
    pooled = max(0, sum(freedom) - (0 if around.shape is None else 2))
    return [(float(np.sqrt(total / max(1, count))), count) for total, count in (*zip(squares, freedom), (sum(squares), pooled))]


def _curved(minima, scatters) -> list[str]:
    """A sentence for each budget that scatters far more than the others: over its range the loss is no parabola."""
    usual = np.median([scatter for scatter, freedom in scatters[:-1] if freedom >= OWN_FREEDOM] or [0.0])
    return [
        f"budget {m.flops:.3g}: residuals of {scatter:.2g} nats are {scatter / usual:.2g} times those of the others: over "
        f"{np.log10(m.params_range[1] / m.params_range[0]):.2g} decades the loss is no such curve; give --window 0.7."
        for m, (scatter, freedom) in zip(minima, scatters)
        if freedom >= OWN_FREEDOM and scatter > max(3 * usual, 1e-6)
    ]


def _resample(around: Curves, budgets, points, scatters, num_resamples, seed) -> dict[str, np.ndarray]:
    """Draws [resamples, budgets] of the minima (`_drawn_minima`): of curves fitted to losses drawn around these."""
    random = np.random.default_rng(seed)
    if not any(scatter for scatter, _ in scatters) and not any(np.any(budget[4] > 0) for budget in budgets):
        num_resamples = 0
    *own, pooled = [
        scatter * np.sqrt(max(1, freedom) / random.chisquare(max(1, freedom), num_resamples)) for scatter, freedom in scatters
    ]
    losses = []
    for number, (one, sigma, (_, freedom)) in enumerate(zip(points, own, scatters)):
        sigma = sigma if freedom >= OWN_FREEDOM else pooled
        sigma = np.maximum(sigma[:, None], one.noise) / np.sqrt(one.count)
        losses.append(around.at(number, one.x) + sigma * random.standard_normal(sigma.shape))
    weights = [np.tile(factor * one.count, (num_resamples, 1)) for one, factor in zip(points, _precision(around, budgets))]
    return _drawn_minima(budgets, _refitted(around, Valleys.of([one.x for one in points], losses, weights)))


def _refitted(around: Curves, valleys: Valleys) -> Curves:
    """Curves of the same kind through other losses."""
    return fit_parabolas(valleys) if around.shape is None else fit_law_shape(valleys, start=around.shape[0])


def _resample_clusters(around: Curves, budgets, groups, cluster, num_resamples, seed) -> dict[str, np.ndarray]:
    """As `_resample`, from clusters drawn with replacement: within each budget, or over all where one spans budgets.

    A budget's coefficients are NaN in draws that leave it fewer than three sizes.
    """
    random = np.random.default_rng(seed)
    rows = np.concatenate([*groups, np.zeros(0, int)])
    labels = np.unique(rows if cluster is None else np.asarray(cluster)[rows], return_inverse=True)[1]
    place = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    pairs = np.unique(np.stack([labels, place]), axis=1)
    strata = [pairs[0, pairs[1] == number] for number in range(len(groups))]
    if len(pairs[0]) > len(np.unique(pairs[0])):
        strata = [np.unique(labels)]
    precision, parts, line = _precision(around, budgets), [], ProgressLine(num_resamples, "resamples")
    at_once = max(1, CELLS_AT_ONCE // max(1, len(labels)))
    for first in range(0, num_resamples, at_once):
        line.show(first, "isoflop")
        counts = np.zeros((min(at_once, num_resamples - first), labels.max(initial=-1) + 1))
        for members in strata:
            counts[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), len(counts))
        weights = [counts[:, labels[place == number]] for number in range(len(budgets))]
        losses = [np.broadcast_to(budget[3], weight.shape) for budget, weight in zip(budgets, weights)]
        weighed = [weight * factor for weight, factor in zip(weights, precision)]
        found = _refitted(around, Valleys.of([_places_of(budget) for budget in budgets], losses, weighed))
        enough = [_num_sizes(budget[1], weight) >= LEAST_SIZES for budget, weight in zip(budgets, weights)]
        coefficients = np.where(np.stack(enough, axis=1)[..., None], found.coefficients, np.nan)
        parts.append(_drawn_minima(budgets, replace(found, coefficients=coefficients)))
    line.clear()
    return {name: np.concatenate([part[name] for part in parts]) for name in DRAWN} if parts else _drawn_none(len(budgets))


def _num_sizes(sizes, weight) -> np.ndarray:
    """How many sizes [n] have rows of some weight [r, n], [r]."""
    order = np.argsort(sizes, kind="stable")
    starts = np.flatnonzero(np.diff(sizes[order], prepend=0))
    return np.add.reduce(np.logical_or.reduceat(weight[:, order] > 0, starts, axis=1), axis=1)


def _resample_lines(columns, num_resamples, seed):
    """Draws [resamples, budgets] of optima around their power laws."""
    random = np.random.default_rng(seed)
    ln_flops, draws = np.log(columns[0]), {}
    for name, column in zip(DRAWN, columns[1:]):
        line = _line(ln_flops, np.log(column)[None], np.ones((1, len(column)))) if num_resamples else None
        fitted = line.level + line.slope * (ln_flops - line.centre) if line else np.zeros(len(column))
        freedom = max(1, len(column) - 2)
        scatter = np.sqrt(np.sum((np.log(column) - fitted) ** 2) / random.chisquare(freedom, num_resamples))
        draws[name] = np.exp(fitted + scatter[:, None] * random.standard_normal((num_resamples, len(column))))
    return draws


def _drawn_minima(budgets, drawn: Curves) -> dict[str, np.ndarray]:
    """Draws [resamples, budgets]: params (-inf, inf where the minimum leaves the data), tokens, and loss."""
    columns = [_places(budget, drawn.coefficients[:, number], drawn.shape) for number, budget in enumerate(budgets)]
    shape = (len(columns[0][0]), len(budgets))
    return {name: np.array([column[i] for column in columns]).T.reshape(shape) for i, name in enumerate(DRAWN)}


def _places(budget, coefficients, shape):
    """(params, tokens, loss) of the minima of curves [resamples, 3], with an open end where one leaves the data."""
    x, tokens = _places_of(budget), budget[2]
    lowest, low, high = vertex(coefficients, shape), x.min(), x.max()
    ends = evaluate(np.array([low, high]), coefficients, shape)
    falls_right = ends[:, 1] < ends[:, 0]
    inside = (low < lowest) & (lowest < high)
    at = np.where(inside, lowest, np.where(falls_right, high, low))
    open_end = np.where(np.isnan(coefficients[:, 0]), np.nan, np.where(falls_right, np.inf, -np.inf))
    found_params = np.where(inside, 10 ** (at + np.log10(budget[1]).mean()), open_end)
    found_tokens = np.where(inside, _tokens_at(at, x, tokens), -open_end)
    loss = np.einsum("ni,ni->n", design(at[:, None], shape)[:, 0], coefficients)
    return found_params, found_tokens, loss


def _swapped(minimum: Minimum) -> Minimum:
    """A minimum that was found with tokens in the place of params."""
    return replace(minimum, params=minimum.tokens, tokens=minimum.params, axis="tokens")


def _concluded(found: IsoFlop, asked: int) -> IsoFlop:
    """With the intervals of the minima, the exponents, theirs, and what a reader must know of them."""
    minima = [_with_intervals(minimum, found.draws, number) for number, minimum in enumerate(found.minima)]
    laws = {name: (power_law(found, column), sign) for name, (column, sign) in EXPONENTS.items()}
    exponents = {name: float(sign * law.slope[0]) if law else None for name, (law, sign) in laws.items()}
    ci = {
        name: percentile_interval(sign * law.slope[1:]) if law and len(law.slope) > 1 else None
        for name, (law, sign) in laws.items()
    }
    failed = int(np.isnan(laws["a"][0].slope[1:]).sum()) if laws["a"][0] else 0
    warnings = list(found.warnings)
    if asked and minima and not found.num_resamples:
        warnings.append("no intervals: every curve passes through its points and no run states its noise.")
    if failed > 0.05 * asked:
        warnings.append(f"{failed} of {found.num_resamples} draws had fewer than two minima inside their data.")
    return replace(found, minima=minima, exponents=exponents, ci=ci, failed_resamples=failed, warnings=warnings)


def _with_intervals(minimum, draws, number) -> Minimum:
    columns = {name: column[:, number] for name, column in draws.items()}
    share = float(np.mean(np.isfinite(columns["params"]))) if len(columns["params"]) else None
    ends = {f"{name}_ci": percentile_interval(column) for name, column in columns.items()}
    return replace(minimum, share_interior=share, **ends)


def params_ratio(one: IsoFlop, other: IsoFlop, flops: float) -> dict | None:
    """Optimal parameters of `one` over those of `other` at this compute, by their power laws; None without a law."""
    laws = [law for law in (power_law(one, "params"), power_law(other, "params")) if law]
    if len(laws) < 2:
        return None
    pairs = min(len(law.slope) for law in laws)
    ratio = np.exp(laws[0].at(flops)[:pairs] - laws[1].at(flops)[:pairs])
    outside = not (covers(one, flops) and covers(other, flops))
    return {
        "flops": flops,
        "ratio": float(ratio[0]),
        "ci": percentile_interval(ratio[1:]),
        "extrapolated": outside,
        "params": [float(np.exp(law.at(flops)[0])) for law in laws],
    }


def covers(isoflop: IsoFlop, flops: float) -> bool:
    """Whether the interior budgets reach this compute, to 1 %."""
    return bool(isoflop.interior[0].flops * 0.99 <= flops <= isoflop.interior[-1].flops * 1.01)


def as_record(isoflop: IsoFlop, table: Table) -> dict:
    """What isoflop.json says of one objective."""
    left_out = [
        {"run": table.rows[row]["run"], "line": table.rows[row]["line"], "reason": reason} for row, reason in isoflop.left_out
    ]
    return {
        "objective": table.rows[0]["objective"],
        "bound": table.rows[0].get("bound"),
        "exponents": isoflop.exponents,
        "ci": isoflop.ci,
        "ci_method": isoflop.ci_method,
        "minima": [asdict(minimum) for minimum in isoflop.minima],
        "lack_of_fit": None if isoflop.misfit is None else asdict(isoflop.misfit),
        "scatter": isoflop.scatter,
        "degrees_of_freedom": isoflop.degrees_of_freedom,
        "num_resamples": isoflop.num_resamples,
        "failed_resamples": isoflop.failed_resamples,
        "rows_used": len(table) - len(left_out),
        "rows_dropped": [*table.dropped, *left_out],
        "warnings": [*table.warnings, *isoflop.warnings],
    }
