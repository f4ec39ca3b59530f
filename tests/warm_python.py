"""What tests/warm.py calls a Python: it asks a server for a program, passes signals on to it, and ends as it does.

It is started for every program, so it imports little.
"""

import array
import marshal
import os
import signal
import socket
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP)


def ask(address: str, words: list[str]) -> None:
    words = words[1:] if words[:1] == ["-B"] else words  # as multiprocessing passes PYTHONDONTWRITEBYTECODE on
    if not words or (words[0].startswith("-") and words[0] not in ("-c", "-m")) or "PYTHONHASHSEED" in os.environ:
        os.execv(sys.executable, [sys.executable, *words])
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    inherited = [number for number in map(int, os.listdir("/proc/self/fd")) if is_open(number)]
    server = socket.socket(socket.AF_UNIX)
    server.connect(f"{address}{turn(address)}")
    message = marshal.dumps((words, dict(os.environ), os.getcwd(), inherited))
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", inherited))
    server.sendmsg([len(message).to_bytes(8, "little")], [rights])
    server.sendall(message)
    child = number_from(server)
    for number in SIGNALS:
        signal.signal(number, lambda number, _: pass_on(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for number in inherited:
        os.close(number)  # who reads what the program says sees its end
    code = number_from(server)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def turn(address: str) -> int:
    """0 and 1 alternately: what is appended to a file ends where nothing else does."""
    turns = os.open(f"{address}.turns", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(turns, b".")
    found = os.lseek(turns, 0, os.SEEK_CUR) % 2
    os.close(turns)
    return found


def is_open(number: int) -> bool:
    """Not the one that listed the folder."""
    try:
        return bool(os.fstat(number))
    except OSError:
        return False


def number_from(server: socket.socket) -> int:
    """A process id, then an exit code."""
    answer = server.recv(8, socket.MSG_WAITALL)
    if not answer:
        os._exit(1)  # the server is gone
    return int.from_bytes(answer, "little", signed=True)


def pass_on(child: int, number: int) -> None:
    try:
        os.kill(child, signal.SIGSTOP if number == signal.SIGTSTP else number)
    except ProcessLookupError:
        pass  # it has ended


if __name__ == "__main__":
    ask(sys.argv[1], sys.argv[2:])
