"""The forms that a fit knows: their parameters as the solver sees them, where it may look, and where it starts.

The solver's parameters theta are E itself, so that an E that vanishes is near, and logarithms of the other terms at the centre
of the data, where they hardly depend on the exponents (corr(ln A, alpha) = 0.9993 uncentred): optima are reached from nearly
every start.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, nnls

from megatron.errors import BadData
from megatron.scaling.law import laws

EXPONENTS = (1e-3, 5.0)
REPETITIONS = (np.log(1e-2), np.log(1e6))  # of R_D and R_N
LEAST_SHARE = 1e-6  # of the smallest loss: below it E has left the law
LINEAR = ("E", "alpha", "beta", "alpha_N", "alpha_D", "phi", "psi")  # no logarithms to the solver
STEPS = (0.1, 0.3, 0.6, 1.0, 1.5)
KAPLAN_STEPS = (0.02, 0.06, 0.15, 0.4)
SINGLE = 1 + 1e-6  # passes over the data that are still one


@dataclass(frozen=True)
class Rows:
    """Logarithms of params, tokens, unique tokens (<= tokens), FLOPs and loss, [n] each, and the centre of the data."""

    params: np.ndarray
    tokens: np.ndarray
    unique: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    centre: dict[str, float]

    @classmethod
    def of(cls, params, tokens, unique, flops, loss) -> Rows:
        """From positive numbers [n]; the centre is that of these rows."""
        params, tokens, unique, flops, loss = (np.log(np.float64(column)) for column in (params, tokens, unique, flops, loss))
        unique = np.minimum(unique, tokens)
        passes = np.expm1(tokens - unique)[tokens - unique > np.log(SINGLE)]
        centre = {
            "params": params.mean(),
            "tokens": tokens.mean(),
            "flops": flops.mean(),
            "repeats": np.log(passes).mean() if len(passes) else 0.0,
            "ratio": (params - unique).mean(),
        }
        return cls(params, tokens, unique, flops, loss, {name: float(value) for name, value in centre.items()})

    def __len__(self) -> int:
        return len(self.loss)

    def only(self, chosen) -> Rows:
        """The chosen rows (a mask or indices) about the same centre."""
        columns = (self.params, self.tokens, self.unique, self.flops, self.loss)
        return Rows(*(column[chosen] for column in columns), self.centre)

    @property
    def repeated(self) -> np.ndarray:
        """Which rows saw some token more than once, [n]."""
        return self.tokens - self.unique > np.log(SINGLE)

    def centred(self, axis: str) -> np.ndarray:
        """ln of an axis about its centre."""
        return getattr(self, axis) - self.centre[axis]

    @property
    def term_bounds(self) -> tuple[float, float]:
        """Where the logarithm of a term of the loss can lie."""
        return self.loss.min() - 30, self.loss.max() + 30

    @property
    def floor_bounds(self) -> tuple[float, float]:
        """Where E can lie."""
        return LEAST_SHARE * np.exp(self.loss.min()), np.exp(self.loss.max())


class Form:
    """E + A/N^alpha + B/D^beta, and what every other form answers too."""

    name = "chinchilla"
    equation = "L = E + A/N^alpha + B/D^beta"
    names: tuple[str, ...] = ("E", "A", "B", "alpha", "beta", "a", "b")  # as published: `values` gives them in this order
    solved: tuple[str, ...] = ("A", "B", "E", "alpha", "beta")  # in the order of theta
    axes: tuple[str, ...] = ("params", "tokens")
    beta_at = 4  # in theta
    simpler: Form | None = None  # the form that this one extends

    def log_loss(self, theta, rows: Rows):
        """ln L [..., n] and its gradient [..., p, n] at theta [..., p]."""
        return by_floor(laws.log_chinchilla, theta, rows.centred("params"), rows.centred("tokens"))

    def bounds(self, rows: Rows) -> np.ndarray:
        """[p, 2]."""
        return np.array([rows.term_bounds, rows.term_bounds, rows.floor_bounds, EXPONENTS, EXPONENTS])

    def starts(self, rows: Rows) -> np.ndarray:
        """[51, p]: the variable-projection optimum, and a grid of exponents x share of the smallest loss that is E."""
        grid = [(*_split(rows, share), alpha, beta) for alpha, beta, share in itertools.product(STEPS, STEPS, (0.3, 0.9))]
        return np.array([variable_projection(rows), *grid])

    def published_grid(self, rows: Rows) -> np.ndarray:
        """The 4500 starts of Hoffmann et al. (arXiv:2203.15556, appendix D.2), or their 900 tied ones, [m, p].

        Raises BadData for other forms.
        """
        if self.solved not in (Form.solved, Tied.solved):
            raise BadData(
                f"--starts grid is published for the Chinchilla forms only, not for {self.name}: leave it out, or give a number."
            )
        terms, floors, exponents = np.linspace(0, 25, 6), np.linspace(-1, 1, 5), np.linspace(0, 2, 5)
        return self.centred(np.array(list(itertools.product(terms, terms, floors, *[exponents] * (len(self.solved) - 3)))), rows)

    def centred(self, theta, rows: Rows):
        """Theta [..., p] from logarithms of E and of terms at N = D = 1 to E and terms at the centre."""
        return _exp_floor(theta - self.shift(theta, rows))

    def shift(self, theta, rows: Rows):
        """What centring takes from theta [..., p]."""
        shift = np.zeros_like(theta)
        shift[..., 0] = theta[..., 3] * rows.centre["params"]
        shift[..., 1] = theta[..., self.beta_at] * rows.centre["tokens"]
        return shift

    def law(self, theta, rows: Rows):
        """The law with fields [...] at theta [..., p]."""
        ln_a, ln_b, floor, alpha, beta = np.moveaxis(theta + self.shift(theta, rows), -1, 0)
        return laws.Chinchilla(floor, np.exp(ln_a), np.exp(ln_b), alpha, beta)

    def theta(self, params: dict, rows: Rows) -> np.ndarray:
        """The solver's parameters [..., p] of published ones, [...] each."""
        columns = [np.float64(params[name]) if name in LINEAR[1:] else np.log(params[name]) for name in self.solved]
        return self.centred(np.stack(np.broadcast_arrays(*columns), axis=-1), rows)

    def values(self, theta, rows: Rows) -> np.ndarray:
        """Published parameters [..., len(names)], in the order of `names`."""
        law = self.law(theta, rows)
        fields = vars(law) | dict(zip(("a", "b"), law.exponents or ()))
        return np.stack([fields[name] for name in self.names], axis=-1)

    def from_values(self, values):
        """The law with fields [...] of published parameters [..., len(names)]."""
        named = dict(zip(self.names, np.moveaxis(np.asarray(values, np.float64), -1, 0)))
        return self.law_of({name: value for name, value in named.items() if name not in ("a", "b")})

    law_of = staticmethod(lambda fields: laws.Chinchilla(**fields))


