"""A real Slurm, where one answers: two nodes, preempted in mid-run, requeued, finished; the curve of an undisturbed run."""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLOCK = {
    "time",
    "step_seconds",
    "tokens_per_sec",
    "tokens_per_gpu_per_sec",
    "tflops",
    "mfu",
    "executed_tflops",
    "hfu",
    "memory_bytes",
    "utilization",
}
SETTINGS = {
    "SCALE": "cpu",
    "MODEL_PARAM": "CPU_8K",
    "DATA_CNT": "20000",
    "EPOCH_CNT": "10",
    "EVAL_ITERS": "2",
    "LOG_INTERVAL": "1",
    "PYTHON": sys.executable,
    "OMP_NUM_THREADS": "1",
    "NPROC_PER_NODE": "1",
}
RUN = "mdm_multi_node_CPU_8K_20000x10"


def slurm(*words, **named):
    return subprocess.run(words, capture_output=True, text=True, timeout=60, **named)


@pytest.fixture(scope="module")
def partition():
    """The default partition of a Slurm with two idle nodes."""
    missing = "" if shutil.which("sbatch") else "sbatch is not on the PATH"
    nodes = [] if missing else slurm("sinfo", "-h", "-t", "idle", "-o", "%P %D").stdout.split("\n")
    found = [line.split()[0].rstrip("*") for line in nodes if line and int(line.split()[1]) >= 2]
    if not found:
        reason = f"NOT TESTED ON SLURM: {missing or 'sinfo shows no partition with two idle nodes'}"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    return found[0]


@pytest.fixture
def job(tmp_path, partition):
    """Submit the multi-node recipe with its header's placeholders filled in; whatever is left of it is cancelled."""
    (tmp_path / "text.txt").write_text("".join(f"To be, or not to be, that is question {i}.\n" for i in range(1000)))
    recipe = (ROOT / "examples/mdm/example_multi_node_training.sh").read_text()
    for found, here in (
        ("your_partition", partition),
        ("your_time", "15"),
        ("--cpus-per-task=64", "--cpus-per-task=1"),
        ("#SBATCH --gres=gpu:8\n", ""),
    ):
        assert found in recipe
        recipe = recipe.replace(found, here)
    (tmp_path / "job.sh").write_text(recipe)
    settings = SETTINGS | {"CORPUS": str(tmp_path / "text.txt"), "DATA_DIR": str(tmp_path / "data")}
    started = []

    def submit(runs):
        done = slurm(
            "sbatch",
            "--parsable",
            f"--output={tmp_path}/%j.out",
            str(tmp_path / "job.sh"),
            cwd=ROOT,
            env=os.environ | settings | {"RUNS_DIR": str(runs)},
        )
        assert done.returncode == 0, done.stderr
        started.append(done.stdout.strip())
        return started[-1], tmp_path / f"{started[-1]}.out"

    yield submit
    for number in started:
        slurm("scancel", number)


def state(number):
    return dict(word.split("=", 1) for word in slurm("scontrol", "show", "job", number).stdout.split() if "=" in word)


def wait(number, out, reached, seconds=240):
    """Until a job has come so far; one that was requeued need not stay in the queue for its two minutes."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"{state(number)}\n{out.read_text()[-2000:]}"
        if state(number)["JobState"] == "PENDING":
            time.sleep(5)  # Slurm revokes the old start's credentials by the second
            slurm("scontrol", "update", f"JobId={number}", "StartTime=now")
        time.sleep(0.2)


def is_over(number):
    return state(number)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING")


def records(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def tensors(run):
    manifest = json.loads((run / (run / "latest").read_text().strip() / "manifest.json").read_text())
    return sorted((t["name"], str(t["slice"]), t["sha256"]) for t in manifest["tensors"])


def preempt(command, number, out, run):
    """Stop the job; it is in the queue again once the folder says how it ended."""
    (run / "exit.json").unlink(missing_ok=True)
    assert slurm(*command, number).returncode == 0
    wait(number, out, lambda: (run / "exit.json").exists(), 60)
    assert json.loads((run / "exit.json").read_text())["code"] == 85 and not (run / "result.json").exists()


@pytest.mark.slow
def test_preempted_and_requeued_the_curve_is_the_same(tmp_path, job):
    whole, parts = tmp_path / "whole" / RUN, tmp_path / "parts" / RUN
    number, out = job(whole.parent)
    wait(number, out, lambda: is_over(number))
    number, out = job(parts.parent)
    wait(number, out, lambda: (parts / "metrics.jsonl").exists() and len(records(parts)) > 40)
    preempt(["scancel", "--signal=USR1", "--batch"], number, out, parts)  # as before the time limit
    wait(number, out, lambda: len(records(parts)) > 100)
    preempt(["scontrol", "requeue"], number, out, parts)  # as an administrator does
    wait(number, out, lambda: is_over(number))
    assert state(number)["ExitCode"] == "0:0" and (parts / "result.json").exists()
    assert len(records(whole)) > 190 and records(parts) == records(whole) and tensors(parts) == tensors(whole)
    run = json.loads((parts / "run.json").read_text())
    assert len(run["resumes"]) == 2 and run["layout"]["world_size"] == 2
    assert [path.name for path in sorted((parts / "logs").iterdir())] == ["node-0.log", "node-1.log"]
    assert "Traceback" not in out.read_text()


@pytest.mark.slow
def test_one_task_a_rank_without_a_launcher(tmp_path, partition, corpus):
    words = (
        "--num-layers 1 --hidden-size 16 --num-attention-heads 1 --seq-length 32 --micro-batch-size 1 --global-batch-size 8 "
        "--train-iters 5 --lr 1e-3 --tokenizer-type ByteTokenizer --device cpu --eval-iters 0"
    ).split()
    done = slurm(
        "srun",
        f"--partition={partition}",
        "--nodes=2",
        "--ntasks=4",
        "--overcommit",
        sys.executable,
        "pretrain_gpt.py",
        *words,
        "--data-path",
        corpus,
        "--run-dir",
        str(tmp_path / "run"),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["layout"]["world_size"] == 4
