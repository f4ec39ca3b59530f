"""Curves of the loss over size at equal compute: a parabola in ln N, or the shape that L = E + A/N^alpha + B/D^beta has there.

Under 6 N D = C that law is c0 + c1 N^-alpha + c2 N^beta: three coefficients a budget, as many as a parabola has, and two
exponents that all budgets share. Its minimum lies where alpha c1 N^-alpha = beta c2 N^beta. A parabola is its limit for small
exponents; where alpha and beta differ, or the sizes span decades, the parabola's vertex lies off that minimum (by about
(beta - alpha) W^2 / 10 in ln N for sizes that reach W = ln(N / N*) on either side). With A, B and E of each budget its own,
nothing is supposed of how the minima grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import fdtrc

PARABOLA, LAW = "parabola", "law"
EXPONENTS = np.log([0.02, 3.0])  # that a curve may have, of N in natural logarithms
STARTS = np.log([0.06, 0.2, 0.5, 1.2])  # of each of them
NUM_STEPS, SETTLED, LONGEST_STEP, STIFFEST = 60, 1e-5, 1.0, 1e3
RIDGE = 1e-14  # of the squares: what keeps rows of fewer sizes than coefficients solvable
LEAST_FREEDOM = 3  # of the residuals, to tell a parabola from the law's shape
LEVEL = 0.05  # of the test
MANY_ROWS, NODES = 200, 40  # rows of a budget from which nodes stand for them, and how many
BREAKDOWN = 1e-9  # of the spread of x: what is left of it where there are no more distinct sizes
LN10 = np.log(10)


def design(x, shape=None) -> np.ndarray:
    """[..., n, 3]: what the coefficients multiply at x = log10 N - shift; `shape` [..., 2] (alpha, beta), None for a parabola."""
    if shape is None:
        return np.stack([np.ones_like(x), x, x * x], axis=-1)
    alpha, beta = np.moveaxis(np.asarray(shape), -1, 0)[..., None]
    columns = np.expm1(-alpha * LN10 * x) / alpha, np.expm1(beta * LN10 * x) / beta
    return np.stack(np.broadcast_arrays(1.0, *columns), axis=-1)


def evaluate(x, coefficients, shape=None):
    """The loss at x of curves with coefficients [..., 3]."""
    return np.einsum("...ni,...i->...n", design(np.atleast_1d(x), shape), np.asarray(coefficients))


def vertex(coefficients, shape=None):
    """x of the minimum of curves [..., 3]; NaN where one has none."""
    _, fall, rise = np.moveaxis(np.asarray(coefficients), -1, 0)
    if shape is None:
        return np.where(rise > 0, -fall / np.where(rise > 0, 2 * rise, 1), np.nan)
    valley = (fall > 0) & (rise > 0)
    ratio = np.where(valley, fall, 1) / np.where(valley, rise, 1)
    return np.where(valley, np.log(ratio) / np.sum(shape, axis=-1) / LN10, np.nan)


@dataclass(frozen=True)
class Points:
    """What curves of one budget are fitted to: x, losses, how many rows each stands for and their stated errors, [k]; and the sum
    of squares of the rows that no curve changes."""

    x: np.ndarray
    loss: np.ndarray
    count: np.ndarray
    noise: np.ndarray
    beyond: float = 0.0

    @classmethod
    def of(cls, x, loss, noise) -> Points:
        """The rows [n] themselves or, of many, the nodes of a Gauss quadrature over them.

        Curves are smooth: over the sizes of a budget they are polynomials of a degree below NODES, to rounding. The sum over rows
        of a product of two such is one over the nodes, and of the losses only their projection on such polynomials counts (Golub
        and Welsch, Math. Comp. 23, 1969). Independent errors of the rows are independent at the nodes.
        """
        if len(x) <= MANY_ROWS:
            return cls(x, loss, np.ones(len(x)), noise)
        basis, diagonal, beside = _lanczos(x)
        nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        count = len(x) * vectors[0] ** 2
        at_nodes = (vectors / (np.sqrt(len(x)) * vectors[0])).T @ basis  # [k, n]
        inside = basis @ loss
        error = np.sqrt(count * (at_nodes**2 @ noise**2))
        return cls(nodes, at_nodes @ loss, count, error, max(float(loss @ loss - inside @ inside), 0.0))


def _lanczos(x) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Orthonormal polynomials at x [n], [k, n] of rising degree, and the diagonals [k] and [k - 1] of their recurrence."""
    basis, diagonal, beside = np.empty((NODES, len(x))), np.empty(NODES), np.empty(NODES)
    basis[0] = len(x) ** -0.5
    for degree in range(NODES):
        found = basis[: degree + 1]
        rest = x * found[-1]
        diagonal[degree] = rest @ found[-1]
        for _ in range(2):
            rest = rest - (found @ rest) @ found
        beside[degree] = np.linalg.norm(rest)
        if degree + 1 == NODES or beside[degree] <= BREAKDOWN * np.ptp(x):
            break
        basis[degree + 1] = rest / beside[degree]
    return found, diagonal[: degree + 1], beside[:degree]


