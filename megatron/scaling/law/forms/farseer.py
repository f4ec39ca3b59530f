"""Farseer's law: what data are worth depends on the size of the model."""

from __future__ import annotations

import itertools

import numpy as np

from megatron.scaling.law.form import Rows
from megatron.scaling.law.forms.chinchilla import ChinchillaForm, variable_projection
from megatron.scaling.law.formula import End, Formula

FACTORS = (-1e8, 1e8)  # of a power of N
LEVELS = (-50.0, 50.0)
POWERS = (-1.5, 1.5)
GAMMAS = (-0.5, -0.2, -0.05, 0.1)  # that a fit starts from
TURN = 0.1  # by how much the exponent of a start varies over the sizes of the data


def farseer(p, N, D, U):
    """L(N, D) = exp(a3 N^gamma + b3) + exp(a2 N^beta + b2) D^-exp(a1 N^alpha + b1) (Li et al., arXiv:2506.10972)."""
    exponent = np.exp(p["a1"] * N ** p["alpha"] + p["b1"])
    data = np.exp(p["a2"] * N ** p["beta"] + p["b2"] - exponent * np.log(D))
    return np.exp(p["a3"] * N ** p["gamma"] + p["b3"]) + data


class Farseer(Formula):
    """Nine parameters: as many runs as that at each of several sizes are the least that tell them apart."""

    def __init__(self):
        limits: dict[str, tuple[End, End]] = {}
        for number, power in (("1", "alpha"), ("2", "beta"), ("3", "gamma")):
            limits |= {f"a{number}": FACTORS, f"b{number}": LEVELS, power: POWERS}
        equation = "L = exp(a3 N^gamma + b3) + exp(a2 N^beta + b2) D^-exp(a1 N^alpha + b1)"
        super().__init__("farseer", equation, farseer, terms={}, exponents=limits, irreducible=False)

    def starts(self, rows: Rows) -> np.ndarray:
        """[32, 9]: Chinchilla's law in this form, its part of N as an exponential of four powers, and its part of D with an
        amplitude and an exponent that rise or fall a little with N."""
        theta = variable_projection(rows)
        ln_a, ln_b, E, alpha, beta = theta + ChinchillaForm().shift(theta, rows)
        size = np.log(E + np.exp(ln_a - alpha * rows.params))
        found = []
        for gamma, power, one, other in itertools.product(GAMMAS, (-0.1, 0.1), (-TURN, TURN), (-TURN, TURN)):
            x, turn = np.exp(gamma * rows.params), np.exp(power * rows.params)
            a3, b3 = np.polyfit(x, size, 1) if np.ptp(x) > 0 else (0.0, size.mean())
            spread = max(float(np.ptp(turn)), 1e-9)
            a1, a2 = one / spread, other / spread
            found.append([a1, np.log(beta) - a1 * turn.mean(), power, a2, ln_b - a2 * turn.mean(), power, a3, b3, gamma])
        return np.array(found)


FORMS = (Farseer(),)
