"""The trainer, and what opens a run again. `open_run` is imported when it is asked for: logs and flags need no torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Before torch is there: its C++ tells of a lost process in forty lines of stack, training/watch.py in one.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

if TYPE_CHECKING:
    from megatron.training.trained import Trained, open_run

__all__ = ["Trained", "open_run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from megatron.training import trained

    return getattr(trained, name)
