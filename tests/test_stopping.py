"""From the first instruction of a program on, a signal ends it with 85 and words that are true."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("entry, seconds", [("pretrain_gpt.py", 0.0), ("pretrain_diff_gpt.py", 0.3), ("pretrain_gpt.py", 1.0)])
def test_a_signal_during_imports_and_set_up_is_85(tmp_path, entry, seconds):
    """A module of that name is the first that the program imports: it says that the program's first lines are done."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Tell:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'megatron.config': print('up', flush=True)\n"
        "sys.meta_path.insert(0, Tell())\n"
    )
    child = subprocess.Popen(
        [sys.executable, str(ROOT / entry), "--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "2"]
        + ["--seq-length", "32", "--micro-batch-size", "1", "--global-batch-size", "1", "--train-iters", "100000", "--lr", "1"]
        + ["--tokenizer-type", "ByteTokenizer", "--train-data-path", str(tmp_path / "none"), "--device", "cpu"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert child.stdout.readline() == "up\n"
    time.sleep(seconds)
    child.send_signal(signal.SIGUSR1)
    said = child.communicate(timeout=60)[0]
    assert child.returncode in (85, 66) and "Traceback" not in said  # 66: it was through with its imports, and has no corpus
    assert child.returncode == 66 or "received SIGUSR1, and there is nothing to save" in said
    assert seconds or child.returncode == 85
