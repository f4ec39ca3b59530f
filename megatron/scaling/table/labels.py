"""What objectives and kinds of losses are called in tables, sentences and figures."""

from __future__ import annotations

import re
from collections.abc import Mapping

from megatron.catalogue import OBJECTIVES

NAMES = {name: known.label for name, known in OBJECTIVES.items()}
BOUNDS = {
    "exact": "exact NLL",
    "bound": "upper bound",
    "lower bound": "lower bound",
    "denoising": "denoising loss",
    "accuracy": "-ln of accuracy above chance",
}


def kind_of(row: Mapping) -> str:
    """'exact NLL', 'upper bound', 'upper bound korder:16' or 'exact NLL of the sampler rule:confidence', by a row's columns.

    Where a run does not say whether its loss is exact or a bound, that.
    """
    kind, score = BOUNDS.get(row.get("bound") or "", "bound not stated"), row.get("score")
    if score in (None, "exact"):
        return kind
    return f"{kind} {'of the sampler ' * is_sampler(row)}{score}"


def is_sampler(row: Mapping) -> bool:
    """Whether the loss is that of a sampler: of another distribution than the one that a bound is of."""
    return str(row.get("score")).startswith("rule:")


def label_of(objective: str, row: Mapping) -> str:
    """'AR (exact NLL)', 'MDM (upper bound)'."""
    return f"{NAMES.get(objective, objective)} ({kind_of(row)})"


def file_name(objective: str) -> str:
    """A name for files of this objective, whatever a table calls it: 'mdm weight-decay=0.1' -> 'mdm-weight-decay=0.1'."""
    return re.sub(r"[^\w.=+-]+", "-", objective).strip(".") or "unnamed"
