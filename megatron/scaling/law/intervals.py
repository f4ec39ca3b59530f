"""How far to trust a fit: resampled clusters, profiles and the sandwich covariance, on any form, all members at once."""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

from megatron.scaling.law.solver import Ends, Problem, minimise, persist

LEVEL = 0.95
OVERSAMPLING = 2  # clusters of a resample over clusters of the data
PROFILE_STEPS = (0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 10, 20, 50, 200, 1000)  # standard errors away from the optimum
PROFILE_DESCENT = 50  # steps of a descent that starts next to its end
AT_BOUND_STEP = 0.1  # in their place where the optimum lies at a bound of ours


def resample(cluster, num_resamples: int, seed, oversampling: int = OVERSAMPLING) -> np.ndarray:
    """How often each row [n] counts in each resample of `oversampling` clusters (labels 0 to k-1) per cluster, [r, n].

    Drawing only as many as there are loses 37 % of a sweep, often a size or a budget with it: 95 % intervals of 40 rows then
    cover 98 to 99 %. `rescale` widens the scatter again (m out of n, Bickel, Goetze and van Zwet 1997).
    """
    num_clusters = cluster.max() + 1
    random = np.random.default_rng(seed)
    counts = random.multinomial(oversampling * num_clusters, np.full(num_clusters, 1 / num_clusters), num_resamples)
    return counts[:, cluster].astype(np.float64)


def bootstrap(problem: Problem, starts, low, high, weights) -> Ends:
    """The best end of every resample (weights [r, n]) from starts [s, p]; bounds are [p] or [r, p]."""
    num_resamples, (num_starts, num_parameters) = len(weights), starts.shape
    low, high = (np.repeat(np.broadcast_to(bound, (num_resamples, num_parameters)), num_starts, axis=0) for bound in (low, high))
    weights = np.repeat(weights, num_starts, axis=0)
    ends = minimise(problem, np.tile(starts, (num_resamples, 1)), low, high, weights)
    groups = ends.objective.reshape(num_resamples, num_starts)
    failed = np.asarray(~ends.converged.reshape(groups.shape).any(axis=1))
    lowest = np.arange(num_starts) == groups.argmin(axis=1)[:, None]
    return persist(problem, ends, (lowest & failed[:, None]).ravel(), low, high, weights).best_of(num_resamples)


def rescale(theta, optimum, low, high, oversampling: int = OVERSAMPLING) -> np.ndarray:
    """Draws theta [r, p] moved away from the optimum [p] by sqrt(oversampling), within bounds."""
    return np.clip(optimum + np.sqrt(oversampling) * (theta - optimum), low, high)


