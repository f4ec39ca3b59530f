"""From the first instruction of a program on, a signal ends it with 85 or 130 and words that are true."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron.scaling.__main__ import VERBS

ROOT = Path(__file__).resolve().parents[1]
# Says `up` once the program's first lines have put a handler of ours, at the next import.
TELL = """
import signal, sys
class Tell:
    told = False
    def find_spec(self, name, *_):
        if not self.told and 'stopping' in getattr(signal.getsignal(signal.SIGINT), '__module__', ''):
            Tell.told = True
            print('up', flush=True)
sys.meta_path.insert(0, Tell())
"""
TRAINING = [
    *("--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "2", "--seq-length", "32", "--micro-batch-size", "1"),
    *("--global-batch-size", "1", "--train-iters", "100000", "--lr", "1", "--tokenizer-type", "ByteTokenizer"),
    *("--train-data-path", "none", "--device", "cpu"),
]
# Words that take a program through its imports, to a refusal; --help does for the rest.
WORDS = {
    "audit.py": ["none"],
    "benchmark.py": ["mdm"],
    "entropy_floor.py": ["none"],
    "evaluate.py": ["likelihood", "none"],
    "generate.py": ["none"],
    "replay.py": ["none"],
    "preprocess_data.py": ["--input", "none", "--output-prefix", "none/none"],
    "prepare_instruct.py": ["--input", "none", "--output-prefix", "none/none"],
    "inspect_data.py": ["none"],
    "subset_data.py": ["none", "--tokens", "5", "--output-prefix", "none/none"],
    "verify_layouts.py": ["--layouts", "dp2"],
}
TOOLS = sorted(
    path.name for path in (ROOT / "tools").glob("*.py") if re.search(r"sys\.exit\((main\(\)|code)\)", path.read_text())
)
# A run follows, which starts again.
STANDING_BY = ("pretrain_gpt.py", "pretrain_diff_gpt.py", "tools/run_list.py", "run", "tools/scaling_laws.py run")
PROGRAMS = {
    **{entry: [entry, *TRAINING] for entry in STANDING_BY[:2]},
    **{f"tools/{name}": [f"tools/{name}", *WORDS.get(name, ["--help"])] for name in TOOLS},
    "tools/scaling_laws.py run": ["tools/scaling_laws.py", "run", "--help"],
    **{verb: ["-m", "megatron.scaling", verb, "--help"] for verb in VERBS},
}


@pytest.fixture
def interrupt(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(TELL)

    def start(words, number, seconds):
        """Signal a program and its children, so long after its first lines. -> exit code, what it said"""
        child = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert child.stdout.readline() == "up\n", words
        time.sleep(seconds)
        if child.poll() is None:
            os.killpg(child.pid, number)
        _, said = child.communicate(timeout=120)
        assert "Traceback" not in said and "Error" not in said, (words, seconds, said)
        return child.returncode, said

    return start


def check(code, said, name, number, at_once):
    if name in STANDING_BY:
        assert code == 85 or not at_once, (name, said)
        assert code != 85 or said == f"received {number.name}, and there is nothing to save: the same command starts again\n"
    else:
        assert code == 130 or not at_once, (name, said)
        assert code != 130 or said.endswith("Interrupted: stopped by Ctrl-C before it was done\n"), (name, said)
    assert code in (0, 1, 2, 65, 66, 85, 130), (name, code, said)  # it was through before the signal came


def test_ctrl_c_in_the_first_lines_of_every_tool_and_verb(interrupt):
    """Their first lines hear it: all that they import comes after."""
    assert len(TOOLS) > 15
    for name in TOOLS:
        before = (ROOT / "tools" / name).read_text().partition("\n    stopping.")[0]
        first = {"from __future__ import annotations", "import sys", "from pathlib import Path", "from megatron import stopping"}
        assert set(re.findall("^(?:from|import) .*", before, re.M)) == first, name
    for name, words in PROGRAMS.items():
        check(*interrupt(words, signal.SIGINT, 0), name, signal.SIGINT, at_once=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_a_run_is_85(interrupt, number):
    for name in STANDING_BY[1:]:
        check(*interrupt(PROGRAMS[name], number, 0), name, number, at_once=True)


def test_a_compiled_loop_delays_no_signal():
    code = "from megatron import stopping; import hashlib; stopping.stand_by(); print('up', flush=True); "
    loop = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"  # half an hour without an instruction of Python
    child = subprocess.Popen(
        [sys.executable, "-c", code + loop], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "up\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGUSR1)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 85 and said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.5, 1.0, 2.0, 4.0])
def test_ctrl_c_at_any_time_of_every_tool_and_verb(interrupt, seconds):
    for name, words in PROGRAMS.items():
        check(*interrupt(words, signal.SIGINT, seconds), name, signal.SIGINT, at_once=False)
