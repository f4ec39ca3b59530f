"""Noise schedules of masked diffusion: the probability m(t) that a token is hidden at time t, and its slope m'(t).

The bound is the integral of m'(t) / m(t) times the expected NLL of what is hidden (Sahoo et al., arXiv:2406.07524, eq. 10), that
is of dm / m: a schedule says only where the draws lie, not what their mean is. A new one is a function here and its name in the
table. All are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Rates = tuple[Tensor, Tensor]  # m(t) and m'(t), each [b]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule by name, and the numbers that some of them have."""

    name: str = "linear"
    power: float = 2.0
    sigma_min: float = 1e-4
    sigma_max: float = 20.0
    steps: int | None = None  # of discrete time; None: continuous

    def rates(self, t: Tensor, eps: float) -> Rates:
        """m(t), and m(t) / m'(t), the inverse of the weight.  t [b] in (0, 1] -> [b], [b]

        In T steps of discrete time t goes up to the next k / T, and the slope is that from the step before, which for the
        last step to nothing hidden is all of m: the sum over the steps bounds the NLL whatever eps is.
        """
        found = SCHEDULES[self.name]
        if self.steps is None:
            m, slope = found(t, eps, self)
            return m, m / slope
        step = (t * self.steps).ceil()
        m, _ = found(step / self.steps, eps, self)
        before, _ = found((step - 1) / self.steps, eps, self)
        return m, m / (self.steps * (m - torch.where(step > 1, before, 0.0)))


def linear(t: Tensor, eps: float, s: Schedule) -> Rates:
    """m = (1 - eps) t + eps, weighted by 1 / m without the slope's 1 - eps (Nie et al., arXiv:2410.18514; LLaDA, 2502.09992)."""
    return (1 - eps) * t + eps, torch.ones_like(t)


def log_linear(t: Tensor, eps: float, s: Schedule) -> Rates:
    """m = (1 - eps) t, sigma = -log(1 - m); the weight is 1 / t (Sahoo et al., arXiv:2406.07524)."""
    return (1 - eps) * t, torch.full_like(t, 1 - eps)


def cosine(t: Tensor, eps: float, s: Schedule) -> Rates:
    """m = (1 - eps) (1 - cos(pi t / 2))."""
    half = math.pi / 4 * t
    return 2 * (1 - eps) * half.sin().square(), math.pi / 2 * (1 - eps) * (2 * half).sin()


def cosine_squared(t: Tensor, eps: float, s: Schedule) -> Rates:
    """m = (1 - eps) (1 - cos(pi t / 2)^2)."""
    angle = math.pi / 2 * t
    return (1 - eps) * angle.sin().square(), math.pi / 2 * (1 - eps) * (2 * angle).sin()


def polynomial(t: Tensor, eps: float, s: Schedule) -> Rates:
    """m = (1 - eps) t^n; the weight is n / t."""
    return (1 - eps) * t**s.power, (1 - eps) * s.power * t ** (s.power - 1)


def linear_sigma(t: Tensor, eps: float, s: Schedule) -> Rates:
    """sigma = sigma_max t, m = 1 - exp(-sigma)."""
    sigma = s.sigma_max * t
    return -torch.expm1(-sigma), s.sigma_max * torch.exp(-sigma)


def geometric(t: Tensor, eps: float, s: Schedule) -> Rates:
    """sigma = sigma_min^(1 - t) sigma_max^t, m = 1 - exp(-sigma) (SEDD, Lou et al., arXiv:2310.16834)."""
    sigma = s.sigma_min ** (1 - t) * s.sigma_max**t
    return -torch.expm1(-sigma), sigma * math.log(s.sigma_max / s.sigma_min) * torch.exp(-sigma)


def importance(t: Tensor, eps: float, s: Schedule) -> Rates:
    """m = eps^(1 - t): log m is uniform, and every draw has the same weight, log(1 / eps) (importance sampling of t in MDLM)."""
    m = eps ** (1 - t)
    return m, m * math.log(1 / eps)


SCHEDULES: dict[str, Callable[[Tensor, float, Schedule], Rates]] = {
    "linear": linear,
    "log-linear": log_linear,
    "cosine": cosine,
    "cosine-squared": cosine_squared,
    "polynomial": polynomial,
    "linear-sigma": linear_sigma,
    "geometric": geometric,
    "importance": importance,
}
