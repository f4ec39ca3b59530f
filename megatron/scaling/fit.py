"""Fit L(N, D): Huber loss on log residuals, many starts, polished, with a bootstrap over runs.

The solver works with ln N and ln D centred on the data: A and B are then losses at the centre, their correlation with
the exponents vanishes, and L-BFGS-B reaches the optimum from nearly every start (from 9 % of them uncentred).
"""
from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize, nnls

from megatron.errors import BadData, Refusal
from megatron.scaling.laws import Chinchilla, log_chinchilla

NAMES = ("E", "A", "B", "alpha", "beta", "a", "b")
EXPONENT_RANGE = (1e-3, 5.0)
LEAST_SHARE = 1e-6              # of the smallest loss: below it E has left the law
SAME_BASIN = 0.02               # largest distance, in centred parameters, of two descriptions of one optimum


@dataclass(frozen=True)
class Fit:
    """A fitted law and how far to trust it. `ci` and `se` are empty without a bootstrap; None in `ci` is an open end."""
    law: Chinchilla
    objective: float                        # the sum over rows, not scaled
    delta: float
    rows_used: int
    num_runs: int
    num_starts: int
    share_at_optimum: float
    basins: list[dict]                      # other optima, best first
    condition: float                        # of the Jacobian with unit columns, centred parameters
    residual_rms: float                     # of ln L
    seed: int
    num_resamples: int = 0
    failed_resamples: int = 0
    ci: dict[str, list] = field(default_factory=dict)
    se: dict[str, float] = field(default_factory=dict)
    draws: np.ndarray | None = field(default=None, repr=False)      # [resamples, 7], columns NAMES
    warnings: list[str] = field(default_factory=list)

    @property
    def params(self) -> dict[str, float]:
        """The law's parameters and its compute exponents a and b, in full precision."""
        return dict(zip(NAMES, _row(self.law)))


def fit_chinchilla(N, D, loss, delta=1e-3, starts=None, seed=0, run=None, num_resamples=400) -> Fit:
    """Minimise the sum over rows of Huber_delta(ln L(N, D) - ln loss) (Hoffmann et al., arXiv:2203.15556, approach 3).

    N, D, loss: [n]. `starts` [m, 5] as (ln A, ln B, ln E, alpha, beta) replaces variable projection and grid. Intervals
    are 95 % percentiles of a bootstrap that resamples `run` [n] (each row its own run when None): checkpoints of one run
    are one cluster. Raises BadData for values that no law can have or fewer than 5 rows, Refusal when no start converges.
    """
    rows = _checked(N, D, loss)
    run = np.arange(len(rows[0])) if run is None else np.unique(run, return_inverse=True)[1]
    centre = rows[0].mean(), rows[1].mean()
    data = rows[0] - centre[0], rows[1] - centre[1], rows[2]
    bounds = _bounds(data[2])
    first = _default_starts(data) if starts is None else _centred(np.asarray(starts, np.float64), centre)
    ends = [_descend(start, data, delta, bounds) for start in first]
    ends = sorted((end for end in ends if end[2]), key=lambda end: end[1])
    if not ends:
        raise Refusal(f"L(N, D) did not converge from any of {len(first)} starts on {len(data[2])} rows: "
                      "give other starts or more runs.")
    theta, objective = _polish(ends[0], data, delta, bounds)
    basins = _basins(theta, ends, centre)
    law = _law(theta, centre)
    residual, gradient = _residuals(theta, data)
    resampled = _bootstrap(theta, data, run, delta, bounds, centre, num_resamples, seed) if num_resamples else {}
    fit = Fit(law=law, objective=objective, delta=delta, rows_used=len(residual), num_runs=len(set(run)),
              num_starts=len(first), share_at_optimum=sum(_same(theta, end[0]) for end in ends) / len(first), basins=basins,
              condition=_condition(gradient), residual_rms=float(np.sqrt(np.mean(residual**2))), seed=seed, **resampled)
    fit.warnings.extend(_warnings(fit, _at_bound(theta, bounds), data))
    return fit


def _checked(N, D, loss):
    columns = {"params": N, "tokens": D, "loss": loss}
    columns = {name: np.asarray(column, np.float64) for name, column in columns.items()}
    for name, column in columns.items():
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            raise BadData(f"column {name}, row {bad[0] + 1}: found {column[bad[0]]}, expected a positive number; "
                          f"leave out unfinished runs ({len(bad)} such rows).")
    if len(columns["loss"]) < 5:
        raise BadData(f"L(N, D) has 5 parameters and there are {len(columns['loss'])} runs: "
                      "add runs (15 or more, over 3 budgets).")
    return [np.log(column) for column in columns.values()]


def _bounds(ln_loss):
    terms = (ln_loss.min() - 30, ln_loss.max() + 30)
    return np.array([terms, terms, (ln_loss.min() + np.log(LEAST_SHARE), ln_loss.max()), EXPONENT_RANGE, EXPONENT_RANGE])


