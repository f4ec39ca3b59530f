"""The envelope of training curves: the least loss of any run at each compute, and how its size and tokens grow.

Hoffmann et al., arXiv:2203.15556, approach 1. Curves are interpolated (ln loss over ln C); at every C of a logarithmic grid
the run of least loss counts, and least squares of ln N, ln D and ln L on ln C give the exponents. A C counts only where a
smaller and a larger model than the best have a curve too: at the ends of the data the best of what there is says nothing
about the best there could be.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from megatron.errors import BadData
from megatron.scaling.law.intervals import percentile_interval
from megatron.scaling.table.runs import records
from megatron.scaling.table.table import Table

GRID_A_DECADE = 100  # Hoffmann et al. take 1500 points over six decades
LEAST_BRACKETED = 0.5  # share of the grid


@dataclass(frozen=True)
class Curve:
    """One run's loss over training: tokens, flops, loss [points] by rising tokens."""

    run: str
    params: float
    cluster: str
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class Envelope:
    """The envelope on its grid and the exponents of N ~ C^a, D ~ C^b, L ~ C^-g; None with fewer than two sizes on it."""

    flops: np.ndarray  # [grid]
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    bracketed: np.ndarray  # whether a smaller and a larger model have a curve there
    exponents: dict[str, float | None]
    ci: dict[str, list | None]
    num_runs: int
    num_sizes: int  # on the bracketed part
    num_resamples: int
    failed_resamples: int
    seed: int
    warnings: list[str] = field(default_factory=list)


def read_curves(table: Table, kind: str = "auto") -> list[Curve]:
    """The curves of a table of one objective: its rows by run, or the metrics.jsonl of its run directories.

    `kind`: val, train, or auto (val where every run has two records, else train). Raises BadData for a run without a curve.
    """
    directories = [row for row in table.rows if row.get("group")]
    if kind == "auto":
        kind = "val" if all(len(records(row["path"], "val")) > 1 for row in directories) else "train"
    by_run: dict = {}
    for row in table.rows:
        by_run.setdefault((row.get("group"), row["run"], row["params"]), []).append(row)
    curves = [_curve(members[0], _points(members[0], kind) if group else members) for (group, *_), members in by_run.items()]
    single = [curve.run for curve in curves if len(curve.loss) < 2]
    if single:
        raise BadData(
            f"an envelope needs training curves, and {single[0]} has one point ({len(single)} such runs); "
            "give rows of several steps a run, or run directories with metrics.jsonl."
        )
    return curves


def fit_envelope(curves: list[Curve], num_resamples: int = 400, seed=0) -> Envelope:
    """Fit the envelope of the curves; intervals are 95 % percentiles over whole clusters drawn with replacement."""
    sizes = np.array([curve.params for curve in curves])
    grid = _grid(curves)
    losses = np.stack([_interpolated(curve, grid, curve.loss) for curve in curves])  # [runs, grid]
    tokens = np.stack([_interpolated(curve, grid, curve.tokens) for curve in curves])
    point, bracketed = _exponents(np.arange(len(curves)), sizes, losses, tokens, np.log(grid))
    best = np.argmin(losses, axis=0)
    here = best, np.arange(len(grid))
    draws, failed = _resample(curves, sizes, losses, tokens, np.log(grid), num_resamples if point is not None else 0, seed)
    found = dict(zip("abg", point)) if point is not None else dict.fromkeys("abg")
    ends = [percentile_interval(column) for column in draws.T] if len(draws) else [None] * 3
    fitted = Envelope(
        flops=grid,
        params=sizes[best],
        tokens=tokens[here],
        loss=losses[here],
        bracketed=bracketed,
        exponents=found,
        ci=dict(zip("abg", ends)),
        num_runs=len(curves),
        failed_resamples=failed,
        num_sizes=len(np.unique(sizes[best[bracketed]])),
        num_resamples=num_resamples,
        seed=seed,
    )
    fitted.warnings.extend(_warnings(fitted, curves))
    return fitted


def _points(row: dict, kind: str) -> list[dict]:
    """The records of a run directory in the table's unit and FLOP convention."""
    per_token = row["flops"] / row["tokens"]
    scale = row.get("loss_scale", 1.0)
    return [
        {"tokens": record["tokens"], "flops": per_token * record["tokens"], "loss": scale * record["loss"]}
        for record in records(row["path"], kind)
        if record["tokens"] > 0 and record["loss"] > 0
    ]


