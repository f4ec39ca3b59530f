"""What a law is fitted to: positive columns with a cluster for every row, and which of the rows are held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron.errors import BadData
from megatron.scaling.law.form import Form, Rows
from megatron.scaling.table.comparable import SAME_FOR_ALL
from megatron.scaling.table.covariates import columns_of_flags, is_stated
from megatron.scaling.table.table import COMPARE, parse_condition

LABELS = (*SAME_FOR_ALL, "objective", "bound", "score")  # stated of a fit where all of its rows agree
ERRORS = ("loss_se", "loss_se_noise", "loss_se_data")
AXES = ("params", "tokens", "unique_tokens", "flops", "loss")


@dataclass(frozen=True)
class Observations:
    """Columns of positive numbers [n] under AXES, a name for each row, its cluster (0 to k-1), and where they came from."""

    columns: dict[str, np.ndarray]
    names: list[str]
    cluster: np.ndarray
    others: dict  # any further columns, for --holdout
    record: dict  # rows_dropped, sources, choices, conventions of a Fit

    def rows(self, chosen, form: Form) -> Rows:
        """The chosen rows (a mask) as logarithms, with the form's columns. Raises BadData."""
        columns = self.of(form)
        covariates = {symbol: columns[column][chosen] for symbol, column in form.columns.items()}
        params, tokens, unique, flops, loss = (columns[name][chosen] for name in AXES)
        return Rows.of(params, tokens, unique, flops, loss, covariates)

    def of(self, form: Form) -> dict[str, np.ndarray]:
        """The axes and the columns [n] that this form is a law of. Raises BadData for a column without numbers."""
        return self.columns | {column: self.numbers(column, f" for the form {form.name!r}") for column in form.columns.values()}

    def numbers(self, column: str, what_for: str = "") -> np.ndarray:
        """An axis, or any other column of numbers, [n]. Raises BadData."""
        if column in self.columns:
            return self.columns[column]
        if column not in self.others:
            raise BadData(f"no column {column}{what_for}; name yours with --map {column}=COLUMN.")
        for name, value in zip(self.names, self.others[column]):
            if not isinstance(value, (int, float, np.number)) or isinstance(value, bool) or not np.isfinite(value):
                raise BadData(f"column {column}, run {name}: found {value!r}, expected a number{what_for}.")
        return np.asarray(self.others[column], np.float64)

    def range(self, chosen, form: Form) -> dict[str, list[float]]:
        """Least and largest value of each axis, and column of the form, among the chosen rows."""
        return {
            name: [float(column[chosen].min()), float(column[chosen].max())]
            for name, column in self.of(form).items()
            if name != "loss"
        }


def observe(table, cluster=None) -> Observations:
    """A Table, rows or columns as Observations. Raises BadData naming column and row for what no law can have."""
    rows = getattr(table, "rows", table)
    columns = dict(rows) if isinstance(rows, Mapping) else _transposed(rows)
    for name in ("params", "tokens", "loss"):
        if name not in columns:
            raise BadData(f"no column {name}: a fit needs params, tokens and loss.")
    columns = columns | {name: _floats(columns[name]) for name in AXES if name in columns}
    columns["flops"] = _filled(columns.get("flops"), 6 * columns["params"] * columns["tokens"])
    columns["unique_tokens"] = _filled(columns.get("unique_tokens"), columns["tokens"])
    for name in AXES:
        _check_positive(name, columns[name])
    names = [str(name) for name in columns.get("run", range(1, len(columns["loss"]) + 1))]
    labels = columns.get("cluster", names) if cluster is None else cluster
    others = {name: column for name, column in columns.items() if name not in AXES}
    axes = {name: columns[name] for name in AXES}
    return Observations(axes, names, _with_copies(axes, np.asarray(labels).astype(str)), others, _record(table, rows))


