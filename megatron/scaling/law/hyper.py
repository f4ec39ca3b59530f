"""Power laws of the best learning rate, batch or weight decay over N, D and U, from runs that vary them at several places.

Near its minimum ln L is a parabola in the logarithms x of the settings. With one curvature for all places (one N, D, U each),

    ln L = c_place + x' Q x + x' G z,     z = (1, ln N, ln D, ln U),

the best settings x* = -Q^-1 G z / 2 are power laws h* = exp(k) N^a D^b U^c, and all unknowns are found at once by least squares:
the forms of arXiv:2401.02954 (section 3.1) and arXiv:2503.04715, fitted jointly. Intervals are of draws of the coefficients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import fdtrc

from megatron.errors import BadData
from megatron.files import read_json
from megatron.scaling.law.intervals import percentile_interval
from megatron.scaling.table.covariates import Places, column_of, said, spelled

VARIABLES = ("params", "tokens", "unique_tokens")
BATCH = "batch_size"
USUAL = ("lr", BATCH, "weight_decay")  # what is fitted where nothing is named
WINDOW = 0.1  # settings whose ln L lies further above the least of their place count as no part of its parabola
NUM_DRAWS = 2000
ROUNDING = 1e-10  # of ln L
LOPSIDED = 0.01  # p-value of cubic terms below which losses are no parabola
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class HyperLaw:
    """One setting: ln h* = constant + sum of exponents[v] ln v over `params`, `tokens`, `unique_tokens`."""

    constant: float
    exponents: dict[str, float]
    range: dict[str, list[float]] = field(default_factory=dict)  # variable -> [least, most] of the runs behind it
    params_convention: str | None = None
    seq_length: int | None = None  # of a batch: tokens in each of the samples that it counts; None where the runs do not say

    def at(self, **variables: float) -> float:
        """h* at these params, tokens and unique_tokens."""
        return math.exp(self.constant + sum(slope * math.log(variables[name]) for name, slope in self.exponents.items()))

    def outside(self, **variables: float) -> list[str]:
        """The variables that lie outside of the runs behind the law, by more than 1 %."""
        return [
            name
            for name, (low, high) in self.range.items()
            if name in variables and not low / 1.01 <= variables[name] <= high * 1.01
        ]


@dataclass(frozen=True)
class HyperFit:
    """The laws of one objective. `places`: params, tokens, unique_tokens, runs and, of each setting, {best, low, high, tried}."""

    laws: dict[str, HyperLaw]
    ci: dict[str, dict[str, list]]  # setting -> constant and variables -> [low, high], None: open
    curvature: np.ndarray  # Q: ln L above the minimum by x' Q x, [h, h]
    residual: float  # root mean square of ln L around the parabolas
    num_runs: int
    places: list[dict]
    warnings: list[str]


def settings_of(rows: Sequence[dict], named: Sequence[str]) -> list[str]:
    """The columns that `named` flags are, or those of USUAL in which runs of one place differ. Raises BadData."""
    found = [column_of(name, rows) for name in named]
    if not named:
        groups = [[rows[i] for i in members] for members in Places.of(rows).members()]
        found = [name for name in USUAL if any(len({row.get(name) for row in group}) > 1 for group in groups)]
    if not found:
        raise BadData(
            f"the runs differ in none of {', '.join(map(spelled, USUAL))} at the same N, D and unique tokens: plan such runs "
            "with --lr grid:..., --batch-size grid:... or --vary weight-decay=..., or name another flag with --of."
        )
    return found


def fit_hyper(rows: Sequence[dict], settings: Sequence[str], window: float = WINDOW, seed: int = 0) -> HyperFit:
    """The laws of these columns from runs of one objective. Raises BadData where the runs have no minimum or are too few."""
    rows, seq_length, said_of_batch = _equal_samples(rows, settings)
    rows, x, warnings = _positive(rows, settings)
    warnings = said_of_batch + warnings
    if not rows:
        raise BadData(f"no run states a {' and a '.join(map(spelled, settings))} above 0: name another flag with --of.")
    ln_loss, place = np.log([row["loss"] for row in rows]), Places.of(rows).number
    near = ln_loss <= np.array([ln_loss[place == one].min() for one in place]) + window
    kept = near & _several(place, near)
    if not kept.any():
        raise BadData(
            f"at no N, D and unique tokens do two runs lie within {window:g} in ln L of the best: give a larger --window."
        )
    if (~kept).any():
        warnings.append(
            f"{np.sum(~near)} runs lie more than {window:g} in ln L above the best of their place, {np.sum(near & ~kept)} stand "
            "alone at theirs: not fitted (--window)."
        )
    rows = [row for row, use in zip(rows, kept) if use]
    x, ln_loss, place = x[kept], ln_loss[kept], np.unique(place[kept], return_inverse=True)[1].ravel()
    z, variables, centre = _variables(rows, place)
    design = _Design.of(x, z, place, settings)
    theta, draws, rms, dof = _solve(design.columns, ln_loss, seed)
    curvature, best = design.minimum(theta)
    _check_minimum(curvature, settings, x, ln_loss, len(rows))
    bends, drawn = design.minimum(draws)
    drawn[np.linalg.eigvalsh(bends)[:, 0] <= 0] = np.nan
    warnings += _lopsided(design, x, z, best, ln_loss, theta, dof) + _apart(design, x, place, settings, ln_loss, theta, dof)
    fit = _laws(rows, settings, variables, centre, best, drawn, seq_length)
    places = _places(rows, settings, x, ln_loss, place, z, design.centre, best, drawn)
    warnings += _beyond_the_values(places, settings, x, place)
    return HyperFit(*fit, curvature, rms, len(rows), places, warnings)


def _equal_samples(rows: Sequence[dict], settings: Sequence[str]) -> tuple[list[dict], int | None, list[str]]:
    """(rows whose batches count samples of one length, that of the first; that length; a sentence where runs differ in it).

    Raises BadData where some do not say theirs.
    """
    lengths = {row.get("seq_length") for row in rows}
    if BATCH not in settings or lengths == {None}:
        return list(rows), None, []
    if None in lengths:
        known = ", ".join(said(one) for one in sorted(filter(None, lengths)))
        raise BadData(
            f"batches count samples, and some runs do not say of how many tokens (seq-length {known} in others): give all the "
            "column seq_length, or fit other settings with --of."
        )
    one = int(rows[0]["seq_length"])
    if len(lengths) == 1:
        return list(rows), one, []
    rows = [
        row | {BATCH: row[BATCH] * row["seq_length"] / one} if isinstance(row.get(BATCH), (int, float)) else row for row in rows
    ]
    return rows, one, [f"runs differ in seq-length: batches of equal tokens are equal, counted in samples of {one} tokens."]


def _positive(rows: Sequence[dict], settings: Sequence[str]) -> tuple[list[dict], np.ndarray, list[str]]:
    """(rows whose settings have logarithms, these [n, h], a sentence on the others)."""

    def usable(row: dict) -> bool:
        return all(isinstance(row.get(name), (int, float)) and row[name] > 0 for name in settings)

    kept = [row for row in rows if usable(row)]
    x = np.log([[row[name] for name in settings] for row in kept]).reshape(len(kept), len(settings))
    names = ", ".join(map(spelled, settings))
    left = len(rows) - len(kept)
    return kept, x, [f"{left} runs have no logarithm of {names} (0, or no number): not fitted."] if left else []


def _several(place: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Whether a run's place has another one left, [n]."""
    counts = np.bincount(place[near], minlength=place.max() + 1)
    return counts[place] > 1


