"""A plan as Slurm job arrays: a task a run, so many at a time, back in the queue when preempted; trunks before their branches."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from megatron.errors import CannotWrite, MissingInput, Refusal
from megatron.files import replace_file
from megatron.scaling.run.execute import ROOT, Start

SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array={array}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
{gpus}#SBATCH --output={output}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
{more}# One task is one run of the plan. It saves before its time limit and when preempted (exit 85), and is queued again; also,
# up to ten times, after it lost a process (exit 75).
cd {cwd}
{command} --only-index "$SLURM_ARRAY_TASK_ID" &
child=$! signalled=1
trap 'signalled=1; kill -USR1 "$child" 2>/dev/null' USR1 TERM INT
while [[ $signalled ]]; do signalled='' code=0; wait "$child" || code=$?; done
if [[ $code == 85 || ($code == 75 && ${{SLURM_RESTART_COUNT:-0}} == [0-9]) ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


class SubmissionRefused(Refusal):
    """sbatch did not take the job."""

    code = 69


def spell_indices(indices: list[int]) -> str:
    """[0, 1, 2, 5] as 0-2,5."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def array_script(
    plan_file: Path,
    runs_dir: Path,
    indices: list[int],
    start: Start,
    *,
    gpus: int,
    at_a_time: int | None = None,
    sbatch: list[str] | None = None,
    retry_failed: bool = False,
) -> str:
    """The text of one array's batch script. `sbatch`: more words for its header, such as --partition=gpu.

    A header's values are quoted as in a shell, and a % in a folder's name is doubled: sbatch reads both so.
    """
    how = "torchrun" if start.nproc * start.nodes > 1 else "one-by-one"
    command = [
        sys.executable,
        str(ROOT / "tools/scaling_laws.py"),
        "run",
        str(plan_file.resolve()),
        "--runs-dir",
        str(runs_dir.resolve()),
        "--how",
        how,
        "--nproc",
        str(start.nproc),
        "--nodes",
        str(start.nodes),
    ]
    name = re.sub(r"[^\w.-]+", "-", plan_file.stem)
    return SCRIPT.format(
        name=name,
        array=spell_indices(indices) + (f"%{at_a_time}" if at_a_time else ""),
        nodes=start.nodes,
        gpus=f"#SBATCH --gpus-per-node={gpus}\n" if gpus else "",
        output=shlex.quote(str(runs_dir.resolve() / "slurm").replace("%", "%%") + "/%x-%A_%a.out"),
        more="".join(f"#SBATCH {option(word)}\n" for word in sbatch or ()),
        cwd=shlex.quote(str(Path.cwd())),
        command=shlex.join([*command, *(["--retry-failed"] if retry_failed else [])]),
    )


def option(word: str) -> str:
    """--comment='two words'"""
    name, equals, value = word.partition("=")
    return name + equals + (shlex.quote(value) if value else "")


def submit(scripts: list[str], runs_dir: Path, name: str) -> list[str]:
    """Job numbers of arrays that start one after another, each when all tasks of the one before are over.

    Raises MissingInput where there is no sbatch, SubmissionRefused, CannotWrite.
    """
    jobs: list[str] = []
    for number, script in enumerate(scripts):
        path = runs_dir / "slurm" / f"{name}-{number}.sh"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, script.encode())
        except OSError as error:
            raise CannotWrite(f"{path} cannot be written ({error.strerror}): choose another --runs-dir") from None
        jobs.append(call_sbatch([*([f"--dependency=afterany:{jobs[-1]}"] if jobs else []), str(path)]))
    return jobs


def call_sbatch(words: list[str]) -> str:
    try:
        said = subprocess.run(["sbatch", "--parsable", *words], capture_output=True, text=True)
    except FileNotFoundError:
        raise MissingInput(
            "sbatch is not on the PATH: --how slurm submits from a node of the cluster; --dry-run prints the script"
        ) from None
    if said.returncode:
        raise SubmissionRefused(
            f"sbatch refused {words[-1]}: {said.stderr.strip()}; set the partition, time and account with --sbatch"
        )
    return said.stdout.strip().split(";")[0]


def levels(runs: list[dict]) -> list[list[dict]]:
    """Runs that can be submitted together: those without a trunk among them, their branches, and so on."""
    found, left = [], list(runs)
    while left:
        waiting = {run["name"] for run in left}
        found.append([run for run in left if not run.get("load") or run["load"]["run"] not in waiting] or left)
        left = [run for run in left if run not in found[-1]]
    return found
