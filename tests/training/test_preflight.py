"""Everything known wrong before the first step; and passing means that the first step is reached."""

import os
import shutil

import numpy as np
import pytest
import torch

from megatron.config import parse
from megatron.data.indexed import IndexedWriter
from megatron.training import preflight
from megatron.training.device import Where

LINES = (
    "environment: megatron ",
    "device: cpu, torch.float32, 1 threads",
    "output: ",
    "tokenizer: ",
    "model: ",
    "memory: about ",
    "data: train: ",
    "data: Tokens per epoch: 6554 | 3072 tokens to train on = 0.469 epochs",
    "data: valid slice: 8 rows of 32 tokens",
    "batch: step 0 has 2 micro-batches, 256 asked of 256 scored tokens",
    "dropout: attention 0.1, hidden 0.1",
    "compile: off",
)


@pytest.mark.parametrize("objective", ["ar", "mdm"])
def test_preflight_says_a_line_each_and_a_real_run_reaches_step_0(tmp_path, trainer, capsys, objective):
    assert trainer.run(tmp_path / "run", objective, preflight=True) == 0
    said = capsys.readouterr().out
    for line in LINES if objective == "ar" else LINES[:9]:
        assert f"preflight ok | {line}" in said, line
    assert "preflight passed: every check above is ok" in said and " iteration " not in said
    assert not any(n in os.listdir(tmp_path / "run") for n in ("config.json", "run.json", "result.json", "step-00000001"))
    assert trainer.run(tmp_path / "run", objective, train_iters=1, save_interval=None, eval_iters=0) == 0
    assert "preflight ok | batch: step 0" in capsys.readouterr().out


def test_a_preflight_leaves_a_runs_record_alone(tmp_path, trainer):
    trainer.run(tmp_path / "run", train_iters=2)
    before = {n: (tmp_path / "run" / n).read_bytes() for n in ("metrics.jsonl", "config.json", "run.json", "result.json")}
    assert trainer.run(tmp_path / "run", train_iters=2, preflight=True) == 0
    assert {n: (tmp_path / "run" / n).read_bytes() for n in before} == before


@pytest.mark.parametrize("flag", ["run_dir", "save", "tensorboard_dir"])
def test_a_folder_that_cannot_be_written_is_refused_before_step_0(tmp_path, trainer, capsys, flag):
    (tmp_path / "file").write_text("in the way")
    assert trainer.run(tmp_path / "run", **{flag: tmp_path / "file" / "sub"}) == 73
    said = capsys.readouterr()
    assert f"{tmp_path / 'file' / 'sub'}" in said.err and "choose another" in said.err and " iteration " not in said.out
    assert "Traceback" not in said.err


def test_no_room_for_a_checkpoint_is_refused(tmp_path, trainer, capsys, monkeypatch):
    real = shutil.disk_usage
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    assert trainer.run(tmp_path / "run") == 73
    assert f"and --save {tmp_path / 'run'} has 0.0 GiB free: make room" in capsys.readouterr().err


def test_a_model_that_cannot_fit_is_refused(tmp_path, trainer, capsys):
    assert trainer.run(tmp_path / "run", hidden_size=65536, num_layers=90, save=None, save_interval=None) == 73
    said = capsys.readouterr().err
    assert "GiB" in said and "take a smaller model" in said and "Traceback" not in said


def corpus_of(tmp_path, ids):
    prefix = str(tmp_path / "bad")
    with IndexedWriter(prefix, np.uint16) as writer:
        writer.add_document(np.asarray(ids))
    return prefix


def test_ids_beyond_the_vocabulary_are_refused(tmp_path, trainer, capsys):
    prefix = corpus_of(tmp_path, np.arange(8192) % 1000)
    assert trainer.run(tmp_path / "run", train_data_path=[prefix]) == 65
    said = capsys.readouterr().err
    assert prefix in said and "holds id" in said and "the tokenizer that made the corpus" in said and "Traceback" not in said


def test_reserved_ids_in_the_corpus_are_refused(tmp_path, trainer, capsys):
    """257 is the mask of a vocabulary of 257: it must not come out of the data."""
    prefix = corpus_of(tmp_path, np.full(8192, 257))
    assert trainer.run(tmp_path / "run", "mdm", train_data_path=[prefix]) == 65
    assert "holds id 257" in capsys.readouterr().err


def test_a_corpus_shorter_than_a_sample_is_refused(tmp_path, trainer, capsys):
    prefix = corpus_of(tmp_path, np.arange(20))
    assert trainer.run(tmp_path / "run", train_data_path=[prefix]) == 65
    assert "--seq-length 32 needs at least 33 tokens, has 20" in capsys.readouterr().err


def test_a_truncated_bin_is_refused(tmp_path, trainer, capsys, corpus):
    with open(f"{corpus}.bin", "r+b") as file:
        file.truncate(1000)
    assert trainer.run(tmp_path / "run") == 65
    said = capsys.readouterr().err
    assert f"{corpus}.bin" in said and "1000" in said and "Traceback" not in said


def test_a_missing_corpus_and_a_missing_vocabulary_are_named(tmp_path, trainer, capsys):
    assert trainer.run(tmp_path / "run", train_data_path=[tmp_path / "nowhere"]) == 66
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
    absent = {"vocab_file": tmp_path / "v.json", "merge_file": tmp_path / "m.txt"}
    assert trainer.run(tmp_path / "run", tokenizer_type="GPT2BPETokenizer", **absent) == 66
    assert str(tmp_path / "v.json") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_tight_memory_is_said_and_not_refused(tmp_path, trainer):
    where = Where(
        device=torch.device("cpu"), dtype=torch.float32, peak_flops=1e9, peak_source="", compile=False, compile_reason=""
    )
    argv = trainer.argv(tmp_path, micro_batch_size=4096, global_batch_size=4096, train_iters=1, seq_length=8192)
    cfg = parse(argv).with_vocabulary(257)
    assert "this may not fit: lower --micro-batch-size" in preflight.memory(cfg, where)
