"""How a run is asked to stop: signals, the kill switch, a step, a time limit. The answer is always to save and leave."""
from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType

from megatron.config import Train
from megatron.errors import KILLED, PREEMPTED, Refusal

HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class KillSwitch(Refusal):
    """The kill-switch file is there."""
    code = KILLED


class StopRequest:
    """Context manager: catches signals while a run is on, and puts the old handlers back."""

    def __init__(self, cfg: Train):
        self.cfg, self.signal, self.start = cfg, None, time.monotonic()
        if cfg.kill_switch_file and Path(cfg.kill_switch_file).exists():
            raise KillSwitch(f"--kill-switch-file {cfg.kill_switch_file} exists: remove it to start")

    def __enter__(self) -> StopRequest:
        self.before = {number: signal.signal(number, self.catch) for number in HANDLED}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def catch(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks; a second one of its kind ends the process at once, without a half-published save."""
        self.signal = number
        signal.signal(number, signal.SIG_DFL)

    def reason(self, step: int, steps_done: int) -> tuple[str, int] | None:
        """Why to stop at this step, in words, and the exit code; `steps_done` of them were done by this process."""
        if self.signal is not None:
            return f"received {signal.Signals(self.signal).name}", PREEMPTED
        if self.cfg.kill_switch_file and Path(self.cfg.kill_switch_file).exists():
            return f"found --kill-switch-file {self.cfg.kill_switch_file}", KILLED
        if self.cfg.exit_interval and steps_done and step % self.cfg.exit_interval == 0:
            return f"reached --exit-interval {self.cfg.exit_interval}", PREEMPTED
        if self.cfg.exit_duration_in_mins and time.monotonic() - self.start > 60 * self.cfg.exit_duration_in_mins:
            return f"reached --exit-duration-in-mins {self.cfg.exit_duration_in_mins:g}", PREEMPTED
        return None
