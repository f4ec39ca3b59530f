"""Refusals: one sentence for the user, and the exit code that says what kind. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import sys
from collections.abc import Callable, Iterator


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
UNREAD = 141  # nobody reads what is printed any more (| head), as a shell says it
INTERRUPTION = "Interrupted: stopped by Ctrl-C before it was done"
PREEMPTED = 85  # a signal or a time limit: saved, start again
KILLED = 86  # the kill switch: saved, do not start again

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def exits(main: Callable[..., int | None]) -> Callable[..., int]:
    """Turn a program's refusals, Ctrl-C and a stdout that takes no more into a sentence and their exit code, a mistake of ours
    into a traceback and 70."""

    @functools.wraps(main)
    def run(*given, **named) -> int:
        from megatron.stopping import interruptible  # it knows the codes above

        try:
            with interruptible(), printed():
                return main(*given, **named) or 0
        except KeyboardInterrupt:
            tell(INTERRUPTION)
            return INTERRUPTED
        except Unsaid as error:
            return error.code
        except Refusal as error:
            tell(f"{type(error).__name__}: {error}")
            return error.code
        except Exception as error:
            return fallen(error)

    return run


@contextlib.contextmanager
def printed() -> Iterator[None]:
    """What was printed is written when this ends, also by argparse's SystemExit, and not after the exit code is known."""
    try:
        yield
    finally:
        if sys.stdout:
            sys.stdout.flush()


def tell(line: str) -> None:
    """A line on stderr, if it takes one."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr)


def fallen(error: BaseException) -> int:
    """The exit code of what no program expects: a disk that is full, a reader that left, a mistake of ours."""
    unread = isinstance(error, BrokenPipeError) and is_unread()
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more when it ends
    if unread:
        return UNREAD
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        where = error.filename or "standard output, or a file"
        tell(f"CannotWrite: {where}: {error.strerror}; make room, or write elsewhere")
        return CannotWrite.code
    import traceback  # late: first lines of programs import this module

    with contextlib.suppress(OSError):
        traceback.print_exception(error)
    return Refusal.code


def is_unread() -> bool:
    """Whether standard output is a pipe whose reader has left."""
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
