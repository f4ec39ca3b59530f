"""IsoFLOP analysis: a parabola per compute budget, its minimum, and how the minima grow with compute.

Hoffmann et al., arXiv:2203.15556, approach 2. Intervals come from a parametric bootstrap: a budget has 4 or 5 sizes and
its parabola 3 coefficients, so that runs drawn with replacement would often leave no parabola at all. Instead every
run's loss is drawn anew around the fitted curve with sigma = max(scatter, the run's own `se_noise`), where the scatter is
that of the budget's residuals, or of all budgets' where it has few, and is itself drawn (chi-squared with its degrees of
freedom). A draw whose minimum leaves its data, or whose parabola is concave, makes the interval open on that side (None).
The error of the evaluation rows is the same for all runs, does not move a minimum, and is left out. With many runs a
budget, or several seeds, clusters of rows can be drawn with replacement instead (`ci="cluster"`), within each budget where
no cluster spans two.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import numpy as np

from megatron.errors import BadData
from megatron.scaling.law.intervals import percentile_interval
from megatron.scaling.table.table import Table

LEAST_SIZES = 3
FEW_SIZES = 4  # below it a parabola passes through its points
MOST_NAMED = 3  # budgets with too few sizes, before the rest is a number
SAME_BUDGET = 0.1  # largest gap in ln C between neighbours of one budget
OWN_FREEDOM = 5  # degrees of freedom from which a budget's own residuals say how much it scatters
WIDEST_BUDGET = 0.25  # largest spread in ln C of one budget
EXPONENTS = {"a": ("params", 1.0), "b": ("tokens", 1.0), "g": ("loss", -1.0)}


@dataclass(frozen=True)
class Minimum:
    """The vertex of one budget's parabola loss = c0 + c1 x + c2 x^2, x = log10 N - shift. `reason` says why it is not used.

    Where `axis` is tokens, the parabola, its shift and its range are in D instead of N.
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

    def curve(self, sizes):
        """The fitted loss at these parameter counts (token counts where `axis` is tokens)."""
        return np.polynomial.polynomial.polyval(np.log10(sizes) - self.shift, self.coefficients)


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
    left_out: list[tuple[int, str]] = field(default_factory=list)  # (row, reason) of rows in no parabola
    ci_method: str = "parametric bootstrap"

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
) -> IsoFlop:
    """Fit the minima of loss over log10 N at each budget, and the exponents by least squares over the interior ones.

    All columns [n]; `se_noise` is each loss's own standard error in nats (0 where unknown). `budget` [n] names each row's
    budget in FLOPs (None: by gaps in `flops`). `window`: decades of size around a budget's lowest loss, beyond which rows
    are left out. `x`: params or tokens, the parabola's axis. `ci`: parametric, or cluster with labels `cluster` [n] (each
    row its own when None). Raises BadData for values without a logarithm; budgets that cannot carry a parabola are named
    in `warnings`, their rows in `left_out`.
    """
    columns = _checked(flops, N, D, loss)
    if x == "tokens":
        columns[1], columns[2] = columns[2], columns[1]
    columns.append(np.zeros_like(columns[0]) if se_noise is None else np.asarray(se_noise, np.float64))
    groups, warnings, left_out = _usable(columns, budget, window, {"params": "size", "tokens": "token count"}[x])
    budgets = [tuple(column[rows] for column in columns) for rows in groups]
    minima = [_minimum(*columns[:4]) for columns in budgets]
    warnings += [f"budget {m.flops:.3g}: {m.reason}; left out of the exponents." for m in minima if m.reason]
    scatters = _scatter(minima, budgets)
    scatter, freedom = scatters[-1]
    warnings += _curved(minima, scatters)
    if ci == "cluster":
        draws = _resample_clusters(minima, budgets, groups, cluster, num_resamples, seed)
    else:
        draws = _resample(minima, budgets, scatters, num_resamples, seed)
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
    )
    return _concluded(found, num_resamples)


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
    table: Table, *, budgets="auto", window=None, x="params", ci="parametric", optima=False, num_resamples=1000, seed=0
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
        fitted = fit_isoflop(flops, params, tokens, loss, **more, budget=named, window=window, x=x, ci=ci)
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


def _minimum(flops, params, tokens, loss) -> Minimum:
    shift = float(np.log10(params).mean())
    x = np.log10(params) - shift
    coefficients = np.linalg.lstsq(_design(x), loss, rcond=None)[0]
    low, high, budget = x.min(), x.max(), float(np.median(flops))
    vertex = _vertex(coefficients)
    reason: str | None = None
    if np.isnan(vertex):
        reason = "concave parabola, no minimum"
    else:
        reason = None if low < vertex < high else "minimum outside the data"
    # without a minimum in the data, the place shown is the end of the data where the curve is lowest
    at = vertex if reason is None else min(low, high, key=lambda end: float(_curve(end, coefficients)))
    return Minimum(
        flops=budget,
        params=float(10 ** (at + shift)),
        tokens=_tokens_at(at, x, tokens),
        num_runs=len(loss),
        loss=float(_curve(at, coefficients)),
        coefficients=tuple(coefficients.tolist()),
        shift=shift,
        params_range=(float(params.min()), float(params.max())),
        reason=reason,
    )


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


