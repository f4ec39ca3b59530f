"""A form made of its formula alone: gradients, starts and the best split of compute are found by the tool."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from megatron.errors import BadData
from megatron.scaling.law.form import Form, Parameter, Rows, search_split
from megatron.scaling.table.covariates import spelled

TINY = 1e-30  # the complex step: its square is nothing to float64, so that the derivative is exact
WIDEST = 300.0  # of the logarithm of a term's size at N = D = 1
SCALE = 1e3  # ratio of limits from which a parameter is a scale
OUTSIDE = 1e-3  # of a column's range: how far beyond its least and largest value min(X) and max(X) are
LEAST_TERM = 1e-3  # of the smallest loss, that every term has in a start
End = float | str  # of limits
Loss = Callable[[Mapping[str, Any], Any, Any, Any], Any]  # arrays, real or complex


def data_end(end: End, columns: Mapping[str, np.ndarray]) -> float:
    """An end of limits as a number: min(X) and max(X) are those of the column X, a little outside of it."""
    if not isinstance(end, str):
        return end
    column = columns[end[4:-1]]
    outside = OUTSIDE * float(np.ptp(column))
    return float(column.min()) - outside if end.startswith("min") else float(column.max()) + outside


def _spelled_end(end: End) -> str:
    return end if isinstance(end, str) else f"{end:g}"


@dataclass(frozen=True)
class FormulaLaw:
    """The formula with its parameters, numbers or arrays of one shape."""

    formula: Loss
    fields: dict
    columns: Mapping[str, str] = field(default_factory=dict)
    at: Mapping[str, Any] = field(default_factory=dict)

    exponents = None

    def loss(self, params, tokens, unique=None):
        """L(N, D, U) at the values `at` of the form's columns; without U no token is seen twice. Raises BadData."""
        missing = [spelled(column) for symbol, column in self.columns.items() if symbol not in self.at]
        if missing:
            raise BadData(f"this law is also one of {', '.join(missing)}: predict --at {missing[0]}=VALUE asks it at one value.")
        unique = np.minimum(np.float64(tokens if unique is None else unique), tokens)
        with np.errstate(all="ignore"):  # who asks beyond where a law ends looks at what comes back
            return self.formula({**self.fields, **self.at}, np.float64(params), np.float64(tokens), unique)

    def optimum(self, flops, unique=None):
        """(N*, D*) of least loss under 6 N D = C, by search."""
        values = [*self.fields.values(), *self.at.values()]
        shape = np.broadcast_shapes(*map(np.shape, (flops, *([] if unique is None else [unique]), *values)))
        return search_split(lambda params, tokens: self.loss(params, tokens, unique), flops, shape)

    def optimal_loss(self, flops, unique=None):
        """L(N*(C), D*(C))."""
        params, tokens = self.optimum(flops, unique)
        return self.loss(params, tokens, unique)


