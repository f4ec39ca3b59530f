"""What a run may go on from, what must agree, and what is said about it."""

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from megatron.config import declared, parse
from megatron.core import checkpoint
from megatron.data.indexed import IndexedWriter
from megatron.errors import Mismatch
from megatron.rundir.records import read
from megatron.scaling.table.registry import config_hash
from megatron.training import pretrain
from megatron.training.resume import check_agreement, differences

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def half(tmp_path, trainer):
    """A run that stopped at step 4 of 12."""
    assert trainer.run(tmp_path / "run", exit_interval=4) == 85
    return tmp_path / "run"


@pytest.mark.parametrize("objective", ["ar", "mdm"])
def test_twenty_steps_are_seven_and_thirteen(tmp_path, trainer, hashes, records, objective):
    """Dropout on, log lines and validations across the border."""
    flags = {"objective": objective, "train_iters": 20, "log_interval": 3, "exit_interval": 7}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert trainer.run(whole, **flags | {"exit_interval": None}) == 0
    assert [trainer.run(parts, **flags, load=parts) for _ in range(3)] == [85, 85, 0]
    assert records(parts) == records(whole) and hashes(parts) == hashes(whole)


def test_a_checkpoint_of_the_first_versions_goes_on(tmp_path, capsys):
    """tests/golden/step-00000003 was saved before parameters declared themselves; that version went on with these losses."""
    rng = np.random.default_rng(0)
    with IndexedWriter(str(tmp_path / "corpus"), np.uint16) as writer:
        for _ in range(16):
            writer.add_document(rng.integers(0, 250, 256))
    words = f"""--num-layers 2 --hidden-size 8 --num-attention-heads 2 --seq-length 16 --micro-batch-size 2 --global-batch-size 4
        --train-iters 6 --lr 3e-3 --tokenizer-type ByteTokenizer --split 80,20,0 --eval-iters 2 --log-interval 1 --num-threads 1
        --device cpu --data-path {tmp_path}/corpus --run-dir {tmp_path}/run --load {GOLDEN}/step-00000003"""
    assert pretrain.main(parse(words.split(), "mdm")) == 0, capsys.readouterr().err
    said = [r for _, r in read(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["step"] for r in said] == [4, 5, 6]
    assert [r["loss"] for r in said] == pytest.approx([3.900226, 4.580484, 4.679350], abs=2e-6)


@pytest.mark.slow
def test_a_compiled_run_goes_on_bit_exactly(tmp_path, trainer, hashes, records):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert trainer.run(whole, compile="on") == 0
    assert trainer.run(parts, compile="on", exit_interval=7) == 85 and trainer.run(parts, compile="on", load=parts) == 0
    assert records(parts) == records(whole) and hashes(parts) == hashes(whole)


def other_corpus(tmp_path):
    prefix = str(tmp_path / "other")
    with IndexedWriter(prefix, np.uint16) as writer:
        for start in range(0, 8192, 128):
            writer.add_document(np.arange(start, start + 128) % 250)
    return prefix


FATAL = {
    "architecture": ({"num_layers": 3, "hidden_size": 64}, ["--num-layers was 2, is 3", "--hidden-size was 32, is 64"]),
    "seed": ({"seed": 7}, ["--seed was 1234, is 7", "the train data was"]),
    "batch": ({"global_batch_size": 4}, ["--global-batch-size was 8, is 4"]),
    "objective": ({"objective": "mdm"}, ["--objective was ar, is mdm"]),
    "length": ({"seq_length": 16}, ["--seq-length was 32, is 16"]),
}


@pytest.mark.parametrize("what", FATAL)
def test_another_experiment_is_refused_with_every_difference(trainer, half, capsys, what):
    flags, sentences = FATAL[what]
    before = {p.name: p.read_bytes() for p in half.iterdir() if p.is_file() and p.name != "exit.json"}
    capsys.readouterr()
    assert trainer.run(half, load=half, **flags) == 78
    said = capsys.readouterr().err
    assert all(sentence in said for sentence in sentences) and f"{half / 'step-00000004'} was made by another experiment" in said
    assert ("or --finetune" in said) == (what not in ("architecture", "length"))  # which it would not help
    # the record and config.json too; exit.json tells of the refusal
    assert {p.name: p.read_bytes() for p in half.iterdir() if p.is_file() and p.name != "exit.json"} == before


def test_other_training_data_is_refused(tmp_path, trainer, half, capsys):
    assert trainer.run(half, load=half, train_data_path=["1", "0:0.8", other_corpus(tmp_path)]) == 78
    assert "the train data was" in capsys.readouterr().err


def test_the_same_data_elsewhere_is_the_same_data(tmp_path, trainer, half, corpus):
    moved = tmp_path / "moved"
    moved.mkdir()
    for end in (".bin", ".idx"):
        shutil.copy(corpus + end, moved / f"corpus{end}")
    paths = {"train_data_path": ["1", "0:0.8", moved / "corpus"], "valid_data_path": ["1", "0.8:1", moved / "corpus"]}
    assert trainer.run(half, load=half, **paths) == 0


def test_another_tokenizer_is_refused(trainer, half):
    loaded = checkpoint.load(half)
    prints = loaded.facts["fingerprints"]
    with pytest.raises(Mismatch, match="the tokenizer was .*, is ffff"):
        check_agreement(parse(trainer.argv(half)), loaded, prints | {"tokenizer": "ffff"}, print)


def test_a_change_of_lr_is_said_and_recorded(trainer, half, capsys):
    assert trainer.run(half, load=half, lr=5e-4, train_iters=16) == 0
    said = capsys.readouterr().out
    assert "changed since step-00000004: --lr was 0.001, is 0.0005" in said and "--train-samples was 96, is 128" in said
    (resumed,) = json.loads((half / "run.json").read_text())["resumes"]
    assert resumed["step"] == 4 and resumed["from"].endswith("step-00000004")
    assert "--lr was 0.001, is 0.0005" in resumed["changed"]


def test_what_does_not_change_the_run_may_change_silently(trainer, half, capsys):
    assert trainer.run(half, load=half, save_interval=3, log_interval=2, eval_interval=6, micro_batch_size=2) == 0
    assert "changed since" not in capsys.readouterr().out


def test_the_layout_may_change_silently(trainer, half):
    loaded, lines = checkpoint.load(half), []
    loaded.facts["config"]["parallel"] |= {"tensor_model_parallel_size": 2, "zero_stage": 3, "a_flag_of_another_version": 1}
    assert check_agreement(parse(trainer.argv(half)), loaded, loaded.facts["fingerprints"], lines.append) == []
    assert not lines


def test_a_flag_is_of_the_experiment_in_every_list_or_in_none(trainer, tmp_path):
    """What resume lets pass does not change the hash either; a config of a version without the flag had its default."""
    cfg = parse(trainer.argv(tmp_path))
    mine = config_hash(cfg.as_dict(), {})
    free = set()
    for name, (section, f, _) in declared().items():
        saved = cfg.as_dict()
        saved[section][name] = "another"
        found = [line for _, flag, line in differences(saved, cfg) if flag == name]
        assert (found == []) == (config_hash(saved, {}) == mine) == (f.metadata["identity"] == "free"), name
        free |= set() if found else {name}
        del saved[section][name]
        kept = getattr(getattr(cfg, section), name)
        assert (differences(saved, cfg) == []) == (name in free or kept == f.default), name
    assert {"recompute_granularity", "deterministic_mode", "max_skipped_steps", "eval_interval", "eval_seed", "save_at"} <= free
    assert {"train_data_path", "world_size", "run_dir", "compile"} <= free and not free & {
        "lr",
        "bf16",
        "seed",
        "attention_dropout",
    }


def test_finetune_takes_the_weights_and_starts_at_step_0(tmp_path, trainer, half, capsys):
    new = tmp_path / "new"
    assert (
        trainer.run(
            new, load=half, finetune=True, seed=7, lr=1e-4, train_data_path=["1", "0:0.8", other_corpus(tmp_path)], train_iters=3
        )
        == 0
    )
    trained = [r for _, r in read(new / "metrics.jsonl") if r["kind"] == "train"]
    fresh = [r for _, r in read(half / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["step"] for r in trained] == [1, 2, 3] and trained[0]["samples"] == 8
    assert abs(trained[0]["params_norm"] - fresh[-1]["params_norm"]) < 0.01
    assert "--seed was 1234, is 7" in capsys.readouterr().out
    assert trainer.run(tmp_path / "wide", load=half, finetune=True, hidden_size=64) == 78


def test_a_missing_checkpoint_is_named(tmp_path, trainer, half, capsys):
    assert trainer.run(tmp_path / "new", load=tmp_path / "nowhere") == 66
    assert f"--load {tmp_path / 'nowhere'}: there is no checkpoint in it" in capsys.readouterr().err
    assert trainer.run(tmp_path / "new", load=half / "step-00000099") == 66
    assert "there is no checkpoint" in capsys.readouterr().err


def test_load_that_is_save_and_empty_is_a_fresh_start(tmp_path, trainer, capsys):
    assert trainer.run(tmp_path / "run", load=tmp_path / "run", train_iters=2) == 0
    assert f"--load {tmp_path / 'run'} holds no checkpoint yet: starting from step 0" in capsys.readouterr().out
    assert "holds no checkpoint yet" in (tmp_path / "run" / "train.log").read_text()


def test_a_dumped_batch_is_no_checkpoint_to_go_on_from(tmp_path, trainer, half, capsys):
    loaded = checkpoint.load(half)
    facts = {name: loaded.facts[name] for name in ("config",)}
    dump = checkpoint.Saving(tmp_path / "bad_batches", 3, checkpoint.whole(loaded.tensors()), facts).finish()
    assert trainer.run(tmp_path / "new", load=dump) == 78
    assert "this is no training checkpoint" in capsys.readouterr().err


def test_a_damaged_newest_checkpoint_falls_back(tmp_path, trainer, hashes, records, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert trainer.run(whole) == 0 and trainer.run(parts, exit_interval=8) == 85
    before = checkpoint.find(parts)[1]
    shard = parts / "step-00000008" / "shard-00000-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    capsys.readouterr()
    assert trainer.run(parts, load=parts) == 0
    said = capsys.readouterr().out
    assert "checkpoint step-00000008 is refused" in said and "shard-00000-00001.safetensors: tensor" in said
    assert f"going on from {before}, the newest good checkpoint" in said
    assert records(parts) == records(whole) and hashes(parts, 12) == hashes(whole, 12)
    assert trainer.run(tmp_path / "new", load=parts / "step-00000008") == 65  # no other will do for one that is named


def test_only_damaged_checkpoints_are_no_fresh_start(trainer, half, capsys):
    (half / "step-00000004" / "manifest.json").write_text("{}")
    assert trainer.run(half, load=half) == 65
    assert "none of the 1 checkpoints" in capsys.readouterr().err


def test_a_full_disk_ends_the_run_with_the_earlier_checkpoint_intact(tmp_path, trainer, hashes, capsys):
    """RLIMIT_FSIZE stands for the disk: logs fit below it, a checkpoint with moments does not."""
    run = tmp_path / "run"
    assert trainer.run(run, exit_interval=4) == 85
    before, limit, saved = hashes(run, 4), 100_000, checkpoint.find(run)
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, soft[1]))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        code = trainer.run(run, load=run, eval_iters=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 73 and hashes(run, 4) == before
    said = capsys.readouterr()
    assert "the run goes on and tries again by step 9" in said.out and "CannotWrite: " in said.err
    assert json.loads((run / "exit.json").read_text())["code"] == 73
    assert checkpoint.find(run) == saved and not [n for n in os.listdir(run) if n.startswith(".tmp")]
    assert [r["step"] for _, r in read(run / "metrics.jsonl") if r["kind"] == "train"] == list(range(1, 13))
    assert trainer.run(run, load=run) == 0


def test_a_folder_of_another_run_is_refused(trainer, half, capsys):
    before = (half / "metrics.jsonl").read_bytes()
    assert trainer.run(half, seed=7) == 73
    said = capsys.readouterr().err
    assert f"{half} holds another run (--seed was 1234, is 7)" in said and (half / "metrics.jsonl").read_bytes() == before


def test_checkpoints_alone_are_of_a_run_too_and_a_finished_run_keeps_its_ending(tmp_path, trainer, half, capsys):
    alone = tmp_path / "average"  # as tools/average_checkpoints.py leaves one: no records beside it
    shutil.copytree(half / "step-00000004", alone / "step-00000004")
    for folders in ({"save": alone}, {"save": half}):
        assert trainer.run(tmp_path / "new", seed=7, **folders) == 73
        assert "holds another run (--seed was 1234, is 7)" in capsys.readouterr().err
    assert sorted(os.listdir(alone)) == [".lock", "step-00000004"]
    assert trainer.run(half, load=half) == 0
    ended = (half / "exit.json").read_bytes()
    assert trainer.run(half, load=half, hidden_size=64) == 78
    assert (half / "exit.json").read_bytes() == ended and json.loads(ended)["code"] == 0


def test_two_processes_cannot_share_a_folder(tmp_path, trainer, capsys):
    child = trainer.start(tmp_path / "run", train_iters=100_000, save_interval=None, eval_interval=100_000)
    try:
        assert any(" iteration " in line for line in child.stdout)
        assert trainer.run(tmp_path / "run", train_iters=100_000, save_interval=None, eval_interval=100_000) == 73
        assert "is in use by another running process" in capsys.readouterr().err
    finally:
        child.kill()
        child.communicate()
    assert trainer.run(tmp_path / "run", train_iters=100_000, save_interval=None, eval_interval=100_000, exit_interval=2) == 85