def stated_errors(observed: Observations, chosen) -> np.ndarray:
    """The standard error that each of the chosen rows states of its loss: loss_se, else loss_se_noise, else loss_se_data.

    Raises BadData for a row without one.
    """
    columns = [observed.others[name] for name in ERRORS if name in observed.others]
    found = []
    for row in np.flatnonzero(chosen):
        error = next((column[row] for column in columns if column[row]), None)
        if error is None or not float(error) > 0:
            raise BadData(
                f"--weights se: the run {observed.names[row]} states no error of its loss; give a column {', '.join(ERRORS[:2])} "
                f"or {ERRORS[2]} in every row, or leave the flag out."
            )
        found.append(float(error))
    return np.array(found)


def _with_copies(axes: dict, labels) -> np.ndarray:
    """Clusters [n] from 0: rows that agree in every digit of every axis are one observation, whatever they are called."""
    cluster = relabelled(labels)
    same = np.unique(np.stack(list(axes.values())), axis=1, return_inverse=True)[1].ravel()
    if same.max(initial=-1) + 1 == len(same):
        return cluster
    while True:  # clusters that share a copy are one; each pass joins them to the least of their neighbours
        least = np.full(same.max() + 1, len(same))
        np.minimum.at(least, same, cluster)
        joined = np.full(cluster.max() + 1, len(same))
        np.minimum.at(joined, cluster, least[same])
        if np.array_equal(joined[cluster], cluster):
            return relabelled(cluster)
        cluster = joined[cluster]


def _transposed(rows: Sequence[Mapping]) -> dict:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _floats(column) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in column], np.float64)


def _filled(column, default) -> np.ndarray:
    return default if column is None else np.where(np.isnan(column), default, column)


def _check_positive(name: str, column) -> None:
    bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
    if len(bad):
        raise BadData(
            f"column {name}, row {bad[0] + 1}: found {column[bad[0]]}, expected a positive number; "
            f"leave out unfinished runs ({len(bad)} such rows)."
        )


def relabelled(labels) -> np.ndarray:
    """Labels [n] as numbers from 0."""
    return np.unique(labels, return_inverse=True)[1].ravel()


def _record(table, rows) -> dict:
    rows = [] if isinstance(rows, Mapping) else rows
    flags = [name for name in columns_of_flags(rows) if any(is_stated(row.get(name)) for row in rows)]
    said = {name: {row.get(name) for row in rows if not isinstance(row.get(name), (list, dict))} for name in (*LABELS, *flags)}
    conventions = {name: values.pop() if len(values) == 1 else None for name, values in said.items()} if rows else {}
    return {
        "conventions": conventions,
        "rows_dropped": list(getattr(table, "dropped", [])),
        "sources": list(getattr(table, "sources", [])),
        "choices": dict(getattr(table, "choices", {})),
        "warnings": list(getattr(table, "warnings", [])),
    }


def held_out(condition, observed: Observations):
    """(which rows [n] a condition such as `flops>=1e21` or a mask [n] holds out, the condition as text). Raises BadData."""
    if condition is None:
        return np.zeros(len(observed.names), bool), None
    if not isinstance(condition, str):
        return np.asarray(condition, bool), "rows given"
    column, sign, value = parse_condition(condition) or ("", "", "")
    epochs = observed.columns["tokens"] / np.minimum(observed.columns["unique_tokens"], observed.columns["tokens"])
    known = {"run": observed.names, "epochs": epochs, **observed.others, **observed.columns}
    if column not in known or isinstance(value, str) and sign not in ("=", "==", "!="):
        raise BadData(f"--holdout {condition}: expected a condition such as flops>=1e21 on one of {', '.join(known)}.")
    if isinstance(value, float) and sign not in ("=", "==", "!=") and any(isinstance(item, str) for item in known[column]):
        word = next(item for item in known[column] if isinstance(item, str))
        raise BadData(f"--holdout {condition}: {column} is {word!r} in some rows, which is no number.")
    chosen = [
        COMPARE[sign](item if isinstance(value, float) else str(item), value) if item is not None else False
        for item in known[column]
    ]
    if not 0 < sum(map(bool, chosen)) < len(chosen):
        raise BadData(f"--holdout {condition}: holds for {sum(map(bool, chosen))} of {len(chosen)} rows, expected some of them.")
    return np.array(chosen, bool), condition