class Tied(Form):
    """Chinchilla's law with one exponent for both."""

    name = "chinchilla-tied"
    equation = "L = E + A/N^alpha + B/D^alpha"
    solved = ("A", "B", "E", "alpha")
    beta_at = 3

    def log_loss(self, theta, rows):
        value, gradient = super().log_loss(_untied(theta), rows)
        return value, np.concatenate([gradient[..., :3, :], gradient[..., 3:, :].sum(axis=-2, keepdims=True)], axis=-2)

    def bounds(self, rows):
        return super().bounds(rows)[:4]

    def starts(self, rows):
        return np.array([[*start[:3], start[3:].mean()] for start in super().starts(rows)])

    def law(self, theta, rows):
        return super().law(_untied(theta), rows)


class Kaplan(Form):
    """Kaplan's L(N, D)."""

    name = "kaplan"
    equation = "L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D"
    names = ("N_c", "D_c", "alpha_N", "alpha_D", "a", "b")
    solved = ("N_c", "D_c", "alpha_N", "alpha_D")
    law_of = staticmethod(lambda fields: laws.Kaplan(**fields))

    def log_loss(self, theta, rows):
        return laws.log_kaplan(theta, rows.centred("params"), rows.centred("tokens"))

    def bounds(self, rows):
        return np.array([rows.term_bounds, rows.term_bounds, EXPONENTS, EXPONENTS])

    def starts(self, rows):
        levels = np.median(rows.loss) + np.array([-0.7, -0.1])
        return np.array([*itertools.product(levels, levels, KAPLAN_STEPS, KAPLAN_STEPS)])

    def centred(self, theta, rows):
        """From (ln N_c, ln D_c, ...) to the losses, at the centre, of N alone and of D alone."""
        scales = theta[..., :2] - [rows.centre["params"], rows.centre["tokens"]]
        return np.concatenate([scales * theta[..., 2:], theta[..., 2:]], axis=-1)

    def law(self, theta, rows):
        ln_n, ln_d = (theta[..., i] / theta[..., 2 + i] + rows.centre[axis] for i, axis in enumerate(self.axes))
        return laws.Kaplan(_exp(ln_n), _exp(ln_d), theta[..., 2], theta[..., 3])


