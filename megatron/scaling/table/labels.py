"""What objectives and kinds of losses are called in tables, sentences and figures."""

from __future__ import annotations

import re

from megatron.catalogue import OBJECTIVES

NAMES = {name: known.label for name, known in OBJECTIVES.items()}
BOUNDS = {"exact": "exact NLL", "bound": "upper bound"}


def kind_of(bound: str | None) -> str:
    """'exact NLL' or 'upper bound'; where a run does not say which, that."""
    return BOUNDS.get(bound or "", "bound not stated")


def label_of(objective: str, bound: str | None) -> str:
    """'AR (exact NLL)', 'MDM (upper bound)'."""
    return f"{NAMES.get(objective, objective)} ({kind_of(bound)})"


def file_name(objective: str) -> str:
    """A name for files of this objective, whatever a table calls it: 'mdm weight-decay=0.1' -> 'mdm-weight-decay=0.1'."""
    return re.sub(r"[^\w.=+-]+", "-", objective).strip(".") or "unnamed"
