"""A small training for every test of the trainer: in this process, or as a child to break."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from megatron.config import parse
from megatron.core import checkpoint
from megatron.rundir.names import step_and_attempt
from megatron.training import dry_run
from megatron.training.pretrain import main
from tests.warm import Warm

ROOT = Path(__file__).parents[2]
FLAGS = """--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 32 --micro-batch-size 2 --global-batch-size 8
    --train-iters 20 --lr 3e-3 --min-lr 3e-4 --lr-decay-style cosine --lr-warmup-samples 16 --adam-beta2 0.95 --weight-decay 0.1
    --tokenizer-type ByteTokenizer --split 80,20,0 --eval-iters 4 --log-interval 1 --hidden-dropout 0.1 --attention-dropout 0.1
    --num-threads 1 --device cpu""".split()
CLOCK = (
    "time",
    "step_seconds",
    "tokens_per_sec",
    "tokens_per_gpu_per_sec",
    "tflops",
    "mfu",
    "executed_tflops",
    "hfu",
    "memory_bytes",
    "utilization",
)


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


BASE = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "seq_length": 32,
    "micro_batch_size": 4,
    "global_batch_size": 8,
    "lr": 1e-3,
    "train_iters": 12,
    "eval_iters": 1,
    "eval_interval": 5,
    "log_interval": 1,
    "save_interval": 4,
    "tokenizer_type": "ByteTokenizer",
    "device": "cpu",
    "num_threads": 1,
}


class Trainer:
    """Flags of one small run; `over` replaces flags, None leaves one out, True is a flag without a value."""

    def __init__(self, corpus: str, warm: Warm | None = None):  # children need the latter
        self.warm = warm
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
        return subprocess.Popen(
            [self.warm.python, str(ROOT / "pretrain_gpt.py"), *self.argv(folder, **over)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def ranks(self, folder: Path, world_size: int = 2, each: dict[int, dict] | None = None, code: str = "", **over) -> "Ranks":
        """Train in that many children that meet at a port of this machine; `each` has flags of single ranks, None: no child.

        `code`: runs instead of pretrain_gpt.py.
        """
        each, port, program = each or {}, free_port(), ["-c", code] if code else [str(ROOT / "pretrain_gpt.py")]
        here = [rank for rank in range(world_size) if each.get(rank, {}) is not None]
        return Ranks(
            {rank: [*program, *self.argv(folder, **over | each.get(rank, {}))] for rank in here},
            world_size,
            port,
            self.warm.python,
        )


class Ranks:
    """Children of one world; `words` are what python is given on each rank."""

    def __init__(self, words: dict[int, list[str]], world_size: int, port: int, python: str):
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
        self.children = {
            rank: subprocess.Popen(
                [python, *command],
                env=os.environ | meet | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for rank, command in words.items()
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self.children.values():
            child.kill()
            child.communicate()

    def until(self, text: str, rank: int = 0) -> str | None:
        """Read a rank's lines up to the one with this text."""
        return next((line for line in self.children[rank].stdout if text in line), None)

    def end(self, *ranks: int, timeout: float = 60) -> tuple[list[int], list[str]]:
        """Exit codes and what was said, of these ranks or of all."""
        chosen = [self.children[rank] for rank in ranks or self.children]
        said = [child.communicate(timeout=timeout)[0] for child in chosen]
        return [child.returncode for child in chosen], said


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def world(warm):
    """Two children that run this body inside a joined world: `mesh`, `watch` and `rank` are there."""
    head = """
import sys, time
from megatron import config, errors
from megatron.core.mesh import barrier
from megatron.training import launch
flags = "--num-layers 1 --hidden-size 16 --num-attention-heads 1 --micro-batch-size 1 --train-iters 1 --lr 1 --device cpu "
flags += "--tokenizer-type ByteTokenizer --train-data-path x --global-batch-size 2 --distributed-timeout " + sys.argv[1]
@errors.exits
def main():
    with launch.joined(config.parse(flags.split())) as (mesh, watch):
        rank = mesh.world.rank
"""
    started = []

    def start(body: str, seconds: float = 4, world_size: int = 2) -> Ranks:
        code = head + "".join(f"        {line}\n" for line in body.strip().splitlines()) + "\nsys.exit(main())"
        ranks = Ranks({rank: ["-c", code, str(seconds)] for rank in range(world_size)}, world_size, free_port(), warm.python)
        started.append(ranks)
        return ranks

    yield start
    for ranks in started:
        ranks.__exit__()


@pytest.fixture(name="records")
def read_records():
    return records


@pytest.fixture
def trainer(corpus, warm):
    return Trainer(corpus, warm)


@pytest.fixture
def shown(capsys):
    """What a dry run of these flags says: exit code, standard output and standard error."""

    def show(words: str) -> tuple[int, str, str]:
        code = dry_run.show(parse(words.split(), environ={}))
        said = capsys.readouterr()
        return code, said.out, said.err

    return show


@pytest.fixture
def hashes():
    """{tensor name: sha256} of the newest checkpoint, or of the one at a step; every byte verified."""

    def read(folder: Path, step: int | None = None) -> dict[str, str]:
        path = next(p for p in checkpoint.find(folder) if step in (None, step_and_attempt(p.name)[0]))
        checkpoint.verify(path)
        return {t["name"]: t["sha256"] for t in json.loads((path / "manifest.json").read_text())["tensors"]}

    return read
