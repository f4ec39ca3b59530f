"""The compute at which masked diffusion passes the autoregressive model, over unique tokens U.

C_crit(U) is the first root in C of min_N L_mdm(N, U, C) - min_N L_ar(N, U, C) (arXiv:2507.15857, section 5). It is bracketed
on a grid of ln C and refined; intervals come from draws of the two fits, paired: where a draw has no root in the range, the
interval is open on that side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq

from megatron.errors import BadData, Mismatch
from megatron.scaling.law.forms.chinchilla import Chinchilla
from megatron.scaling.law.intervals import percentile_interval
from megatron.scaling.table.comparable import check_comparable
from megatron.scaling.table.labels import is_sampler, kind_of

AROUND_ONE_EPOCH = 1e-2, 1e8  # of the compute that spends U in one epoch at the optimum: the range searched
POINTS_A_DECADE = 3
DRAWS_AT_ONCE = 10  # keeps the search for the best N in the processor's cache


@dataclass(frozen=True)
class Crossings:
    """ln C of the crossing of each pair of draws, [draws, u]: -inf where MDM leads from the start of the range, inf where it
    never does; and the epochs of both models there, NaN where there is no crossing."""

    ln_flops: np.ndarray
    epochs: dict[str, np.ndarray]


def find_crossover(ar, mdm, unique_tokens, flops=None, allow=()) -> dict:
    """C_crit at each of `unique_tokens` [u] with 95 % intervals, its power law ln C = k + p ln U, and a grid for the contours.

    ar, mdm: fits. `flops`: (low, high), the range searched; by default 1/100 to 10^8 of the compute that spends U in one epoch.
    Raises Mismatch for losses that may not be compared, unless `allow` names the difference; BadData for a law without N and D.
    """
    check_fits_comparable({"ar": ar, "mdm": mdm}, allow)
    fits = {"ar": ar, "mdm": mdm}
    unique = np.unique(np.asarray(unique_tokens, np.float64))
    ln_flops = _ln_range(ar, unique, flops)
    drawn = _cross_draws(fits, unique, ln_flops)
    critical = [_critical(fits, U, ln_flops[row], drawn, row) for row, U in enumerate(unique)]
    found = {
        "label": _label(fits),
        "critical": critical,
        "power_law": _power_law(critical, drawn),
        "num_draws": len(drawn.ln_flops),
        **_contours(fits, unique, critical, flops),
    }
    return found | {"warnings": _warnings(fits, found)}


def check_fits_comparable(fits: dict, allow=()) -> None:
    """Raise Mismatch where fits {objective: Fit} differ in what makes losses incomparable, or leave exact or bound unsaid."""
    check_comparable(
        [{**fit.conventions, "objective": objective, "run": f"the {objective} fit"} for objective, fit in fits.items()], allow
    )
    units = {objective: fit.choices.get("unit") or "nats" for objective, fit in fits.items()}
    if len(set(units.values())) > 1:
        raise Mismatch(
            f"the fits differ in the unit of their loss ({', '.join(f'{o}: {u}' for o, u in units.items())}); "
            "fit both again with the same --unit."
        )


def drawn_law(fit, num_draws: int, num_axes: int):
    """The law with the first draws of the fit as its parameters, [draws, 1, ...] with `num_axes` axes to broadcast against."""
    return fit.law_form.from_values(fit.draws[:num_draws].reshape(num_draws, *[1] * num_axes, -1))


def num_paired_draws(fits: dict) -> int:
    """How many draws all of the fits have; 0 where one was not resampled."""
    return min(0 if fit.draws is None else len(fit.draws) for fit in fits.values())


def one_epoch_flops(law, unique_tokens):
    """C at which the optimum for fresh data spends U tokens: 6 (G U)^(1/b), with N* = G (C/6)^a."""
    if not isinstance(law, Chinchilla) or law.exponents is None:
        raise BadData(f"found a law {type(law).__name__}, expected one of L(N, D) with E; fit --form data-constrained.")
    return 6 * (np.exp(law.ln_scale) * np.asarray(unique_tokens, np.float64)) ** (1 / law.exponents[1])


def _ln_range(ar, unique, flops):
    """The grid of ln C at each U, [u, c]."""
    centre = one_epoch_flops(ar.law, unique)
    low, high = np.multiply.outer(AROUND_ONE_EPOCH, centre) if flops is None else np.full((2, len(unique)), np.c_[list(flops)])
    count = 1 + max(4, int(np.ceil(POINTS_A_DECADE * np.log10(high[0] / low[0]))))
    return np.linspace(np.log(low), np.log(high), count, axis=1)


def _cross_draws(fits: dict, unique, ln_flops) -> Crossings:
    """The crossing of every pair of draws; the fits are independent, so that the k-th goes with the k-th."""
    count = num_paired_draws(fits)
    if not count:
        nothing = np.empty((0, len(unique)))
        return Crossings(nothing, {name: nothing for name in fits})
    parts = [
        {name: replace(fit, draws=fit.draws[at : min(at + DRAWS_AT_ONCE, count)]) for name, fit in fits.items()}
        for at in range(0, count, DRAWS_AT_ONCE)
    ]
    crossed = [np.concatenate([_cross_at(part, U, ln_flops[row]) for part in parts], axis=1) for row, U in enumerate(unique)]
    ln_C, ar, mdm = np.stack(crossed, axis=2)
    return Crossings(ln_C, {"ar": ar, "mdm": mdm})


def _cross_at(fits: dict, U: float, ln_flops) -> np.ndarray:
    """ln C, epochs of AR and epochs of MDM at the crossing of each pair of draws, [3, draws]."""
    loss, ln_epochs = [], []
    for fit in fits.values():
        law = drawn_law(fit, len(fit.draws), 1)
        N, D = law.optimum(np.exp(ln_flops), U)
        loss.append(law.loss(N, D, U))
        ln_epochs.append(np.log(D / U))
    place = _first_root(loss[1] - loss[0])
    inside = np.isfinite(place)
    at = np.where(inside, place, 0)
    ln_C = np.where(inside, np.interp(at, np.arange(len(ln_flops)), ln_flops), place)
    left = np.minimum(at.astype(int), len(ln_flops) - 2)
    draws, weight = np.arange(len(at)), at - left
    epochs = [np.exp((1 - weight) * one[draws, left] + weight * one[draws, left + 1]) for one in ln_epochs]
    return np.stack([ln_C, *(np.where(inside, one, np.nan) for one in epochs)])


def _first_root(difference):
    """Where the difference [draws, c] first falls to 0, in grid steps; inf where it does not, -inf where it starts below.

    By bisection on the cubic spline of the bracket: a straight line across a third of a decade would be off by 2 %.
    """
    falls = (difference[:, :-1] > 0) & (difference[:, 1:] <= 0)
    first = np.argmax(falls, axis=1)
    pieces = CubicSpline(np.arange(difference.shape[1]), difference, axis=1).c  # [4, c - 1, draws]
    cubic = pieces[:, first, np.arange(len(first))]
    low, high = np.zeros(len(first)), np.ones(len(first))
    for _ in range(40):
        middle = (low + high) / 2
        above = ((cubic[0] * middle + cubic[1]) * middle + cubic[2]) * middle + cubic[3] > 0
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(difference[:, 0] <= 0, -np.inf, np.where(falls.any(axis=1), first + high, np.inf))


def _critical(fits: dict, U: float, ln_flops, drawn: Crossings, row: int) -> dict:
    """C_crit at one U with its interval, and both models there; `reason` where there is none."""

    def difference(ln_C):
        return fits["mdm"].law.optimal_loss(np.exp(ln_C), U) - fits["ar"].law.optimal_loss(np.exp(ln_C), U)

    values, crossed = difference(ln_flops), drawn.ln_flops[:, row]
    falls = np.flatnonzero((values[:-1] > 0) & (values[1:] <= 0))
    searched = [float(end) for end in np.exp(ln_flops[[0, -1]])]
    low, high = percentile_interval(np.exp(crossed))
    high = None if high is None else max(high, searched[0])  # 0 where MDM leads from the start
    point = {
        "unique_tokens": float(U),
        "flops": None,
        "low": low or None,
        "high": high,
        "searched": searched,
        "share_of_draws": float(np.mean(np.isfinite(crossed))) if len(crossed) else None,
    }
    if values[0] <= 0:
        return point | {"reason": f"none in range: MDM leads already at {searched[0]:.3g} FLOPs"}
    if not len(falls):
        return point | {"reason": f"none in range: AR leads up to {searched[1]:.3g} FLOPs"}
    flops = float(np.exp(brentq(difference, *ln_flops[falls[0] : falls[0] + 2], xtol=1e-10)))
    return point | {
        "flops": flops,
        "reason": None,
        **{name: _model(fit.law, flops, U, drawn.epochs[name][:, row]) for name, fit in fits.items()},
    }


def _model(law, flops: float, U: float, epochs) -> dict:
    N, D = law.optimum(flops, U)
    return {
        "params": float(N),
        "tokens": float(D),
        "epochs": float(D / U),
        "epochs_ci": percentile_interval(epochs[np.isfinite(epochs)]),
        "loss": float(law.loss(N, D, U)),
    }


def _power_law(critical: list[dict], drawn: Crossings) -> dict | None:
    """ln C_crit = k + p ln U by least squares over the U that have one, and for every pair of draws that has them all."""
    rows = [row for row, point in enumerate(critical) if point["flops"]]
    if len(rows) < 2:
        return None
    ln_U = np.log([critical[row]["unique_tokens"] for row in rows])
    p, k = np.polyfit(ln_U, np.log([critical[row]["flops"] for row in rows]), 1)
    whole = drawn.ln_flops[:, rows]
    whole = whole[np.all(np.isfinite(whole), axis=1)]
    lines = np.polyfit(ln_U, whole.T, 1) if len(whole) else np.empty((2, 0))
    return {
        "k": float(k),
        "p": float(p),
        "ci": {"k": percentile_interval(lines[1]), "p": percentile_interval(lines[0])},
        "num_points": len(rows),
        "share_of_draws": len(whole) / len(drawn.ln_flops) if len(drawn.ln_flops) else None,
    }


def _contours(fits: dict, unique, critical: list[dict], flops) -> dict:
    """The loss difference [u, c] on a grid that shows every crossing, or all of the range asked for."""
    found = [point["flops"] for point in critical if point["flops"]] or one_epoch_flops(fits["ar"].law, unique)
    low, high = flops or (min(found) / 100, max(found) * 100)
    ends = (unique[0], unique[-1]) if len(unique) > 1 else (unique[0] / 10, unique[0] * 10)
    unique, grid = np.geomspace(*ends, 41), np.geomspace(low, high, 81)
    ar, mdm = (fits[name].law.optimal_loss(grid, unique[:, None]) for name in ("ar", "mdm"))
    return {"unique_tokens": unique.tolist(), "flops": grid.tolist(), "difference": (mdm - ar).tolist()}


def _label(fits: dict) -> str:
    kinds = [f"{name.upper()}: {kind_of(fit.conventions)}" for name, fit in fits.items()]
    return f"Both losses at the best size N for each C and U.  {', '.join(kinds)}."


def _warnings(fits: dict, found: dict) -> list[str]:
    """What a reader must know before using C_crit, a sentence each."""
    said = [f"{name.upper()} fit: {warning}" for name, fit in fits.items() for warning in fit.warnings]
    if not found["num_draws"]:
        said.append("a fit has no resamples: no intervals; fit again with --bootstrap 400.")
    if fits["mdm"].conventions.get("bound") == "bound" and fits["ar"].conventions.get("bound") == "exact":
        said.append("MDM's loss is an upper bound on its NLL, AR's is exact: in NLL they cross no later.")
    if is_sampler(fits["mdm"].conventions):
        said.append("MDM's loss is the NLL of a sampler, another distribution than the one that its training bounds.")
    law, missing = found["power_law"], [point for point in found["critical"] if point["flops"] is None]
    said += [f"U = {point['unique_tokens']:.3g}: {point['reason']}." for point in missing]
    if law and law["share_of_draws"] is not None and law["share_of_draws"] < 0.95:
        said.append(f"only {law['share_of_draws']:.0%} of the draws cross at every U: the power law's intervals are too narrow.")
    crossed = [point for point in found["critical"] if point["flops"]]
    reached = {"flops": [point["flops"] for point in crossed], "unique": [point["unique_tokens"] for point in crossed]}
    return said + [
        f"{name.upper()} fit: {beyond}" for name, fit in fits.items() if crossed for beyond in fit.extrapolation(**reached)
    ]
