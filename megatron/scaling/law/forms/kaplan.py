"""Kaplan's law of N and D, and power laws in one of N, D and C, with an irreducible loss or, as his, without."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron.errors import BadData
from megatron.scaling.law.form import (
    EXPONENTS,
    Form,
    Parameter,
    by_irreducible,
    columns_of,
    exp_capped,
    exp_irreducible,
    log_sum,
    split_equally,
)

EXPONENT_STEPS = (0.02, 0.06, 0.15, 0.4)  # that a fit starts from; with an irreducible loss exponents are larger
IRREDUCIBLE_STEPS = (0.02, 0.1, 0.3, 0.6, 1.0, 1.5)


@dataclass(frozen=True)
class Kaplan:
    """L(N, D) = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D (Kaplan et al., arXiv:2001.08361, equation 1.5)."""

    N_c: float
    D_c: float
    alpha_N: float
    alpha_D: float

    def loss(self, params, tokens, unique=None):
        """L(N, D); repetition does not count in this law."""
        size = (self.N_c / np.float64(params)) ** (self.alpha_N / self.alpha_D)
        return (size + self.D_c / np.float64(tokens)) ** self.alpha_D

    @property
    def exponents(self) -> tuple[float, float]:
        """(a, b) of N* ~ C^a and D* ~ C^b, from the least loss under 6 N D = C."""
        return self.alpha_D / (self.alpha_N + self.alpha_D), self.alpha_N / (self.alpha_N + self.alpha_D)

    def optimum(self, flops, unique=None):
        """(N*, D*) under 6 N D = C: with s = alpha_N/alpha_D, s (N_c/N)^s = D_c/D."""
        product, ratio = np.float64(flops) / 6, self.alpha_N / self.alpha_D
        ln_params = (np.log(ratio) + ratio * np.log(self.N_c) + np.log(product) - np.log(self.D_c)) / (1 + ratio)
        return np.exp(ln_params), product / np.exp(ln_params)

    def optimal_loss(self, flops, unique=None):
        """L(N*(C), D*(C))."""
        return self.loss(*self.optimum(flops))


@dataclass(frozen=True)
class PowerLaw:
    """L(X) = E + (X_c/X)^alpha in one of N, D and C, E = 0 for Kaplan's (ibid., equations 1.1 to 1.3)."""

    E: Any
    X_c: float
    alpha: float
    axis: str

    exponents = None

    def at(self, x):
        """L(X)."""
        return self.E + (self.X_c / np.float64(x)) ** self.alpha

    def loss(self, params, tokens, unique=None):
        """L(N), L(D) or L(C = 6 N D)."""
        return self.at({"params": params, "tokens": tokens, "flops": 6 * np.float64(params) * tokens}[self.axis])

    def optimum(self, flops, unique=None):
        """Raises BadData: one axis says nothing of how to split compute."""
        raise BadData(f"a law in {self.axis} alone has no optimal split of compute; fit --form chinchilla for that.")

    optimal_loss = optimum


def log_kaplan(theta, ln_params, ln_tokens):
    """At theta = (ln p, ln q, alpha_N, alpha_D), p and q the losses at N = 1, D = inf and at N = inf, D = 1.

    ln L = alpha_D ln(P^(1/alpha_D) + Q^(1/alpha_D)), P = p N^-alpha_N and Q = q D^-alpha_D: a smooth maximum of the two.
    """
    ln_p, ln_q, alpha_n, alpha_d = columns_of(theta)
    size, data = ln_p - alpha_n * ln_params, ln_q - alpha_d * ln_tokens
    value, (p, q) = log_sum(size / alpha_d, data / alpha_d)
    by_alpha_d = value - (p * size + q * data) / alpha_d - q * ln_tokens
    return alpha_d * value, np.stack([p, q, -p * ln_params, by_alpha_d], axis=-2)


def log_power(theta, ln_x):
    """At theta = (ln term at X = 1, alpha) or, with an irreducible loss, (ln term, alpha, ln E)."""
    ln_term, alpha, *ln_e = columns_of(theta)
    value, weights = log_sum(ln_term - alpha * ln_x, *ln_e)
    return value, np.stack([weights[0], -weights[0] * ln_x, *weights[1:]], axis=-2)


