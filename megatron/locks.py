"""One process at a time holds a folder. Standard library only.

The system's own lock (flock) ends with its process. Where a file system has none (Lustre without -o flock, some NFS), a file
that names the holder stands for it: its process is looked up on its own machine, and elsewhere the file counts as long as the
holder renews it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TextIO

from megatron.files import open_lock

LOCK = ".lock"
UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
RENEW_SECONDS, STALE_SECONDS = 15.0, 180.0
SETTLE_SECONDS = 0.2  # two that find a dead holder at once: the later one's name stays


class Held(Exception):
    """Another living process holds the folder."""


@contextmanager
def held(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Hold a folder, made where it is not there. Raises Held, and OSError where it cannot be written."""
    lock, supported = take(folder, name)
    with lock, nullcontext() if supported else named(holder_of(folder / name)):
        yield


def take(folder: Path, name: str) -> tuple[TextIO, bool]:
    """The locked file, and whether the system knows locks; on a folder that no other process has removed in between."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError), ExitStack() as stack:
            lock = stack.enter_context(open_lock(folder / name))
            supported = flocked(lock.fileno(), fcntl.LOCK_EX)
            if os.stat(folder / name).st_ino == os.fstat(lock.fileno()).st_ino:
                os.utime(folder / name)
                stack.pop_all()
                return lock, supported


def holder_of(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.holder")


def flocked(handle: int, kind: int) -> bool:
    """Take the system's lock; False where the file system has none. Raises Held, OSError."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Held from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True


def is_held(folder: Path) -> bool:
    """Whether a living process holds the folder, here or, on a shared file system, elsewhere."""
    try:
        with open(folder / LOCK, "rb") as lock:
            return not flocked(lock.fileno(), fcntl.LOCK_SH) and is_alive(holder_of(folder / LOCK))
    except Held:
        return True
    except OSError:
        return False


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Hold a folder by a file that names this process. Raises Held, OSError."""
    own = f"{platform.node()} {os.getpid()}\n"
    while True:
        try:
            with open(path, "x") as file:
                file.write(own)
        except FileExistsError:
            if is_alive(path):
                raise Held from None
            path.unlink(missing_ok=True)
            continue
        time.sleep(SETTLE_SECONDS)
        if read_holder(path) != own.split():
            raise Held
        break
    done = threading.Event()
    thread = threading.Thread(target=renew, args=(path, done), name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        path.unlink(missing_ok=True)


def renew(path: Path, done: threading.Event) -> None:
    while not done.wait(RENEW_SECONDS):
        with suppress(OSError):
            os.utime(path)


def read_holder(path: Path) -> list[str]:
    """[machine, process]; empty where there is none."""
    try:
        return path.read_text(errors="replace").split()
    except OSError:
        return []


def is_alive(path: Path) -> bool:
    """Whether the process that a file names lives: seen on this machine, taken from the file's age on another."""
    holder = read_holder(path)
    if len(holder) == 2 and holder[0] == platform.node() and holder[1].isdecimal():
        try:
            os.kill(int(holder[1]), 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            return True
        return int(holder[1]) != os.getpid()  # a container's restarted process has its predecessor's number
    try:
        return time.time() - path.stat().st_mtime < STALE_SECONDS
    except OSError:
        return False
