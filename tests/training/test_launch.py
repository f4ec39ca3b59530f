"""Meeting: where, who is missing, who was told something else; and what several processes leave behind together."""

import json
import os
import socket
import stat
import subprocess
import sys

import pytest

from megatron.config import ConfigError
from megatron.core import checkpoint
from megatron.training import launch
from tests.training.conftest import ROOT, Ranks, free_port


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A scontrol that knows two nodes."""
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)


@pytest.mark.parametrize(
    "environ, where",
    [
        ({"MASTER_ADDR": "head", "MASTER_PORT": "29500"}, ("head", 29500)),
        ({"SLURM_JOB_ID": "123456", "SLURM_STEP_NODELIST": "n[1-2]"}, ("n1", 23456)),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "MASTER_PORT": "1234"}, ("n1", 1234)),
    ],
)
def test_where_they_meet(scontrol, environ, where):
    assert launch.endpoint(environ) == where


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"MASTER_ADDR": "head"},
        {"MASTER_ADDR": "head", "MASTER_PORT": "http"},
        {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "unknown"},
    ],
)
def test_no_place_to_meet_gets_a_sentence(scontrol, environ):
    with pytest.raises(ConfigError, match="MASTER_ADDR=.* MASTER_PORT=.*torchrun.*examples/launch.sh"):
        launch.endpoint(environ)


def test_a_host_that_does_not_exist(monkeypatch):
    with pytest.raises(ConfigError, match="MASTER_ADDR=no-such-host.invalid: .*; give the host of rank 0"):
        launch.find_server("no-such-host.invalid", 29500, 5)


def test_one_process_alone_joins_nothing(tmp_path, trainer):
    assert trainer.run(tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "exit.json").read_text()) == {
        "code": 0,
        "reason": "finished",
        "step": 12,
        "rank": 0,
        "requeue": False,
    }


def test_two_ranks_train_and_one_writes(tmp_path, trainer, records):
    with trainer.ranks(tmp_path / "run") as ranks:
        codes, (first, second) = ranks.end()
    assert codes == [0, 0] and "finished: " in first and second == ""
    run, found = json.loads((tmp_path / "run" / "run.json").read_text()), records(tmp_path / "run")
    assert (run["layout"]["world_size"], run["layout"]["data"], run["layout"]["zero_stage"]) == (2, 2, 0)
    assert [r["step"] for r in found if r["kind"] == "train"] == list(range(1, 13)) and found[0]["world_size"] == 2
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-3])
    assert last["tokens_per_gpu_per_sec"] == pytest.approx(last["tokens_per_sec"] / 2)
    checkpoint.verify(checkpoint.find(tmp_path / "run")[0])


def test_flags_that_differ_are_named_once_and_end_all(tmp_path, trainer):
    with trainer.ranks(tmp_path / "run", each={1: {"lr": 2e-3, "micro_batch_size": 2}}) as ranks:
        codes, said = ranks.end(timeout=30)
    assert codes == [2, 2] and "rank 1 has --lr 0.002, rank 0 has 0.001" in said[0]
    assert "rank 1 has --micro-batch-size 2, rank 0 has 4" in said[0] and said[1] == "" and "Traceback" not in said[0]
    assert not (tmp_path / "run").exists()


def test_a_rank_that_never_starts_is_named(tmp_path, trainer):
    with trainer.ranks(tmp_path / "run", world_size=3, each={1: None}, distributed_timeout=3) as ranks:
        codes, said = ranks.end(timeout=40)
    assert codes == [75, 75] and "rank 1, which did not start in " in said[0] and said[1] == ""


def test_a_missing_first_rank_is_named(tmp_path, trainer):
    with trainer.ranks(tmp_path / "run", each={0: None}, distributed_timeout=2) as ranks:
        codes, (said,) = ranks.end(timeout=30)
    assert codes == [75] and said.startswith("PeerLost: rank 0 did not start within --distributed-timeout: nothing answers at ")


def test_a_port_in_use_is_said(tmp_path, trainer, warm):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Ranks({0: [str(ROOT / "pretrain_gpt.py"), *trainer.argv(tmp_path / "run")]}, 2, port, warm.python) as ranks:
            codes, (said,) = ranks.end(timeout=30)
    assert codes == [2] and f"MASTER_PORT {port} is in use" in said and said.count("\n") == 1


def test_a_refusal_of_the_first_rank_ends_all(tmp_path, trainer):
    (tmp_path / "kill").touch()
    with trainer.ranks(tmp_path / "run", kill_switch_file=tmp_path / "kill") as ranks:
        codes, said = ranks.end(timeout=30)
    assert codes == [86, 86] and "exists: remove it to start" in said[0] and said[1] == ""


@pytest.mark.slow
def test_torchrun_and_its_store(tmp_path, trainer, records):
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
        str(ROOT / "pretrain_gpt.py"),
        *trainer.argv(tmp_path / "run"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and records(tmp_path / "run")[0]["world_size"] == 2, done.stderr


def test_children_of_tests_hash_as_two_pythons_do(warm):
    """What depends on the order of a set would differ between ranks here too; a seed that is given is kept."""

    def told(**more):
        return subprocess.run([warm.python, "-c", "print(hash('a'))"], env=os.environ | more, capture_output=True).stdout

    assert told() != told() and told(PYTHONHASHSEED="3") == told(PYTHONHASHSEED="3") != b""
