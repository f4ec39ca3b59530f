"""Chinchilla's law of effective parameters and tokens, and the same with a term for overfitting."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from megatron.scaling.law.form import Form, Parameter, by_irreducible, columns_of, log_sum, search_split, split_equally
from megatron.scaling.law.forms.chinchilla import Chinchilla, ChinchillaForm, variable_projection

REPETITIONS = (np.log(1e-2), np.log(1e6))  # bounds of ln R_D and ln R_N
STEEPEST = 60.0  # ln(total / unique) beyond which another repetition is worth nothing to float64


@dataclass(frozen=True)
class DataConstrained(Chinchilla):
    """Chinchilla's law of effective N' and D', of which repetition adds ever less (Muennighoff et al., arXiv:2305.16264).

    X' = U_X (1 + R (1 - exp(-r/R))) for r = X/U_X - 1 repetitions; U_D = U and U_N = min(N, N_opt(D_opt = U)).
    """

    R_D: float
    R_N: float

    def effective_tokens(self, tokens, unique):
        """D': tokens that would be worth as much if all were unique. R_D -> inf gives D, R_D -> 0 gives U."""
        return _effective(np.float64(tokens), np.minimum(np.float64(unique), tokens), self.R_D)

    def effective_params(self, params, unique):
        """N': parameters beyond the number that U unique tokens call for add less."""
        ln_wanted = self.ln_scale + self.beta / self.alpha * (np.log(np.float64(unique)) + self.ln_scale)
        return _effective(np.float64(params), np.minimum(np.exp(np.minimum(ln_wanted, 700)), params), self.R_N)

    def loss(self, params, tokens, unique=None):
        """L(N', D'); without `unique` no token is seen twice."""
        unique = np.minimum(np.float64(tokens if unique is None else unique), tokens)
        return super().loss(self.effective_params(params, unique), self.effective_tokens(tokens, unique))

    def optimum(self, flops, unique=None):
        """(N*, D*) of least loss under 6 N D = C with U unique tokens: a scan of ln N, then golden section."""
        if unique is None:
            return super().optimum(flops)
        shape = np.broadcast_shapes(*map(np.shape, (flops, unique, *vars(self).values())))
        return search_split(lambda params, tokens: self.loss(params, tokens, unique), flops, shape)


@dataclass(frozen=True)
class DataConstrainedOverfit(DataConstrained):
    """DataConstrained plus P r^phi (N/U)^psi for r = D/U - 1 repetitions: the gap to the training loss that memorising opens.

    The added term is a choice of this project: power laws in the passes over the data and in parameters per unique token,
    zero at one epoch and rising without limit, so that the loss may rise with epochs, the sooner the larger the model.
    """

    P: float
    phi: float
    psi: float

    def loss(self, params, tokens, unique=None):
        """L(N', D') + P r^phi (N/U)^psi."""
        unique = np.minimum(np.float64(tokens if unique is None else unique), tokens)
        return super().loss(params, tokens, unique) + self.P * (tokens / unique - 1) ** self.phi * (params / unique) ** self.psi


def _effective(total, unique, scale):
    """U (1 + R (1 - exp(-r/R))), exact in the limits of R."""
    scale = np.clip(scale, 1e-150, 1e150)
    return unique * (1 - scale * np.expm1(-(total / unique - 1) / scale))


def log_data_constrained(theta, ln_params, ln_tokens, ln_unique, centre=(0.0, 0.0, 0.0, 0.0)):
    """At theta = (ln A, ln B, ln E, alpha, beta, ln R_D, ln R_N) and, to overfit, (..., ln P, phi, psi).

    A, B, P are terms where ln N, ln D, ln r and ln(N/U) equal `centre`; the rows are not centred.
    """
    ln_a, ln_b, ln_e, alpha, beta, ln_rd, ln_rn, *overfit = columns_of(theta)
    size, data = ln_params - centre[0], ln_tokens - centre[1]
    wanted, by_wanted = _wanted_params(ln_a, ln_b, alpha, beta, ln_unique, centre)
    shift_n, n_by_excess, n_by_scale = _repeated(np.maximum(ln_params - wanted, 0), ln_rn)
    shift_d, _, d_by_scale = _repeated(ln_tokens - ln_unique, ln_rd)
    terms = [ln_a - alpha * (size + shift_n), ln_b - beta * (data + shift_d), ln_e]
    if overfit:
        terms.append(_memorised(overfit, ln_params, ln_tokens, ln_unique, centre))
    value, weights = log_sum(*terms)
    by_n = -weights[0] * alpha * n_by_excess
    gradient = [
        weights[0] + by_n * by_wanted[0],
        weights[1] + by_n * by_wanted[1],
        weights[2],
        by_n * by_wanted[2] - weights[0] * (size + shift_n),
        by_n * by_wanted[3] - weights[1] * (data + shift_d),
        -weights[1] * beta * d_by_scale,
        -weights[0] * alpha * n_by_scale,
    ]
    if overfit:
        repeated = np.isfinite(terms[3])
        ln_repeats = np.where(repeated, _ln_repeats(ln_tokens, ln_unique), centre[2]) - centre[2]
        gradient += [weights[3], weights[3] * ln_repeats, weights[3] * (ln_params - ln_unique - centre[3])]
    return value, np.stack(np.broadcast_arrays(*gradient), axis=-2)


