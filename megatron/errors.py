"""Refusals: one sentence for the user, and the exit code that says what kind. Standard library only."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


class Refusal(Exception):
    """Raised with one sentence: what, where, found and expected, what to do. Never shown as a traceback."""

    code = 70


class BadData(Refusal):
    """A data file is damaged or does not hold what it should."""

    code = 65


class MissingInput(Refusal):
    """A file that the run needs is not there."""

    code = 66


class CannotWrite(Refusal):
    """An output cannot be written: no space, no permission, or already taken."""

    code = 73


class Untrusted(Refusal):
    """A file asks for something that could run code or leave its folder."""

    code = 77


class PeerLost(Refusal):
    """Another process of the run died, hung or never came: start again."""

    code = 75


class Unsaid(Refusal):
    """Another process of the run says why; this one only takes over the exit code."""

    def __init__(self, code: int):
        super().__init__()
        self.code = code


class Mismatch(Refusal):
    """The configuration does not match the checkpoint or the data."""

    code = 78


class TooManyBadSteps(Refusal):
    """Too many non-finite steps in a row."""

    code = 87


PEER_LOST = PeerLost.code  # start again; what is not saved is lost
INTERRUPTED = 130  # Ctrl-C, as a shell says it
INTERRUPTION = "Interrupted: stopped by Ctrl-C before it was done"
PREEMPTED = 85  # a signal or a time limit: saved, start again
KILLED = 86  # the kill switch: saved, do not start again


def exits(main: Callable[..., int | None]) -> Callable[..., int]:
    """Turn a program's refusals and Ctrl-C into a sentence and their exit code, a mistake of ours into a traceback and 70."""

    @functools.wraps(main)
    def run(*given, **named) -> int:
        from megatron.stopping import interruptible  # it knows the codes above

        try:
            with interruptible():
                return main(*given, **named) or 0
        except KeyboardInterrupt:
            print(INTERRUPTION, file=sys.stderr)
            return INTERRUPTED
        except Unsaid as error:
            return error.code
        except Refusal as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return error.code
        except Exception:
            import traceback  # late: first lines of programs import this module

            traceback.print_exc()
            return Refusal.code

    return run