class Power(Form):
    """(X_c/X)^alpha on one axis, with an irreducible loss E or, as Kaplan's, without."""

    def __init__(self, axis: str, floor: bool):
        scale = {"params": "N_c", "tokens": "D_c", "flops": "C_c"}[axis]
        self.axes, self.floor = (axis,), floor
        self.name = f"{'power' if floor else 'kaplan'}-{axis}"
        self.equation = f"L = {'E + ' if floor else ''}({scale}/{scale[0]})^alpha"
        self.solved = (scale, "alpha", "E") if floor else (scale, "alpha")
        self.names = ("E", scale, "alpha") if floor else (scale, "alpha")

    def log_loss(self, theta, rows):
        if not self.floor:
            return laws.log_power(theta, rows.centred(self.axes[0]))
        return by_floor(laws.log_power, theta, rows.centred(self.axes[0]))

    def bounds(self, rows):
        return np.array([rows.term_bounds, EXPONENTS, rows.floor_bounds][: len(self.solved)])

    def starts(self, rows):
        if not self.floor:
            return np.array([(np.median(rows.loss), alpha) for alpha in KAPLAN_STEPS])
        return np.array(
            [
                (*_split(rows, share)[:1], alpha, _split(rows, share)[2])
                for alpha, share in itertools.product((0.02, *STEPS), (0.3, 0.6, 0.9))
            ]
        )

    def centred(self, theta, rows):
        term = (theta[..., 0] - rows.centre[self.axes[0]]) * theta[..., 1]
        centred = np.concatenate([term[..., None], theta[..., 1:]], axis=-1)
        return _exp_floor(centred) if self.floor else centred

    def law(self, theta, rows):
        floor = theta[..., 2] if self.floor else np.zeros(theta.shape[:-1])
        scale = _exp(theta[..., 0] / theta[..., 1] + rows.centre[self.axes[0]])
        return laws.PowerLaw(floor, scale, theta[..., 1], self.axes[0])

    def values(self, theta, rows):
        law = self.law(theta, rows)
        return np.stack([law.E, law.X_c, law.alpha][-len(self.names) :], axis=-1)

    def law_of(self, fields):
        scale = next(name for name in fields if name.endswith("_c"))
        return laws.PowerLaw(fields.get("E", np.zeros_like(fields[scale])), fields[scale], fields["alpha"], self.axes[0])


class DataConstrained(Form):
    """Chinchilla's law of effective parameters and tokens."""

    name = "data-constrained"
    equation = "L = E + A/N'^alpha + B/D'^beta, X' = U_X (1 + R_X (1 - exp(-r/R_X))), r = X/U_X - 1"
    names = (*Form.names, "R_D", "R_N")
    solved = (*Form.solved, "R_D", "R_N")
    law_of = staticmethod(lambda fields: laws.DataConstrained(**fields))

    def log_loss(self, theta, rows):
        centre = [rows.centre[name] for name in ("params", "tokens", "repeats", "ratio")]
        return by_floor(laws.log_data_constrained, theta, rows.params, rows.tokens, rows.unique, centre)

    def bounds(self, rows):
        return np.concatenate([super().bounds(rows), [REPETITIONS, REPETITIONS]])

    def starts(self, rows):
        """[153, 7]: Chinchilla's variable projection on single-epoch rows and two splits of the loss x a grid of R_D, R_N."""
        single = rows.only(~rows.repeated)
        first = [variable_projection(single if len(single) >= 8 else rows)]
        first += [(*_split(rows, share), 0.35, 0.35) for share in (0.3, 0.9)]
        scales = itertools.product(np.log(np.geomspace(0.5, 3000, 8)), np.log(np.geomspace(0.5, 3000, 6)))
        return np.array([(*start, *pair) for start, pair in itertools.product(first, scales)])

    def law(self, theta, rows):
        ln_a, ln_b, floor, alpha, beta, ln_rd, ln_rn = np.moveaxis(theta + self.shift(theta, rows), -1, 0)
        return laws.DataConstrained(floor, *np.exp([ln_a, ln_b]), alpha, beta, *np.exp([ln_rd, ln_rn]))


