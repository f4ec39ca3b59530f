"""A signal while there is nothing to save: before a run's own handlers stand (training/signals.py), and between two runs.

Standard library only, so that a program's first lines can call it: `stand_by` where a run follows, `heed_interrupt` in tools.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from megatron.errors import INTERRUPTED, INTERRUPTION, PREEMPTED

ASKED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # to save and leave
LEAVING = threading.Lock()


def stand_by() -> None:
    """From here on these signals end the process with 85: start it again, nothing is lost.

    A thread does it, at once: Python's own handlers wait for the end of a compiled loop over a large corpus.
    """
    for number in ASKED:
        signal.signal(number, leave)
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=listen, args=(heard,), name="stand by", daemon=True).start()


def listen(heard: int) -> None:
    while number := os.read(heard, 1):
        if signal.getsignal(number[0]) is leave:
            leave(number[0], None)


def stands_by() -> bool:
    """Whether a signal would end this process with nothing to save."""
    return signal.getsignal(signal.SIGTERM) is leave


def ignore() -> None:
    """From here on they change nothing: what the program has to say is said, and its exit code stands."""
    for number in ASKED:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held_back(numbers: Iterable[int] = (signal.SIGINT,)) -> Iterator[None]:
    """What is started here never hears these signals, not even while it imports; they reach this process afterwards."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # started with the first process otherwise, and lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave(number: int, _frame: FrameType | None) -> None:
    if LEAVING.acquire(blocking=False):  # the thread or the handler, once
        said = f"received {signal.Signals(number).name}, and there is nothing to save: the same command starts again\n"
        os.write(2, said.encode())
        os._exit(PREEMPTED)


def heed_interrupt() -> None:
    """From here on, while the rest is imported, Ctrl-C ends the process with 130 and one sentence.

    `errors.exits` hands it to Python when the program's main begins. A signal that the caller ignores stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave_interrupted)


def leave_interrupted(_number: int, _frame: FrameType | None) -> None:
    os.write(2, f"{INTERRUPTION}\n".encode())
    os._exit(INTERRUPTED)


@contextmanager
def interruptible() -> Iterator[None]:
    """Of a program that heeds interrupts, what is done here gets KeyboardInterrupt, and clean-up after it nothing any more."""
    heeding = signal.getsignal(signal.SIGINT) is leave_interrupted
    try:
        if heeding:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        if heeding:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
