"""Sets of runs and fits side by side: whether they may be compared at all, and if so, how much compute and size lie between.

Two sets of runs are compared through the power laws of their isoFLOP minima, two fits through the optimal losses of their
laws, both with intervals that pair independent draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron.errors import BadData, Mismatch
from megatron.files import is_there
from megatron.scaling.answers.critical import drawn_law
from megatron.scaling.answers.frontier import compute_ratio, equal_loss_ratios, frontier_of, warnings_of
from megatron.scaling.answers.isoflop import IsoFlop, params_ratio
from megatron.scaling.law.fit import Fit, load_fit
from megatron.scaling.law.intervals import percentile_interval
from megatron.scaling.table.comparable import differences
from megatron.scaling.table.covariates import FOLLOWING, columns_of_flags, covariate_differences, said, spelled
from megatron.scaling.table.labels import is_sampler, kind_of
from megatron.scaling.table.table import Table

REACH = 3.0  # decades beyond the compute of both within which equal losses are looked for
NUM_BUDGETS = 5  # compared where fits have no budgets of their own


@dataclass(frozen=True)
class Side:
    """One objective of one set of runs with its minima, or one fit; `rows` carry the conventions."""

    name: str
    rows: list[dict]
    isoflop: IsoFlop | None = None
    fit: Fit | None = None

    @property
    def label(self) -> str:
        """'sweep mdm (upper bound)'; where a side does not say which, it says so."""
        return f"{self.name} ({kind_of(self.rows[0])})"


def is_fit(path: Path) -> bool:
    """Whether a path is a fit.json or the folder of one."""
    return path.name == "fit.json" or is_there(path / "fit.json")


def side_of_fit(path: Path) -> Side:
    """A fit under the name of its folder. Raises as `load_fit`."""
    fit = load_fit(path)
    name = (path.resolve().parent if path.name == "fit.json" else path.resolve()).name
    stated = {"objective": name, **{key: value for key, value in fit.conventions.items() if value is not None}}
    return Side(name, [stated | {"run": f"the fit {name}", "unit": fit.choices.get("unit")}], fit=fit)


def sides_of_runs(stem: str, table: Table, isoflops: dict[str, IsoFlop]) -> list[Side]:
    """Each objective of a table with its minima; `stem` is what the table is called."""
    several, unit = len(table.objectives) > 1, table.choices.get("unit")
    return [
        Side(
            f"{stem} {objective}" if several else stem,
            [row | {"unit": unit} for row in table.only(objective).rows],
            isoflop=isoflop,
        )
        for objective, isoflop in isoflops.items()
    ]


def findings(sides: list[Side], allow: Iterable[str] = ()) -> list[str]:
    """What differs between and within the sides, a sentence each, and what a bound means for the ratios.

    Raises Mismatch for differences that `allow` does not name (a unit cannot be allowed).
    """
    rows = [row for side in sides for row in side.rows]
    found = differences(rows)
    for side in sides:
        found |= covariate_differences(side.rows)
    units = {row.get("unit") or "nats" for row in rows}
    refused = [f"{sentence}, or give --allow {name}." for name, sentence in found.items() if name not in allow]
    if len(units) > 1:
        refused.append(f"losses are in {' and in '.join(sorted(units))}: fit again with the same --unit.")
    if refused:
        raise Mismatch(" ".join(refused))
    notes = [f"allowed: {sentence}." for sentence in found.values()]
    notes += _covariates_between(sides) + [f"{side.name}: {warning}" for side in sides for warning in _doubts(side)]
    kinds = {row.get("bound") for row in rows}
    if len(kinds) > 1:
        notes.append(
            "an upper bound lies above the negative log-likelihood that it bounds: ratios of an exact loss and a bound "
            "overstate what the bounded model needs."
        )
    if any(map(is_sampler, rows)):
        notes.append(
            "a sampler's likelihood is of another distribution than the one that training bounds: it may lie on either side."
        )
    if kinds == {None}:
        notes.append("no side says whether its losses are exact or bounds: give the column bound.")
    return notes


def _doubts(side: Side) -> list[str]:
    """What a reader must know of the law or the minima of a side."""
    if side.fit is not None:
        return side.fit.warnings
    return [] if side.isoflop is None else side.isoflop.warnings + warnings_of(frontier_of(side.isoflop))


def _covariates_between(sides: list[Side]) -> list[str]:
    """A sentence for each flag of training that is one value in one side and another in the next."""
    columns = columns_of_flags([row for side in sides for row in side.rows])
    values = [{name: {row[name] for row in side.rows if row.get(name) is not None} for name in columns} for side in sides]
    found = []
    for name in columns:
        each = [side[name] for side in values]
        if all(len(one) == 1 for one in each) and len(set.union(*each)) > 1 and name not in FOLLOWING:
            which = "; ".join(f"{said(*one)} in {side.name}" for one, side in zip(each, sides))
            found.append(f"the sides differ in {spelled(name)}: {which}.")
    return found


def compare(reference: Side, other: Side, at_loss: Sequence[float] = (), at_flops: Iterable[float] = ()) -> dict:
    """Compute of `other` over that of `reference` at equal loss, and optimal parameters of `reference` over those of `other`
    at equal compute, each with its 95 % interval: {"compute": [...], "params": [...]}; `unreached`: losses of `at_loss` that a
    side never has, or has no law for. Raises Mismatch for a fit and runs."""
    if (reference.fit is None) != (other.fit is None):
        raise Mismatch(f"{reference.name} and {other.name}: one is a fit and one is a set of runs; fit the runs first.")
    if reference.fit is not None and other.fit is not None:
        compute, params = _compare_fits(reference.fit, other.fit, list(at_loss), list(at_flops))
    elif reference.isoflop is not None and other.isoflop is not None:
        compute, params = _compare_runs(reference.isoflop, other.isoflop, list(at_loss), list(at_flops))
    else:
        raise Mismatch(f"{reference.name} and {other.name}: neither fits nor minima of runs; fit them first.")
    unreached = [loss for loss, row in zip(at_loss, compute) if row is None]
    compute, params = ([row for row in rows if row] for rows in (compute, params))
    return {"reference": reference.label, "other": other.label, "compute": compute, "params": params, "unreached": unreached}


def _compare_runs(one: IsoFlop, two: IsoFlop, at_loss, at_flops):
    common = equal_loss_ratios(one, two)
    compute = common if not at_loss else [compute_ratio(one, two, loss) for loss in at_loss]
    params = [params_ratio(one, two, flops) for flops in (at_flops or [row["flops"] for row in common])]
    return compute, params


def _compare_fits(reference: Fit, other: Fit, at_loss, at_flops):
    """At the budgets that both fits' data cover, and the losses that `other` has there."""
    if not all("flops" in fit.range for fit in (reference, other)):
        raise BadData("a fit does not say which budgets it was fitted on (range.flops): fit again.")
    ranges = np.log([fit.range["flops"] for fit in (reference, other)])
    low, high = ranges[:, 0].max(), ranges[:, 1].min()
    if low > high:
        low, high = ranges.min(), ranges.max()
    flops = np.array(at_flops or np.exp(np.linspace(low, high, NUM_BUDGETS)))
    ln_grid = np.linspace(ranges.min() - REACH * np.log(10), ranges.max() + REACH * np.log(10), 2000)
    curves = [_optimal_losses(fit, ln_grid) for fit in (reference, other)]  # [1 + draws, grid] each
    pairs = min(len(curve) for curve in curves)
    losses = at_loss or [float(np.interp(np.log(c), ln_grid, curves[1][0])) for c in flops]
    compute = [_equal_loss([curve[:pairs] for curve in curves], ln_grid, loss, ranges) for loss in losses]
    return compute, [_params(reference, other, c, ranges, pairs) for c in flops]


