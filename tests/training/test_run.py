"""Steps that are not finite, and what a run leaves in its directory."""

import importlib.util
import json
import math
import re
import threading

import pytest
import torch

from megatron.core import checkpoint
from megatron.core.checkpoint import Saving
from megatron.core.transformer import GPT
from megatron.engine import deepspeed
from megatron.engine.native import NativeEngine
from megatron.errors import CannotWrite
from megatron.rundir.names import step_and_attempt
from megatron.training import run as run_module
from megatron.training.branch import write_json
from megatron.training.run import Run


@pytest.fixture
def poison(monkeypatch):
    """Spoil the loss, or only its gradient, of every training micro-batch that holds one of these samples."""
    forward = GPT.forward

    def spoil(samples, what):
        def spoiled(self, batch):
            loss, nll, hit = forward(self, batch)
            if torch.is_grad_enabled() and set(samples) & set(batch.index.tolist()):
                if what == "gradient":
                    loss.register_hook(lambda grad: grad * math.nan)
                else:
                    loss = loss + {"nan loss": math.nan, "inf loss": math.inf}[what]
            return loss, nll, hit

        monkeypatch.setattr(GPT, "forward", spoiled)

    return spoil


@pytest.mark.parametrize("what", ["gradient", "nan loss", "inf loss"])
def test_a_step_that_is_not_finite_touches_nothing(tmp_path, trainer, poison, hashes, records, capsys, what):
    poison([8 * 5 + 6], what)  # the second micro-batch of step 6
    assert trainer.run(tmp_path / "run", save_interval=1) == 0
    said = capsys.readouterr().out
    assert hashes(tmp_path / "run", 6) == hashes(tmp_path / "run", 5)  # weights, both moments, the update count
    assert hashes(tmp_path / "run", 7) != hashes(tmp_path / "run", 6)
    trained = [r for r in records(tmp_path / "run") if r["kind"] == "train"]
    assert [r["step"] for r in trained] == list(range(1, 13)) and [r["skipped"] for r in trained] == [0] * 5 + [1] * 7
    assert [r["skipped_in_interval"] for r in trained] == [0] * 5 + [1] + [0] * 6
    assert "step 6 is not finite" in said and f"tools/replay.py {tmp_path / 'run' / 'bad_batches' / 'step-00000006'}" in said
    line = next(line for line in said.split("\n") if line.startswith(" iteration        6/"))
    assert "number of skipped iterations:   1 | number of nan iterations:   1" in line
    assert {"gradient": "grad norm: nan", "nan loss": "lm loss: NAN", "inf loss": "lm loss: INF"}[what].lower() in line.lower()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["skipped"] == 1


def test_the_dump_holds_the_batch_and_the_weights(tmp_path, trainer, poison, hashes):
    poison([43], "nan loss")
    trainer.run(tmp_path / "run", save_interval=1)
    dump = checkpoint.load(tmp_path / "run" / "bad_batches" / "step-00000006")
    tensors = dump.tensors()
    assert [tensors[f"batch/{i}/index"].tolist() for i in range(2)] == [[40, 41, 42, 43], [44, 45, 46, 47]]
    assert dump.facts["samples"] == 40 and dump.facts["loss"] == "nan" and dump.facts["config"]["train"]["seed"] == 1234
    kept, before = (
        {name: digest for name, digest in found.items() if name.startswith("model/")}
        for found in (hashes(tmp_path / "run" / "bad_batches", 6), hashes(tmp_path / "run", 5))
    )
    assert kept == before


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path, trainer, poison, capsys):
    poison(range(40, 80), "nan loss")  # steps 6 to 10
    assert trainer.run(tmp_path / "run", max_skipped_steps=2) == 87
    said = capsys.readouterr()
    assert "step 7 is not finite" in said.out and "step 8 is not finite" not in said.out
    assert "in a row were not finite" in said.err and "tools/replay.py" in said.err and "Traceback" not in said.err
    assert len(checkpoint.find(tmp_path / "run" / "bad_batches")) == 2
    assert not (tmp_path / "run" / "result.json").exists()


