"""Job arrays of a plan: the script's text, and what it does with signals, by a stand-in for the run and for scontrol."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from megatron.errors import MissingInput
from megatron.scaling.run.execute import Start
from megatron.scaling.run.slurm_array import SubmissionRefused, array_script, levels, spell_indices, submit


def test_indices():
    assert [spell_indices(x) for x in ([3], [2, 0, 1, 5], [0, 2, 4], list(range(30)))] == ["3", "0-2,5", "0,2,4", "0-29"]


def test_the_script_says_all_that_an_array_needs(tmp_path):
    text = array_script(
        tmp_path / "my plan.json",
        tmp_path / "runs",
        [0, 1, 4],
        Start(how="slurm", nproc=8, nodes=2),
        gpus=8,
        at_a_time=4,
        sbatch=["--partition=gpu", "--time=24:00:00"],
    )
    header = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {
        "--job-name=my-plan",
        "--array=0-1,4%4",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--requeue",
        "--open-mode=append",
        "--signal=B:USR1@120",
        "--partition=gpu",
        "--time=24:00:00",
    } <= set(header)
    assert f"run '{tmp_path}/my plan.json' --runs-dir {tmp_path}/runs --how torchrun --nproc 8 --nodes 2 --only-index" in text
    assert "--gpus" not in array_script(tmp_path / "p.json", tmp_path, [0], Start(how="slurm"), gpus=0)
    assert "--how one-by-one" in array_script(tmp_path / "p.json", tmp_path, [0], Start(how="slurm"), gpus=1)


def test_values_with_spaces_reach_slurm_whole(tmp_path):
    words = ["--comment=two words", "--exclusive", "--partition=gpu"]
    text = array_script(tmp_path / "p.json", tmp_path / "my 5% runs", [0], Start(how="slurm"), gpus=0, sbatch=words)
    lines = [shlex.split(line.removeprefix("#SBATCH ")) for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert all(len(line) == 1 for line in lines) and [[word] for word in words] == lines[-3:]
    assert [f"--output={tmp_path}/my 5%% runs/slurm/%x-%A_%a.out"] in lines


def test_trunks_are_submitted_before_their_branches():
    runs = [
        {"name": "b", "load": {"run": "t", "step": 4}},
        {"name": "t"},
        {"name": "x"},
        {"name": "c", "load": {"run": "done", "step": 1}},
    ]
    assert [[run["name"] for run in level] for level in levels(runs)] == [["t", "x", "c"], ["b"]]


def stand_in(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/bin/bash\n" + text)
    (folder / name).chmod(0o755)


def test_arrays_wait_for_each_other(tmp_path, monkeypatch):
    stand_in(tmp_path / "bin", "sbatch", f'echo "$*" >>{tmp_path}/calls\nwc -l <{tmp_path}/calls\n')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert submit(["one\n", "two\n"], tmp_path / "runs", "plan") == ["1", "2"]
    first, second = (tmp_path / "calls").read_text().splitlines()
    assert first == f"--parsable {tmp_path}/runs/slurm/plan-0.sh" and "--dependency=afterany:1" in second
    stand_in(tmp_path / "bin", "sbatch", "echo invalid partition >&2; exit 1\n")
    with pytest.raises(SubmissionRefused, match="invalid partition"):
        submit(["one\n"], tmp_path / "runs", "plan")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingInput, match="sbatch is not on the PATH"):
        submit(["one\n"], tmp_path / "runs", "plan")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("code, restarts, requeued", [(85, 30, True), (86, 0, False), (75, 9, True), (75, 10, False)])
def test_a_preempted_task_saves_and_goes_back_to_the_queue(number, code, restarts, requeued, tmp_path):
    stand_in(tmp_path / "bin", "scontrol", f'echo "$*" >{tmp_path}/requeued\n')
    stand_in(tmp_path / "bin", "python", f"trap 'exit {code}' USR1\ntouch {tmp_path}/ready\nwhile :; do sleep 0.02; done\n")
    text = array_script(tmp_path / "plan.json", tmp_path / "runs", [3], Start(how="slurm"), gpus=0)
    command = next(line for line in text.splitlines() if "--only-index" in line)
    (tmp_path / "job.sh").write_text(text.replace(command, f"{tmp_path}/bin/python &"))
    job = subprocess.Popen(
        ["bash", str(tmp_path / "job.sh")],
        env=os.environ
        | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "17"}
        | {"SLURM_RESTART_COUNT": str(restarts)},
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(number)
    assert job.wait(20) == code
    assert (tmp_path / "requeued").exists() == requeued
    assert not requeued or (tmp_path / "requeued").read_text() == "requeue 17\n"
