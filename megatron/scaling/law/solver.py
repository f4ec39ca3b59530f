"""Minimise a sum of Huber terms from many starts, or for many resamples, at once.

A member is one start (of one resample); all members advance together, so that numpy works on [members, p, rows]. The step
is Newton's on the rows within delta plus a share `damping` of the majorizer's weights delta/|residual| on all rows: at 1
that is iteratively reweighted least squares, which cannot rise; towards 0 it converges quadratically. Neither tolerances
nor steps depend on the units of the objective, so that sum and mean have the same path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from megatron.progress import ProgressLine

MEMBERS_AT_ONCE = 256  # keeps the working set in the processor's cache, with
CELLS_AT_ONCE = 512_000  # members times rows at the most
NUM_STEPS = 400
PATIENCE = (1600, 6400)  # steps of a member that is worth going on with
AT_REST, STATIONARY = 1e-6, 1e-4  # share of the rows' forces that does not cancel: where to stop, what is an optimum
RESOLUTION = 1e-3  # of delta: what rows that fit better than that exert is no force
DAMPING = (1e-6, 1e10)


@dataclass(frozen=True)
class Problem:
    """Huber_delta(log_loss(theta) - ln_loss), summed over rows. `log_loss` maps theta [m, p] to [m, n] and [m, p, n].

    Both may be of the loss itself, where residuals of that are wanted. `row_weights`: how much each row counts.
    """

    log_loss: Callable
    ln_loss: np.ndarray  # [n]
    delta: float
    row_weights: np.ndarray | float = 1.0  # [n]

    def residuals(self, theta):
        """ln L(theta) - ln loss [m, n] and its gradient [m, p, n]."""
        predicted, gradient = self.log_loss(theta)
        return predicted - self.ln_loss, gradient

    def objective(self, theta, weights=1.0):
        """The sum over rows, [m]."""
        return self.total(self.residuals(theta)[0], weights * self.row_weights)

    def total(self, residual, weights):
        """The weighted sum of Huber terms of residuals [m, n]."""
        clipped = np.clip(residual, -self.delta, self.delta)
        return np.sum(weights * clipped * (residual - clipped / 2), axis=-1)


@dataclass(frozen=True)
class Ends:
    """Where members ended: theta [m, p], objective [m], and whether the forces of the rows cancel there [m]."""

    theta: np.ndarray
    objective: np.ndarray
    converged: np.ndarray

    def best_of(self, groups: int) -> Ends:
        """The converged end of least objective in each of `groups` consecutive equal groups of members."""
        cost = np.where(self.converged, self.objective, np.inf).reshape(groups, -1)
        chosen = cost.argmin(axis=1) + np.arange(groups) * cost.shape[1]
        return Ends(self.theta[chosen], self.objective[chosen], self.converged[chosen])


def minimise(problem: Problem, starts, low, high, weights=1.0, num_steps=NUM_STEPS) -> Ends:
    """Descend from every start [m, p] within bounds low, high [p] or [m, p]; weights [n] or [m, n] count rows."""
    starts = np.atleast_2d(starts)
    low, high = np.broadcast_to(low, starts.shape), np.broadcast_to(high, starts.shape)
    weights = np.broadcast_to(np.float64(weights) * problem.row_weights, (len(starts), len(problem.ln_loss)))
    at_once = max(1, min(MEMBERS_AT_ONCE, CELLS_AT_ONCE // max(1, len(problem.ln_loss))))
    blocks = [slice(first, first + at_once) for first in range(0, len(starts), at_once)]
    line = ProgressLine(len(starts), "descents")
    ends: list[tuple] = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a step too far is rejected, not an error
        for block in blocks:
            if ends:
                line.show(block.start, "fitting")
            ends.append(_descend(problem, starts[block], low[block], high[block], weights[block], num_steps))
    line.clear()
    return Ends(*(np.concatenate(parts) for parts in zip(*ends)))


def persist(problem: Problem, ends: Ends, chosen, low, high, weights=1.0) -> Ends:
    """The same members, of which the chosen ones [m] that have not converged went on for longer: one block of the lowest.

    Where most rows lie beyond delta, the objective is nearly a sum of absolute values and the approach becomes linear.
    """
    theta, objective, converged = (part.copy() for part in (ends.theta, ends.objective, ends.converged))
    low, high = np.broadcast_to(low, theta.shape), np.broadcast_to(high, theta.shape)
    weights = np.broadcast_to(np.float64(weights), (len(theta), len(problem.ln_loss)))
    for num_steps in PATIENCE:
        going = np.flatnonzero(chosen & ~converged)
        going = going[np.argsort(objective[going], kind="stable")[:MEMBERS_AT_ONCE]]
        if len(going):
            found = minimise(problem, theta[going], low[going], high[going], weights[going], num_steps)
            theta[going], objective[going], converged[going] = found.theta, found.objective, found.converged
    return Ends(theta, objective, converged)


def _descend(problem, starts, low, high, weights, num_steps):
    theta, objective, converged = np.clip(starts, low, high), np.empty(len(starts)), np.zeros(len(starts), bool)
    active = np.arange(len(starts))
    residual, gradient = problem.residuals(theta)
    state = [theta.copy(), residual, gradient, problem.total(residual, weights), np.ones(len(starts)), low, high, weights]
    for _ in range(num_steps):
        slope, held, unrest = _forces(problem.delta, *state[:3], *state[5:])
        theta[active], objective[active], converged[active] = state[0], state[3], unrest < STATIONARY
        going = ~(unrest < AT_REST) & (state[4] < DAMPING[1])
        active, slope, held, *state = (part[going] for part in (active, slope, held, *state))
        if not len(active):
            break
        state[:5] = _step(problem, slope, held, *state)
    return theta, objective, converged


def _forces(delta, theta, residual, gradient, low, high, weights):
    """The objective's gradient [m, p], which parameters a bound holds, and the largest share of forces left over [m]."""
    psi = weights * np.clip(residual, -delta, delta)
    slope = (gradient @ psi[..., None])[..., 0]
    held = (theta <= low) & (slope > 0) | (theta >= high) & (slope < 0) | (low == high)
    size = np.abs(gradient)
    scale = size @ (np.abs(psi) + RESOLUTION * delta * weights)[..., None]
    return slope, held, np.max(np.where(held, 0, np.abs(slope) / (scale[..., 0] + 1e-300)), axis=1)


