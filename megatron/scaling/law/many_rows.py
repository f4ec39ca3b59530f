"""Tables of very many rows: a sample of them finds the optima, all of them settle where these lie.

What no sample can say, how far the optimum of all rows moves with the runs, is the sandwich covariance of all rows: with so many
the estimate is normal, and resampling them would cost a thousand fits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from megatron.scaling.law.solver import Ends, Problem, minimise, persist

MANY_ROWS = 5_000
SAMPLE_ROWS = 4_000
SCOUTED = 8  # one in so many of the sample, on which all starts descend


def sampled(count: int, seed: int) -> np.ndarray | None:
    """Which rows stand for so many, rising; None where all do."""
    if count <= MANY_ROWS:
        return None
    return np.sort(np.random.default_rng(seed).choice(count, SAMPLE_ROWS, replace=False))


def counting_for_all(problem: Problem, whole: Problem, chosen: np.ndarray) -> Problem:
    """The problem of the chosen rows, each of which counts for as many as there are of `whole` on each."""
    weights = np.broadcast_to(whole.row_weights, len(whole.ln_loss))[chosen]
    return replace(problem, delta=whole.delta, row_weights=weights * len(whole.ln_loss) / len(chosen))


def settle(problem: Problem, ends: Ends, low, high, rival: float, same: float) -> Ends:
    """Where the optima of a sample lie for all rows: those up to `rival` times the least objective, and with each the starts that
    ended within `same` of it."""
    theta, objective = ends.theta, ends.objective
    near = ends.converged & (objective <= rival * objective[ends.converged].min(initial=np.inf))
    group = np.full(len(theta), -1)
    optima: list[int] = []
    for index in np.flatnonzero(near)[np.argsort(objective[near], kind="stable")]:
        alike = [g for g, of in enumerate(optima) if np.max(np.abs(theta[index] - theta[of])) < same]
        group[index] = alike[0] if alike else len(optima)
        optima += [] if alike else [index]
    found = minimise(problem, theta[optima], low, high)
    found = persist(problem, found, np.ones(len(optima), bool), low, high)
    group = group[group >= 0]
    return Ends(found.theta[group], found.objective[group], found.converged[group])


def normal_draws(theta, covariance, degrees_of_freedom: int, num_draws: int, seed) -> np.ndarray:
    """Draws of theta [r, p] about the optimum: normal with the scale's own error (multivariate t)."""
    random = np.random.default_rng(seed)
    values, vectors = np.linalg.eigh(covariance)
    scale = np.sqrt(degrees_of_freedom / random.chisquare(degrees_of_freedom, num_draws))
    noise = random.standard_normal((num_draws, len(theta))) * np.sqrt(np.maximum(values, 0))
    return theta + scale[:, None] * (noise @ vectors.T)
