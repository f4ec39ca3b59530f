"""Scaling laws as formulas: loss, optimum, exponents, gradients. N parameters, D tokens seen, U unique tokens, C = 6 N D FLOPs.

Fields of a law may be arrays of one shape (draws of a bootstrap): its methods then broadcast against them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron.errors import BadData

STEEPEST = 60.0  # ln(total / unique) beyond which another repetition is worth nothing to float64
GOLDEN = (5**0.5 - 1) / 2
NUM_SCANNED = 41  # sizes, before golden section: the loss may have two valleys where data repeat


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
        return self.loss(*self.optimum(flops, unique), unique)


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
        product = np.float64(flops) / 6
        shape = np.broadcast_shapes(product.shape, *map(np.shape, (unique, *vars(self).values())))

        def loss(ln_params):
            return self.loss(np.exp(ln_params), product / np.exp(ln_params), unique)

        centre, width = np.broadcast_to(np.log(product) / 2, shape), np.log(product) / 2 - np.log(100)
        best, least = centre, loss(centre)
        for place in np.linspace(-1, 1, NUM_SCANNED):
            value = loss(centre + place * width)
            best, least = np.where(value < least, centre + place * width, best), np.minimum(value, least)
        low, high = (best + side * 2 * width / (NUM_SCANNED - 1) for side in (-1, 1))
        for _ in range(30):
            left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
            falls = loss(left) > loss(right)
            low, high = np.where(falls, left, low), np.where(falls, high, right)
        params = np.exp((low + high) / 2)
        return params, product / params


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

    E: float
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


def _effective(total, unique, scale):
    """U (1 + R (1 - exp(-r/R))), exact in the limits of R."""
    scale = np.clip(scale, 1e-150, 1e150)
    return unique * (1 - scale * np.expm1(-(total / unique - 1) / scale))


# ---- ln L and its gradient at theta [..., p], over rows [n]: values [..., n], gradients [..., p, n]


def log_chinchilla(theta, ln_params, ln_tokens):
    """At theta = (ln A, ln B, ln E, alpha, beta), as a log-sum-exp that cannot overflow (Hoffmann et al., section 3.3)."""
    ln_a, ln_b, ln_e, alpha, beta = _columns(theta)
    value, (size, data, floor) = log_sum(ln_a - alpha * ln_params, ln_b - beta * ln_tokens, ln_e)
    return value, np.stack([size, data, floor, -size * ln_params, -data * ln_tokens], axis=-2)


def log_kaplan(theta, ln_params, ln_tokens):
    """At theta = (ln p, ln q, alpha_N, alpha_D), p and q the losses at N = 1, D = inf and at N = inf, D = 1.

    ln L = alpha_D ln(P^(1/alpha_D) + Q^(1/alpha_D)), P = p N^-alpha_N and Q = q D^-alpha_D: a smooth maximum of the two.
    """
    ln_p, ln_q, alpha_n, alpha_d = _columns(theta)
    size, data = ln_p - alpha_n * ln_params, ln_q - alpha_d * ln_tokens
    value, (p, q) = log_sum(size / alpha_d, data / alpha_d)
    by_alpha_d = value - (p * size + q * data) / alpha_d - q * ln_tokens
    return alpha_d * value, np.stack([p, q, -p * ln_params, by_alpha_d], axis=-2)


def log_power(theta, ln_x):
    """At theta = (ln term at X = 1, alpha) or, with an irreducible loss, (ln term, alpha, ln E)."""
    ln_term, alpha, *ln_e = _columns(theta)
    value, weights = log_sum(ln_term - alpha * ln_x, *ln_e)
    return value, np.stack([weights[0], -weights[0] * ln_x, *weights[1:]], axis=-2)


def log_data_constrained(theta, ln_params, ln_tokens, ln_unique, centre=(0.0, 0.0, 0.0, 0.0)):
    """At theta = (ln A, ln B, ln E, alpha, beta, ln R_D, ln R_N) and, to overfit, (..., ln P, phi, psi).

    A, B, P are terms where ln N, ln D, ln r and ln(N/U) equal `centre`; the rows are not centred.
    """
    ln_a, ln_b, ln_e, alpha, beta, ln_rd, ln_rn, *overfit = _columns(theta)
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


def log_sum(*terms):
    """ln of the sum of exp(terms), which broadcast to [..., n], and the share of each term in it."""
    terms = np.stack(np.broadcast_arrays(*terms))
    highest = terms.max(axis=0)
    weights = np.exp(terms - highest)
    total = weights.sum(axis=0)
    weights /= total
    return highest + np.log(total), weights


def _columns(theta):
    return np.moveaxis(np.asarray(theta, np.float64), -1, 0)[..., None]


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