def _wanted_params(ln_a, ln_b, alpha, beta, ln_unique, centre):
    """ln N_opt(D_opt = U) = (beta/alpha) (ln U + ln G) + ln G, and its gradient by ln A, ln B, alpha, beta (centred A, B)."""
    total, ratio = alpha + beta, beta / alpha
    ln_g = (ln_a - np.log(ratio) + alpha * centre[0] - ln_b - beta * centre[1]) / total
    by_g = (1 + ratio) / total
    by_alpha = by_g * (1 / alpha + centre[0] - ln_g) - (ln_unique + ln_g) * ratio / alpha
    by_beta = by_g * (-1 / beta - centre[1] - ln_g) + (ln_unique + ln_g) / alpha
    return ratio * (ln_unique + ln_g) + ln_g, (by_g, -by_g, by_alpha, by_beta)


def _repeated(excess, ln_scale):
    """ln(effective / total) for excess = ln(total / unique) >= 0, minus its slope by `excess`, and its slope by ln R."""
    scale, passes = np.exp(ln_scale), np.expm1(np.minimum(excess, STEEPEST))
    ratio = np.minimum(passes / scale, 700)
    left = np.exp(-ratio)
    total = 1 - scale * np.expm1(-ratio)
    by_excess = left * (passes + 1) / total
    return np.log(total) - excess, 1 - by_excess, scale * (-np.expm1(-ratio) - ratio * left) / total


def _ln_repeats(ln_tokens, ln_unique):
    with np.errstate(divide="ignore"):
        return np.log(np.expm1(np.minimum(ln_tokens - ln_unique, STEEPEST)))


def _memorised(overfit, ln_params, ln_tokens, ln_unique, centre):
    ln_p, phi, psi = overfit
    return ln_p + phi * (_ln_repeats(ln_tokens, ln_unique) - centre[2]) + psi * (ln_params - ln_unique - centre[3])


class DataConstrainedForm(ChinchillaForm):
    """Chinchilla's law of effective parameters and tokens."""

    name = "data-constrained"
    equation = "L = E + A/N'^alpha + B/D'^beta, X' = U_X (1 + R_X (1 - exp(-r/R_X))), r = X/U_X - 1"
    names = (*ChinchillaForm.names, "R_D", "R_N")
    parameters = (*ChinchillaForm.parameters, Parameter("R_D"), Parameter("R_N"))
    several_optima = True  # one of them at infinity
    published_grid = Form.published_grid

    def log_loss(self, theta, rows):
        centre = [rows.centre[name] for name in ("params", "tokens", "repeats", "ratio")]
        return by_irreducible(log_data_constrained, theta, rows.params, rows.tokens, rows.unique, centre)

    def bounds(self, rows):
        return np.concatenate([super().bounds(rows), [REPETITIONS, REPETITIONS]])

    def starts(self, rows):
        """[153, 7]: Chinchilla's variable projection on single-epoch rows and two splits of the loss x a grid of R_D, R_N."""
        single = rows.only(~rows.repeated)
        first: list = [variable_projection(single if len(single) >= 8 else rows)]
        first += [(*split_equally(rows, share), 0.35, 0.35) for share in (0.3, 0.9)]
        scales = itertools.product(np.log(np.geomspace(0.5, 3000, 8)), np.log(np.geomspace(0.5, 3000, 6)))
        return np.array([(*start, *pair) for start, pair in itertools.product(first, scales)])

    def law(self, theta, rows):
        ln_a, ln_b, E, alpha, beta, ln_rd, ln_rn = np.moveaxis(theta + self.shift(theta, rows), -1, 0)
        A, B, R_D, R_N = np.exp([ln_a, ln_b, ln_rd, ln_rn])
        return DataConstrained(E, A, B, alpha, beta, R_D, R_N)

    def law_of(self, fields):
        return DataConstrained(**fields)


class DataConstrainedOverfitForm(DataConstrainedForm):
    """Data-constrained with a term that rises with epochs."""

    name = "data-constrained-overfit"
    equation = DataConstrainedForm.equation + ", + P r_D^phi (N/U)^psi"
    names = (*DataConstrainedForm.names, "P", "phi", "psi")
    parameters = (
        *DataConstrainedForm.parameters,
        Parameter("P", exponent="phi"),
        Parameter("phi", linear=True),
        Parameter("psi", linear=True),
    )
    simpler = DataConstrainedForm()

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
        ln_a, ln_b, E, alpha, beta, ln_rd, ln_rn, ln_p, phi, psi = np.moveaxis(theta, -1, 0)
        A, B, R_D, R_N, P = np.exp([ln_a, ln_b, ln_rd, ln_rn, ln_p])
        return DataConstrainedOverfit(E, A, B, alpha, beta, R_D, R_N, P, phi, psi)

    def law_of(self, fields):
        return DataConstrainedOverfit(**fields)


FORMS = (DataConstrainedForm(), DataConstrainedOverfitForm())
