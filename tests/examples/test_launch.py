"""examples/launch.sh: it starts a node's ranks, passes signals on, and ends as the rank that failed first."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHILD = 'echo "$RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $OMP_NUM_THREADS"'
WAIT = """exec "$PYTHON" -uc 'import os, signal, sys, time
def say(word):
    os.write(1, (os.environ["RANK"] + " " + word + chr(10)).encode())
def catch(number, frame):
    say(signal.Signals(number).name)
    sys.exit(85)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, catch)
say("waits")
time.sleep(60)'
"""
SITE = ("SLURM_", "OMP_", "MASTER_", "NNODES", "NODE_RANK", "NPROC")


def start(tmp_path, body, **settings):
    (tmp_path / "child.sh").write_text(body)
    environ = {k: v for k, v in os.environ.items() if not k.startswith(SITE)}
    return subprocess.Popen(
        ["bash", str(ROOT / "examples/launch.sh"), "bash", str(tmp_path / "child.sh")],
        text=True,
        env=environ | {"PYTHON": sys.executable} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(launched):
    said = launched.communicate(timeout=30)[0]
    return launched.returncode, sorted(said.splitlines())


def test_one_machine(tmp_path):
    code, said = finish(start(tmp_path, CHILD, NPROC_PER_NODE="3"))
    port = said[0].split()[2].removeprefix("127.0.0.1:")
    threads = max(1, os.cpu_count() // 3)
    assert code == 0 and said == [f"{rank}/3 {rank}/3 127.0.0.1:{port} {threads}" for rank in range(3)] and int(port) > 1023


def test_each_of_two_nodes_by_hand(tmp_path):
    second = {"NNODES": "2", "NODE_RANK": "1", "NPROC_PER_NODE": "2"}
    code, said = finish(start(tmp_path, CHILD, MASTER_ADDR="head", MASTER_PORT="29500", OMP_NUM_THREADS="5", **second))
    assert code == 0 and said == ["2/4 0/2 head:29500 5", "3/4 1/2 head:29500 5"]
    code, said = finish(start(tmp_path, CHILD, **second))
    assert code == 2 and "NNODES=2: set MASTER_ADDR (node 0) and MASTER_PORT (free there)" in said[0]


@pytest.mark.parametrize("name", ["NNODES", "NODE_RANK", "NPROC_PER_NODE", "GRACE_SECONDS"])
def test_what_is_no_number_is_refused_and_not_carried_out(tmp_path, name):
    code, said = finish(start(tmp_path, CHILD, **{"NPROC_PER_NODE": "1"} | {name: f"a[$(touch {tmp_path}/done)]"}))
    assert code == 2 and f"{name}=a[$(touch {tmp_path}/done)] must be a whole number" in said[0]
    assert not (tmp_path / "done").exists()


def test_a_slurm_step(tmp_path):
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho n1\necho n2\n")
    (tmp_path / "scontrol").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "123456", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "n[1-2]"}
    code, said = finish(start(tmp_path, CHILD, PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_GPUS_ON_NODE="2", **slurm))
    assert code == 0 and [line.split()[:3] for line in said] == [["2/4", "0/2", "n1:23456"], ["3/4", "1/2", "n1:23456"]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_reach_every_rank(tmp_path, number):
    launched = start(tmp_path, WAIT, NPROC_PER_NODE="2", LOG_DIR=str(tmp_path / "logs"))
    first = sorted(launched.stdout.readline() for _ in range(2))
    launched.send_signal(number)
    code, said = finish(launched)
    assert code == 85 and first == ["0 waits\n", "1 waits\n"] and said == [f"{rank} {number.name}" for rank in range(2)]
    assert len((tmp_path / "logs/node-0.log").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "body, code",
    [
        ("[[ $RANK == 1 ]] && exit 65; sleep 1; exit 75", 65),  # the others lost a peer: not the cause
        ("[[ $RANK == 1 ]] && { sleep 1; exit 65; }; exit 75", 65),
        ("[[ $RANK == 1 ]] && kill -9 $$; sleep 1; exit 75", 75),
        ("exit 86", 86),
        ("exit 75", 75),
    ],
)
def test_the_exit_code_is_the_causes(tmp_path, body, code):
    assert finish(start(tmp_path, body, NPROC_PER_NODE="3"))[0] == code


def test_ranks_that_are_asked_before_they_can_hear_had_nothing_to_save(tmp_path):
    launched = start(tmp_path, "echo up; exec sleep 300", NPROC_PER_NODE="2")
    for _ in range(2):
        launched.stdout.readline()
    launched.send_signal(signal.SIGTERM)
    assert finish(launched)[0] == 85


def test_ranks_that_do_not_end_by_themselves_are_ended(tmp_path):
    began = time.monotonic()
    code, said = finish(start(tmp_path, "[[ $RANK == 1 ]] && exit 65; exec sleep 300", NPROC_PER_NODE="3", GRACE_SECONDS="1"))
    assert code == 65 and time.monotonic() - began < 20
    assert any("a rank ended with 65; ending the 2 that are left" in line for line in said)
