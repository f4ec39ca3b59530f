"""A signal while there is nothing to save: before a run's own handlers stand (training/signals.py), and between two runs.

Standard library only, so that a program's first lines can call it.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from megatron.errors import PREEMPTED

ASKED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # to save and leave


def stand_by() -> None:
    """From here on these signals end the process with 85: start it again, nothing is lost."""
    for number in ASKED:
        signal.signal(number, leave)


def ignore() -> None:
    """From here on they change nothing: what the program has to say is said, and its exit code stands."""
    for number in ASKED:
        signal.signal(number, signal.SIG_IGN)


def leave(number: int, _frame: FrameType | None) -> None:
    os.write(2, f"received {signal.Signals(number).name}, and there is nothing to save: the same command starts again\n".encode())
    os._exit(PREEMPTED)
