"""Columns of a table beside its loss: the accuracy of a task, and the loss of other runs at the same place."""

from __future__ import annotations

import math
from collections.abc import Sequence

from megatron.errors import BadData
from megatron.scaling.table.covariates import Places

ACCURACY = "accuracy"  # what such a loss is called where others are bounds or exact, and its unit
OTHER = "other_loss"  # the column of `beside`


def by_accuracy(rows: list[dict], column: str, chance: float, dropped: Sequence[dict] = ()) -> tuple[list[dict], list[dict]]:
    """(rows whose loss is -ln Q for Q = (accuracy - chance) / (1 - chance), what is `dropped` with rows without one and why).

    -ln Q falls as a power of compute at a fixed ratio of tokens to parameters (arXiv:2512.08894). Raises BadData where no row has
    the column, or a value that is no accuracy.
    """
    if not any(row.get(column) is not None for row in rows):
        found = ", ".join(sorted({name for row in rows for name in row if "acc" in name})) or "none that sounds like one"
        raise BadData(f"--accuracy {column}: no such column in {rows[0]['where'] if rows else 'the table'} (found {found}).")
    kept, left_out = [], list(dropped)
    for row in rows:
        value = row.get(column)
        if value is not None and not (isinstance(value, float) and 0 <= value <= 1):
            raise BadData(f"{row['where']}: {column} is {value!r}, expected an accuracy from 0 to 1.")
        if value is None or not chance < value < 1:
            at = "no accuracy" if value is None else f"accuracy {value:g} is not between chance {chance:g} and 1"
            left_out.append({"run": row["run"], "line": row["line"], "reason": at})
            continue
        row = {name: one for name, one in row.items() if name not in ("loss_se", "loss_se_noise", "loss_se_data", "score")}
        kept.append(row | {"loss": -math.log((value - chance) / (1 - chance)), "bound": ACCURACY})
    if not kept:
        raise BadData(f"--accuracy {column}: no row of {len(rows)} is above --chance {chance:g} and below 1.")
    return kept, left_out


def beside(rows: Sequence[dict], others: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """(rows with the mean loss of the other runs of equal N, D and U as a column, rows without such a run and why).

    Of others that have several objectives, those of another objective than the row's own. Raises BadData where two are left.
    """
    several = len({other["objective"] for other in others}) > 1
    place = Places.of([row | {"objective": ""} for row in (*rows, *others)]).number
    kept, left_out = [], []
    for row, at in zip(rows, place):
        found = [
            other
            for other, its in zip(others, place[len(rows) :])
            if its == at and not (several and other["objective"] == row["objective"]) and identity(other) != identity(row)
        ]
        if len({other["objective"] for other in found}) > 1:
            names = ", ".join(sorted({other["objective"] for other in found}))
            raise BadData(f"--beside: the run {row['run']} stands beside {names}; give the runs of one objective.")
        if found:
            kept.append(row | {OTHER: math.fsum(other["loss"] for other in found) / len(found)})
        else:
            reason = "no other run of --beside has its N, D and unique tokens"
            left_out.append({"run": row["run"], "line": row.get("line"), "reason": reason})
    if not kept:
        raise BadData(
            f"--beside: none of {len(others)} runs has the N, D and unique tokens of another one of the {len(rows)} runs."
        )
    return kept, left_out


def identity(row: dict) -> tuple:
    return row.get("path"), row["run"], row.get("line")