def _optimal_losses(fit, ln_flops) -> np.ndarray:
    """Loss at the optimum over ln C, [1 + draws, grid], the fitted law first."""
    point = fit.law.optimal_loss(np.exp(ln_flops))[None]
    if fit.draws is None or not len(fit.draws):
        return point
    return np.concatenate([point, drawn_law(fit, len(fit.draws), 1).optimal_loss(np.exp(ln_flops))])


def _equal_loss(curves, ln_grid, loss, ranges) -> dict | None:
    """The ratio of compute at which both curves have this loss; None where one does not reach it."""
    ln_flops = np.array([[np.interp(-loss, -row, ln_grid, left=np.nan, right=np.nan) for row in curve] for curve in curves])
    if np.isnan(ln_flops[:, 0]).any():
        return None
    ratio = np.exp(ln_flops[1] - ln_flops[0])
    inside = all(low <= place <= high for (low, high), place in zip(ranges, ln_flops[:, 0]))
    return {
        "loss": float(loss),
        "flops": np.exp(ln_flops[:, 0]).tolist(),
        "ratio": float(ratio[0]),
        "extrapolated": not inside,
        "ci": percentile_interval(np.where(np.isnan(ratio[1:]), np.inf, ratio[1:])),
    }  # NaN: never that loss


def _params(one, two, flops, ranges, pairs) -> dict:
    sizes = [np.concatenate([[fit.law.optimum(flops)[0]], _drawn_sizes(fit, flops)])[:pairs] for fit in (one, two)]
    ratio = sizes[0] / sizes[1]
    inside = all(low <= np.log(flops) <= high for low, high in ranges)
    return {
        "flops": float(flops),
        "params": [float(size[0]) for size in sizes],
        "ratio": float(ratio[0]),
        "extrapolated": not inside,
        "ci": percentile_interval(ratio[1:]),
    }


def _drawn_sizes(fit, flops) -> np.ndarray:
    if fit.draws is None or not len(fit.draws):
        return np.zeros(0)
    return np.ravel(fit.optimum_draws(flops)[0])
