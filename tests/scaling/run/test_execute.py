"""Carrying out a plan, with a stand-in for the trainer that writes its folder, fails, dies or is stopped as its flags say."""

import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from megatron.errors import MissingInput
from megatron.flags import ConfigError
from megatron.scaling.run import execute
from megatron.scaling.run.execute import Start, choose_start, command_line, run_plan
from megatron.scaling.run.progress import stand

STAND_IN = """
import json, os, shlex, signal, sys, time
from pathlib import Path
code = 0
for line in Path(sys.argv[1]).read_text().splitlines():
    words = shlex.split(line)
    value = dict(zip(words, words[1:]))
    folder = Path(value["--save"])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "order", "a") as order:
        order.write(f"{folder.name} {os.path.relpath(value['--load'], folder.parent)} {os.environ.get('NPROC_PER_NODE', '')}\\n")
    (folder / "exit.json").unlink(missing_ok=True)
    (folder / ".lock").touch()
    does = value.get("--does", "")
    if does == "wait":
        stopped = []
        signal.signal(signal.SIGUSR1, lambda *_: stopped.append(1))
        (folder / "ready").touch()
        while not stopped:
            time.sleep(0.01)
        sys.exit(85)
    if does == "die" and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if does.startswith("fail"):
        said = {"code": int(does[4:]), "reason": "BadData: a sentence", "step": 3, "rank": 0, "requeue": False}
        (folder / "exit.json").write_text(json.dumps(said))
        code = 1
        continue
    if "--saves" in value:
        checkpoint = folder / f"step-{int(value['--saves']):08}"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "manifest.json").touch()
    (folder / "result.json").write_text(json.dumps({"loss": float(value.get("--loss", 1.5)), "steps": 10, "seconds": 2.0}))
sys.exit(code)
"""


def entry(name, *flags, **more):
    return {
        "name": name,
        "entry": "pretrain_gpt.py",
        "flags": list(flags),
        "tokens": 1000,
        "steps": 10,
        "flops_6nd": 1e6,
        "params": 100,
        "trunk": None,
        "forecast": {"hours": 1 / 3600},
    } | more


def branch(name, trunk, step, *flags):
    return entry(name, *flags, trunk=trunk, load={"run": trunk, "step": step})


@pytest.fixture
def carry_out(tmp_path, monkeypatch):
    """Run members in tmp_path/runs by the stand-in. -> (exit code, [name, what it loaded, ranks] in order, what was said)"""
    checkout = tmp_path / "checkout"
    for name, text in (("tools/run_list.py", STAND_IN), ("pretrain_gpt.py", ""), ("examples/launch.sh", 'exec "$@"')):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text)
    monkeypatch.setattr(execute, "ROOT", checkout)
    monkeypatch.delenv("NPROC_PER_NODE", raising=False)

    def run(members, how="one-by-one", nproc=1, halving=(), **options):
        said, order = [], tmp_path / "runs/order"
        order.unlink(missing_ok=True)
        code = run_plan(
            SimpleNamespace(runs=members, halving=halving),
            tmp_path / "runs",
            Start(how=how, nproc=nproc),
            say=said.append,
            **options,
        )
        assert not list((tmp_path / "runs").glob(".commands*"))
        return code, [line.split() for line in order.read_text().splitlines()] if order.exists() else [], "\n".join(said)

    return run


@pytest.mark.parametrize("how", ["one-by-one", "in-process"])
def test_a_failed_member_does_not_end_the_others_and_is_retried_only_when_asked(how, carry_out, tmp_path):
    members = [entry("a"), entry("b", "--does", "fail65"), entry("c")]
    code, order, said = carry_out(members, how)
    assert (code, [name for name, *_ in order]) == (1, ["a", "b", "c"])
    assert "b FAILED: BadData: a sentence" in said and "3 runs: 2 done, 1 failed, 0 unfinished" in said
    code, order, said = carry_out(members, how)
    assert (code, order) == (1, []) and "a is finished: skipped" in said and "--retry-failed starts it again" in said
    members[1]["flags"] = []
    code, order, _ = carry_out(members, how, retry_failed=True)
    assert (code, order) == (0, [["b", "b"]])


def test_a_lost_process_asks_for_another_start_unless_something_failed(carry_out):
    lost, failed = entry("b", "--does", "fail75"), entry("c", "--does", "fail65")
    assert carry_out([entry("a"), lost])[0] == 75
    assert carry_out([entry("a"), lost, failed])[0] == 1


def test_a_run_alone_ends_with_its_own_code(carry_out):
    assert carry_out([entry("a"), entry("b", "--does", "fail78")], only=["b"])[:2] == (78, [["b", "b"]])


@pytest.mark.parametrize("how", ["one-by-one", "in-process"])
def test_a_process_that_is_killed_is_one_failure(how, carry_out, tmp_path):
    code, order, said = carry_out([entry("a", "--does", "die"), entry("b"), entry("c")], how)
    assert (code, [name for name, *_ in order]) == (75, ["a", "b", "c"])
    assert "a stopped: its process was lost (exit code -9)" in said
    told = json.loads((tmp_path / "runs/a/exit.json").read_text())
    assert (told["code"], told["requeue"]) == (75, True)
    assert carry_out([entry("a", "--does", "die")], how, retry_failed=True)[0] == 0


@pytest.mark.parametrize("how", ["one-by-one", "in-process"])
def test_an_earlier_failure_is_not_taken_for_todays(how, carry_out, tmp_path):
    for name in ("a", "b"):
        carry_out([entry(name, "--does", "fail65")], how)
    code, order, said = carry_out([entry("a", "--does", "die"), entry("b")], how, retry_failed=True)
    assert (code, [name for name, *_ in order]) == (75, ["a", "b"])
    assert "a stopped: its process was lost (exit code -9)" in said and "2 runs: 1 done, 0 failed" in said


