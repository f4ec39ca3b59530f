"""One process at a time holds a folder, with the system's lock and without."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from megatron import locks
from megatron.locks import LOCK, Held, held, is_held

HOLD = """
import fcntl, sys
from pathlib import Path
from megatron import locks
if sys.argv[2] != "0":
    def refuse(*_): raise OSError(int(sys.argv[2]), "refused")
    fcntl.flock = refuse
with locks.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=[0, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def number(request, monkeypatch):
    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    if request.param:
        monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.0)
    return request.param


def test_a_living_process_keeps_others_out_and_a_dead_one_does_not(tmp_path, number):
    folder = tmp_path / "run"
    words = [sys.executable, "-c", HOLD, str(folder), str(number)]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "held\n" and is_held(folder)
        with pytest.raises(Held), held(folder):
            pass
    finally:
        child.kill()  # nothing of its own is put back
        child.communicate()
    assert not is_held(folder)
    with held(folder):
        assert (folder / LOCK).exists()
    assert not is_held(folder) and [path.name for path in folder.iterdir()] == [LOCK]


def test_what_ends_inside_is_not_hidden(tmp_path, number):
    with pytest.raises(FileNotFoundError), held(tmp_path):
        raise FileNotFoundError
    with held(tmp_path):
        pass


def test_a_holder_on_another_machine_counts_as_long_as_it_renews(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "refused")))
    (tmp_path / LOCK).touch()
    holder = locks.holder_of(tmp_path / LOCK)
    holder.write_text("elsewhere 12\n")
    assert is_held(tmp_path)
    os.utime(holder, (1, 1))
    assert not is_held(tmp_path)
    with held(tmp_path):
        assert holder.read_text().split()[1] == str(os.getpid())


def test_another_error_is_no_missing_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "bad disk")))
    with pytest.raises(OSError, match="bad disk"), held(tmp_path):
        pass