class Formula(Form):
    """A form L = `loss(p, N, D, U)` of parameters p[name], parameters N, tokens seen D and unique tokens U <= D, arrays that
    broadcast. `loss` uses what complex numbers know (+ - * / **, exp, log, expm1): no minimum, no absolute value.

    `exponents`: name -> (low, high) that each lies in, a scale in logarithms where these are a thousandfold apart; an end
    "min(X)" or "max(X)" is the least or largest value of the column X in the data. `terms`: name -> the exponent that the term
    follows (None: none); the loss is linear in every term and in E, which is the irreducible loss (`irreducible`: whether the law
    has one). `steps`: exponents that a fit starts from. `columns`: name -> the column of the table that p[name] is, as
    {"W": "weight_decay"}. `axes`: of params and tokens, those that it is a law of.
    """

    def __init__(
        self,
        name: str,
        equation: str,
        loss: Loss,
        terms: Mapping[str, str | None],
        exponents: Mapping[str, tuple[End, End]],
        steps: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0),
        repeats: bool = False,
        irreducible: bool = True,
        columns: Mapping[str, str] | None = None,
        axes: tuple[str, ...] = Form.axes,
    ):
        self.name, self.equation, self.formula, self.steps, self.of_unique = name, equation, loss, steps, repeats
        self.irreducible = irreducible
        self.limits = dict(exponents)
        self.columns, self.axes = dict(columns or {}), axes
        self.scales = {
            name
            for name, (low, high) in exponents.items()
            if not isinstance(low, str) and not isinstance(high, str) and low > 0 and high > SCALE * low
        }
        self.parameters = (
            *(Parameter(term, exponent=exponent) for term, exponent in terms.items()),
            *([Parameter("E", linear=True)] if irreducible else []),
            *(Parameter(name, linear=name not in self.scales) for name in exponents),
        )
        self.num_linear = len(terms) + irreducible
        self.names = self.solved

    @property
    def repeats(self) -> bool:
        return self.of_unique

    def log_loss(self, theta, rows: Rows):
        theta = np.asarray(theta, np.float64)
        step = 1j * TINY * np.eye(theta.shape[-1])
        moved = theta[None] + step.reshape(len(step), *[1] * (theta.ndim - 1), -1)  # [p, ..., p]
        log = np.log(self._at(moved, rows))
        return log[0].real, np.moveaxis(log.imag / TINY, 0, -2)

    def bounds(self, rows: Rows) -> np.ndarray:
        low, high = rows.term_bounds
        terms = [(low - WIDEST, high + WIDEST)] * (self.num_linear - self.irreducible)
        rest = [rows.irreducible_bounds] if self.irreducible else []
        searched = [np.log(ends) if name in self.scales else ends for name, ends in self._limits(rows).items()]
        return np.array([*terms, *rest, *searched])

    def _limits(self, rows: Rows) -> dict[str, tuple[float, float]]:
        """Where each searched parameter may lie on these rows. Raises BadData where that is nowhere."""
        found = {}
        for name, ends in self.limits.items():
            low, high = (data_end(end, rows.covariates) for end in ends)
            if not low < high:
                columns = "; ".join(
                    f"{spelled(self.columns[one])} is {column.min():.4g} to {column.max():.4g}"
                    for one, column in rows.covariates.items()
                )
                where = ":".join(map(_spelled_end, ends))
                raise BadData(f"the form {self.name}: {name} in {where} is empty on these rows, where {columns}.")
            found[name] = low, high
        return found

    def starts(self, rows: Rows) -> np.ndarray:
        """For every combination of exponents E and the terms by non-negative least squares of the relative error (VPNLS)."""
        choices = [self._choices(name, *ends) for name, ends in self._limits(rows).items()]
        return np.array([[*self._project(rows, at), *self._solved(at)] for at in itertools.product(*choices)])

    def _choices(self, name: str, low: float, high: float) -> list[float]:
        """Where a searched parameter starts."""
        if name in self.scales:
            return np.geomspace(low, high, len(self.steps) + 2)[1:-1].tolist()
        if any(isinstance(end, str) for end in self.limits[name]):
            return (low + (high - low) * np.array([0.1, 0.5, 0.9])).tolist()
        return [x for x in self.steps if low <= x <= high] or [(low + high) / 2]

    def _solved(self, at) -> list[float]:
        return [float(np.log(x)) if name in self.scales else x for name, x in zip(self.limits, at)]

    def law(self, theta, rows: Rows) -> FormulaLaw:
        return self.law_of(self._fields(np.moveaxis(theta, -1, 0)))

    def law_of(self, fields) -> FormulaLaw:
        return FormulaLaw(self.formula, dict(fields), self.columns, self.at)

    def from_values(self, values) -> FormulaLaw:
        return self.law_of(dict(zip(self.names, np.moveaxis(np.asarray(values, np.float64), -1, 0))))

    def predict(self, law: FormulaLaw, columns) -> np.ndarray:  # type: ignore[override]
        at = {symbol: columns[column] for symbol, column in self.columns.items()}
        return replace(law, at=at).loss(*(columns[name] for name in ("params", "tokens", "unique_tokens")))

    def values(self, theta, rows: Rows) -> np.ndarray:
        return np.stack(list(self._fields(np.moveaxis(theta, -1, 0)).values()), axis=-1)

    def theta(self, params: dict, rows: Rows) -> np.ndarray:
        columns = [np.float64(params[one.name]) if one.linear else np.log(params[one.name]) for one in self.parameters]
        return np.stack(np.broadcast_arrays(*columns), axis=-1)

    def centred(self, theta, rows: Rows):
        """From (ln terms, ln E, exponents)."""
        at = np.array(theta, np.float64)
        if self.irreducible:
            place = self.solved.index("E")
            at[..., place] = np.exp(at[..., place])
        return at

    def _fields(self, columns) -> dict:
        return {one.name: column if one.linear else np.exp(column) for one, column in zip(self.parameters, columns)}

    def _at(self, theta, rows: Rows):
        """The loss [..., n] at theta [..., p], real or complex."""
        fields = self._fields(np.moveaxis(theta, -1, 0)[..., None])
        return self.formula({**fields, **rows.covariates}, *(np.exp(axis) for axis in (rows.params, rows.tokens, rows.unique)))

    def _check_numbers(self, loss, rows: Rows) -> None:
        """Raises BadData where the form gives no number on some rows, as of a column that is 0 there and divides."""
        bad = ~np.isfinite(loss)
        if not bad.any():
            return
        at = {self.columns[symbol]: column[bad][0] for symbol, column in rows.covariates.items()}
        where = ", ".join(f"{spelled(name)} {value:g}" for name, value in at.items()) or "the first of them"
        column = next((name for name, value in at.items() if value == 0), next(iter(at), ""))
        drop = f" leave them out with --drop '{column}={at[column]:g}', or" if column else ""
        raise BadData(
            f"the form {self.name} gives no number on {bad.sum()} of {len(bad)} rows ({where}):{drop} mend the formula."
        )

    def _project(self, rows: Rows, exponents) -> list[float]:
        """ln of the terms, and E, of least squared relative error at these exponents. Raises BadData where L is not linear."""
        if not self.num_linear:
            return []
        loss = np.exp(rows.loss)
        axes = [np.exp(axis) for axis in (rows.params, rows.tokens, rows.unique)]

        def at(sizes):
            return self.formula({**dict(zip(self.solved, [*sizes, *exponents])), **rows.covariates}, *axes) * np.ones_like(loss)

        unit = np.eye(self.num_linear)
        with np.errstate(all="ignore"):
            rest = at(np.zeros(self.num_linear))  # what no such term multiplies
            columns = np.array([at(one) for one in unit]) - rest
        self._check_numbers(columns.sum(axis=0) + rest, rows)
        if not np.allclose(at(2 * unit.sum(axis=0)) - rest, 2 * columns.sum(axis=0), rtol=1e-6):
            linear = ", ".join(self.solved[: self.num_linear])
            raise BadData(f"the form {self.name} is not linear in {linear}: give it a method `starts` of its own.")
        scale = np.where(columns.max(axis=1) > 0, columns.max(axis=1), 1)  # 0: of repetition, where no row repeats
        sizes = nnls((columns / scale[:, None] / loss).T, 1 - rest / loss)[0]
        sizes = np.maximum(sizes, LEAST_TERM * loss.min()) / scale
        return [*np.log(sizes[:-1]), sizes[-1]] if self.irreducible else list(np.log(sizes))
