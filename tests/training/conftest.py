"""A small training, in this process, for every test of the trainer."""
import json
from pathlib import Path

import pytest

from megatron.config import parse
from megatron.training.pretrain import main

FLAGS = """--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 32 --micro-batch-size 2 --global-batch-size 8 --train-iters 20
    --lr 3e-3 --min-lr 3e-4 --lr-decay-style cosine --lr-warmup-samples 16 --adam-beta2 0.95 --weight-decay 0.1 --tokenizer-type ByteTokenizer
    --split 80,20,0 --eval-iters 4 --log-interval 1 --hidden-dropout 0.1 --attention-dropout 0.1 --num-threads 1 --device cpu""".split()
CLOCK = ("time", "step_seconds", "tokens_per_sec", "tflops", "mfu", "memory_bytes")


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
