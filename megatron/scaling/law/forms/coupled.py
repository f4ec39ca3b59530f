"""Laws in which parameters and data limit each other by more or less than a sum of two terms."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from megatron.scaling.law.form import Parameter, by_irreducible, columns_of, log_sum, search_split
from megatron.scaling.law.forms.chinchilla import Chinchilla, ChinchillaForm

SHARPEST = 30.0  # coupling: two equal terms are then worth 1.02 of one
COUPLINGS = (0.5, 2.0, 5.0)  # that a fit starts from, besides Chinchilla's 1


@dataclass(frozen=True)
class Coupled(Chinchilla):
    """L = E + ((A/N^alpha)^s + (B/X^beta)^s)^(1/s), X the tokens or the unique tokens.

    s = 1 is Chinchilla's law; s to infinity counts the larger term alone, as where the scarcer of parameters and data limits what
    is learned. s = 1/beta is Kaplan's L(N, D) (arXiv:2001.08361, equation 1.5) and an irreducible loss. A family of this
    project, in the spirit of laws that couple both.
    """

    s: float
    of_unique: bool = False

    exponents = None  # type: ignore[assignment]

    def loss(self, params, tokens, unique=None):
        """L(N, D), or L(N, U) where the law is one of unique tokens; without `unique` no token is seen twice."""
        seen = tokens if unique is None or not self.of_unique else np.minimum(np.float64(unique), tokens)
        size = np.log(self.A) - self.alpha * np.log(np.float64(params))
        data = np.log(self.B) - self.beta * np.log(np.float64(seen))
        return self.E + np.exp(np.logaddexp(self.s * size, self.s * data) / self.s)

    def optimum(self, flops, unique=None):
        """(N*, D*) of least loss under 6 N D = C, by search."""
        values = [value for name, value in vars(self).items() if name != "of_unique"]
        shape = np.broadcast_shapes(*map(np.shape, (flops, *([] if unique is None else [unique]), *values)))
        return search_split(lambda params, tokens: self.loss(params, tokens, unique), flops, shape)

    def optimal_loss(self, flops, unique=None):
        """L(N*(C), D*(C))."""
        params, tokens = self.optimum(flops, unique)
        return self.loss(params, tokens, unique)


def log_coupled(theta, ln_params, ln_data):
    """At theta = (ln A, ln B, ln E, alpha, beta, ln s), terms where ln N and ln X are 0."""
    ln_a, ln_b, ln_e, alpha, beta, ln_s = columns_of(theta)
    s = np.exp(ln_s)
    size, data = ln_a - alpha * ln_params, ln_b - beta * ln_data
    both, (p, q) = log_sum(s * size, s * data)
    both = both / s
    value, (share, rest) = log_sum(both, ln_e)
    by_size, by_data, by_ln_s = share * p, share * q, share * (p * size + q * data - both)
    return value, np.stack([by_size, by_data, rest, -by_size * ln_params, -by_data * ln_data, by_ln_s], axis=-2)


class CoupledForm(ChinchillaForm):
    """E + ((A/N^alpha)^s + (B/X^beta)^s)^(1/s)."""

    parameters = (*ChinchillaForm.parameters, Parameter("s"))
    names = (*ChinchillaForm.names[:5], "s")
    simpler = ChinchillaForm()

    def __init__(self, axis: str):
        self.data = axis
        self.name = "coupled-unique" if self.repeats else "coupled"
        self.equation = f"L = E + ((A/N^alpha)^s + (B/{'U' if self.repeats else 'D'}^beta)^s)^(1/s)"

    @property
    def repeats(self):
        return self.data == "unique"

    def log_loss(self, theta, rows):
        return by_irreducible(log_coupled, theta, rows.centred("params"), self._ln_data(rows))

    def bounds(self, rows):
        return np.concatenate([super().bounds(rows), [(-np.log(SHARPEST), np.log(SHARPEST))]])

    def starts(self, rows):
        """Every third start of Chinchilla's law x COUPLINGS, [51, 6]."""
        return self._coupled(super().starts(rows)[::3], COUPLINGS)

    def extended(self, starts, rows):
        """[4 m, 6]: starts [m, 5] at Chinchilla's coupling and the others."""
        return self._coupled(starts, (1.0, *COUPLINGS))

    def law(self, theta, rows):
        ln_a, ln_b, E, alpha, beta, ln_s = np.moveaxis(theta + self.shift(theta, rows), -1, 0)
        return Coupled(E, np.exp(ln_a), np.exp(ln_b), alpha, beta, np.exp(ln_s), self.repeats)

    def law_of(self, fields):
        return Coupled(**fields, of_unique=self.repeats)

    def _ln_data(self, rows):
        return getattr(rows, self.data) - rows.centre["tokens"]

    def _coupled(self, starts, couplings):
        return np.array([(*start, np.log(s)) for start, s in itertools.product(starts, couplings)])


FORMS = (CoupledForm("tokens"), CoupledForm("unique"))
