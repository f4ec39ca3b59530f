"""The compute-optimal frontier of isoFLOP minima: N*(C), D*(C) and L*(C) with prefactors, bands and draws, which `predict` reads.

N* = k_N C^a and D* = k_D C^b are least squares through the minima in logarithms. So is L* = k_L C^-g; where ln L* bends over
ln C, L* = E + k_L C^-g takes its place, by least squares of the relative error. Bands are of the draws of the minima.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron.errors import BadData
from megatron.files import is_there, read_json
from megatron.scaling.answers.isoflop import SAME_BUDGET, IsoFlop, covers, power_law
from megatron.scaling.law.fitted import Fit
from megatron.scaling.law.form import Form, golden_section
from megatron.scaling.law.intervals import percentile_interval
from megatron.scaling.table.comparable import SAME_FOR_ALL

NAMES = ("k_N", "a", "k_D", "b", "E", "k_L", "g")
GROWTHS = np.geomspace(0.005, 3, 60)  # g of a law with E, between which the best is searched for
BAND_POINTS = 31
BEYOND = 10.0  # times the largest budget, up to which bands are given
LEAST_MINIMA = 3  # for E, and for a bend


@dataclass(frozen=True)
class Frontier:
    """N* = k_N C^a, D* = k_D C^b, L* = E + k_L C^-g: numbers, or arrays of one shape."""

    k_N: Any
    a: Any
    k_D: Any
    b: Any
    E: Any
    k_L: Any
    g: Any

    @property
    def exponents(self) -> tuple:
        """(a, b)."""
        return self.a, self.b

    def optimum(self, flops, unique=None):
        """(N*, D*)."""
        _fresh(unique)
        return self.k_N * np.float64(flops) ** self.a, self.k_D * np.float64(flops) ** self.b

    def optimal_loss(self, flops, unique=None):
        """L*."""
        _fresh(unique)
        return self.E + self.k_L * np.float64(flops) ** -self.g

    def flops_at(self, loss):
        """C at which L* is this loss; NaN where it never is."""
        above = np.where(loss > self.E, loss - self.E, np.nan)
        return (self.k_L / above) ** (1 / self.g)

    def loss(self, params, tokens, unique=None):
        """Raises BadData: minima say nothing of other runs."""
        raise BadData("isoFLOP minima know the loss of the optimum alone: give a fit of L(N, D).")


def _fresh(unique) -> None:
    if unique is not None:
        raise BadData("isoFLOP minima are of fresh data: leave out --unique-tokens, or give a fit of a form with U.")


class FrontierForm(Form):
    """What stands in for a form where a law is read off minima."""

    name = "isoflop"
    equation = "N* = k_N C^a, D* = k_D C^b, L* = E + k_L C^-g"
    names = NAMES
    axes = ("flops",)

    def law_of(self, fields) -> Frontier:
        return Frontier(**fields)

    def from_values(self, values) -> Frontier:
        return Frontier(*np.moveaxis(np.asarray(values, np.float64), -1, 0))


def frontier_of(isoflop: IsoFlop) -> dict | None:
    """What isoflop.json says under `optimum`; None below two minima inside their data.

    names, params and draws are those of the Frontier that `predict` uses; `power_law` and `irreducible` {k_L, g, E} have the
    loss both ways, each with `ci`; `curvature` that of ln L* over ln C; `bands` over C with value, low and high.
    """
    lines = {column: power_law(isoflop, column) for column in ("params", "tokens", "loss")}
    if any(line is None for line in lines.values()):
        return None
    sizes = [part for name in ("params", "tokens") for part in _prefactor(lines[name])]
    k_L, slope = _prefactor(lines["loss"])
    plain = np.stack([np.zeros_like(slope), k_L, -slope], axis=1)
    flops = np.array([minimum.flops for minimum in isoflop.interior])
    bend = _curvature(isoflop, flops)
    bent = _with_irreducible(isoflop, flops) if len(flops) > LEAST_MINIMA else None
    if bent is not None and not np.isfinite(bent[0]).all():  # the minima rise with C: no such law falls through them
        bent = None
    used = plain if bent is None or bend is None or _within(bend["ci"]) else bent
    values = np.column_stack([*sizes, used])
    values = values[np.isfinite(values).all(axis=1)]
    return {
        "equation": FrontierForm.equation,
        "names": list(NAMES),
        "params": dict(zip(NAMES, values[0].tolist())),
        "ci": _intervals(NAMES, values),
        "power_law": _said(("E", "k_L", "g"), plain),
        "irreducible": None if bent is None else _said(("E", "k_L", "g"), bent),
        "curvature": bend,
        "range": {"flops": [float(flops.min()), float(flops.max())]},
        "bands": _bands(values, flops),
        "draws": values[1:].tolist(),
    }


def _prefactor(line) -> tuple[np.ndarray, np.ndarray]:
    """(k, slope) [1 + draws] of y = k C^slope."""
    with np.errstate(over="ignore"):
        return np.exp(line.level - line.slope * line.centre), line.slope


def _within(ends: list | None) -> bool:
    """Whether an interval has 0 in it, or there is none."""
    return ends is None or None in ends or ends[0] <= 0 <= ends[1]


def _losses(isoflop: IsoFlop) -> np.ndarray:
    """Loss of the minima that count, the fitted ones first, [1 + draws, minima]; NaN where a minimum left its data."""
    used = np.array([minimum.reason is None for minimum in isoflop.minima], bool)
    drawn = np.where(np.isfinite(isoflop.draws["params"]), isoflop.draws["loss"], np.nan)[:, used]
    return np.concatenate([[[minimum.loss for minimum in isoflop.interior]], drawn])


def _curvature(isoflop: IsoFlop, flops) -> dict | None:
    """The coefficient of (ln C)^2 in ln L* as a parabola of ln C, with its interval; None below three minima."""
    if len(flops) < LEAST_MINIMA:
        return None
    x = np.log(flops) - np.log(flops).mean()
    bends = np.log(_losses(isoflop)) @ np.linalg.pinv(np.stack([np.ones_like(x), x, x * x], axis=1))[2]
    return {"value": float(bends[0]), "ci": percentile_interval(bends[1:]) if len(bends) > 1 else None}


def _with_irreducible(isoflop: IsoFlop, flops) -> np.ndarray:
    """(E, k_L, g) of L* = E + k_L C^-g, E and k_L not below 0, [1 + draws, 3]; NaN where no such law falls through the minima."""
    losses, centre = _losses(isoflop), np.exp(np.log(flops).mean())

    def at(ln_growth):
        return _of_growth(losses, flops / centre, np.broadcast_to(np.exp(ln_growth), len(losses)))

    grid = np.log(GROWTHS)
    nearest = np.array([at(one)[0] for one in grid]).argmin(axis=0)
    ends = grid[np.maximum(nearest - 1, 0)], grid[np.minimum(nearest + 1, len(grid) - 1)]
    best = golden_section(lambda ln_growth: at(ln_growth)[0], *ends)
    error, rest, size = at(best)
    found = np.stack([rest, size * centre ** np.exp(best), np.exp(best)], axis=1)
    return np.where(np.isfinite(error)[:, None], found, np.nan)


def _of_growth(losses, flops, growth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sum of squares of the relative error, infinite where k_L is not above 0; E; k_L) of losses [r, minima] and g [r]."""
    falling = flops ** -growth[:, None]
    columns = np.stack([1 / losses, falling / losses], axis=-1)  # of the relative error
    squares = columns.swapaxes(-1, -2) @ columns
    total, crossed = columns.sum(axis=1), squares[:, 0, 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        determinant = squares[:, 0, 0] * squares[:, 1, 1] - crossed**2
        rest = np.maximum((total[:, 0] * squares[:, 1, 1] - total[:, 1] * crossed) / determinant, 0)
        size = (total[:, 1] - rest * crossed) / squares[:, 1, 1]
        error = np.sum((rest[:, None] * columns[..., 0] + size[:, None] * columns[..., 1] - 1) ** 2, axis=1)
    return np.where(size > 0, error, np.inf), rest, size


def _intervals(names, values) -> dict:
    return {name: percentile_interval(column) for name, column in zip(names, values[1:].T)} if len(values) > 1 else {}


def _said(names, values) -> dict:
    return dict(zip(names, values[0].tolist())) | {"ci": _intervals(names, values)}


def _bands(values, flops) -> dict:
    """value, low and high of params, tokens and loss over C, from the least budget to ten times the largest."""
    grid = np.geomspace(flops.min(), flops.max() * BEYOND, BAND_POINTS)
    law = FrontierForm().from_values(values[:, None])
    columns = dict(zip(("params", "tokens"), law.optimum(grid))) | {"loss": law.optimal_loss(grid)}
    found: dict = {"flops": grid.tolist()}
    for name, column in columns.items():
        found[name] = {"value": column[0].tolist()}
        if len(column) > 1:
            low, high = np.quantile(column[1:], [0.025, 0.975], axis=0)
            found[name] |= {"low": low.tolist(), "high": high.tolist()}
    return found


def gain(reference: dict, other: dict) -> dict | None:
    """Compute of `reference` over that of `other` at equal loss, over the budgets of `other`: flops, value, low and high.

    Both are of `frontier_of`. `inside`: where that compute lies among budgets of `reference`. None where
    `reference` never reaches such losses.
    """
    laws = [FrontierForm().from_values([one["params"][name] for name in NAMES]) for one in (reference, other)]
    flops = np.geomspace(other["range"]["flops"][0], other["range"]["flops"][1], BAND_POINTS)
    value = laws[0].flops_at(laws[1].optimal_loss(flops)) / flops
    if not np.isfinite(value).any():
        return None
    pairs = min(len(reference["draws"]), len(other["draws"]))
    found = {"flops": flops.tolist(), "value": value.tolist(), "inside": []}
    low, high = reference["range"]["flops"]
    found["inside"] = ((value * flops >= 0.99 * low) & (value * flops <= 1.01 * high)).tolist()
    if pairs:
        drawn = [FrontierForm().from_values(np.array(one["draws"])[:pairs, None]) for one in (reference, other)]
        ratios = drawn[0].flops_at(drawn[1].optimal_loss(flops)) / flops
        ends = np.quantile(np.where(np.isnan(ratios), np.inf, ratios), [0.025, 0.975], axis=0, method="nearest")
        found |= dict(zip(("low", "high"), ends.tolist()))
    return found


def compute_ratio(cheap: IsoFlop, dear: IsoFlop, loss: float) -> dict | None:
    """Compute of `dear` over that of `cheap` where L*(C) of their minima is this loss; None where one has no law, or never is."""
    values = [one for one in map(_with_draws, (cheap, dear)) if one is not None]
    if len(values) < 2:
        return None
    pairs = min(map(len, values))
    places = [_reached(one[:pairs], loss) for one in values]
    if not all(np.isfinite(place[0]) for place in places):
        return None
    with np.errstate(invalid="ignore"):  # draws in which neither has the loss say nothing
        ratio = places[1] / places[0]
    return {
        "loss": loss,
        "ratio": float(ratio[0]),
        "ci": percentile_interval(ratio[1:]),
        "extrapolated": any(not covers(isoflop, place[0]) for isoflop, place in zip((cheap, dear), places)),
        "flops": [float(place[0]) for place in places],
    }


def equal_loss_ratios(cheap: IsoFlop, dear: IsoFlop) -> list[dict]:
    """At each interior budget C of `dear`: C / C', where C' is the compute at which `cheap` has the loss `dear` has at C.

    C' comes from L*(C) through the interior minima of `cheap` (two or more), a power law (Nie et al., arXiv:2410.18514, section
    4) or one with an irreducible term, as `frontier_of` has it; `extrapolated` where C' lies outside the minima,
    which is said of a budget of both only: of others nobody asked what lies beyond the data.
    """
    values = _with_draws(cheap)
    if values is None:
        return []
    pairs = min(len(values) - 1, len(dear.draws["loss"]))
    found = []
    for number, minimum in enumerate(dear.minima):
        if minimum.reason is not None:
            continue
        common = min(abs(np.log(other.flops / minimum.flops)) for other in cheap.interior) <= SAME_BUDGET
        equal = _reached(values[: pairs + 1], np.array([minimum.loss, *dear.draws["loss"][:pairs, number]]))
        if np.isfinite(equal[0]) and (common or covers(cheap, equal[0])):
            found.append(
                {
                    "flops": minimum.flops,
                    "loss": minimum.loss,
                    "ratio": float(minimum.flops / equal[0]),
                    "equal_flops": float(equal[0]),
                    "ci": percentile_interval(minimum.flops / equal[1:]),
                    "extrapolated": not covers(cheap, equal[0]),
                }
            )
    return found


def _with_draws(isoflop: IsoFlop) -> np.ndarray | None:
    """Parameters of the law of the optimum, the fitted ones first, [1 + draws, names]."""
    found = frontier_of(isoflop)
    return None if found is None else np.array([[found["params"][name] for name in NAMES], *found["draws"]])


def _reached(values: np.ndarray, loss) -> np.ndarray:
    """C at which each law has this loss; infinite where it never has, NaN where the loss is unknown."""
    flops = FrontierForm().from_values(values).flops_at(loss)
    return np.where(np.isnan(flops) & ~np.isnan(loss), np.inf, flops)


def warnings_of(optimum: dict | None) -> list[str]:
    """What a reader must know of the loss beyond the data."""
    if optimum is None or optimum["curvature"] is None or _within(optimum["curvature"]["ci"]):
        return []
    bend, rest = optimum["curvature"]["value"], optimum["irreducible"]
    start = (
        f"ln L* bends over ln C (curvature {bend:.2g}, its interval without 0): the power law C^-g does not hold beyond the data"
    )
    if rest is None:
        return [f"{start}; add budgets to fit L* = E + k C^-g."]
    return [f"{start}; L* = E + k C^-g with E {rest['E']:.4g} and g {rest['g']:.3g} takes its place."]


def is_isoflop(path: str | Path) -> bool:
    """Whether a path is an isoflop.json or the folder of one."""
    return Path(path).name == "isoflop.json" or is_there(Path(path) / "isoflop.json")


def load_frontiers(path: str | Path) -> list[Fit]:
    """A Fit for each objective of an isoflop.json or its folder, whose law is its Frontier. Raises MissingInput, BadData."""
    path = Path(path) / "isoflop.json" if Path(path).is_dir() else Path(path)
    record = read_json(
        path, "give an isoflop.json or the folder that `isoflop --out` wrote.", "the isoflop.json of `isoflop --out`"
    )
    objectives = record.get("objective") if isinstance(record, dict) else None
    if not isinstance(objectives, (str, dict)) or "optimum" not in record:
        raise BadData(f"{path}: no optimum; it is not what `isoflop --out` writes: run isoflop again.")
    if isinstance(objectives, str):
        return [_load(record, path)]
    return [_load(record | {name: record[name][objective] for name in OF_ONE}, path) for objective in objectives]


OF_ONE = ("objective", "bound", "optimum", "scatter", "warnings")


def _load(record: dict, path: Path) -> Fit:
    optimum, objective = record["optimum"], record["objective"]
    if optimum is None:
        raise BadData(f"{path}: {objective} has fewer than two minima inside their data, and no optimum; add sizes.")
    try:
        params = {name: float(optimum["params"][name]) for name in NAMES}
        draws = np.array(optimum["draws"], np.float64).reshape(-1, len(NAMES))
        reach, level = optimum["range"], optimum["bands"]["loss"]["value"][0]
    except (KeyError, TypeError, ValueError):
        raise BadData(f"{path}: the optimum of {objective} is not what `isoflop --out` writes: run isoflop again.") from None
    conventions = {name: (record.get("conventions") or {}).get(name) for name in SAME_FOR_ALL}
    return Fit(
        form=FrontierForm.name,
        params=params,
        draws=draws if len(draws) else None,
        residual_rms=np.nan if record["scatter"] is None else record["scatter"] / level,
        range=reach,
        conventions=conventions | {"objective": objective, "bound": record["bound"]},
        choices=record.get("choices") or {},
        warnings=list(record["warnings"]),
        law_form=FrontierForm(),
    )