@dataclass(frozen=True)
class Curves:
    """A curve for each budget: coefficients [r, budgets, 3], the exponents [r, 2] that they share (None: parabolas), and the
    weighted sum of the squared residuals over all budgets [r]."""

    coefficients: np.ndarray
    shape: np.ndarray | None
    squares: np.ndarray

    def at(self, number: int, x) -> np.ndarray:
        """The loss [r, n] of one budget at x [n]."""
        return evaluate(x, self.coefficients[:, number], self.shape)


@dataclass(frozen=True)
class Valleys:
    """Rows of several budgets side by side: x [budgets, n], losses and weights [r, budgets, n], weight 0 where no row is."""

    x: np.ndarray
    loss: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, xs: Sequence, losses: Sequence, weights: Sequence) -> Valleys:
        """From x [n], losses [r, n] and weights [r, n] of each budget."""
        return cls(*map(_side_by_side, (xs, losses, weights)))

    def only(self, chosen) -> Valleys:
        """The chosen of the r (a mask or indices)."""
        return Valleys(self.x, self.loss[chosen], self.weight[chosen])


def _side_by_side(parts: Sequence) -> np.ndarray:
    """[..., len(parts), n] of parts [..., n], zeros behind the shorter ones."""
    widest = max(part.shape[-1] for part in parts)
    return np.stack([np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, widest - part.shape[-1])]) for part in parts], axis=-2)


def fit_parabolas(valleys: Valleys) -> Curves:
    """Least squares at each budget."""
    return _curves(valleys, None)


def fit_law_shape(valleys: Valleys, start=None) -> Curves:
    """Least squares, over all budgets, of curves with common exponents.

    They are searched from `start` (alpha, beta), or a single fit (r = 1) from a grid. The coefficients are linear and are
    eliminated (variable projection, Kaufman, BIT 15, 1975).
    """
    if start is not None:
        return _curves(valleys, np.exp(_descend(valleys, np.tile(np.log(start), (len(valleys.loss), 1)))))
    grid = np.stack(np.meshgrid(STARTS, STARTS), axis=-1).reshape(-1, 2)
    many = valleys.only(np.zeros(len(grid), int))
    ends = np.exp(_descend(many, grid))
    best = _curves(many, ends).squares.argmin()
    return _curves(valleys, ends[best : best + 1])


def _curves(valleys: Valleys, shape) -> Curves:
    columns = design(valleys.x, None if shape is None else shape[:, None])
    coefficients, residual = _project(columns, valleys.loss, valleys.weight)
    return Curves(coefficients, shape, np.sum(valleys.weight * residual**2, axis=(-2, -1)))


def _project(columns, loss, weight):
    """(coefficients [..., k], residuals [..., n]) of weighted least squares of loss [..., n] on columns [..., n, k]."""
    coefficients = _solve(columns, loss[..., None], weight)
    return coefficients[..., 0], loss - (columns @ coefficients)[..., 0]


