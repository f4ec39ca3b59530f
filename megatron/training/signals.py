"""How a run is asked to stop: signals, the kill switch, a step, a time limit. The answer is always to save and leave."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from megatron.config import Train
from megatron.core.mesh import ALONE, Group, all_reduce
from megatron.errors import KILLED, PREEMPTED, Refusal
from megatron.stopping import ASKED, stands_by

DOUBLED_SECONDS = 5.0  # a scheduler signals every process, and a launcher passes on what it got: one request, not two


class KillSwitch(Refusal):
    """The kill-switch file is there."""

    code = KILLED


class StopRequest:
    """Context manager: catches signals while a run is on, and puts the old handlers back.

    Where the program stands by (megatron/stopping.py) it does so until `begin`: before the first step nothing is to save.
    """

    def __init__(self, cfg: Train, world_size: int = 1):
        self.cfg, self.start, self.doubled_seconds = cfg, time.monotonic(), DOUBLED_SECONDS if world_size > 1 else 0.0
        self.signal: int | None = None
        self.answered = False  # by a stop that is on its way
        self.caught: dict[int, float] = {}
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if not stands_by():
            self.begin()
        return self

    def begin(self) -> None:
        """From here on a signal is a request."""
        if not self.before:
            self.before = {number: signal.signal(number, self.catch) for number in ASKED}

    def __exit__(self, *_) -> None:
        self.end()

    def end(self) -> None:
        """From here on nothing is to save: signals are the program's again, and so is one that nobody heeded."""
        before, self.before = self.before, {}
        for number, handler in before.items():
            # What a launcher passes on late must not kill a rank that has saved and is leaving.
            late = self.doubled_seconds and number in self.caught
            signal.signal(number, signal.SIG_IGN if late else handler)
        if self.signal and not self.answered and stands_by():  # what a run that came to its end did not heed is for the program
            signal.raise_signal(self.signal)

    def catch(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks; a second one of its kind ends the process at once, without a half-published save."""
        self.signal = number
        first = self.caught.setdefault(number, time.monotonic())
        if time.monotonic() - first >= self.doubled_seconds:
            signal.signal(number, signal.SIG_DFL)
            if self.doubled_seconds:
                os.kill(os.getpid(), number)

    def refuse_kill_switch(self, control: Group = ALONE) -> None:
        """Raises KillSwitch when the file is there before the run is."""
        if control.rank == 0 and self.is_killed():
            raise KillSwitch(f"--kill-switch-file {self.cfg.kill_switch_file} exists: remove it to start")

    def is_killed(self) -> bool:
        return self.cfg.kill_switch_file is not None and Path(self.cfg.kill_switch_file).exists()

    def reason(self, step: int, steps_done: int, control: Group = ALONE) -> tuple[str, int] | None:
        """Why to stop at this step, in words, and the exit code; `steps_done` of them were done by this process.

        All ranks stop at the same step: a signal counts wherever it arrived, a file and the clock where rank 0 sees them.
        """
        words, code = self.limit(step, steps_done) if control.rank == 0 else ("rank 0 says so", 0)
        number, code = all_reduce(torch.tensor([self.signal or 0, code]), control, dist.ReduceOp.MAX).tolist()
        if number:
            self.answered = True
            return f"received {signal.Signals(number).name}", PREEMPTED
        return (words, code) if code else None

    def limit(self, step: int, steps_done: int) -> tuple[str, int]:
        """What this process sees that asks for an end, and the exit code; 0 for nothing."""
        interval, minutes = self.cfg.exit_interval, self.cfg.exit_duration_in_mins
        if self.is_killed():
            return f"found --kill-switch-file {self.cfg.kill_switch_file}", KILLED
        if interval and steps_done and step % interval == 0:
            return f"reached --exit-interval {interval}", PREEMPTED
        if minutes and time.monotonic() - self.start > 60 * minutes:
            return f"reached --exit-duration-in-mins {minutes:g}", PREEMPTED
        return "", 0