def _curve(row: dict, points: list[dict]) -> Curve:
    """Points by rising tokens, of equal tokens (a resume, or seeds under one name) their mean."""
    columns = np.array([[point[name] for point in points] for name in ("tokens", "flops", "loss")]).reshape(3, -1)
    tokens, place, count = np.unique(columns[0], return_inverse=True, return_counts=True)
    means = [np.bincount(place, column, len(tokens)) / count for column in columns[1:]]
    return Curve(row["run"], row["params"], row["cluster"], tokens, *means)


def _grid(curves: list[Curve]) -> np.ndarray:
    low, high = (np.log10(end([end(curve.flops) for curve in curves])) for end in (np.min, np.max))
    return np.logspace(low, high, max(2, int(np.ceil((high - low) * GRID_A_DECADE)) + 1))


def _interpolated(curve: Curve, grid, values) -> np.ndarray:
    """Values at the grid's compute, inf where the curve has none."""
    ln_values = np.interp(np.log(grid), np.log(curve.flops), np.log(values), left=np.inf, right=np.inf)
    return np.exp(ln_values)


def _exponents(chosen, sizes, losses, tokens, ln_grid):
    """(a, b, g) or None, and which points of the grid are bracketed, of the envelope of the chosen runs."""
    losses = losses[chosen]
    there = np.isfinite(losses)
    own = sizes[chosen][:, None]
    smallest = np.where(there, own, np.inf).min(axis=0)
    largest = np.where(there, own, -np.inf).max(axis=0)
    best = chosen[np.argmin(losses, axis=0)]
    bracketed = (smallest < sizes[best]) & (sizes[best] < largest)
    if len(np.unique(sizes[best[bracketed]])) < 2:
        return None, bracketed
    ln_flops = ln_grid[bracketed]
    columns = np.log([sizes[best], tokens[best, np.arange(len(ln_grid))], losses.min(axis=0)])[:, bracketed]
    slopes = columns @ (ln_flops - ln_flops.mean()) / np.sum((ln_flops - ln_flops.mean()) ** 2)
    return slopes * [1, 1, -1], bracketed


def _resample(curves, sizes, losses, tokens, ln_grid, num_resamples, seed):
    """Exponents [resamples, 3] of clusters drawn with replacement, and the number of draws without them."""
    random = np.random.default_rng(seed)
    place = np.unique([curve.cluster for curve in curves], return_inverse=True)[1]
    members = [np.flatnonzero(place == number) for number in range(place.max() + 1)]
    draws = []
    for _ in range(num_resamples):
        chosen = np.concatenate([members[number] for number in random.integers(len(members), size=len(members))])
        found, _ = _exponents(chosen, sizes, losses, tokens, ln_grid)
        if found is not None:
            draws.append(found)
    return np.array(draws).reshape(-1, 3), num_resamples - len(draws)


def _warnings(fitted: Envelope, curves: list[Curve]) -> list[str]:
    found = [
        "points within a run come before its learning rate has decayed, unless it is constant: their losses are higher "
        "than those of a run decayed there, and a leans towards large models (Hoffmann et al., section 2)."
    ]
    share = float(np.mean(fitted.bracketed))
    if share < LEAST_BRACKETED:
        found.append(
            f"only {share:.0%} of the range of compute has a smaller and a larger model beside the best; the rest is "
            "left out of the exponents."
        )
    if 2 <= fitted.num_sizes < 4:
        found.append(f"the exponents rest on {fitted.num_sizes} sizes: a staircase of as many steps.")
    if fitted.failed_resamples > 0.05 * fitted.num_resamples:
        found.append(
            f"{fitted.failed_resamples} of {fitted.num_resamples} resamples had no exponents: the intervals are too narrow."
        )
    noisy = [curve.run for curve in curves if len(curve.loss) > 4 and np.mean(np.diff(curve.loss) > 0) > 0.2]
    if noisy:
        found.append(
            f"the curve of {noisy[0]} rises at over a fifth of its points ({len(noisy)} such runs): the least of noisy "
            "curves is too low; use validation losses, or fewer points a run."
        )
    return found


def as_record(envelope: Envelope, table: Table) -> dict:
    """What envelope.json says of one objective."""
    columns = ("flops", "params", "tokens", "loss", "bracketed")
    points = {name: getattr(envelope, name).tolist() for name in columns}
    rest = {name: value for name, value in vars(envelope).items() if name not in columns}
    return {
        "objective": table.rows[0]["objective"],
        "bound": table.rows[0].get("bound"),
        **rest,
        "points": points,
        "ci_method": "bootstrap by cluster",
        "rows_used": len(table),
        "rows_dropped": table.dropped,
    }