def test_scattered_bad_steps_do_not_end_the_run(tmp_path, trainer, poison, capsys):
    poison([8, 24, 40, 56, 72], "gradient")  # steps 2, 4, 6, 8, 10
    assert trainer.run(tmp_path / "run", max_skipped_steps=2) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["skipped"] == 5
    assert len(checkpoint.find(tmp_path / "run" / "bad_batches")) == 2
    assert "its batch is not kept: 2 are in" in capsys.readouterr().out


def test_skipped_steps_survive_a_restart(tmp_path, trainer, poison, hashes, records):
    poison([24, 56], "gradient")  # steps 4 and 8
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert trainer.run(whole, log_interval=3) == 0
    assert trainer.run(parts, log_interval=3, exit_interval=5) == 85
    assert trainer.run(parts, log_interval=3, load=parts) == 0
    assert records(parts) == records(whole) and hashes(parts) == hashes(whole)
    assert [r["skipped"] for r in records(parts) if r["kind"] == "train"][-1] == 2


def test_a_dump_that_cannot_be_written_does_not_end_the_run(tmp_path, trainer, poison, capsys):
    poison([24], "gradient")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "bad_batches").write_text("in the way")
    assert trainer.run(tmp_path / "run") == 0
    assert "its batch could not be kept" in capsys.readouterr().out


def test_weights_that_are_not_finite_are_never_saved(tmp_path, trainer, monkeypatch, capsys):
    step = NativeEngine.step

    def spoiling(self, batches, lr):
        done = step(self, batches, lr)
        if batches[0].index[0] == 8 * 7:
            with torch.no_grad():
                self.stages[0].norm.weight[3] = math.inf
        return done

    monkeypatch.setattr(NativeEngine, "step", spoiling)
    assert trainer.run(tmp_path / "run", eval_iters=0) == 65
    assert "model/norm.weight holds NaN or Inf: step 8 was not saved" in capsys.readouterr().err
    assert [p.name for p in checkpoint.find(tmp_path / "run")] == ["step-00000004"]


def test_a_run_directory_explains_itself(tmp_path, trainer):
    assert trainer.run(tmp_path / "run") == 0
    run, result = (json.loads((tmp_path / "run" / name).read_text()) for name in ("run.json", "result.json"))
    assert run["name"] == "run" and run["params"] == result["params"] and run["resumes"] == []
    assert run["environment"]["device"] == "cpu" and len(run["fingerprints"]["train"]) == 64
    assert result["steps"] == 12 and result["samples"] == 96 and result["tokens"] == 96 * 32 and result["bound"] == "exact"
    assert result["flops"] == 6 * result["params"] * result["tokens"] and result["lr_decayed"]
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names >= {"config.json", "train.log", "metrics.jsonl", "metrics.csv", "latest"}


def test_an_evaluation_adds_what_is_new_to_the_record_and_starts_no_run(tmp_path, trainer, records):
    trainer.run(tmp_path / "run")
    before = records(tmp_path / "run")
    assert trainer.run(tmp_path / "run", skip_train=True, load=tmp_path / "run") == 0
    after, found = records(tmp_path / "run"), json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert after == before and found["valid"]["loss"] == before[-1]["loss"]  # this number was there
    trainer.run(tmp_path / "run", skip_train=True, load=tmp_path / "run", eval_iters=2)
    assert records(tmp_path / "run")[:-1] == before and records(tmp_path / "run")[-1]["rows"] == 16
    assert (tmp_path / "run" / "result.json").exists()


def test_a_finished_run_started_again_ends_with_the_same_record(tmp_path, trainer, records):
    """Also what a kill between the last save and the result needs."""
    run = tmp_path / "run"
    trainer.run(run, load=run)
    before, result, saved = records(run), json.loads((run / "result.json").read_text()), checkpoint.find(run)
    assert trainer.run(run, load=run) == 0
    again = json.loads((run / "result.json").read_text())
    assert records(run) == before and again["loss"] == result["loss"] and again["best_loss"] == result["best_loss"]
    assert checkpoint.find(run) == saved
    (run / "result.json").unlink()
    assert trainer.run(run, load=run) == 0 and (run / "result.json").exists() and records(run) == before


