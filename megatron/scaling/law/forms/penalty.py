"""Chinchilla's law and a penalty for repeating data to a model that is large for them: P R^phi (N/U)^psi, R = D/U - 1.

With phi = psi = 1 it has one parameter, nats per repetition and parameter per unique token (Lovelace et al., 2605.01640, as
others quote it; the text was not at hand). At a fixed N and U the loss is least at e* epochs, e*^(1+beta) = beta B U^(1-beta) /
(P N). The penalty rises without limit: on 182 published runs on C4 it describes repetition better than effective data do up to
100 repetitions, and worse beyond.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron.scaling.law.form import Form, Parameter, by_irreducible, columns_of, log_sum, search_split
from megatron.scaling.law.forms.chinchilla import Chinchilla, ChinchillaForm, variable_projection

STEEPEST = 60.0  # ln(D/U) beyond which a repetition more changes nothing
FURTHEST = 100.0  # repetitions up to which the penalty was seen to hold


@dataclass(frozen=True)
class Penalised(Chinchilla):
    """L = E + A/N^alpha + B/D^beta + P R^phi (N/U)^psi; fresh data pay nothing."""

    P: Any
    phi: Any = 1.0
    psi: Any = 1.0

    def loss(self, params, tokens, unique=None):
        """L(N, D, U); without `unique` no token is seen twice."""
        unique = np.minimum(np.float64(tokens if unique is None else unique), tokens)
        ratio = np.float64(params) / unique
        return super().loss(params, tokens) + self.P * (tokens / unique - 1) ** self.phi * ratio**self.psi

    def optimum(self, flops, unique=None):
        """(N*, D*) of least loss under 6 N D = C with U unique tokens: a scan of ln N, then golden section."""
        if unique is None:
            return super().optimum(flops)
        shape = np.broadcast_shapes(*map(np.shape, (flops, unique, *vars(self).values())))
        return search_split(lambda params, tokens: self.loss(params, tokens, unique), flops, shape)

    def best_epochs(self, params, unique):
        """The epochs of least loss for N parameters and U tokens, where phi and psi are 1; at least 1."""
        pull = self.beta * self.B * np.float64(unique) ** (1 - self.beta) / (self.P * np.float64(params))
        return np.maximum(pull ** (1 / (1 + self.beta)), 1.0)


def log_penalised(theta, size, data, repeats, ratio):
    """At theta = (ln A, ln B, ln E, alpha, beta, ln P, phi, psi): ln L and its gradient; `repeats`: ln R, -inf for fresh rows."""
    ln_a, ln_b, ln_e, alpha, beta, ln_p, phi, psi = columns_of(theta)
    seen = np.isfinite(repeats)
    repeats = np.where(seen, repeats, 0.0)
    penalty = np.where(seen, ln_p + phi * repeats + psi * ratio, -np.inf)
    value, (a, b, rest, p) = log_sum(ln_a - alpha * size, ln_b - beta * data, ln_e, penalty)
    gradient = [a, b, rest, -a * size, -b * data, p, p * repeats, p * ratio]
    return value, np.stack(np.broadcast_arrays(*gradient), axis=-2)


class PenaltyForm(ChinchillaForm):
    """One parameter P, or with the exponents phi and psi `free`."""

    published_grid = Form.published_grid

    def __init__(self, free: bool):
        self.free = free
        self.name = "chinchilla-penalty-free" if free else "chinchilla-penalty"
        self.equation = "L = E + A/N^alpha + B/D^beta + P " + ("R^phi (N/U)^psi" if free else "R N/U") + ", R = D/U - 1"
        powers = ("phi", "psi") if free else ()
        self.names = (*ChinchillaForm.names, "P", *powers)
        self.parameters = (
            *ChinchillaForm.parameters,
            Parameter("P", exponent="phi" if free else None),
            *(Parameter(name, linear=True) for name in powers),
        )

    @property
    def repeats(self):
        return True

    def doubts(self, rows):
        most = float(np.max(np.exp(rows.tokens - rows.unique))) - 1
        if self.free or most <= FURTHEST:
            return []
        return [
            f"rows of up to {most:.3g} repetitions: a penalty that rises linearly was seen to fail beyond {FURTHEST:.0f}; fit "
            f"--form data-constrained, chinchilla-penalty-free, or --drop 'epochs>{FURTHEST + 1:.0f}'."
        ]

    def log_loss(self, theta, rows):
        whole = theta if self.free else np.concatenate([theta, np.ones_like(theta[..., :2])], axis=-1)
        with np.errstate(divide="ignore"):
            repeats = np.log(np.expm1(np.minimum(rows.tokens - rows.unique, STEEPEST)))
        repeats = np.where(rows.repeated, repeats - rows.centre["repeats"], -np.inf)
        ratio = rows.params - rows.unique - rows.centre["ratio"]
        value, gradient = by_irreducible(log_penalised, whole, rows.centred("params"), rows.centred("tokens"), repeats, ratio)
        return value, gradient[..., : theta.shape[-1], :]

    def bounds(self, rows):
        low, high = rows.term_bounds
        powers = [(1e-2, 5.0), (-2.0, 5.0)] if self.free else []
        return np.concatenate([super().bounds(rows), [(low, high), *powers]])

    def starts(self, rows):
        """Chinchilla's law of rows that repeat nothing, and grids of its starts, with a penalty of 0.1, 1 or 10 % of the loss."""
        single = rows.only(~rows.repeated)
        first = [variable_projection(single if len(single) >= 8 else rows), *super().starts(rows)[::4]]
        penalties = np.median(rows.loss) + np.log([1e-3, 1e-2, 0.1])
        powers = [(0.5, 0.5), (1.0, 1.0), (1.6, 1.2)] if self.free else [()]
        return np.array([(*start, penalty, *power) for start, penalty, power in itertools.product(first, penalties, powers)])

    def shift(self, theta, rows):
        shift = super().shift(theta, rows)
        phi, psi = (theta[..., 6], theta[..., 7]) if self.free else (1.0, 1.0)
        shift[..., 5] = -phi * rows.centre["repeats"] - psi * rows.centre["ratio"]
        return shift

    def law(self, theta, rows):
        ln_a, ln_b, E, alpha, beta, ln_p, *powers = np.moveaxis(theta + self.shift(theta, rows), -1, 0)
        return Penalised(E, np.exp(ln_a), np.exp(ln_b), alpha, beta, np.exp(ln_p), *powers)

    def law_of(self, fields):
        return Penalised(**fields)


FORMS = (PenaltyForm(free=False), PenaltyForm(free=True))