class KaplanForm(Form):
    """Kaplan's L(N, D)."""

    name = "kaplan"
    equation = "L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D"
    names = ("N_c", "D_c", "alpha_N", "alpha_D", "a", "b")
    parameters = (
        Parameter("N_c", exponent="alpha_N"),
        Parameter("D_c", exponent="alpha_D"),
        Parameter("alpha_N", linear=True),
        Parameter("alpha_D", linear=True),
    )

    def log_loss(self, theta, rows):
        return log_kaplan(theta, rows.centred("params"), rows.centred("tokens"))

    def bounds(self, rows):
        return np.array([rows.term_bounds, rows.term_bounds, EXPONENTS, EXPONENTS])

    def starts(self, rows):
        levels = np.median(rows.loss) + np.array([-0.7, -0.1])
        return np.array([*itertools.product(levels, levels, EXPONENT_STEPS, EXPONENT_STEPS)])

    def centred(self, theta, rows):
        """From (ln N_c, ln D_c, ...) to the losses, at the centre, of N alone and of D alone."""
        scales = theta[..., :2] - [rows.centre["params"], rows.centre["tokens"]]
        return np.concatenate([scales * theta[..., 2:], theta[..., 2:]], axis=-1)

    def law(self, theta, rows):
        ln_n, ln_d = (theta[..., i] / theta[..., 2 + i] + rows.centre[axis] for i, axis in enumerate(self.axes))
        return Kaplan(exp_capped(ln_n), exp_capped(ln_d), theta[..., 2], theta[..., 3])

    def law_of(self, fields):
        return Kaplan(**fields)


class PowerForm(Form):
    """(X_c/X)^alpha on one axis, with an irreducible loss E or, as Kaplan's, without."""

    def __init__(self, axis: str, irreducible: bool):
        scale = {"params": "N_c", "tokens": "D_c", "flops": "C_c"}[axis]
        self.axes, self.irreducible = (axis,), irreducible
        self.name = f"{'power' if irreducible else 'kaplan'}-{axis}"
        self.equation = f"L = {'E + ' if irreducible else ''}({scale}/{scale[0]})^alpha"
        solved = Parameter(scale, exponent="alpha"), Parameter("alpha", linear=True), Parameter("E", linear=True)
        self.parameters = solved if irreducible else solved[:2]
        self.names = ("E", scale, "alpha") if irreducible else (scale, "alpha")

    def log_loss(self, theta, rows):
        if not self.irreducible:
            return log_power(theta, rows.centred(self.axes[0]))
        return by_irreducible(log_power, theta, rows.centred(self.axes[0]))

    def bounds(self, rows):
        return np.array([rows.term_bounds, EXPONENTS, rows.irreducible_bounds][: len(self.solved)])

    def starts(self, rows):
        if not self.irreducible:
            return np.array([(np.median(rows.loss), alpha) for alpha in EXPONENT_STEPS])
        return np.array(
            [
                (*split_equally(rows, share)[:1], alpha, split_equally(rows, share)[2])
                for alpha, share in itertools.product(IRREDUCIBLE_STEPS, (0.3, 0.6, 0.9))
            ]
        )

    def centred(self, theta, rows):
        term = (theta[..., 0] - rows.centre[self.axes[0]]) * theta[..., 1]
        centred = np.concatenate([term[..., None], theta[..., 1:]], axis=-1)
        return exp_irreducible(centred) if self.irreducible else centred

    def law(self, theta, rows):
        E = theta[..., 2] if self.irreducible else np.zeros(theta.shape[:-1])
        scale = exp_capped(theta[..., 0] / theta[..., 1] + rows.centre[self.axes[0]])
        return PowerLaw(E, scale, theta[..., 1], self.axes[0])

    def values(self, theta, rows):
        law = self.law(theta, rows)
        return np.stack([law.E, law.X_c, law.alpha][-len(self.names) :], axis=-1)

    def law_of(self, fields):
        scale = next(name for name in fields if name.endswith("_c"))
        return PowerLaw(fields.get("E", np.zeros_like(fields[scale])), fields[scale], fields["alpha"], self.axes[0])

    def predict(self, law, columns):
        return law.at(columns[self.axes[0]])  # C is what the table says, which need not be 6ND


FORMS = (KaplanForm(), *(PowerForm(axis, irreducible) for irreducible in (False, True) for axis in ("params", "tokens", "flops")))