def sandwich(problem: Problem, theta, low, high, cluster) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of theta [p, p], zero where a bound holds it, and the inverse curvature it would be without scale.

    Rows of a cluster move together. How many rows lie within delta, whose noise Huber's curvature would inherit, is
    smoothed over a bandwidth as for quantile regression (Powell 1991).
    """
    residual, gradient = (part[0] for part in problem.residuals(theta[None]))
    free = (theta > low) & (theta < high)
    gradient = gradient[free]
    width = max(problem.delta, 1.06 * 1.4826 * np.median(np.abs(residual)) * len(residual) ** -0.2)
    inner = (np.abs(residual) <= width) * problem.delta / width * problem.row_weights
    inverse = np.linalg.pinv((gradient * inner) @ gradient.T, hermitian=True)
    scores = np.zeros((cluster.max() + 1, len(gradient)))
    np.add.at(scores, cluster, (gradient * np.clip(residual, -problem.delta, problem.delta) * problem.row_weights).T)
    surplus = len(scores) / max(len(scores) - len(gradient), 1)
    full = np.zeros((2, len(theta), len(theta)))
    full[np.ix_((0, 1), free, free)] = inverse @ (surplus * scores.T @ scores) @ inverse, inverse
    return full[0], full[1]


def profiles(problem: Problem, theta, objective: float, indices, low, high, covariance, inverse, dof: int) -> list[list]:
    """[low, high] of each theta[index] where re-fitting all else costs more than chance would; None where nothing does.

    Twice the rise of the objective, in units of (inverse curvature / variance), is compared with a squared Student t: the
    likelihood ratio of a misspecified likelihood (Pace, Salvan and Sartori 2011).
    """
    variances, bends = np.diag(covariance), np.diag(inverse)
    known = (variances > 0) & (bends > 0)
    if not known.any():
        return [[None, None] for _ in indices]
    ratios = np.where(known, variances / np.where(known, bends, 1), np.mean(variances[known] / bends[known]))
    steps = np.where(known, np.sqrt(variances), AT_BOUND_STEP)
    paths = [
        (index, _path(theta[index], side * steps[index], bound[index]))
        for index in indices
        for side, bound in ((-1, low), (1, high))
    ]
    rises = _rises(problem, theta, objective, paths, low, high)
    quantile = stdtrit(dof, 0.5 + LEVEL / 2) ** 2 / 2
    ends = [
        _crossing(np.append(theta[index], values), np.append(0, rise), quantile * ratios[index])
        for (index, values), rise in zip(paths, rises)
    ]
    return [ends[i : i + 2] for i in range(0, len(ends), 2)]


def _path(start: float, step: float, bound: float) -> np.ndarray:
    """Values from the optimum to the bound, ever further apart."""
    values = start + step * np.array(PROFILE_STEPS)
    return np.append(values[np.sign(step) * (bound - values) > 0], bound)


def _rises(problem, theta, objective, paths, low, high) -> list[np.ndarray]:
    """How much the objective rises along each path (index, values) that theta[index] is held on."""
    sizes = [len(values) for _, values in paths]
    column = np.repeat([index for index, _ in paths], sizes)
    values, row = np.concatenate([values for _, values in paths]), np.arange(sum(sizes))
    starts, low, high = (np.repeat(bound[None], len(row), axis=0) for bound in (theta, low, high))
    starts[row, column] = low[row, column] = high[row, column] = values
    ends = minimise(problem, starts, low, high, num_steps=PROFILE_DESCENT)
    neighbours = np.concatenate([ends.theta[:1], ends.theta[:-1]])  # again, from where the value before it ended
    neighbours[row, column] = values
    again = minimise(problem, neighbours, low, high, num_steps=PROFILE_DESCENT)
    return np.split(np.minimum(ends.objective, again.objective) - objective, np.cumsum(sizes)[:-1])


def _crossing(values, rises, limit):
    """The first value at which the rise passes the limit, on a line between neighbours; None when it never does."""
    above = np.flatnonzero(rises > limit)
    if not len(above):
        return None
    i = above[0]
    low, high = np.sqrt(np.maximum(rises[i - 1 : i + 1], 0))  # a parabola's root is a line
    return float(values[i - 1] + (np.sqrt(limit) - low) / (high - low) * (values[i] - values[i - 1]))


def percentiles(draws, outside) -> np.ndarray:
    """[p, 2]: the 95 % percentile interval of draws [r, p]; infinite at an end where draws that met that bound decide.

    outside [r, p]: -1 where a draw met the lower bound, 1 the upper, else 0.
    """
    low = np.quantile(np.where(outside < 0, -np.inf, draws), (1 - LEVEL) / 2, axis=0, method="lower")
    high = np.quantile(np.where(outside > 0, np.inf, draws), (1 + LEVEL) / 2, axis=0, method="higher")
    return np.stack([low, high], axis=1)


def percentile_interval(draws) -> list[float | None]:
    """[low, high] of the central 95 % of draws [n] that are not NaN; None for an infinite end, and for both without draws."""
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return [None, None]
    ends = np.quantile(draws, (1 - LEVEL) / 2, method="lower"), np.quantile(draws, (1 + LEVEL) / 2, method="higher")
    return [float(end) if np.isfinite(end) else None for end in ends]


def delta_method(values, slopes, covariance, dof: int, logarithmic) -> tuple[np.ndarray, np.ndarray]:
    """(intervals [k, 2], standard errors [k]) of values [k] with slopes [k, p] by theta, of ln values where `logarithmic` [k]."""
    errors = np.sqrt(np.maximum(np.einsum("kp,pq,kq->k", slopes, covariance, slopes), 0))
    half = stdtrit(dof, 0.5 + LEVEL / 2) * errors[:, None] * [-1, 1]
    with np.errstate(over="ignore"):
        ratio = values[:, None] * np.exp(half)
    return np.where(logarithmic[:, None], ratio, values[:, None] + half), errors * np.where(logarithmic, values, 1)


def replicate_scatter(ln_loss, cluster, *axes) -> dict | None:
    """Scatter among clusters with rows that agree in all `axes` [n] to 1e-6, what no law can explain: `rms` of ln loss and
    `rms_loss` of the loss itself. None without such rows.
    """
    key = np.round(np.stack(axes, axis=1), 6)
    rows, member = np.unique(np.column_stack([key, cluster]), axis=0, return_inverse=True)
    level = np.bincount(member.ravel(), ln_loss) / np.bincount(member.ravel())
    _, group, counts = np.unique(rows[:, :-1], axis=0, return_inverse=True, return_counts=True)
    dof = int(np.sum(counts - 1))
    if not dof:
        return None

    def rms(x):
        means = np.bincount(group.ravel(), x) / counts
        return float(np.sqrt(np.sum((x - means[group.ravel()]) ** 2) / dof))

    alike = int(np.sum(counts > 1))
    return {"rms": rms(level), "rms_loss": rms(np.exp(level)), "groups": alike, "degrees_of_freedom": dof}