def _scatter(minima, budgets) -> list[tuple[float, int]]:
    """Residual standard deviation and its degrees of freedom, of each budget and at the end pooled over all."""
    squares = [float(np.sum((minimum.curve(budget[1]) - budget[3]) ** 2)) for minimum, budget in zip(minima, budgets)]
    freedom = [max(0, len(budget[3]) - 3) for budget in budgets]
    squares = [total if count else 0.0 for total, count in zip(squares, freedom)]  # no freedom: rounding errors
    return [
        (float(np.sqrt(total / max(1, count))), count) for total, count in (*zip(squares, freedom), (sum(squares), sum(freedom)))
    ]


def _curved(minima, scatters) -> list[str]:
    """A sentence for each budget that scatters far more than the others: over its range the loss is no parabola."""
    usual = np.median([scatter for scatter, freedom in scatters[:-1] if freedom >= OWN_FREEDOM] or [0.0])
    return [
        f"budget {m.flops:.3g}: residuals of {scatter:.2g} nats are {scatter / usual:.2g} times those of the others: over "
        f"{np.log10(m.params_range[1] / m.params_range[0]):.2g} decades the loss is no parabola; give --window 0.7."
        for m, (scatter, freedom) in zip(minima, scatters)
        if freedom >= OWN_FREEDOM and scatter > max(3 * usual, 1e-6)
    ]


def _resample(minima, budgets, scatters, num_resamples, seed):
    """Draws [resamples, budgets]: params (-inf, inf where the minimum leaves the data), tokens, and loss."""
    random = np.random.default_rng(seed)
    if not any(scatter for scatter, _ in scatters) and not any(np.any(budget[4] > 0) for budget in budgets):
        num_resamples = 0
    *own, pooled = [
        scatter * np.sqrt(max(1, freedom) / random.chisquare(max(1, freedom), num_resamples)) for scatter, freedom in scatters
    ]
    drawn = []
    for minimum, budget, sigma, (_, freedom) in zip(minima, budgets, own, scatters):
        sigma = sigma if freedom >= OWN_FREEDOM else pooled
        sigma = np.maximum(sigma[:, None], budget[4])
        losses = minimum.curve(budget[1]) + sigma * random.standard_normal(sigma.shape)
        drawn.append(losses @ np.linalg.pinv(_design(np.log10(budget[1]) - minimum.shift)).T)
    return _drawn_minima(minima, budgets, drawn, num_resamples)


def _resample_clusters(minima, budgets, groups, cluster, num_resamples, seed):
    """As `_resample`, from clusters drawn with replacement: within each budget, or over all where one spans budgets."""
    random = np.random.default_rng(seed)
    rows = np.concatenate([*groups, np.zeros(0, int)])
    labels = np.unique(rows if cluster is None else np.asarray(cluster)[rows], return_inverse=True)[1]
    place = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    pairs = np.unique(np.stack([labels, place]), axis=1)
    strata = [pairs[0, pairs[1] == number] for number in range(len(groups))]
    if len(pairs[0]) > len(np.unique(pairs[0])):
        strata = [np.unique(labels)]
    counts = np.zeros((num_resamples, labels.max(initial=-1) + 1))
    for members in strata:
        counts[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), num_resamples)
    drawn = [
        _weighted_parabolas(minimum, budget, counts[:, labels[place == number]])
        for number, (minimum, budget) in enumerate(zip(minima, budgets))
    ]
    return _drawn_minima(minima, budgets, drawn, num_resamples)


def _weighted_parabolas(minimum, budget, weight):
    """Coefficients [resamples, 3] with weights [resamples, n] of the rows; NaN where fewer than three sizes are left."""
    x = np.log10(budget[1]) - minimum.shift
    sizes = [weight[:, x == value].any(axis=1) for value in np.unique(x)]
    enough = np.sum(sizes, axis=0) >= LEAST_SIZES
    design = _design(x)
    found = np.full((len(weight), 3), np.nan)
    squares = np.einsum("rn,ni,nj->rij", weight[enough], design, design)
    found[enough] = np.linalg.solve(squares, np.einsum("rn,ni,n->ri", weight[enough], design, budget[3])[..., None])[..., 0]
    return found


def _resample_lines(columns, num_resamples, seed):
    """Draws [resamples, budgets] of optima around their power laws."""
    random = np.random.default_rng(seed)
    ln_flops, draws = np.log(columns[0]), {}
    for name, column in zip(("params", "tokens", "loss"), columns[1:]):
        line = _line(ln_flops, np.log(column)[None], np.ones((1, len(column)))) if num_resamples else None
        fitted = line.level + line.slope * (ln_flops - line.centre) if line else np.zeros(len(column))
        freedom = max(1, len(column) - 2)
        scatter = np.sqrt(np.sum((np.log(column) - fitted) ** 2) / random.chisquare(freedom, num_resamples))
        draws[name] = np.exp(fitted + scatter[:, None] * random.standard_normal((num_resamples, len(column))))
    return draws


