"""A Python that starts at once: a process that has imported what is slow to import forks for each program that a test starts.

`Warm.python` is used as `sys.executable` is: SCRIPT ARGS, -m MODULE ARGS or -c CODE ARGS; with other options the real one starts.
Open files, environment, folder, exit code and signals are the program's own; SIGTSTP stops it, SIGSTOP does not.
Two processes fork in turn, whose hash seeds differ, as those of two Pythons do: what depends on the order of a set differs
between two ranks, and between a run and its resume. With PYTHONHASHSEED the real Python starts.
Not for a test of what is imported, or of the first moments of a program.
"""

import array
import atexit
import fcntl
import gc
import importlib
import logging
import marshal
import multiprocessing.util
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
HIGHEST = 250  # files of a program; those of the kernel's SCM_MAX_FD that can be sent at once are 253
PRELOAD = (
    "scipy.interpolate",
    "scipy.optimize",
    "torch._dynamo",
    "megatron.training.pretrain",
    "megatron.proof.trial",
    "megatron.scaling.__main__",
    "megatron.scaling.verbs.plan",
    "megatron.scaling.verbs.run",
    "megatron.scaling.verbs.fit",
    "megatron.scaling.verbs.report",
)


class Warm:
    """`python`, which starts the servers when it is first asked for, may be given to a shell or stand in for `sys.executable`."""

    def __init__(self, folder: Path):
        self.folder, self.servers = folder, []

    @property
    def python(self) -> str:
        if not hasattr(os, "pidfd_open"):  # Linux alone
            return sys.executable
        path, address = self.folder / "python", self.folder / "socket"
        if not self.servers:
            words = [sys.executable, "-I", "-S", str(ROOT / "tests/warm_python.py"), str(address)]
            path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            path.chmod(0o755)
            for seed in (0, 1):
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(f"{address}{seed}")
                    listener.listen(64)
                    self.servers.append(
                        subprocess.Popen(
                            [sys.executable, __file__, str(listener.fileno()), str(path)],
                            pass_fds=[listener.fileno()],
                            stdin=subprocess.DEVNULL,
                            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(seed)},
                        )
                    )
        return str(path)

    def close(self) -> None:
        for server in self.servers:
            server.kill()
            server.wait()


def serve(listener: socket.socket, python: str) -> None:
    """Start programs, tell who asked how they end, and end those whose asker is gone; until the parent is gone."""
    for name in PRELOAD:
        importlib.import_module(name)
    atexit._clear()  # of what was imported, these alone concern a program
    atexit.register(logging.shutdown)
    atexit.register(multiprocessing.util._exit_function)
    gc.freeze()
    multiprocessing.set_executable(python)
    sys.executable, parent = python, os.getppid()
    running: dict[int, tuple[int, socket.socket]] = {}  # by its descriptor: a program, and who asked for it
    while os.getppid() == parent:
        askers = {asker: ended for ended, (_, asker) in running.items()}
        ready, _, _ = select.select([listener, *running, *askers], [], [], 1.0)
        for ended in {askers.get(one, one) for one in ready} - {listener}:
            child, asker = running.pop(ended)
            if ended not in ready:
                os.kill(child, signal.SIGKILL)
            tell(asker, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            asker.close()
            os.close(ended)
        if listener in ready:
            asker, _ = listener.accept()
            if child := start(asker):
                running[os.pidfd_open(child)] = child, asker


def tell(asker: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):
        asker.send(number.to_bytes(8, "little", signed=True))


def start(asker: socket.socket) -> int | None:
    """The process id of the program that `asker` wants; None when it went away."""
    head, found, *_ = asker.recvmsg(8, socket.CMSG_SPACE(HIGHEST * 4))
    if not head:
        return None
    message = asker.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL)
    words, environ, folder, numbers = marshal.loads(message)
    files = array.array("i", found[0][2])
    child = os.fork()
    if child == 0:
        kept = [fcntl.fcntl(file, fcntl.F_DUPFD, HIGHEST) for file in files]
        os.closerange(0, HIGHEST)  # the server's
        for number, file in zip(numbers, kept):
            os.dup2(file, number)
            os.close(file)
        become(words, environ, folder)
    for file in files:
        os.close(file)
    tell(asker, child)
    return child


def become(words: list[str], environ: dict[str, str], folder: str) -> None:
    """Be the program, in the state that Python gives it."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")  # noqa: SIM115
    how, rest = (words[0], words[1:]) if words[0] in ("-c", "-m") else ("", words)
    sys.argv = ["-c", *rest[1:]] if how == "-c" else rest
    sys.path[0:1] = [
        str(Path(rest[0]).resolve().parent) if not how else folder,
        *filter(None, environ.get("PYTHONPATH", "").split(":")),
    ]
    code: object = 0
    try:
        if how == "-m":
            for name in (rest[0], f"{rest[0]}.__main__"):
                sys.modules.pop(name, None)  # as if it had not been imported
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif how == "-c":
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
        else:
            runpy.run_path(rest[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
        if not isinstance(code, int | None):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        traceback.print_exception(error)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 255)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
