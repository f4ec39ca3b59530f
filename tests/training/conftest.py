"""A small training for every test of the trainer: in this process, or as a child to break."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.config import parse
from megatron.core import checkpoint
from megatron.training.pretrain import main

ROOT = Path(__file__).parents[2]
FLAGS = """--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 32 --micro-batch-size 2 --global-batch-size 8
    --train-iters 20 --lr 3e-3 --min-lr 3e-4 --lr-decay-style cosine --lr-warmup-samples 16 --adam-beta2 0.95 --weight-decay 0.1
    --tokenizer-type ByteTokenizer --split 80,20,0 --eval-iters 4 --log-interval 1 --hidden-dropout 0.1 --attention-dropout 0.1
    --num-threads 1 --device cpu""".split()
CLOCK = ("time", "step_seconds", "tokens_per_sec", "tflops", "mfu", "memory_bytes", "utilization")


def train(corpus, folder, objective, *flags):
    """Flags in pairs, "" for a flag without a value. -> exit code, records without what a clock says"""
    given = list(FLAGS)
    for flag, value in zip(flags[::2], flags[1::2]):
        if flag in given:
            given[given.index(flag) + 1] = value
    extra = [w for flag, value in zip(flags[::2], flags[1::2]) if flag not in FLAGS for w in (flag, value) if w]
    code = main(parse(given + ["--data-path", corpus, "--run-dir", str(folder), *extra], objective))
    return code, records(folder)


def records(folder):
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


@pytest.fixture
def run():
    return train


BASE = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "seq_length": 32, "micro_batch_size": 4,
        "global_batch_size": 8, "lr": 1e-3, "train_iters": 12, "eval_iters": 1, "eval_interval": 5, "log_interval": 1,
        "save_interval": 4, "tokenizer_type": "ByteTokenizer", "device": "cpu", "num_threads": 1}


class Trainer:
    """Flags of one small run; `over` replaces flags, None leaves one out, True is a flag without a value."""

    def __init__(self, corpus: str):
        self.flags = BASE | {"train_data_path": ["1", "0:0.8", corpus], "valid_data_path": ["1", "0.8:1", corpus]}

    def argv(self, folder: Path, **over) -> list[str]:
        flags = self.flags | {"run_dir": folder, "save": folder} | over
        words = []
        for name, value in flags.items():
            if value is not None:
                given = [] if value is True else value if isinstance(value, list) else [value]
                words += ["--" + name.replace("_", "-"), *map(str, given)]
        return words

    def run(self, folder: Path, objective: str = "ar", **over) -> int:
        """Train in this process; the exit code."""
        return main(parse(self.argv(folder, **over), objective))

    def start(self, folder: Path, **over) -> subprocess.Popen:
        """Train in a child whose lines can be read as they come."""
        return subprocess.Popen([sys.executable, str(ROOT / "pretrain_gpt.py"), *self.argv(folder, **over)], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(name="records")
def read_records():
    return records


@pytest.fixture
def trainer(corpus):
    return Trainer(corpus)


@pytest.fixture
def hashes():
    """{tensor name: sha256} of the newest checkpoint, or of the one at a step; every byte verified."""
    def read(folder: Path, step: int | None = None) -> dict[str, str]:
        path = next(p for p in checkpoint.find(folder) if step in (None, checkpoint.step_and_attempt(p.name)[0]))
        checkpoint.verify(path)
        return {t["name"]: t["sha256"] for t in json.loads((path / "manifest.json").read_text())["tensors"]}
    return read
