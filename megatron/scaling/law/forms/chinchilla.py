"""Chinchilla's law, and the same with one exponent for both."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, nnls

from megatron.scaling.law.form import (
    EXPONENTS,
    Form,
    Parameter,
    Rows,
    by_irreducible,
    columns_of,
    exp_irreducible,
    log_sum,
    split_equally,
)

STEPS = (0.1, 0.3, 0.6, 1.0, 1.5)  # of exponents that a fit starts from
PARAMETERS = (
    Parameter("A", exponent="alpha"),
    Parameter("B", exponent="beta"),
    Parameter("E", linear=True),
    Parameter("alpha", linear=True),
    Parameter("beta", linear=True),
)


@dataclass(frozen=True)
class Chinchilla:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats a token (Hoffmann et al., arXiv:2203.15556, equation 2)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params, tokens, unique=None):
        """L(N, D); repetition does not count in this law."""
        return self.E + self.A / np.float64(params) ** self.alpha + self.B / np.float64(tokens) ** self.beta

    @property
    def exponents(self) -> tuple[float, float]:
        """(a, b) of N* ~ C^a and D* ~ C^b (ibid., equation 4)."""
        return self.beta / (self.alpha + self.beta), self.alpha / (self.alpha + self.beta)

    @property
    def ln_scale(self):
        """ln G, G = (alpha A / beta B)^(1/(alpha+beta)) (ibid., equation 4)."""
        return (np.log(self.alpha / self.beta) + np.log(self.A) - np.log(self.B)) / (self.alpha + self.beta)

    def optimum(self, flops, unique=None):
        """(N*, D*) of least loss under 6 N D = C: N* = G (C/6)^a (ibid., equation 4)."""
        product = np.float64(flops) / 6
        params = np.exp(self.ln_scale + self.exponents[0] * np.log(product))
        return params, product / params

    def optimal_loss(self, flops, unique=None):
        """L(N*(C), D*(C))."""
        params, tokens = self.optimum(flops, unique)
        return self.loss(params, tokens, unique)


def log_chinchilla(theta, ln_params, ln_tokens):
    """At theta = (ln A, ln B, ln E, alpha, beta), as a log-sum-exp that cannot overflow (Hoffmann et al., section 3.3)."""
    ln_a, ln_b, ln_e, alpha, beta = columns_of(theta)
    value, (size, data, rest) = log_sum(ln_a - alpha * ln_params, ln_b - beta * ln_tokens, ln_e)
    return value, np.stack([size, data, rest, -size * ln_params, -data * ln_tokens], axis=-2)


class ChinchillaForm(Form):
    """E + A/N^alpha + B/D^beta."""

    name = "chinchilla"
    equation = "L = E + A/N^alpha + B/D^beta"
    names: tuple[str, ...] = ("E", "A", "B", "alpha", "beta", "a", "b")
    parameters: tuple[Parameter, ...] = PARAMETERS
    beta_at = 4  # in theta

    def log_loss(self, theta, rows):
        return by_irreducible(log_chinchilla, theta, rows.centred("params"), rows.centred("tokens"))

    def bounds(self, rows):
        return np.array([rows.term_bounds, rows.term_bounds, rows.irreducible_bounds, EXPONENTS, EXPONENTS])

    def starts(self, rows: Rows) -> np.ndarray:
        """[51, p]: the variable-projection optimum, and a grid of exponents x share of the smallest loss that is E."""
        grid = [(*split_equally(rows, share), alpha, beta) for alpha, beta, share in itertools.product(STEPS, STEPS, (0.3, 0.9))]
        return np.array([variable_projection(rows), *grid])

    def published_grid(self, rows: Rows) -> np.ndarray:
        """The 4500 starts of Hoffmann et al. (arXiv:2203.15556, appendix D.2), or their 900 tied ones."""
        terms, irreducible, exponents = np.linspace(0, 25, 6), np.linspace(-1, 1, 5), np.linspace(0, 2, 5)
        return self.centred(
            np.array(list(itertools.product(terms, terms, irreducible, *[exponents] * (len(self.solved) - 3)))), rows
        )

    def centred(self, theta, rows):
        return exp_irreducible(theta - self.shift(theta, rows))

    def shift(self, theta, rows: Rows):
        """What centring takes from theta [..., p]."""
        shift = np.zeros_like(theta)
        shift[..., 0] = theta[..., 3] * rows.centre["params"]
        shift[..., 1] = theta[..., self.beta_at] * rows.centre["tokens"]
        return shift

    def law(self, theta, rows):
        ln_a, ln_b, E, alpha, beta = np.moveaxis(theta + self.shift(theta, rows), -1, 0)
        return Chinchilla(E, np.exp(ln_a), np.exp(ln_b), alpha, beta)

    def law_of(self, fields):
        return Chinchilla(**fields)


class Tied(ChinchillaForm):
    """Chinchilla's law with one exponent for both."""

    name = "chinchilla-tied"
    equation = "L = E + A/N^alpha + B/D^alpha"
    parameters = (*PARAMETERS[:1], Parameter("B", exponent="alpha"), *PARAMETERS[2:4])
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


def variable_projection(rows: Rows) -> np.ndarray:
    """Theta [5] of least squared relative error: for given exponents E, A, B are a non-negative linear fit (VPNLS)."""
    loss, ln_params, ln_tokens = np.exp(rows.loss), rows.centred("params"), rows.centred("tokens")

    def solve(exponents):
        terms = np.stack([np.exp(-exponents[0] * ln_params), np.exp(-exponents[1] * ln_tokens), np.ones_like(loss)], axis=1)
        return nnls(terms / loss[:, None], np.ones_like(loss))

    grid = itertools.product(np.geomspace(0.05, 2, 10), repeat=2)
    first = min(grid, key=lambda exponents: solve(exponents)[1])
    best = minimize(lambda exponents: solve(exponents)[1], first, method="Nelder-Mead", bounds=[EXPONENTS] * 2).x
    a, b, E = np.maximum(solve(best)[0], 1e-3 * loss.min())
    return np.array([np.log(a), np.log(b), E, *best])


def _untied(theta):
    return np.concatenate([theta, theta[..., 3:]], axis=-1)


FORMS = (ChinchillaForm(), Tied())
