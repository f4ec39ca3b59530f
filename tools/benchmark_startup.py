"""How long help, a refusal and a short run take from a cold start."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tools.benchmark_timing import Row, limit_row

ROOT = Path(__file__).resolve().parents[1]
MISTAKES = ("--hiden-size 64", "--num-layers 2 --lr fast", "--num-attention-heads 12 --tensor-model-parallel-size 5")
TINY_RUN = """--num-layers 2 --hidden-size 64 --num-attention-heads 2 --seq-length 64 --micro-batch-size 4 --global-batch-size 4
    --train-iters 10 --lr 1e-3 --tokenizer-type ByteTokenizer --split 90,10,0 --eval-iters 1 --log-interval 1
    --device cpu --num-threads 1""".split()


def startup(rounds: int) -> list[Row]:
    """Help and refusals without torch; a short run from a cold start."""
    rows = [answer_row(words, code, rounds) for words, code in [("--help", 0), *((words, 2) for words in MISTAKES)]]
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(f"{folder}/corpus")
        own = [run_seconds(folder) - torch_seconds() for _ in range(rounds)]
    return [
        *rows,
        limit_row("startup", "10 steps of a tiny model besides the import of torch, CPU", statistics.median(own), 2, "s"),
    ]


def run_seconds(folder: str) -> float:
    """CPU time of a run in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as run:
        began = children_seconds()
        trainer([*TINY_RUN, "--data-path", f"{folder}/corpus", "--run-dir", f"{run}/run"], 0)
        return children_seconds() - began


def torch_seconds() -> float:
    began = children_seconds()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return children_seconds() - began


def answer_row(words: str, code: int, rounds: int) -> Row:
    """CPU time of an answer that comes before any training, and that torch was not imported for it."""
    what = f"pretrain_gpt.py {words}"
    if "| torch\n" in trainer(words.split(), code, "-X", "importtime"):
        return Row(section="startup", what=f"{what}, torch was imported", ratio=0.0, gate=1.0)
    began = children_seconds()
    for _ in range(rounds):
        trainer(words.split(), code)
    return limit_row("startup", f"{what}, CPU", (children_seconds() - began) / rounds, 0.3, "s")


def trainer(words: list[str], code: int, *interpreter: str) -> str:
    """Run pretrain_gpt.py; its standard error."""
    return program("pretrain_gpt.py", words, code, *interpreter).stderr


def program(
    name: str, words: list[str], code: int = 0, *interpreter: str, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program of the checkout. Raises RuntimeError on another exit code than `code`."""
    command = [sys.executable, *interpreter, str(ROOT / name), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    if done.returncode != code:
        said = f"{name} {' '.join(words)} left with {done.returncode}, expected {code}"
        raise RuntimeError(f"{said}:\n{done.stderr[-2000:]}")
    return done


def children_seconds() -> float:
    spent = os.times()
    return spent.children_user + spent.children_system


def make_corpus(prefix: str, documents: int = 64) -> None:
    import numpy as np

    from megatron.data.indexed import IndexedWriter
    from megatron.data.tokenizer import build_tokenizer

    tokenizer = build_tokenizer("ByteTokenizer")
    with IndexedWriter(prefix, np.uint16) as writer:
        for number in range(documents):
            text = f"Document {number} of a corpus for measuring. " * 10
            writer.add_document(np.append(tokenizer.encode(text), tokenizer.eod).astype(np.uint16))