def _variables(rows: list[dict], place: np.ndarray) -> tuple[np.ndarray, list[str], np.ndarray]:
    """(z [n, 1 + v] with centred logarithms, the variables that the places can tell apart, their centres)."""
    first = np.unique(place, return_index=True)[1]
    z = np.ones((len(rows), 1))
    names: list[str] = []
    centre: list[float] = []
    for name in VARIABLES:
        ln = np.log([row[name] for row in rows])
        middle = float(ln[first].mean())
        wider = np.column_stack([z, ln - middle])
        values = np.linalg.svd(wider[first] / np.maximum(np.abs(wider[first]).max(axis=0), 1e-9), compute_uv=False)
        if len(first) >= wider.shape[1] and np.ptp(ln[first]) > 0.02 and values[-1] > 1e-2 * values[0]:
            z, names, centre = wider, [*names, name], [*centre, middle]
    return z, names, np.array(centre)


@dataclass(frozen=True)
class _Design:
    """Columns of the least squares: places [p], squares and products of x, x times z."""

    columns: np.ndarray  # [n, k]
    pairs: list[tuple[int, int]]
    num_places: int
    num_settings: int
    num_variables: int  # with the constant
    centre: np.ndarray  # of x, [h]

    @classmethod
    def of(cls, x: np.ndarray, z: np.ndarray, place: np.ndarray, settings: Sequence[str]) -> _Design:
        """Raises BadData where runs are too few, or a setting has fewer than three values anywhere."""
        centre, number = x.mean(axis=0), x.shape[1]
        x = x - centre
        places = np.eye(place.max() + 1)[place]
        slopes = [x[:, i] * column for i in range(number) for column in z.T]
        pairs = [(i, i) for i in range(number)]
        columns = np.column_stack([places, *(x[:, i] ** 2 for i in range(number)), *slopes])
        few = [name for i, name in enumerate(settings) if _most_values(x[:, i], place) < 3]
        if few or np.linalg.matrix_rank(columns) < columns.shape[1]:
            few = few or list(settings)
            raise BadData(
                f"the runs do not tell where {' and '.join(map(spelled, few))} is best: each needs three values or more, on both "
                "sides of the best one, at the same N, D and unique tokens; plan more of them."
            )
        for i, j in itertools.combinations(range(number), 2):  # only where the runs vary both at once
            wider = np.column_stack([columns[:, : len(places[0]) + len(pairs)], x[:, i] * x[:, j], *slopes])
            if np.linalg.matrix_rank(wider) == wider.shape[1]:
                columns, pairs = wider, [*pairs, (i, j)]
        if len(x) <= columns.shape[1]:
            raise BadData(f"{len(x)} runs for {columns.shape[1]} unknowns ({len(places[0])} places): plan more values or seeds.")
        return cls(columns, pairs, len(places[0]), number, z.shape[1], centre)

    def minimum(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(Q [..., h, h], the rows of x* = slopes z with the centre of x back in place, [..., h, 1 + v]) of theta [..., k]."""
        bends, slopes = np.split(theta[..., self.num_places :], [len(self.pairs)], axis=-1)
        shape = (*theta.shape[:-1], self.num_settings)
        curvature = np.zeros((*shape, self.num_settings))
        for number, (i, j) in enumerate(self.pairs):
            curvature[..., i, j] += bends[..., number] / 2
            curvature[..., j, i] += bends[..., number] / 2
        best = -np.linalg.pinv(curvature) @ slopes.reshape(*shape, self.num_variables) / 2
        best[..., 0] += self.centre
        return curvature, best


def _most_values(values: np.ndarray, place: np.ndarray) -> int:
    """The most values that any place has."""
    return max(len(np.unique(np.round(values[place == one], 6))) for one in np.unique(place))


def _solve(columns: np.ndarray, ln_loss: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, float, int]:
    """(coefficients [k], draws of them [r, k] by the t distribution of least squares, root mean square residual, freedom)."""
    theta = np.linalg.lstsq(columns, ln_loss, rcond=None)[0]
    squares, dof = float(np.sum((ln_loss - columns @ theta) ** 2)), len(ln_loss) - columns.shape[1]
    root = np.linalg.pinv(np.linalg.qr(columns, mode="r"))
    random = np.random.default_rng(seed)
    chi = np.sqrt(random.chisquare(dof, (NUM_DRAWS, 1)) / dof)
    draws = theta + math.sqrt(squares / dof) * (random.standard_normal((NUM_DRAWS, len(theta))) @ root.T) / chi
    return theta, draws, math.sqrt(squares / len(ln_loss)), dof


def _check_minimum(curvature: np.ndarray, settings: Sequence[str], x: np.ndarray, ln_loss: np.ndarray, count: int) -> None:
    """Raise BadData where the parabola has no minimum."""
    flat = [i for i in range(len(settings)) if curvature[i, i] <= 0]
    if not flat and np.linalg.eigvalsh(curvature)[0] > 0:
        return
    i = flat[0] if flat else 0
    least, most = (said(float(f"{math.exp(end):.4g}")) for end in (x[:, i].min(), x[:, i].max()))
    raise BadData(
        f"{count} runs show no minimum in {spelled(settings[i])} between {least} and {most}: plan values on both sides of the "
        f"best, or fit the others alone with --of and --best-of {spelled(settings[i])}."
    )


def _lopsided(design: _Design, x, z, best, ln_loss, theta, dof: int) -> list[str]:
    """A sentence where cubes of the distance from the minimum explain more than chance (F test)."""
    cubes = (x - z @ best.T) ** 3
    wider = np.column_stack([design.columns, cubes])
    if _more_than_chance(design.columns, wider, ln_loss, theta, dof)[1] > LOPSIDED:
        return []
    return ["the losses are no parabola in the logarithms (cubic terms matter): the optimum is biased; give a smaller --window."]


def _apart(design, x, place, settings, ln_loss, theta, dof: int) -> list[str]:
    """A sentence for each setting whose best values, with slopes of each place's own, lie off the power law by more than chance
    (F test)."""
    places, found = np.eye(place.max() + 1)[place], []
    for i, name in enumerate(settings):
        wider = np.column_stack([design.columns, places * (x[:, i : i + 1] - design.centre[i])])
        F, p = _more_than_chance(design.columns, wider, ln_loss, theta, dof)
        if p < LOPSIDED:
            found.append(
                f"lack of fit: the best {spelled(name)} of single places lies off the power law by more than the scatter of runs "
                f"(F {F:.3g}, p {p:.2g}): its intervals do not hold that; fit fewer places, as of one range of N or D, at a time."
            )
    return found


def _more_than_chance(columns, wider, ln_loss, theta, dof: int) -> tuple[float, float]:
    """(F, p) of what the wider columns explain of ln L beyond these; p is 1 where nothing tells."""
    more = int(np.linalg.matrix_rank(wider)) - len(theta)
    before = float(np.sum((ln_loss - columns @ theta) ** 2))
    after = float(np.sum((ln_loss - wider @ np.linalg.lstsq(wider, ln_loss, rcond=None)[0]) ** 2))
    if more <= 0 or dof <= more or before < len(ln_loss) * ROUNDING**2:
        return 0.0, 1.0
    F = max(0.0, before - after) / more / (after / (dof - more))
    return F, float(fdtrc(more, dof - more, F))


def _laws(rows, settings, variables, centre, best, drawn, seq_length) -> tuple[dict[str, HyperLaw], dict]:
    """(law of each setting, intervals) with the centres of z taken out."""
    reach = {name: [min(row[name] for row in rows), max(row[name] for row in rows)] for name in VARIABLES}
    convention = rows[0].get("params_convention")
    laws, ci = {}, {}
    for i, name in enumerate(settings):
        slopes, constants = best[i, 1:], drawn[:, i, 0] - drawn[:, i, 1:] @ centre
        own = {name: [min(row[name] for row in rows), max(row[name] for row in rows)]}
        exponents = dict(zip(variables, slopes.tolist()))
        length = seq_length if name == BATCH else None
        laws[name] = HyperLaw(float(best[i, 0] - slopes @ centre), exponents, reach | own, convention, length)
        ci[name] = {"constant": _interval(constants)} | {
            variable: _interval(drawn[:, i, 1 + j]) for j, variable in enumerate(variables)
        }
    return laws, ci


def _interval(draws: np.ndarray) -> list[float | None]:
    """The central 95 %; draws without a minimum (NaN) stand at both ends."""
    lost = np.isnan(draws)
    ends = np.where(np.arange(len(draws)) % 2 == 0, -np.inf, np.inf)
    return percentile_interval(np.where(lost, ends, draws))


def _places(rows, settings, x, ln_loss, place, z, centre, best, drawn) -> list[dict]:
    """What is best at each place, with its interval, beside the best value that was tried."""
    found = []
    for one in range(place.max() + 1):
        members = np.flatnonzero(place == one)
        row, at = rows[members[0]], z[members[0]]
        tried = rows[members[np.argmin(ln_loss[members])]]
        entry = {name: row[name] for name in VARIABLES} | {"runs": len(members)}
        for i, name in enumerate(settings):
            ends = _interval(drawn[:, i] @ at)
            low, high = (None if end is None else math.exp(end) for end in ends)
            entry[name] = {"best": math.exp(best[i] @ at), "low": low, "high": high, "tried": tried[name]}
        found.append(entry)
    return found


def _beyond_the_values(places: list[dict], settings: Sequence[str], x: np.ndarray, place: np.ndarray) -> list[str]:
    """A sentence for each setting whose optimum lies outside of the values that were tried."""
    found = []
    for i, name in enumerate(settings):
        far = [
            number
            for number, entry in enumerate(places)
            if not x[place == number, i].min() <= math.log(entry[name]["best"]) <= x[place == number, i].max()
        ]
        if far:
            where = ", ".join(f"N={places[n]['params']:.3g} D={places[n]['tokens']:.3g}" for n in far[:3])
            more = f" and {len(far) - 3} more" if len(far) > 3 else ""
            found.append(f"the best {spelled(name)} lies outside of the values tried at {where}{more}: plan values beyond them.")
    return found


# -- files


def as_record(fit: HyperFit) -> dict:
    """One objective's part of hyper.json."""
    return {
        "settings": {
            name: {
                "constant": law.constant,
                "exponents": law.exponents,
                "ci": fit.ci[name],
                "range": law.range,
                "params_convention": law.params_convention,
                "seq_length": law.seq_length,
            }
            for name, law in fit.laws.items()
        },
        "curvature": fit.curvature.tolist(),
        "residual": fit.residual,
        "runs": fit.num_runs,
        "places": fit.places,
        "warnings": fit.warnings,
    }


def read_hyper(path: str | Path, setting: str) -> dict[str, HyperLaw]:
    """objective -> law of this setting from hyper.json, of the verb `hyper`. Raises MissingInput, BadData."""
    held = read_json(Path(path), "`hyper --out` writes one", "a hyper.json")
    try:
        found = {
            str(objective): HyperLaw(
                float(part["settings"][setting]["constant"]),
                {name: float(part["settings"][setting]["exponents"][name]) for name in part["settings"][setting]["exponents"]},
                {name: [float(low), float(high)] for name, (low, high) in part["settings"][setting]["range"].items()},
                part["settings"][setting]["params_convention"],
                part["settings"][setting].get("seq_length"),
            )
            for objective, part in held["objectives"].items()
            if setting in part["settings"]
        }
        if held["schema_version"] != SCHEMA_VERSION or any(set(law.exponents) - set(VARIABLES) for law in found.values()):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadData(f"{path}: no laws of hyperparameters of version {SCHEMA_VERSION}: `hyper --out` writes them.") from None
    if not found:
        raise BadData(f"{path}: no law of {spelled(setting)}: fit it with `hyper --of {spelled(setting)}`.")
    return found