def _solve(columns, target, weight):
    """[..., k, m]: weighted least squares of target [..., n, m] on columns [..., n, k]."""
    weighed = (columns * weight[..., None]).swapaxes(-1, -2)
    squares = weighed @ columns
    size = np.trace(squares, axis1=-2, axis2=-1)[..., None, None]
    return np.linalg.solve(squares + (RIDGE * size + 1e-300) * np.eye(squares.shape[-1]), weighed @ target)


def _descend(valleys: Valleys, ln_shape):
    """ln exponents [r, 2] of least squares, by Levenberg and Marquardt's steps from these, within EXPONENTS."""
    ends, active = ln_shape.copy(), np.arange(len(ln_shape))
    squares, slope, bend = _forces(valleys, ln_shape)
    damping = np.full(len(ln_shape), 1e-2)
    for _ in range(NUM_STEPS):
        inner = bend + damping[:, None, None] * np.maximum(bend, 1e-300) * np.eye(2) + 1e-300 * np.eye(2)
        step = np.clip(np.linalg.solve(inner, -slope[..., None])[..., 0], -LONGEST_STEP, LONGEST_STEP)
        moved = np.clip(ln_shape + step, *EXPONENTS)
        found = _forces(valleys, moved)
        better = found[0] < squares
        damping = np.clip(damping * np.where(better, 0.2, 8.0), 1e-9, None)
        going = np.where(better, squares - found[0] > SETTLED * squares, damping < STIFFEST)
        ln_shape = np.where(better[:, None], moved, ln_shape)
        ends[active] = ln_shape
        state = [np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old) for new, old in zip(found, (squares, slope, bend))]
        active, ln_shape, damping, squares, slope, bend = (part[going] for part in (active, ln_shape, damping, *state))
        valleys = valleys.only(going)
        if not len(active):
            break
    return ends


def _forces(valleys: Valleys, ln_shape):
    """The sum of squares [r], half its gradient [r, 2] by the ln exponents, and half Gauss and Newton's curvature [r, 2, 2]."""
    shape = np.exp(ln_shape)[:, None]  # [r, 1, 2]
    columns = design(valleys.x, shape)  # [r, budgets, n, 3]
    coefficients, residual = _project(columns, valleys.loss, valleys.weight)
    alpha, beta = np.moveaxis(shape, -1, 0)[..., None]
    by_alpha = -LN10 * valleys.x * (1 + alpha * columns[..., 1]) - columns[..., 1]
    by_beta = LN10 * valleys.x * (1 + beta * columns[..., 2]) - columns[..., 2]
    moves = np.stack([by_alpha * coefficients[..., 1:2], by_beta * coefficients[..., 2:]], axis=-1)  # [r, budgets, n, 2]
    moves = moves - columns @ _solve(columns, moves, valleys.weight)
    weighed = moves * valleys.weight[..., None]
    slope = -np.sum(weighed * residual[..., None], axis=(1, 2))
    bend = np.sum(weighed.swapaxes(-1, -2) @ moves, axis=1)
    return np.sum(valleys.weight * residual**2, axis=(1, 2)), slope, bend


@dataclass(frozen=True)
class Misfit:
    """Whether parabolas describe curves as well as the law's shape: the F test of its two exponents."""

    F: float
    p: float
    degrees_of_freedom: int

    @property
    def rejected(self) -> bool:
        """Whether parabolas do not describe the curves, at the level of 5 %."""
        return self.p < LEVEL


def lack_of_fit(parabolas: Curves, shaped: Curves, num_rows: int, beyond: float = 0.0) -> Misfit | None:
    """The test on fits to the same rows, r = 1 each, with `beyond` more of squares in both; None where too few degrees of
    freedom are left."""
    freedom = num_rows - 3 * shaped.coefficients.shape[1] - 2
    if freedom < LEAST_FREEDOM:
        return None
    before, after = (float(np.ravel(curves.squares)[0]) + beyond for curves in (parabolas, shaped))
    ratio = max(before - after, 0.0) / 2 / max(after / freedom, 1e-300)
    return Misfit(ratio, float(fdtrc(2, freedom, ratio)), freedom)