def test_write_json_leaves_the_old_file_when_it_cannot(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    with pytest.raises(CannotWrite, match="cannot be written"):
        write_json(tmp_path / "missing" / "a.json", {})


@pytest.mark.parametrize("objective", ["ar", "mdm"])
def test_validation_sets_by_name(tmp_path, trainer, records, corpus, objective, capsys):
    """The first set is the run's own, as if it were alone; the others have curves and errors of their own."""
    for name, marks in (("near", "0.8:0.9"), ("far", "0.9:1")):
        (tmp_path / f"{name}.txt").write_text(f"1 {marks} {corpus}")
    sets = [f"{name}={tmp_path / name}.txt" for name in ("near", "far")]
    assert trainer.run(tmp_path / "both", objective, valid_data_path=None, valid_data_path_file=sets) == 0
    assert trainer.run(tmp_path / "one", objective, valid_data_path=["1", "0.8:0.9", corpus]) == 0
    found = {kind: [r["loss"] for r in records(tmp_path / "both") if r["kind"] == kind] for kind in ("val", "val-far")}
    assert found["val"] == [r["loss"] for r in records(tmp_path / "one") if r["kind"] == "val"]
    assert len(found["val-far"]) == 3 and found["val"] != found["val-far"]
    result = json.loads((tmp_path / "both" / "result.json").read_text())
    assert result["loss"] == result["valid_sets"]["near"]["loss"] == found["val"][-1]
    far = result["valid_sets"]["far"]
    assert far["loss"] == found["val-far"][-1] and far["loss_se_data"] > 0 and far["rows"] == 8
    assert far["loss_se_noise"] == 0 if objective == "ar" else far["loss_se_noise"] > 0
    assert "validation loss at iteration 12 on set far" in capsys.readouterr().out


def test_checkpoints_at_given_steps_are_kept(tmp_path, trainer):
    assert trainer.run(tmp_path / "run", save_interval=None, save_at=[3, 7, 99], keep_last=1) == 0
    assert sorted(step_and_attempt(path.name)[0] for path in checkpoint.find(tmp_path / "run")) == [3, 7, 12]


@pytest.fixture
def slow_disk(monkeypatch):
    """Writing a rank's part takes as long as the training lets it: each may begin only when step `step` of the run is done."""
    write, original = checkpoint.write_part, NativeEngine.step

    def until(step):
        done = threading.Event()

        def stepping(self, batches, lr):
            if batches[0].index[0] == 8 * (step - 1):
                done.set()
            return original(self, batches, lr)

        def waited(aside):
            return "bad_batches" in aside.parts or done.wait(60)

        monkeypatch.setattr(NativeEngine, "step", stepping)
        monkeypatch.setattr(checkpoint, "write_part", lambda aside, *given: waited(aside) and write(aside, *given))

    return until


def test_a_thread_that_saves_changes_nothing(tmp_path, trainer, slow_disk, records, hashes, capsys):
    """Checkpoints hold what was there when they began: the first is written while three further steps are done."""
    flags = {"eval_iters": 0, "ema": 0.9, "objective": "mdm"}
    assert trainer.run(tmp_path / "plain", **flags) == 0
    slow_disk(7)
    assert trainer.run(tmp_path / "beside", async_save=True, **flags) == 0
    lines = capsys.readouterr().out.partition("beside")[2]
    assert (
        lines.index(" iteration        6/")
        < lines.index("saved")
        < lines.index("step-00000004")
        < lines.index(" iteration        9/")
    )
    for step in (4, 8, 12):
        assert hashes(tmp_path / "plain", step) == hashes(tmp_path / "beside", step)
    assert records(tmp_path / "beside") == records(tmp_path / "plain")
    assert len(checkpoint.find(tmp_path / "beside")) == 3


@pytest.fixture
def full_disk(monkeypatch):
    """The first so many parts of checkpoints cannot be written, which is noticed one step later or, not `noticed`, when asked."""
    write, calls = checkpoint.write_part, []

    def failing(*given):
        calls.append(1)
        if len(calls) <= failing.failures:
            raise OSError(28, "No space left on device")
        return write(*given)

    def fill(failures, noticed=True):
        failing.failures = failures
        monkeypatch.setattr(checkpoint, "write_part", failing)
        monkeypatch.setattr(Saving, "is_written", lambda self: noticed and (self.future.exception() or True))

    return fill


@pytest.mark.parametrize("failures, code, saved", [(1, 0, [6, 8, 12]), (99, 73, [])])
def test_a_thread_that_cannot_save_is_heard_and_the_save_tried_again(tmp_path, trainer, full_disk, capsys, failures, code, saved):
    full_disk(failures)
    assert trainer.run(tmp_path / "run", eval_iters=0, async_save=True) == code
    said = capsys.readouterr()
    assert re.findall(r"step-0*(\d+) was not written: .*; the run goes on and tries again by step (\d+)", said.out) == (
        [("4", "6")] if code == 0 else [("4", "6"), ("6", "9"), ("8", "12")]
    )
    assert ("step-00000012 was not written" in said.err) == (code == 73)
    assert sorted(step_and_attempt(path.name)[0] for path in checkpoint.find(tmp_path / "run")) == saved
    assert not list((tmp_path / "run").glob(".tmp-*"))


def test_what_is_promised_of_a_failed_save_is_kept(tmp_path, trainer, full_disk, poison, monkeypatch, capsys):
    """One met by the next save, which fails too, is owed once; one met by the end of a run that fails is owed no more."""
    full_disk(99, noticed=False)
    make, begun = checkpoint.make_aside, []

    def once(*given):
        begun.append(1)
        return make(*given) if len(begun) == 1 else fail()

    def fail():
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "make_aside", once)
        assert trainer.run(tmp_path / "full", eval_iters=0, async_save=True) == 73
    said = capsys.readouterr().out
    assert re.findall(r"step-0*(\d+) was not written", said) == ["4", "8", "9", "11"]
    assert re.findall(r"tries again by step (\d+)", said) == ["9", "11", "12"]
    poison(range(8 * 4, 99), "gradient")
    assert trainer.run(tmp_path / "failed", eval_iters=0, async_save=True, max_skipped_steps=2) == 87
    said = capsys.readouterr().out
    assert "step-00000004 was not written: No space" in said and "tries again" not in said


