"""How far long work has come: one line rewritten in place on a terminal, a line a minute anywhere else. Standard library only."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

ON_TERMINAL, ELSEWHERE = 0.5, 60.0  # seconds between two lines


class ProgressLine:
    """A line on stderr with the share done, the rate and the seconds left, of work counted in `unit` (bytes, tokens, rows).

    `total` is all of the work, None where nobody knows it; `done` is what an earlier run did, which this one's rate leaves out.
    """

    def __init__(self, total: float | None, unit: str = "bytes", done: float = 0):
        self.total, self.unit, self.before = total, unit, done
        self.terminal = sys.stderr.isatty()
        self.started = time.monotonic()
        self.last = 0.0 if self.terminal else self.started  # a terminal shows at once that something goes on
        self.written = False

    def show(self, done: float, said: str = "") -> None:
        """Write the line when the last one is long ago; `said` stands before the numbers."""
        now = time.monotonic()
        if now - self.last < (ON_TERMINAL if self.terminal else ELSEWHERE):
            return
        self.last, self.written = now, True
        line = ", ".join(filter(None, (said, self.numbers(done, now - self.started))))
        self.print(f"\r{line}\033[K" if self.terminal else f"{line}\n")

    def numbers(self, done: float, seconds: float) -> str:
        """`45%, 12.3 MB/s, 120 s left`, or the rate alone."""
        rate = (done - self.before) / max(seconds, 1e-9)
        speed = f"{rate / 1e6:,.1f} MB/s" if self.unit == "bytes" else f"{rate:,.0f} {self.unit}/s"
        if not self.total:
            return speed
        left = f"{max(self.total - done, 0) / rate:,.0f} s left" if rate > 0 else "unknown time left"
        return f"{min(done / self.total, 1):.0%}, {speed}, {left}"

    def clear(self) -> None:
        """Take the line off a terminal, before something else is printed."""
        if self.terminal and self.written:
            self.print("\r\033[K")

    def print(self, text: str) -> None:
        """What cannot be said stops no work."""
        with suppress(OSError, ValueError):
            print(text, end="", file=sys.stderr, flush=True)
