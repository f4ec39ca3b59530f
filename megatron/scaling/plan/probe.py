"""The speed of a machine, measured: a few steps of a plan's smallest and largest member, by the programs that will train them."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import megatron
from megatron.errors import PREEMPTED, Refusal
from megatron.rundir.names import METRICS
from megatron.rundir.records import read
from megatron.scaling.plan.cost import Speed, speed_of_points
from megatron.scaling.plan.entries import Plan
from megatron.scaling.plan.flags import ON_SAVE, overlaid, without

ROOT = Path(megatron.__file__).parents[1]
INTERVALS = 4  # of the probed steps; the first, with compilation and warm caches, does not count


class ProbeFailed(Refusal):
    """A probed run did not get through its few steps."""

    code = 70

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def probe_plan(plan: Plan, steps: int, gpus: int, timeout: float) -> tuple[dict[str, Speed], list[dict]]:
    """(speed of each objective, a record of each run that was measured). Raises ProbeFailed."""
    speeds, measured = {}, []
    for objective in dict.fromkeys(run["objective"] for run in plan.runs):
        own = sorted((run for run in plan.runs if run["objective"] == objective), key=flops_per_token)
        ends = own[:1] if flops_per_token(own[0]) == flops_per_token(own[-1]) else [own[0], own[-1]]
        found = [probe_run(run, steps, gpus, timeout) for run in ends]
        names = " and ".join(one["size"] for one in found)
        points = [(one["flops_per_token"], 1 / one["tokens_per_second"]) for one in found]
        basis = f"{steps} steps of {objective} {names} on {gpus} process{'es' * (gpus > 1)}"
        speeds[objective] = speed_of_points(points, basis, startup=max(one["startup"] for one in found))
        measured += found
    return speeds, measured


def flops_per_token(run: dict) -> float:
    return run["flops_exact"] / run["tokens"]


def probe_run(run: dict, steps: int, gpus: int, timeout: float) -> dict:
    """Train a few steps aside, without validation and checkpoints: {size, tokens_per_second, startup, memory_bytes, ...}."""
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        start = time.monotonic()
        done = start_run(run, steps, gpus, timeout, folder)
        wall = time.monotonic() - start
        path = Path(folder) / METRICS
        records = [record for _, record in read(path) if record.get("kind") == "train"] if path.exists() else []
    if done.returncode not in (0, PREEMPTED) or not records:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no step was recorded"]
        raise ProbeFailed(
            f"--probe: {run['name']} did not train {steps} steps (exit code {done.returncode}): {said[-1].strip()}",
            done.returncode or ProbeFailed.code,
        )
    rate = 1 / statistics.median(1 / record["tokens_per_sec"] for record in records[1:] or records)
    trained = records[-1]["tokens"] / rate
    return {
        "size": run["size"],
        "objective": run["objective"],
        "steps": records[-1]["step"],
        "tokens_per_second": rate,
        "flops_per_token": flops_per_token(run),
        "startup": max(0.0, wall - trained),
        "mfu": records[-1]["mfu"],
        "memory_bytes": records[-1]["memory_bytes"],
    }


def start_run(run: dict, steps: int, gpus: int, timeout: float, folder: str) -> subprocess.CompletedProcess:
    words = [
        "--exit-interval",
        str(steps),
        "--eval-iters",
        "0",
        "--run-dir",
        folder,
        "--log-interval",
        str(max(1, steps // INTERVALS)),
    ]
    command = [str(ROOT / run["entry"]), *overlaid(without(run["flags"], ON_SAVE), words)]
    if gpus > 1:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus), *command]
    try:
        return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise ProbeFailed(
            f"--probe: {run['name']} did not train {steps} steps in {timeout:g} s: take fewer with --probe-steps",
            ProbeFailed.code,
        ) from None
