"""Whether a formula's parameters can be told apart, and in which of them it is linear: tried at many places, before any data.

A formula need not be a number everywhere, so it is tried at places of several scales, and is sound if it is so at one of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron.errors import BadData
from megatron.scaling.law.formula import SCALE, TINY, End, data_end

COUNT = 64  # places, none of which shares a value with another
SCALES = (((2, 9), (20, 90), (1.5, 10)), ((1e6, 1e10), (1e8, 1e12), (1.5, 100)))  # ranges of N, D and D/U
SHARES = ((2.0, 5.0), (0.05, 0.95))  # ranges of a column
REDUNDANT = 1e-9  # of the largest singular value: what is less is rounding
SAME = 1e-13  # relative: the loss without a parameter's effect
ALIKE = 1e-6  # relative: two values that differ by rounding


@dataclass(frozen=True)
class Trial:
    """A formula at COUNT places of one scale."""

    formula: Callable
    places: Mapping[str, np.ndarray]  # N, D, U
    columns: Mapping[str, np.ndarray]
    limits: Mapping[str, tuple[End, End]]

    def loss(self, at: Mapping[str, Any]) -> np.ndarray:
        """At parameters, real or complex, [COUNT]."""
        with np.errstate(all="ignore"):
            return np.broadcast_to(np.asarray(self.formula({**self.columns, **at}, **self.places)), COUNT)

    def values(self, parameters: Sequence[str], random) -> dict[str, float]:
        """Values of all parameters: near 0.5, or inside of their limits."""
        return {name: self._inside(name, random.uniform(0.3, 0.8)) for name in parameters}

    def _inside(self, name: str, share: float) -> float:
        if name not in self.limits:
            return share
        low, high = (data_end(end, self.columns) for end in self.limits[name])
        if low > 0 and high > SCALE * low:
            return float(low * (high / low) ** share)
        return low + share * (high - low)


def trials(formula: Callable, columns: Sequence[str], limits: Mapping[str, tuple[End, End]]) -> list[Trial]:
    """A formula at every scale."""
    found = []
    for scale, share in itertools.product(SCALES, SHARES if columns else SHARES[:1]):
        random = np.random.default_rng(0)
        N, D, passes = (low * (high / low) ** random.uniform(size=COUNT) for low, high in scale)
        drawn = {name: share[0] + (share[1] - share[0]) * random.uniform(size=COUNT) for name in columns}
        found.append(Trial(formula, {"N": N, "D": D, "U": D / passes}, drawn, limits))
    return found


def check(parameters: Sequence[str], tried: Sequence[Trial], text: str) -> Trial:
    """The first trial that is a number. Raises BadData where none is, or a parameter or all but a combination
    of some changes nothing."""
    usable = [(trial, trial.values(parameters, np.random.default_rng(1))) for trial in tried]
    usable = [(trial, at) for trial, at in usable if np.isfinite(trial.loss(at)).all()]
    if not usable:
        raise BadData(
            f"--form {text!r}: no number at ordinary values (parameters near 0.5, or in their limits); mend the formula."
        )
    for name in parameters:
        if all(np.allclose(trial.loss(at), trial.loss(at | {name: 1.7 * at[name]}), rtol=SAME, atol=0) for trial, at in usable):
            raise BadData(f"--form {text!r}: the parameter {name} changes nothing; leave it out.")
    together: list[str] = []
    for trial, at in usable:
        for values in (at, trial.values(parameters, np.random.default_rng(2))):
            together = _combined(parameters, trial, values)
            if not together:
                return usable[0][0]
    raise BadData(
        f"--form {text!r}: of the parameters {', '.join(together)} only a combination changes the loss; leave one "
        "out, or say behind a semicolon where they lie (NAME in LOW:HIGH)."
    )


def _combined(parameters: Sequence[str], trial: Trial, at: Mapping[str, float]) -> list[str]:
    """The parameters that move the loss in fewer directions than they are, none where all can be told apart."""
    slopes = np.stack([np.imag(trial.loss({**at, name: at[name] + 1j * TINY})) / TINY for name in parameters])
    if not np.isfinite(slopes).all():
        return []  # a number at its first values, here not: the fit will say so
    size = np.linalg.norm(slopes, axis=1, keepdims=True)
    values, directions = np.linalg.svd((slopes / np.maximum(size, 1e-300)).T)[1:]
    if len(values) == len(parameters) and values[-1] >= REDUNDANT * values[0]:
        return []
    return [name for name, share in zip(parameters, directions[-1]) if abs(share) > 0.05]


def linear(parameters: Sequence[str], trial: Trial) -> list[str]:
    """The parameters without limits in which the loss is linear at once, without a constant, E among them."""
    found: list[str] = []
    for name in parameters:
        if name not in trial.limits and _is_linear([*found, name], parameters, trial):
            found.append(name)
    return found


def _is_linear(chosen: Sequence[str], parameters: Sequence[str], trial: Trial) -> bool:
    """Whether second differences along and between the chosen parameters vanish, all others at two places."""
    for seed in (1, 2):
        at = trial.values(parameters, np.random.default_rng(seed))
        for one, other in itertools.product(chosen[-1:], chosen):
            steps = [{one: a, other: b} if one != other else {one: a + b} for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))]
            corner = [trial.loss(at | {name: at[name] + 0.4 * by for name, by in step.items()}) for step in steps]
            size = np.abs(np.stack(corner) - corner[0]).max(axis=0)
            if np.any(np.abs(corner[0] - corner[1] - corner[2] + corner[3]) > ALIKE * size + 1e-300):
                return False
    return True