def _drawn_minima(minima, budgets, drawn, num_resamples):
    columns = [_places(minimum, budget, coefficients) for minimum, budget, coefficients in zip(minima, budgets, drawn)]
    shape = (num_resamples, len(minima))
    names = ("params", "tokens", "loss")
    return {name: np.array([column[i] for column in columns]).T.reshape(shape) for i, name in enumerate(names)}


def _places(minimum, budget, coefficients):
    """(params, tokens, loss) of the minima of parabolas [resamples, 3], with an open end where one leaves the data."""
    x, tokens = np.log10(budget[1]) - minimum.shift, budget[2]
    vertex, low, high = _vertex(coefficients), x.min(), x.max()
    falls_right = _curve(high, coefficients) < _curve(low, coefficients)
    inside = (low < vertex) & (vertex < high)
    at = np.where(inside, vertex, np.where(falls_right, high, low))
    open_end = np.where(np.isnan(coefficients[:, 0]), np.nan, np.where(falls_right, np.inf, -np.inf))
    found_params = np.where(inside, 10 ** (at + minimum.shift), open_end)
    found_tokens = np.where(inside, _tokens_at(at, x, tokens), -open_end)
    return found_params, found_tokens, _curve(at, coefficients)


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


def compute_ratio(cheap: IsoFlop, dear: IsoFlop, loss: float) -> dict | None:
    """Compute of `dear` over that of `cheap` where the power laws of their minima reach this loss; None without a law."""
    laws = [law for law in (power_law(cheap, "loss"), power_law(dear, "loss")) if law]
    if len(laws) < 2:
        return None
    pairs = min(len(law.slope) for law in laws)
    ln_flops = [law.where(np.log(loss))[:pairs] for law in laws]
    ratio = np.exp(ln_flops[1] - ln_flops[0])
    outside = any(not _covers(isoflop, np.exp(place[0])) for isoflop, place in zip((cheap, dear), ln_flops))
    return {
        "loss": loss,
        "ratio": float(ratio[0]),
        "ci": percentile_interval(ratio[1:]),
        "extrapolated": outside,
        "flops": [float(np.exp(place[0])) for place in ln_flops],
    }


def params_ratio(one: IsoFlop, other: IsoFlop, flops: float) -> dict | None:
    """Optimal parameters of `one` over those of `other` at this compute, by their power laws; None without a law."""
    laws = [law for law in (power_law(one, "params"), power_law(other, "params")) if law]
    if len(laws) < 2:
        return None
    pairs = min(len(law.slope) for law in laws)
    ratio = np.exp(laws[0].at(flops)[:pairs] - laws[1].at(flops)[:pairs])
    outside = not (_covers(one, flops) and _covers(other, flops))
    return {
        "flops": flops,
        "ratio": float(ratio[0]),
        "ci": percentile_interval(ratio[1:]),
        "extrapolated": outside,
        "params": [float(np.exp(law.at(flops)[0])) for law in laws],
    }


def _covers(isoflop: IsoFlop, flops: float) -> bool:
    """Whether the interior budgets reach this compute, to 1 %."""
    return bool(isoflop.interior[0].flops * 0.99 <= flops <= isoflop.interior[-1].flops * 1.01)


def equal_loss_ratios(cheap: IsoFlop, dear: IsoFlop) -> list[dict]:
    """At each common interior budget C of both: C / C', where C' is the compute at which `cheap` has the loss `dear` has at C.

    C' comes from the power law ln L = p + q ln C through the interior minima of `cheap` (two or more; the form of
    Nie et al., arXiv:2410.18514, section 4); `extrapolated` where C' lies outside them.
    """
    law = power_law(cheap, "loss")
    if law is None:
        return []
    pairs = min(len(law.slope) - 1, len(dear.draws["loss"]))
    lines = Lines(law.centre, law.level[: pairs + 1], law.slope[: pairs + 1])
    found = []
    for number, minimum in enumerate(dear.minima):
        common = min(abs(np.log(other.flops / minimum.flops)) for other in cheap.interior) <= SAME_BUDGET
        if minimum.reason is None and common:
            ln_losses = np.log([minimum.loss, *dear.draws["loss"][:pairs, number]])
            ratios = minimum.flops * np.exp(-lines.where(ln_losses))
            equal = minimum.flops / float(ratios[0])
            found.append(
                {
                    "flops": minimum.flops,
                    "loss": minimum.loss,
                    "ratio": float(ratios[0]),
                    "equal_flops": equal,
                    "ci": percentile_interval(ratios[1:]),
                    "extrapolated": not _covers(cheap, equal),
                }
            )
    return found


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
        "scatter": isoflop.scatter,
        "degrees_of_freedom": isoflop.degrees_of_freedom,
        "num_resamples": isoflop.num_resamples,
        "failed_resamples": isoflop.failed_resamples,
        "rows_used": len(table) - len(left_out),
        "rows_dropped": [*table.dropped, *left_out],
        "warnings": [*table.warnings, *isoflop.warnings],
    }
