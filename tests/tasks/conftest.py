"""Two small runs and a file of questions, for every test of scoring answers."""

import json

import numpy as np
import pytest

from megatron.config import parse
from megatron.data.indexed import IndexedWriter
from megatron.training.pretrain import main

FLAGS = """--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 32 --global-batch-size 8 --train-iters 4 --lr 1e-2
    --micro-batch-size 4 --init-method-std 0.2 --tokenizer-type ByteTokenizer --split 80,20,0 --eval-iters 1 --log-interval 1
    --eval-tasks-interval 2 --hidden-dropout 0 --attention-dropout 0 --num-threads 1 --device cpu""".split()
QUESTIONS = [
    {"query": "the man turned on the tap, so", "choices": ["it ran", "he sang", "a cat"], "gold": 0},
    {"query": "ab", "choices": ["c", "dd"], "gold": 1},
    {"query": "one two three\n", "choices": ["four", "a"], "gold": 0},
    {"query": "", "choices": ["abc", "xyzuv"], "gold": 1},
]


@pytest.fixture(scope="session")
def flags():
    return FLAGS


@pytest.fixture(scope="session")
def questions():
    return QUESTIONS


@pytest.fixture(scope="session", name="write_questions")
def questions_writer():
    return write_questions


def write_questions(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """The folders ar and mdm of runs that scored quiz.jsonl every two steps, and the corpus."""
    folder = tmp_path_factory.mktemp("tasks")
    with IndexedWriter(str(folder / "corpus"), np.uint16) as writer:
        for document in np.split(np.random.default_rng(0).integers(97, 123, 4096), 16):
            writer.add_document(document)
    quiz = write_questions(folder / "quiz.jsonl", QUESTIONS)
    for objective in ("ar", "mdm"):
        words = ["--data-path", str(folder / "corpus"), "--save", str(folder / objective), "--eval-tasks", quiz]
        assert main(parse([*FLAGS, *words], objective)) == 0
    return folder