def test_branches_start_after_their_trunk_from_its_checkpoint(carry_out):
    members = [branch("short", "trunk", 4), branch("long", "trunk", 8, "--saves", "10"), entry("trunk", "--saves", "4")]
    code, order, said = carry_out(members)
    assert (code, order) == (1, [["trunk", "trunk"], ["short", "trunk/step-00000004"]])
    assert "long cannot start: its trunk trunk has no checkpoint of step 8" in said


def test_a_branch_with_a_checkpoint_of_its_own_goes_on_from_that(carry_out, tmp_path):
    (tmp_path / "runs/short/step-00000006.a1").mkdir(parents=True)
    (tmp_path / "runs/short/step-00000006.a1/manifest.json").touch()
    assert carry_out([branch("short", "trunk", 4)])[:2] == (0, [["short", "short"]])


def test_a_tuned_run_begins_with_the_weights_of_a_finished_one_and_goes_on_from_its_own(carry_out, tmp_path):
    tuned = entry("tuned", load={"run": "base", "step": 0, "finetune": True})
    code, order, _ = carry_out([tuned, entry("base", "--saves", "9")])
    assert (code, [words[:2] for words in order]) == (0, [["base", "base"], ["tuned", "base"]])
    runs = tmp_path / "runs"
    assert command_line(tuned, runs)[1:6] == ["--save", str(runs / "tuned"), "--load", str(runs / "base"), "--finetune"]
    (runs / "tuned" / "step-00000004").mkdir()
    (runs / "tuned" / "step-00000004" / "manifest.json").touch()
    assert "--finetune" not in command_line(tuned, runs)
    code, _, said = carry_out([entry("other", load={"run": "nowhere", "step": 0, "finetune": True})])
    assert code == 1 and "nowhere, whose weights it begins with, has not finished" in said


def test_branches_of_a_trunk_that_failed_wait(carry_out):
    code, order, said = carry_out([entry("trunk", "--does", "fail87"), branch("short", "trunk", 4), entry("other")], "in-process")
    assert (code, [name for name, *_ in order]) == (1, ["trunk", "other"])
    assert "short cannot start" in said and "3 runs: 1 done, 1 failed, 1 unfinished" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_the_run_and_starts_no_other(number, carry_out, tmp_path):
    def interrupt():
        while not (tmp_path / "runs/a/ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    before = signal.getsignal(number)
    code, order, _ = carry_out([entry("a", "--does", "wait"), entry("b")])
    assert (code, order) == (85, [["a", "a"]]) and signal.getsignal(number) == before
    assert carry_out([entry("a"), entry("b")])[:2] == (0, [["a", "a"], ["b", "b"]])


def test_several_ranks_start_through_the_launcher(carry_out):
    code, order, _ = carry_out([entry("a")], "torchrun", nproc=4)
    assert (code, order) == (0, [["a", "a", "4"]])


def test_several_nodes_of_a_job_start_by_srun(monkeypatch, tmp_path):
    start = Start(how="torchrun", nproc=8, nodes=2)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert start.words()[0] == "bash" and start.environ(tmp_path)["LOG_DIR"] == str(tmp_path / "logs")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert start.words()[:4] == ["srun", "--nodes=2", "--ntasks-per-node=1", "bash"]


@pytest.mark.parametrize(
    "gpus, flags, asked, how",
    [
        (0, [], {}, "in-process"),
        (1, [], {}, "one-by-one"),
        (8, [], {}, "torchrun"),
        (8, ["--device", "cpu"], {}, "in-process"),
        (0, [], {"nproc": 2}, "torchrun"),
        (8, [], {"how": "one-by-one"}, "one-by-one"),
    ],
)
def test_how_runs_start_by_themselves(gpus, flags, asked, how, monkeypatch):
    monkeypatch.setattr(execute, "num_gpus", lambda: gpus)
    monkeypatch.delenv("NPROC_PER_NODE", raising=False)
    plan = SimpleNamespace(runs=[entry("a", *flags)])
    assert choose_start(plan, **{"how": "auto", "processes": None, "nproc": None, "nodes": 1} | asked).how == how


def test_ranks_of_the_environment_are_a_number(monkeypatch):
    monkeypatch.setenv("NPROC_PER_NODE", "a[1]")
    with pytest.raises(ConfigError, match=r"NPROC_PER_NODE=a\[1\] must be a whole number"):
        choose_start(SimpleNamespace(runs=[]), "auto", None, None, 1)


def test_a_run_has_a_kill_switch_of_its_own(tmp_path):
    folder = str(tmp_path / "a")
    assert command_line(entry("a"), tmp_path)[1:] == ["--save", folder, "--load", folder, "--kill-switch-file", f"{folder}/kill"]
    assert command_line(entry("a", "--kill-switch-file", "x"), tmp_path).count("--kill-switch-file") == 1


def test_a_run_that_another_process_has_is_left_alone(carry_out, tmp_path):
    import fcntl

    (tmp_path / "runs/a").mkdir(parents=True)
    with open(tmp_path / "runs/a/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, order, said = carry_out([entry("a"), entry("b")])
        assert stand(entry("a"), tmp_path / "runs/a").state == "running"
    assert (code, order) == (1, [["b", "b"]]) and "a is running in another process" in said


def test_refusals(carry_out, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="--only z: the plan has no such run"):
        carry_out([entry("a")], only=["z"])
    monkeypatch.setattr(execute, "ROOT", tmp_path)
    with pytest.raises(MissingInput, match="run from a checkout"):
        carry_out([entry("a")])
