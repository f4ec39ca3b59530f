"""What a form of a law is to a fit: its parameters as the solver sees them, where it may look, and where it starts.

Each form is one file of the folder forms/, and `Formula` makes one of a formula alone. The solver's parameters theta are E
itself, so that an E that vanishes is near, and logarithms of the other terms at the centre of the data, where they hardly
depend on the exponents (corr(ln A, alpha) = 0.9993 uncentred): optima are reached from nearly every start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from megatron.errors import BadData

EXPONENTS = (1e-3, 5.0)
LEAST_SHARE = 1e-6  # of the smallest loss: below it E has left the law
SINGLE = 1 + 1e-6  # passes over the data that are still one
GOLDEN = (5**0.5 - 1) / 2
NUM_SCANNED = 41  # sizes, before golden section: the loss may have two valleys where data repeat


@dataclass(frozen=True)
class Parameter:
    """A parameter of a form. `linear`: the solver sees it as it is, else its logarithm. `exponent`: the one that a term follows,
    without which its size is not known."""

    name: str
    linear: bool = False
    exponent: str | None = None


class Law(Protocol):
    """A form with its parameters, numbers or arrays of one shape (draws of a bootstrap) that its methods broadcast against."""

    def loss(self, params, tokens, unique=None):
        """L(N, D) or L(N, D, U), in the unit of the rows; without U no token is seen twice."""

    def optimum(self, flops, unique=None):
        """(N*, D*) of least loss under 6 N D = C. Raises BadData where the law knows no best split."""

    def optimal_loss(self, flops, unique=None):
        """L(N*(C), D*(C))."""

    @property
    def exponents(self) -> tuple | None:
        """(a, b) of N* ~ C^a and D* ~ C^b, where they do not depend on C."""


@dataclass(frozen=True)
class Rows:
    """Logarithms of params, tokens, unique tokens (<= tokens), FLOPs and loss, [n] each, the centre of the data, and covariates
    [n] as they are, under the names that the form gives them."""

    params: np.ndarray
    tokens: np.ndarray
    unique: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    centre: dict[str, float]
    covariates: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, params, tokens, unique, flops, loss, covariates: Mapping[str, np.ndarray] | None = None) -> Rows:
        """From positive numbers [n], covariates any; the centre is that of these rows."""
        params, tokens, unique, flops, loss = (np.log(np.float64(column)) for column in (params, tokens, unique, flops, loss))
        unique = np.minimum(unique, tokens)
        passes = np.expm1(tokens - unique)[tokens - unique > np.log(SINGLE)]
        centre = {
            "params": params.mean(),
            "tokens": tokens.mean(),
            "flops": flops.mean(),
            "repeats": np.log(passes).mean() if len(passes) else 0.0,
            "ratio": (params - unique).mean(),
        }
        centre = {name: float(value) for name, value in centre.items()}
        return cls(params, tokens, unique, flops, loss, centre, dict(covariates or {}))

    def __len__(self) -> int:
        return len(self.loss)

    def only(self, chosen) -> Rows:
        """The chosen rows (a mask or indices) about the same centre."""
        params, tokens, unique, flops, loss = (
            column[chosen] for column in (self.params, self.tokens, self.unique, self.flops, self.loss)
        )
        return Rows(
            params, tokens, unique, flops, loss, self.centre, {name: column[chosen] for name, column in self.covariates.items()}
        )

    @property
    def repeated(self) -> np.ndarray:
        """Which rows saw some token more than once, [n]."""
        return self.tokens - self.unique > np.log(SINGLE)

    def centred(self, axis: str) -> np.ndarray:
        """ln of an axis about its centre."""
        return getattr(self, axis) - self.centre[axis]

    @property
    def term_bounds(self) -> tuple[float, float]:
        """Where the logarithm of a term of the loss can lie."""
        return self.loss.min() - 30, self.loss.max() + 30

    @property
    def irreducible_bounds(self) -> tuple[float, float]:
        """Where E can lie."""
        return LEAST_SHARE * np.exp(self.loss.min()), np.exp(self.loss.max())


class Form:
    """One form of a law. A subclass says its name, equation, `names` and `parameters`, and the methods that raise here."""

    name: str
    equation: str
    names: tuple[str, ...]  # as published, with compute exponents a and b where it has them: `values` gives them in this order
    parameters: tuple[Parameter, ...]  # that are solved for, in the order of theta
    axes: tuple[str, ...] = ("params", "tokens")
    several_optima = False  # resamples scatter about more than one
    simpler: Form | None = None  # the form that this one extends: theta begins with its own
    columns: Mapping[str, str] = {}  # names in the formula of columns of the table, other than N, D and U
    at: Mapping[str, Any] = {}  # the values of these that its laws are asked at
    origin: dict | None = None  # {"path", "sha256"} of the file that defines it

    @property
    def solved(self) -> tuple[str, ...]:
        """The names of theta [p]."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def repeats(self) -> bool:
        """Whether the loss depends on the unique tokens."""
        return "R_D" in self.names

    def given(self, values: Mapping[str, Any]) -> Form:
        """The form whose laws are asked at these values of its columns, by the name of either. Raises BadData."""
        by_name = {name: symbol for symbol, column in self.columns.items() for name in (symbol, column)}
        for name in values:
            if name not in by_name:
                known = f"takes {', '.join(self.columns.values())}" if self.columns else "is one of N, D and U alone"
                raise BadData(f"--at {name}: the law {self.name} {known}.")
        bound = copy(self)
        bound.at = {**self.at, **{by_name[name]: value for name, value in values.items()}}
        return bound

    def doubts(self, rows: Rows) -> list[str]:
        """What makes this form doubtful on such rows, a sentence each."""
        return []

    def log_loss(self, theta, rows: Rows):
        """ln L [..., n] and its gradient [..., p, n] at theta [..., p]."""
        raise TypeError(f"{type(self).__name__} has no log_loss")

    def bounds(self, rows: Rows) -> np.ndarray:
        """[p, 2]."""
        raise TypeError(f"{type(self).__name__} has no bounds")

    def starts(self, rows: Rows) -> np.ndarray:
        """[m, p], the most promising first."""
        raise TypeError(f"{type(self).__name__} has no starts")

    def law(self, theta, rows: Rows) -> Law:
        """The law with fields [...] at theta [..., p]."""
        raise TypeError(f"{type(self).__name__} has no law")

    def law_of(self, fields: dict[str, Any]) -> Law:
        """The law of published parameters, without the compute exponents."""
        raise TypeError(f"{type(self).__name__} has no law_of")

    def centred(self, theta, rows: Rows):
        """Theta [..., p] from logarithms of E and of terms at N = D = 1 to E and terms at the centre."""
        return theta

    def extended(self, starts, rows: Rows) -> np.ndarray:
        """Starts [m, p] of this form from optima of the simpler one."""
        raise TypeError(f"{type(self).__name__} extends no form")

    def published_grid(self, rows: Rows) -> np.ndarray:
        """The starts that were published for a form, [m, p]. Raises BadData for the others."""
        raise BadData(
            f"--starts grid is published for the Chinchilla forms only, not for {self.name}: leave it out, or give a number."
        )

    def theta(self, params: dict, rows: Rows) -> np.ndarray:
        """The solver's parameters [..., p] of published ones, [...] each."""
        as_they_are = {parameter.name for parameter in self.parameters if parameter.linear} - {"E"}
        columns = [np.float64(params[name]) if name in as_they_are else np.log(params[name]) for name in self.solved]
        return self.centred(np.stack(np.broadcast_arrays(*columns), axis=-1), rows)

    def values(self, theta, rows: Rows) -> np.ndarray:
        """Published parameters [..., len(names)], in the order of `names`."""
        law = self.law(theta, rows)
        fields = vars(law) | dict(zip(("a", "b"), law.exponents or ()))
        return np.stack([fields[name] for name in self.names], axis=-1)

    def from_values(self, values) -> Law:
        """The law with fields [...] of published parameters [..., len(names)]."""
        named = dict(zip(self.names, np.moveaxis(np.asarray(values, np.float64), -1, 0)))
        return self.law_of({name: value for name, value in named.items() if name not in ("a", "b")})

    def predict(self, law: Law, columns: dict[str, np.ndarray]) -> np.ndarray:
        """The loss [n] of rows with these columns [n] of params, tokens, unique_tokens, flops and those of the form."""
        return law.loss(*(columns[name] for name in ("params", "tokens", "unique_tokens")))


