"""Being asked to stop, at any moment: a complete checkpoint, the right code, and a restart that is bit-exact."""

import json
import os
import random
import signal
import time

import pytest

from megatron import stopping
from megatron.config import parse
from megatron.core import checkpoint
from megatron.engine.native import NativeEngine
from megatron.rundir.names import step_and_attempt
from megatron.stopping import ASKED
from megatron.training import pretrain, run
from megatron.training.signals import StopRequest
from tests.failpoints import in_fork


def once(function, number, at_call):
    """`function`, which at its n-th call sends this process a signal half-way: the work goes on around it."""
    calls = []

    def signalled(*given, **named):
        calls.append(1)
        if len(calls) == at_call:
            os.kill(os.getpid(), number)
        return function(*given, **named)

    return signalled


MOMENTS = {
    "data build": (pretrain, "build_datasets", 1, 0),
    "preflight": (pretrain.preflight, "check", 1, 0),
    "mid-step": (NativeEngine, "step", 3, 3),
    "save": (checkpoint, "write_shard", 1, 4),
    "evaluation": (run, "evaluate", 1, 5),
}


@pytest.mark.parametrize(
    "moment, number",
    [*((moment, signal.SIGTERM) for moment in MOMENTS), ("mid-step", signal.SIGUSR1), ("mid-step", signal.SIGINT)],
)
def test_a_signal_saves_and_the_run_goes_on_bit_exactly(tmp_path, trainer, monkeypatch, hashes, records, capsys, moment, number):
    owner, name, at_call, step = MOMENTS[moment]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert trainer.run(whole) == 0
    capsys.readouterr()
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, once(getattr(owner, name), number, at_call))
        assert trainer.run(parts, load=parts) == 85
    assert signal.getsignal(number) is before
    said = capsys.readouterr().out
    assert f"stopped at step {step}: received {number.name}; " in said
    if step:
        assert f"; saved {checkpoint.find(parts)[0]}" in said and hashes(parts) == hashes(parts, step)
    assert not (parts / "result.json").exists()
    assert trainer.run(parts, load=parts) == 0
    assert records(parts) == records(whole) and hashes(parts) == hashes(whole)


@pytest.mark.parametrize("skip_train", [None, True])
def test_a_program_that_stands_by_leaves_at_once_where_nothing_is_to_save(tmp_path, trainer, monkeypatch, capfd, skip_train):
    """From the data to the first step, and all of an evaluation."""
    run_dir, given = tmp_path / "run", {}
    if skip_train:
        assert trainer.run(run_dir) == 0
        given = {"load": run_dir, "run_dir": tmp_path / "eval", "save": None, "save_interval": None, "skip_train": True}

    def standing_by(owner, name):
        monkeypatch.setattr(owner, name, once(getattr(owner, name), signal.SIGUSR1, 1))
        stopping.stand_by()
        return trainer.run(run_dir, **given)

    for owner, name in [(run, "evaluate")] if skip_train else [(pretrain, "build_datasets"), (pretrain, "Run")]:
        assert in_fork(lambda o=owner, n=name: standing_by(o, n), tmp_path)[0] == 85
        said = capfd.readouterr()
        assert said.err.endswith("received SIGUSR1, and there is nothing to save: the same command starts again\n")
        monkeypatch.undo()
        assert trainer.run(run_dir, **given) == 0  # and it does


def test_without_save_the_run_says_that_nothing_was_saved(tmp_path, trainer, monkeypatch, capsys):
    monkeypatch.setattr(NativeEngine, "step", once(NativeEngine.step, signal.SIGTERM, 2))
    assert trainer.run(tmp_path / "run", save=None, save_interval=None) == 85
    assert "nothing was saved: there is no --save" in capsys.readouterr().out


def test_a_signal_after_the_last_step_is_not_a_finished_run(tmp_path, trainer, monkeypatch):
    monkeypatch.setattr(NativeEngine, "step", once(NativeEngine.step, signal.SIGTERM, 12))
    assert trainer.run(tmp_path / "run") == 85 and not (tmp_path / "run" / "result.json").exists()
    assert trainer.run(tmp_path / "run", load=tmp_path / "run") == 0 and (tmp_path / "run" / "result.json").exists()


def test_kill_switch_at_start_refuses(tmp_path, trainer, capsys):
    (tmp_path / "kill").touch()
    assert trainer.run(tmp_path / "run", kill_switch_file=tmp_path / "kill") == 86
    assert f"--kill-switch-file {tmp_path / 'kill'} exists: remove it to start" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_kill_switch_in_mid_run_saves(tmp_path, trainer, monkeypatch, hashes, records, capsys):
    whole, parts, kill = tmp_path / "whole", tmp_path / "parts", tmp_path / "kill"
    step = NativeEngine.step

    def touching(self, batches, lr):
        if batches[0].index[0] == 8 * 6:
            kill.touch()
        return step(self, batches, lr)

    with monkeypatch.context() as patch:
        patch.setattr(NativeEngine, "step", touching)
        assert trainer.run(parts, kill_switch_file=kill) == 86
    assert "stopped at step 7: found --kill-switch-file" in capsys.readouterr().out
    kill.unlink()
    assert trainer.run(whole) == 0 and trainer.run(parts, load=parts, kill_switch_file=kill) == 0
    assert records(parts) == records(whole) and hashes(parts) == hashes(whole)


def test_exit_interval_stops_at_each_multiple_and_gets_to_the_end(tmp_path, trainer, hashes, records):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert trainer.run(whole) == 0
    codes = [trainer.run(parts, load=parts, exit_interval=5) for _ in range(3)]
    assert codes == [85, 85, 0]
    assert [step_and_attempt(p.name)[0] for p in checkpoint.find(parts)] == [12, 10, 8, 5, 4]
    assert records(parts) == records(whole) and hashes(parts) == hashes(whole)


