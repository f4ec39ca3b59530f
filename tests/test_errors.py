"""What a program says and leaves with, whatever becomes of its output."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def printing(words, stdout, **more):
    return subprocess.run([sys.executable, *words], stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT, **more)


def test_a_full_disk_behind_stdout_is_73_and_a_reader_that_left_nothing():
    """`| head` is no mistake of anybody's."""
    long = ["-c", "from megatron.errors import exits\n@exits\ndef main(): print('x' * 10**6)\nraise SystemExit(main())"]
    with open("/dev/full", "w") as full:
        for words in (long, ["tools/scaling_laws.py", "--help"]):
            done = printing(words, full)
            assert (done.returncode, done.stderr.count("\n")) == (73, 1)
            assert "standard output, or a file: No space left" in done.stderr
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as gone:
        gone.wait()
        done = printing(long, gone.stdin)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("code, mistake", [(66, "MissingInput('no such file')"), (70, "ValueError('ours')")])
def test_an_exit_code_stands_when_stderr_is_full(code, mistake):
    with open("/dev/full", "w") as full:
        words = ["-c", f"from megatron.errors import *\n@exits\ndef main(): raise {mistake}\nraise SystemExit(main())"]
        assert subprocess.run([sys.executable, *words], cwd=ROOT, stderr=full).returncode == code