def test_a_run_that_is_stopped_or_fails_still_publishes_what_was_being_saved(tmp_path, trainer, slow_disk, poison):
    slow_disk(6)
    assert trainer.run(tmp_path / "stopped", eval_iters=0, async_save=True, exit_interval=6) == 85
    assert [path.name for path in checkpoint.find(tmp_path / "stopped")] == ["step-00000006", "step-00000004"]
    slow_disk(6)
    poison(range(8 * 4, 99), "gradient")
    assert trainer.run(tmp_path / "failed", eval_iters=0, async_save=True, max_skipped_steps=2) == 87
    assert [path.name for path in checkpoint.find(tmp_path / "failed")] == ["step-00000004"]


def test_what_is_written_does_not_wait_for_evaluations(tmp_path, trainer, monkeypatch, capsys):
    """Written during one, it is published before the next step; the last validation begins when it is published."""
    write, evaluate, settle, done = checkpoint.write_part, run_module.evaluate, Run.settle, threading.Event()

    def evaluating(*given):
        done.set()
        return evaluate(*given)

    def settling(self):
        done.set()
        return settle(self)

    monkeypatch.setattr(run_module, "evaluate", evaluating)
    monkeypatch.setattr(checkpoint, "write_part", lambda *given: done.wait(60) and write(*given))
    monkeypatch.setattr(Saving, "is_written", lambda self: done.is_set() and (self.future.exception() or True))
    assert trainer.run(tmp_path / "during", async_save=True, train_iters=6) == 0
    monkeypatch.setattr(run_module, "evaluate", evaluate)
    monkeypatch.setattr(Run, "settle", settling)
    done.clear()
    assert trainer.run(tmp_path / "last", async_save=True, train_iters=6, eval_interval=9) == 0
    during, last = capsys.readouterr().out.split("finished: ")[:2]
    for said, after in ((during, " iteration        6/"), (last, "validation loss at iteration 6")):
        assert -1 < said.find("step-00000004") < said.index(after)