def search_split(loss_at, flops, shape: Sequence[int]):
    """(N*, D*) of least `loss_at(N, D)` under 6 N D = C, of `shape`: a scan of ln N, then golden section."""
    product = np.float64(flops) / 6

    def loss(ln_params):
        return loss_at(np.exp(ln_params), product / np.exp(ln_params))

    centre, width = np.broadcast_to(np.log(product) / 2, tuple(shape)), np.log(product) / 2 - np.log(100)
    best, least = centre, loss(centre)
    for place in np.linspace(-1, 1, NUM_SCANNED):
        value = loss(centre + place * width)
        best, least = np.where(value < least, centre + place * width, best), np.minimum(value, least)
    params = np.exp(golden_section(loss, *(best + side * 2 * width / (NUM_SCANNED - 1) for side in (-1, 1))))
    return params, product / params


def golden_section(function, low, high):
    """Where `function`, of arrays like low and high, is least between them, one place each, to 1e-6 of the distance."""
    for _ in range(30):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        falls = function(left) > function(right)
        low, high = np.where(falls, left, low), np.where(falls, high, right)
    return (low + high) / 2


def split_equally(rows: Rows, share: float) -> tuple[float, float, float]:
    """ln A, ln B, E of a start in which E is `share` of the smallest loss and the terms are equal."""
    floor = share * np.exp(rows.loss.min())
    term = np.log((np.median(np.exp(rows.loss)) - floor) / 2)
    return term, term, floor


def by_irreducible(log_loss, theta, *axes):
    """ln L and its gradient by theta, in which E stands third, of a law that takes ln E there."""
    at = theta.copy()
    at[..., 2] = np.log(theta[..., 2])
    value, gradient = log_loss(at, *axes)
    gradient[..., 2, :] /= theta[..., 2, None]
    return value, gradient


def exp_irreducible(theta):
    at = theta.copy()
    at[..., 2] = np.exp(theta[..., 2])
    return at


def exp_capped(ln_scale):
    return np.exp(np.minimum(ln_scale, 700))


def log_sum(*terms):
    """ln of the sum of exp(terms), which broadcast to [..., n], and the share of each term in it."""
    stacked = np.stack(np.broadcast_arrays(*terms))
    highest = stacked.max(axis=0)
    weights = np.exp(stacked - highest)
    total = weights.sum(axis=0)
    weights /= total
    return highest + np.log(total), weights


def columns_of(theta):
    return np.moveaxis(np.asarray(theta, np.float64), -1, 0)[..., None]