def test_exit_duration_counts_from_the_start_of_the_process(tmp_path, trainer, monkeypatch, capsys):
    step = NativeEngine.step

    def slow(self, batches, lr):
        time.sleep(0.05)
        return step(self, batches, lr)

    monkeypatch.setattr(NativeEngine, "step", slow)
    assert trainer.run(tmp_path / "run", exit_duration_in_mins=0.3 / 60) == 85
    assert "reached --exit-duration-in-mins 0.005; saved" in capsys.readouterr().out


def test_the_second_signal_of_a_kind_has_its_default_effect(tmp_path, trainer):
    cfg = parse(trainer.argv(tmp_path)).train
    with StopRequest(cfg) as stop:
        assert stop.reason(1, 1) is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason(1, 1) == ("received SIGTERM", 85)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and signal.getsignal(signal.SIGUSR1) == stop.catch


def test_while_a_finished_run_is_scored_nothing_is_to_save(tmp_path, trainer):
    """Its scores may take long: the signals are then what they were before the run, as in a start's first moments."""
    found = []
    cfg = parse(trainer.argv(tmp_path, train_iters=1, eval_interval=1, final_scores="exact"), "ar")
    assert pretrain.main(cfg, lambda *_: found.append([signal.getsignal(number) for number in ASKED])) == 0
    assert found == [[signal.getsignal(number) for number in ASKED]]


def read_until(child, text):
    return next((line for line in child.stdout if text in line), None)


def test_a_real_process_saves_on_sigterm_and_dies_at_the_second(tmp_path, trainer):
    child = trainer.start(tmp_path / "run", train_iters=100_000, log_interval=5, save_interval=None, eval_interval=100_000)
    assert read_until(child, " iteration ")
    child.send_signal(signal.SIGTERM)
    said = child.communicate(timeout=60)[0]
    assert child.returncode == 85 and "received SIGTERM; saved" in said and "Traceback" not in said
    checkpoint.verify(checkpoint.find(tmp_path / "run")[0])

    slow = trainer.start(
        tmp_path / "slow",
        train_iters=10,
        seq_length=1024,
        hidden_size=256,
        micro_batch_size=4,
        global_batch_size=512,
        train_data_path=trainer.flags["train_data_path"],
        eval_iters=0,
    )
    assert read_until(slow, "preflight ok | compile")
    time.sleep(2)  # in the first step, which takes far longer than this test waits
    slow.send_signal(signal.SIGINT)
    time.sleep(2)
    slow.send_signal(signal.SIGINT)
    said = slow.communicate(timeout=10)[0]
    assert slow.returncode == -signal.SIGINT and "Traceback" not in said


@pytest.mark.slow
def test_killed_at_random_moments_a_run_comes_to_the_same_end(tmp_path, trainer, hashes, records):
    """SIGKILL, SIGTERM and SIGUSR1 at random moments of ten processes in turn; then the end, bit for bit."""
    flags = {"train_iters": 1000, "save_interval": 50, "eval_interval": 70, "log_interval": 30}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert trainer.run(whole, **flags) == 0
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(10):
        child = trainer.start(parts, load=parts, **flags)
        if rng.random() < 0.8:
            read_until(child, rng.choice(["preflight ok | environment", "preflight ok | compile", " iteration ", "saved "]))
        time.sleep(rng.uniform(0, 1.5))
        number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
        child.send_signal(number)
        said = child.communicate(timeout=60)[0]
        assert child.returncode in (0, 85, -number), said
        for path in checkpoint.find(parts):
            checkpoint.verify(path)
    assert trainer.run(parts, load=parts, **flags) == 0
    assert hashes(parts) == hashes(whole)
    assert records(parts) == records(whole)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_at_one_rank_stops_all_at_the_same_step(tmp_path, trainer, hashes, records, rank):
    flags = {"train_iters": 150, "log_interval": 10, "save_interval": None, "eval_interval": 1000}
    with trainer.ranks(tmp_path / "whole", **flags) as ranks:
        assert ranks.end()[0] == [0, 0]
    with trainer.ranks(tmp_path / "parts", **flags) as ranks:
        assert ranks.until(" iteration ")
        for _ in range(3):  # as when a scheduler signals all and a launcher passes it on
            ranks.children[rank].send_signal(signal.SIGTERM)
            time.sleep(0.01)
        codes, (said, silent) = ranks.end()
    assert codes == [85, 85] and "received SIGTERM; saved" in said and silent == ""
    assert json.loads((tmp_path / "parts" / "exit.json").read_text())["requeue"]
    with trainer.ranks(tmp_path / "parts", load=tmp_path / "parts", **flags) as ranks:
        assert ranks.end()[0] == [0, 0]
    assert records(tmp_path / "parts") == records(tmp_path / "whole") and hashes(tmp_path / "parts") == hashes(tmp_path / "whole")
    assert len(json.loads((tmp_path / "parts" / "run.json").read_text())["resumes"]) == 1


def test_the_kill_switch_is_for_the_first_rank_to_see(tmp_path, trainer):
    kill = tmp_path / "kill"
    with trainer.ranks(tmp_path / "run", train_iters=100_000, kill_switch_file=kill, eval_interval=100_000) as ranks:
        assert ranks.until(" iteration ")
        kill.touch()
        codes, (said, silent) = ranks.end()
    assert codes == [86, 86] and f"found --kill-switch-file {kill}; saved" in said and silent == ""


def test_in_a_world_a_signal_counts_once_for_a_while(tmp_path, trainer):
    with StopRequest(parse(trainer.argv(tmp_path)).train, world_size=2) as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason(1, 1) == ("received SIGTERM", 85) and signal.getsignal(signal.SIGTERM) == stop.catch
