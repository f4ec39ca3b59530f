"""A failpoint at every write and rename, without a line in the product: Python's own audit events.

The hook can never be taken out again, so a trial runs in a fork of the test's process. `ACTION` is None (count), "kill", or an
errno that the call fails with.
"""

import errno
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "os.utime"}
WRITING = os.O_WRONLY | os.O_RDWR


def changed(event: str, args: tuple) -> str:
    """The path that an audit event is about to change; empty for one that changes nothing."""
    if event == "open" and not (isinstance(args[2], int) and args[2] & WRITING):
        return ""
    path = args[0] if event in CHANGES or event == "open" else ""
    return os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""


def in_fork(work: Callable[[], int], folder: Path, number: int = 0, action: str | int | None = None) -> tuple[int, list[str]]:
    """Do `work` in a fork; at change number `number` below `folder`, act. -> exit code (-n: signal n), the changes it came to."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ours)
        seen: list[str] = []

        def hook(event: str, args: tuple) -> None:
            path = changed(event, args)
            if not path.startswith(str(folder)):
                return
            seen.append(path)
            os.write(theirs, f"{event} {Path(path).name}\n".encode())
            if len(seen) == number and action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif len(seen) == number and isinstance(action, int):
                raise OSError(action, os.strerror(action), path)

        code = 70
        try:
            sys.addaudithook(hook)
            code = work()
        finally:
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        points = pipe.read().splitlines()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), points


def run_program(words: list[str]) -> int:
    """A program of the checkout as if it were called so; its exit code."""
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    return 0


if __name__ == "__main__":  # python -m tests.failpoints FOLDER NUMBER kill|ENOSPC|... PROGRAM WORD ...; NUMBER 0 lists the points
    folder, number, what, *program = sys.argv[1:]
    ended, passed = in_fork(
        lambda: run_program(program), Path(folder), int(number), "kill" if what == "kill" else getattr(errno, what)
    )
    print("\n".join(f"{at:4} {point}" for at, point in enumerate(passed, 1)), file=sys.stderr)
    sys.exit(ended if ended >= 0 else 128 - ended)
