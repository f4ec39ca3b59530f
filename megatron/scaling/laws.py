"""Scaling laws as formulas: loss, optimum and exponents. N parameters, D tokens, C = 6 N D training FLOPs."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Chinchilla:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats a token (Hoffmann et al., arXiv:2203.15556, equation 2)."""
    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params, tokens):
        """L(N, D)."""
        theta = np.array([np.log(self.A), np.log(self.B), np.log(self.E), self.alpha, self.beta])
        return np.exp(log_chinchilla(theta, np.log(np.float64(params)), np.log(np.float64(tokens)))[0])

    @property
    def exponents(self) -> tuple[float, float]:
        """(a, b) of N* ~ C^a and D* ~ C^b (ibid., equation 4)."""
        return self.beta / (self.alpha + self.beta), self.alpha / (self.alpha + self.beta)

    def optimum(self, flops):
        """(N*, D*) of least loss under 6 N D = C: N* = G (C/6)^a, G = (alpha A / beta B)^(1/(alpha+beta)) (ibid., equation 4)."""
        ln_scale = (np.log(self.alpha / self.beta) + np.log(self.A) - np.log(self.B)) / (self.alpha + self.beta)
        product = np.float64(flops) / 6
        params = np.exp(ln_scale + self.exponents[0] * np.log(product))
        return params, product / params

    def optimal_loss(self, flops):
        """L(N*(C), D*(C))."""
        return self.loss(*self.optimum(flops))


def log_chinchilla(theta, ln_params, ln_tokens):
    """ln L and its gradient at theta = (ln A, ln B, ln E, alpha, beta), as a log-sum-exp that cannot overflow.

    Values have the shape [n] of ln N and ln D, the gradient [5, n] (ibid., section 3.3, approach 3).
    """
    ln_a, ln_b, ln_e, alpha, beta = theta
    terms = np.stack(np.broadcast_arrays(ln_a - alpha * ln_params, ln_b - beta * ln_tokens, ln_e))
    highest = terms.max(axis=0)
    weights = np.exp(terms - highest)
    total = weights.sum(axis=0)
    weights /= total
    gradient = np.stack([*weights, -weights[0] * ln_params, -weights[1] * ln_tokens])
    return highest + np.log(total), gradient