def _centred(theta, centre):
    """Theta [..., 5] from ln A, ln B at N = D = 1 to their values at the centre of the data."""
    shifts = theta[..., 3] * centre[0], theta[..., 4] * centre[1]
    return np.stack([theta[..., 0] - shifts[0], theta[..., 1] - shifts[1], *np.moveaxis(theta[..., 2:], -1, 0)], axis=-1)


def _law(theta, centre) -> Chinchilla:
    ln_a, ln_b, ln_e, alpha, beta = (float(value) for value in theta)
    A, B = float(np.exp(ln_a + alpha * centre[0])), float(np.exp(ln_b + beta * centre[1]))
    return Chinchilla(E=float(np.exp(ln_e)), A=A, B=B, alpha=alpha, beta=beta)


def _row(law: Chinchilla) -> list[float]:
    return [float(value) for value in (law.E, law.A, law.B, law.alpha, law.beta, *law.exponents)]


def _residuals(theta, data):
    predicted, gradient = log_chinchilla(theta, *data[:2])
    return predicted - data[2], gradient


def _huber(theta, data, delta):
    """The objective in units that keep the optimizer's tolerances meaningful (they are absolute), and its gradient."""
    residual, gradient = _residuals(theta, data)
    clipped = np.clip(residual, -delta, delta)
    unit = 0.01 * delta * len(residual)
    return np.sum(clipped * (residual - clipped / 2)) / unit, gradient @ clipped / unit


def _descend(start, data, delta, bounds):
    """(theta, objective, converged) of L-BFGS-B. Its own `success` says nothing; the gradient does."""
    end = minimize(_huber, np.clip(start, *bounds.T), args=(data, delta), jac=True, method="L-BFGS-B", bounds=bounds,
                   options={"maxiter": 5000, "maxfun": 20000, "ftol": 1e-13, "gtol": 1e-9, "maxls": 60})
    return end.x, float(end.fun) * 0.01 * delta * len(data[2]), _is_stationary(end.x, data, delta, bounds)


def _is_stationary(theta, data, delta, bounds) -> bool:
    """Whether the forces of the rows cancel to 1e-4, parameter by parameter, but for those that push against a bound."""
    residual, gradient = _residuals(theta, data)
    forces = gradient * np.clip(residual, -delta, delta)
    total = forces.sum(axis=1)
    held = ((theta <= bounds[:, 0]) & (total > 0)) | ((theta >= bounds[:, 1]) & (total < 0))
    resolution = 1e-6 * delta * np.abs(gradient).sum(axis=1)       # rows that fit exactly exert none
    return bool(np.all(held | (np.abs(total) <= 1e-4 * np.abs(forces).sum(axis=1) + resolution)))


def _polish(end, data, delta, bounds):
    """(theta, objective) after an unbounded BFGS from the best end, kept only where it is better and inside the bounds."""
    theta, objective, _ = end
    if _at_bound(theta, bounds):
        return theta, objective
    polished = minimize(_huber, theta, args=(data, delta), jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 2000})
    value = float(polished.fun) * 0.01 * delta * len(data[2])
    better = value < objective and not _at_bound(polished.x, bounds)
    return (polished.x, value) if better else (theta, objective)


def _at_bound(theta, bounds) -> list[str]:
    """The bounds that theta touches or passes, as 'alpha low', 'E low', ..."""
    names = ("A", "B", "E", "alpha", "beta")
    low, high = theta <= bounds[:, 0] + 1e-9, theta >= bounds[:, 1] - 1e-9
    return [f"{name} low" for name, hit in zip(names, low) if hit] + [f"{name} high" for name, hit in zip(names, high) if hit]


def _default_starts(data):
    """[51, 5]: the variable-projection optimum, and a grid of exponents x share of the smallest loss that is E."""
    starts = [_variable_projection(data)]
    loss = np.exp(data[2])
    for alpha, beta, share in itertools.product((0.1, 0.3, 0.6, 1.0, 1.5), (0.1, 0.3, 0.6, 1.0, 1.5), (0.3, 0.9)):
        ln_e = np.log(share * loss.min())
        ln_term = np.log((np.median(loss) - np.exp(ln_e)) / 2)
        starts.append([ln_term, ln_term, ln_e, alpha, beta])
    return np.array(starts)


def _variable_projection(data):
    """Theta of least squared relative error: for given exponents E, A, B are a non-negative linear fit (VPNLS)."""
    loss = np.exp(data[2])

    def solve(exponents):
        terms = np.stack([np.exp(-exponents[0] * data[0]), np.exp(-exponents[1] * data[1]), np.ones_like(loss)], axis=1)
        return nnls(terms / loss[:, None], np.ones_like(loss))

    grid = itertools.product(np.geomspace(0.05, 2, 10), repeat=2)
    first = min(grid, key=lambda exponents: solve(exponents)[1])
    best = minimize(lambda exponents: solve(exponents)[1], first, method="Nelder-Mead", bounds=[EXPONENT_RANGE] * 2).x
    return np.concatenate([np.log(np.maximum(solve(best)[0], 1e-3 * loss.min())), best])