def _step(problem, slope, held, theta, residual, gradient, objective, damping, low, high, weights):
    curvature = _curvature(problem.delta, residual, gradient, damping, weights)
    move = _newton(curvature, slope, held, np.zeros_like(theta))
    beyond = ~held & ((theta + move < low) | (theta + move > high))
    if beyond.any():  # what a bound stops short, the others must not count on
        short = np.where(beyond, np.clip(theta + move, low, high) - theta, 0)
        move = _newton(curvature, slope, held | beyond, short)
    new = np.clip(theta + move, low, high)
    new_residual, new_gradient = problem.residuals(new)
    new_objective = problem.total(new_residual, weights)
    better = new_objective < objective
    gain = (objective - new_objective) / np.maximum(-np.sum(slope * (new - theta), axis=1), 1e-300)
    factor = np.where(better, np.where(gain > 0.4, 0.25, np.where(gain < 0.1, 2.0, 1.0)), 6.0)
    return [
        np.where(better[:, None], new, theta),
        np.where(better[:, None], new_residual, residual),
        np.where(better[:, None, None], new_gradient, gradient),
        np.where(better, new_objective, objective),
        np.maximum(damping * factor, DAMPING[0]),
    ]


def _newton(curvature, slope, fixed, given):
    """The step [m, p] to where the slope vanishes for all parameters that are not fixed at the step `given`."""
    slope = slope + (curvature @ given[..., None])[..., 0]
    free = ~fixed
    curvature = np.where(free[:, :, None] & free[:, None, :], curvature, np.eye(slope.shape[1]))
    return np.where(free, -np.linalg.solve(curvature, np.where(free, slope, 0)[..., None])[..., 0], given)


def _curvature(delta, residual, gradient, damping, weights):
    size = np.abs(residual)
    rows = weights * ((size <= delta) + damping[:, None] * delta / np.maximum(size, delta))
    curvature = (gradient * rows[:, None, :]) @ gradient.swapaxes(1, 2)
    ridge = 1e-9 * np.diagonal(curvature, axis1=1, axis2=2) + 1e-300  # for parameters that no row feels
    return curvature + ridge[:, :, None] * np.eye(gradient.shape[1])