WORLD = """
import sys, threading, time
from pathlib import Path
from megatron.config import parse
from megatron.core import checkpoint
from megatron.core.checkpoint import Saving
from megatron.errors import TooManyBadSteps
from megatron.training import loop
from megatron.training.pretrain import main
begin, write, step, done = Saving.__init__, checkpoint.write_part, loop.one_step, {6: threading.Event(), 10: threading.Event()}
def stepping(cfg, engine, objective, data, run, at, *rest):
    found = step(cfg, engine, objective, data, run, at, *rest)
    if at.step + 1 in done:
        done[at.step + 1].set()
    before_next(run.mesh.world.rank, at.step + 1)
    return found
loop.one_step = stepping
"""
SLOW = """
def beginning(self, folder, at, pieces, facts, **named):
    if named.get("beside"):
        Saving(Path(folder) / "at-once", at, pieces, facts, group=named["group"], say=named["say"]).finish()
    begin(self, folder, at, pieces, facts, **named)
def writing(aside, rank, pieces):
    if rank == 1 and threading.current_thread() is not threading.main_thread():
        assert done[6 if "step-00000004" in aside.name else 10].wait(60)
    return write(aside, rank, pieces)
def before_next(rank, step):
    if step == 10:
        raise TooManyBadSteps("enough")
Saving.__init__, checkpoint.write_part = beginning, writing
"""
BROKEN = """
failed = threading.Event()
def writing(aside, rank, pieces):
    if rank == 1 and "step-00000004" in aside.name:
        failed.set()
        raise OSError(28, "No space left on device")
    if rank == 1 and "step-00000008" in aside.name:
        time.sleep(600)
    return write(aside, rank, pieces)
def before_next(rank, step):
    if step == 5 and rank == 1:
        failed.wait(60)
    if step == 10 and rank == 1:
        raise ZeroDivisionError("oops")
checkpoint.write_part = writing
"""
START = "sys.exit(main(parse(sys.argv[1:], {!r})))"


@pytest.mark.parametrize(
    "objective, flags",
    [
        ("ar", {"zero_stage": 1}),
        pytest.param("mdm", {"atat": "learned", "ema": 0.9}, marks=pytest.mark.slow),
        pytest.param("mdm", {"deepspeed": True, "zero_stage": 1}, marks=pytest.mark.slow),
    ],
)
def test_ranks_publish_what_their_threads_wrote(tmp_path, trainer, hashes, objective, flags):
    """A rank's slow disk changes no byte; an end that all ranks come to publishes what is on its way."""
    if "deepspeed" in flags and not deepspeed_is_there():
        pytest.skip("DeepSpeed or its op is not there: run once: python -m megatron.engine.deepspeed")
    code = WORLD + SLOW + START.format(objective)
    with trainer.ranks(tmp_path / "run", code=code, eval_iters=0, async_save=True, **flags) as ranks:
        codes, (said, _) = ranks.end(timeout=120)
    assert codes == [87, 87], said
    lines = said.splitlines()
    published = next(i for i, line in enumerate(lines) if line.startswith("saved") and "at-once" not in line)
    assert any(line.startswith(" iteration        6/") for line in lines[:published])
    assert not any(line.startswith(" iteration        9/") for line in lines[:published])
    for step in (4, 8):
        assert hashes(tmp_path / "run", step) == hashes(tmp_path / "run" / "at-once", step)
    assert [path.name for path in checkpoint.find(tmp_path / "run")] == ["step-00000008", "step-00000004"]


def deepspeed_is_there():
    deepspeed.set_environment(on_cpu=True)
    return importlib.util.find_spec("deepspeed") and all(map(deepspeed.is_built, deepspeed.OPS))


def test_a_rank_that_fails_does_not_wait_for_its_thread(tmp_path, trainer):
    """What one rank's thread cannot write, nobody saves, and all try again; a thread that hangs keeps nobody from ending."""
    with trainer.ranks(tmp_path / "run", code=WORLD + BROKEN + START.format("ar"), eval_iters=0, async_save=True) as ranks:
        codes, (said, other) = ranks.end()
    assert codes == [70, 70] and "ZeroDivisionError: oops" in other, said + other
    again = re.findall(r"rank 1: checkpoint .*step-00000004 was not written: No space .* tries again by step (\d)", said)
    assert [path.name for path in checkpoint.find(tmp_path / "run")] == [f"step-0000000{again[0]}"]
