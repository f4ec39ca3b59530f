"""Runs: data, engine, log and checkpoints put together, and kept going."""

import os

# Before torch is there: its C++ tells of a lost process in forty lines of stack, training/watch.py in one.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from megatron.training.trained import Trained, open_run  # noqa: E402

__all__ = ["Trained", "open_run"]
