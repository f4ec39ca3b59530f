"""Numbers that contradict each other, or that no language model has: mixed units, FLOPs far from 6 N D, perplexities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron.errors import BadData

MIXED = 30.0  # times off the factor of the other rows: no convention of N or C, but a unit
USUAL = (0.5, 2.0)  # C / 6ND, by the conventions that there are
HIGHEST_LOSS = 13.0  # nats a token: above ln V of any vocabulary


def check_plausible(rows: Sequence[dict], unit: str = "nats") -> list[str]:
    """Sentences on what is doubtful in every row. Raises BadData where single rows contradict the others."""
    complete = [row for row in rows if all(row.get(name) for name in ("params", "tokens", "flops", "loss"))]
    if not complete:
        return []
    return [*_flops_of(complete), *_losses_of(complete, unit)]


def _flops_of(rows: Sequence[dict]) -> list[str]:
    """C against 6 N D: a row that is off by far from the others has another unit; all of them, another convention."""
    ratio = np.array([row["flops"] / (6 * row["params"] * row["tokens"]) for row in rows])
    order = np.sort(ratio)
    usual = min(order[(len(order) - 1) // 2], order[len(order) // 2], key=lambda one: abs(np.log(one)))
    off = np.abs(np.log(ratio / usual))
    if off.max() > np.log(MIXED):
        row, value = rows[int(off.argmax())], ratio[off.argmax()]
        raise BadData(
            f"{row['where']}: C is {value:.3g} times 6 N D, in the other rows {usual:.3g} times: its params, tokens or flops are "
            f"in another unit ({int(np.sum(off > np.log(MIXED)))} such rows of {len(rows)}); mend them, leave them out with "
            "--drop, or give --flops 6nd where only the FLOPs are wrong."
        )
    stated = {row.get("flops_convention") for row in rows}
    if USUAL[0] <= usual <= USUAL[1] or stated & {"exact", "exact-skipped-head"}:
        return []
    return [
        f"flops are {usual:.3g} times 6 N D in the median row: N or D in millions, forward passes alone (2 N D), or another N? "
        "Name the columns with --map, as params=params*1e6, or give --flops 6nd."
    ]


def _losses_of(rows: Sequence[dict], unit: str) -> list[str]:
    """Perplexities where a loss is expected."""
    high = [row for row in rows if row["loss"] > HIGHEST_LOSS]
    if unit != "nats" or not high:
        return []
    return [
        f"{high[0]['where']}: a loss of {high[0]['loss']:.4g} is above ln V of any vocabulary ({len(high)} such rows of "
        f"{len(rows)}): perplexities? The loss is their logarithm, in nats a token."
    ]