def _same(one, other) -> bool:
    return bool(np.max(np.abs(one - other)) < SAME_BASIN)


def _basins(theta, ends, centre) -> list[dict]:
    """The other optima that starts ended in, with their objective, parameters and number of starts."""
    others: list[list] = []
    for end in (end for end in ends if not _same(theta, end[0])):
        home = next((basin for basin in others if _same(basin[0][0], end[0])), None)
        others.append([end]) if home is None else home.append(end)
    return [{"objective": basin[0][1], "starts": len(basin), "params": dict(zip(NAMES, _row(_law(basin[0][0], centre))))}
            for basin in others[:5]]


def _bootstrap(theta, data, run, delta, bounds, centre, num_resamples, seed) -> dict:
    """Refit whole runs drawn with replacement, from the optimum and from one far start; count what fails."""
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(run == number) for number in range(run.max() + 1)]
    far = _default_starts(data)[0] + [0, 0, -0.5, 0.2, 0.2]
    draws, outside = [], []
    for _ in range(num_resamples):
        chosen = random.integers(len(members), size=len(members))
        rows = np.concatenate([members[number] for number in chosen])
        resample = tuple(column[rows] for column in data)
        ends = [_descend(start, resample, delta, bounds) for start in (theta, far)]
        ends = [end for end in ends if end[2]]
        if ends and len(np.unique(rows)) >= 5:
            best = min(ends, key=lambda end: end[1])[0]
            draws.append(_row(_law(best, centre)))
            outside.append(_open_ends(_at_bound(best, bounds)))
    failed = num_resamples - len(draws)
    spread = _spread(np.array(draws), np.array(outside)) if failed < num_resamples / 2 else {}
    return {"num_resamples": num_resamples, "failed_resamples": failed, **spread}


def _open_ends(hits: list[str]) -> list[float]:
    """For each of NAMES the end (-1, 1) at which this draw only met a bound of ours, else 0. A term follows its exponent."""
    signs = {hit.split()[0]: -1.0 if hit.endswith("low") else 1.0 for hit in hits}
    signs.setdefault("A", signs.get("alpha", 0.0))
    signs.setdefault("B", signs.get("beta", 0.0))
    return [signs.get(name, 0.0) for name in NAMES]


def _spread(draws, outside) -> dict:
    """95 % percentile intervals and standard errors; an end among draws that met a bound is None: not bounded by the data."""
    censored = np.where(outside < 0, -np.inf, np.where(outside > 0, np.inf, draws))
    low = np.quantile(censored, 0.025, axis=0, method="lower")
    high = np.quantile(censored, 0.975, axis=0, method="higher")
    ci = {name: [float(end) if np.isfinite(end) else None for end in ends] for name, *ends in zip(NAMES, low, high)}
    return {"draws": draws, "ci": ci, "se": dict(zip(NAMES, draws.std(axis=0, ddof=1).tolist()))}


def _condition(gradient) -> float:
    size = np.linalg.norm(gradient, axis=1, keepdims=True)
    return float(np.linalg.cond(gradient / np.where(size > 0, size, 1)))


def _warnings(fit: Fit, hits: list[str], data) -> list[str]:
    """What a reader must know before using the law, a sentence each."""
    found = []
    if fit.num_runs < 6:
        found.append(f"{fit.num_runs} runs for 5 parameters: the law interpolates, its residuals say nothing.")
    for name, column in (("N", data[0]), ("D", data[1])):
        if (values := len(np.unique(np.round(column, 6)))) < 3:
            found.append(f"only {values} values of {name}: its exponent is not identified.")
    for hit in hits:
        found.append("E tends to 0: the irreducible loss is not identified." if hit == "E low" else
                     f"{hit.split()[0]} stopped at a bound ({hit.split()[1]}): it is not identified.")
    if fit.condition > 1e4:
        found.append(f"condition number {fit.condition:.1e}: some combination of the parameters is not identified.")
    if fit.basins and fit.basins[0]["objective"] < 1.01 * fit.objective:
        found.append("another optimum is within 1 % of this one: see basins.")
    if fit.share_at_optimum < 0.1:
        found.append(f"only {fit.share_at_optimum:.0%} of {fit.num_starts} starts reached the optimum.")
    for name, (low, high) in fit.ci.items():
        if low is None or high is None:
            end = "below" if high is not None else "above" if low is not None else "on either side"
            found.append(f"the 95 % interval of {name} is unbounded {end}.")
    if fit.failed_resamples > 0.05 * fit.num_resamples:
        effect = "the intervals are too narrow" if fit.ci else "there are no intervals"
        found.append(f"{fit.failed_resamples} of {fit.num_resamples} resamples could not be fitted: {effect}.")
    return found