class DataConstrainedOverfit(DataConstrained):
    """Data-constrained with a term that rises with epochs."""

    name = "data-constrained-overfit"
    equation = DataConstrained.equation + ", + P r_D^phi (N/U)^psi"
    names = (*DataConstrained.names, "P", "phi", "psi")
    solved = (*DataConstrained.solved, "P", "phi", "psi")
    simpler = DataConstrained()
    law_of = staticmethod(lambda fields: laws.DataConstrainedOverfit(**fields))

    def bounds(self, rows):
        return np.concatenate([super().bounds(rows), [rows.term_bounds, (1e-2, 5.0), (-2.0, 5.0)]])

    def starts(self, rows):
        """[216, 10]: every fourth start without overfitting, extended."""
        return self.extended(super().starts(rows)[::4], rows)

    def extended(self, starts, rows):
        """[6 m, 10]: starts [m, 7] x a term of 1, 5 or 20 % of the loss x two growths."""
        terms = itertools.product(np.median(rows.loss) + np.log([0.01, 0.05, 0.2]), ((0.5, 0.3), (1.5, 1.0)))
        return np.array([(*start, term, *growth) for start, (term, growth) in itertools.product(starts, terms)])

    def shift(self, theta, rows):
        shift = super().shift(theta, rows)
        shift[..., 7] = -theta[..., 8] * rows.centre["repeats"] - theta[..., 9] * rows.centre["ratio"]
        return shift

    def law(self, theta, rows):
        theta = theta + self.shift(theta, rows)
        ln_a, ln_b, floor, alpha, beta, ln_rd, ln_rn, ln_p, phi, psi = np.moveaxis(theta, -1, 0)
        return laws.DataConstrainedOverfit(floor, *np.exp([ln_a, ln_b]), alpha, beta, *np.exp([ln_rd, ln_rn, ln_p]), phi, psi)


FORMS = {
    form.name: form
    for form in (
        Form(),
        Tied(),
        Kaplan(),
        *(Power(axis, floor) for floor in (False, True) for axis in ("params", "tokens", "flops")),
        DataConstrained(),
        DataConstrainedOverfit(),
    )
}


def variable_projection(rows: Rows) -> np.ndarray:
    """Theta [5] of least squared relative error: for given exponents E, A, B are a non-negative linear fit (VPNLS)."""
    loss, ln_params, ln_tokens = np.exp(rows.loss), rows.centred("params"), rows.centred("tokens")

    def solve(exponents):
        terms = np.stack([np.exp(-exponents[0] * ln_params), np.exp(-exponents[1] * ln_tokens), np.ones_like(loss)], axis=1)
        return nnls(terms / loss[:, None], np.ones_like(loss))

    grid = itertools.product(np.geomspace(0.05, 2, 10), repeat=2)
    first = min(grid, key=lambda exponents: solve(exponents)[1])
    best = minimize(lambda exponents: solve(exponents)[1], first, method="Nelder-Mead", bounds=[EXPONENTS] * 2).x
    a, b, floor = np.maximum(solve(best)[0], 1e-3 * loss.min())
    return np.array([np.log(a), np.log(b), floor, *best])


def _split(rows: Rows, share: float) -> tuple[float, float, float]:
    """ln A, ln B, E of a start in which E is `share` of the smallest loss and the terms are equal."""
    floor = share * np.exp(rows.loss.min())
    term = np.log((np.median(np.exp(rows.loss)) - floor) / 2)
    return term, term, floor


def by_floor(log_loss, theta, *axes):
    """ln L and its gradient by theta, in which E stands third, of a law that takes ln E there."""
    at = theta.copy()
    at[..., 2] = np.log(theta[..., 2])
    value, gradient = log_loss(at, *axes)
    gradient[..., 2, :] /= theta[..., 2, None]
    return value, gradient


def _exp_floor(theta):
    at = theta.copy()
    at[..., 2] = np.exp(theta[..., 2])
    return at


def _untied(theta):
    return np.concatenate([theta, theta[..., 3:]], axis=-1)


def _exp(ln_scale):
    return np.exp(np.minimum(ln_scale, 700))
