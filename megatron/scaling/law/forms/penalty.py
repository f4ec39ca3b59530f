"""Chinchilla's law with one more parameter: what repeated tokens cost a model by memorising them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from megatron.scaling.law.form import Parameter, by_irreducible, columns_of, log_sum, search_split
from megatron.scaling.law.forms.chinchilla import Chinchilla, ChinchillaForm

FURTHEST = 100.0  # repetitions up to which the penalty was seen to hold
SHARES = (0.002, 0.02, 0.1)  # of the loss, that the penalty has in a start


@dataclass(frozen=True)
class OverfitPenalty(Chinchilla):
    """Chinchilla's law plus P r N/U for r = D/U - 1 repetitions (arXiv:2605.01640, in its form with one parameter).

    P: nats for each repetition and parameter per unique token. It is linear in the epochs, which holds to about 100 of them:
    of 182 published runs it describes the 139 that have at most 101 epochs better than effective data do, and all of them worse.
    """

    P: float

    def loss(self, params, tokens, unique=None):
        """L(N, D) + P (D/U - 1) N/U; without `unique` no token is seen twice."""
        unique = np.minimum(np.float64(tokens if unique is None else unique), tokens)
        return super().loss(params, tokens) + self.P * (tokens / unique - 1) * (params / unique)

    def optimum(self, flops, unique=None):
        """(N*, D*) of least loss under 6 N D = C with U unique tokens, by search."""
        if unique is None:
            return super().optimum(flops)
        shape = np.broadcast_shapes(*map(np.shape, (flops, unique, *vars(self).values())))
        return search_split(lambda params, tokens: self.loss(params, tokens, unique), flops, shape)

    def optimal_loss(self, flops, unique=None):
        """L(N*(C, U), D*(C, U), U)."""
        params, tokens = self.optimum(flops, unique)
        return self.loss(params, tokens, unique)


def log_penalty(theta, ln_params, ln_tokens, ln_unique, centre):
    """At theta = (ln A, ln B, ln E, alpha, beta, ln P), terms where ln N, ln D, ln r and ln(N/U) equal `centre`."""
    ln_a, ln_b, ln_e, alpha, beta, ln_p = columns_of(theta)
    size, data = ln_params - centre[0], ln_tokens - centre[1]
    with np.errstate(divide="ignore"):
        ln_repeats = np.log(np.expm1(ln_tokens - ln_unique))
    memorised = ln_p + (ln_repeats - centre[2]) + (ln_params - ln_unique - centre[3])
    value, weights = log_sum(ln_a - alpha * size, ln_b - beta * data, ln_e, memorised)
    return value, np.stack([*weights[:3], -weights[0] * size, -weights[1] * data, weights[3]], axis=-2)


class PenaltyForm(ChinchillaForm):
    """E + A/N^alpha + B/D^beta + P (D/U - 1) N/U."""

    name = "overfit-penalty"
    equation = "L = E + A/N^alpha + B/D^beta + P (D/U - 1) N/U"
    names = (*ChinchillaForm.names, "P")
    parameters = (*ChinchillaForm.parameters, Parameter("P"))
    repeats = True

    def doubts(self, rows):
        most = float(np.max(np.exp(rows.tokens - rows.unique))) - 1
        if most <= FURTHEST:
            return []
        return [
            f"rows of up to {most:.3g} repetitions: a penalty linear in them was seen to fail beyond {FURTHEST:.0f}; fit --form "
            f"data-constrained, or leave them out with --drop 'epochs>{FURTHEST + 1:.0f}'."
        ]

    def log_loss(self, theta, rows):
        centre = [rows.centre[name] for name in ("params", "tokens", "repeats", "ratio")]
        return by_irreducible(log_penalty, theta, rows.params, rows.tokens, rows.unique, centre)

    def bounds(self, rows):
        return np.concatenate([super().bounds(rows), [rows.term_bounds]])

    def starts(self, rows):
        """Chinchilla's, of single-epoch rows where they are enough, x three sizes of the penalty."""
        single = rows.only(~rows.repeated)
        starts = super().starts(single if len(single) >= 8 else rows)[::2]
        terms = np.median(rows.loss) + np.log(SHARES)
        return np.array([(*start, term) for start, term in itertools.product(starts, terms)])

    def shift(self, theta, rows):
        shift = super().shift(theta, rows)
        shift[..., 5] = -rows.centre["repeats"] - rows.centre["ratio"]
        return shift

    def law(self, theta, rows):
        ln_a, ln_b, E, alpha, beta, ln_p = np.moveaxis(theta + self.shift(theta, rows), -1, 0)
        return OverfitPenalty(E, np.exp(ln_a), np.exp(ln_b), alpha, beta, np.exp(ln_p))

    def law_of(self, fields):
        return OverfitPenalty(**fields)


FORMS = (PenaltyForm(),)
