"""Carry out a plan: start each run that is not finished where its folder left off, and go on when one fails.

`in-process` puts small runs of one device side by side in few processes, `one-by-one` gives each its own, `torchrun` its own
on every rank of the machine or of the Slurm job. A run finds its trunk finished before it branches off.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import megatron
from megatron.errors import KILLED, PEER_LOST, PREEMPTED, CannotWrite, MissingInput
from megatron.files import replace_file
from megatron.flags import ConfigError
from megatron.locks import LOCK
from megatron.rundir.names import EXIT, MANIFEST, RESULT, checkpoint_name, step_and_attempt
from megatron.rundir.records import last_line
from megatron.scaling.plan.flags import TRAINING, without
from megatron.scaling.run.halving import Decided, decide
from megatron.scaling.run.progress import stand

ROOT = Path(megatron.__file__).resolve().parents[1]
HOW = ("auto", "in-process", "one-by-one", "torchrun", "slurm")


@dataclass(frozen=True, kw_only=True)
class Start:
    """How processes are started: side by side or not, over how many ranks and nodes."""

    how: str = "one-by-one"
    processes: int | None = None  # runs at a time; in-process only
    nproc: int = 1  # ranks a node
    nodes: int = 1

    def words(self) -> list[str]:
        """What stands before the command of a run."""
        if self.how != "torchrun":
            return []
        step = ["srun", f"--nodes={self.nodes}", "--ntasks-per-node=1"] if self.nodes > 1 and "SLURM_JOB_ID" in os.environ else []
        return [*step, "bash", str(program("examples/launch.sh"))]

    def environ(self, folder: Path) -> dict[str, str]:
        if self.how != "torchrun":
            return dict(os.environ)
        logs = {"LOG_DIR": str(folder / "logs")} if self.nodes > 1 else {}
        return logs | dict(os.environ) | {"NPROC_PER_NODE": str(self.nproc), "PYTHON": sys.executable}


@dataclass
class Interruption:
    """SIGTERM, SIGINT or SIGUSR1 while a plan is on: the child is told to save and stop, and nothing new is started."""

    arrived: bool = False
    child: subprocess.Popen | None = None
    before: dict = field(default_factory=dict)

    def __enter__(self) -> Interruption:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self.before[number] = signal.signal(number, self.catch)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def catch(self, _number, _frame) -> None:
        """SIGUSR1 in every case: srun ends its tasks at SIGTERM."""
        first, self.arrived = not self.arrived, True
        if first and self.child and self.child.poll() is None:
            self.child.send_signal(signal.SIGUSR1)

    def call(self, words: list[str], environ: dict[str, str]) -> int:
        """A child's exit code, -n for one that signal n killed."""
        if self.arrived:
            return PREEMPTED
        self.child = subprocess.Popen(words, env=environ)
        if self.arrived:
            self.child.send_signal(signal.SIGUSR1)
        return self.child.wait()


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run_plan(
    plan,
    runs_dir: str | Path,
    start: Start,
    *,
    only: list[str] | None = None,
    retry_failed: bool = False,
    say: Callable[[str], None] = tell,
) -> int:
    """Run what is not finished, trunks before their branches. Returns 0 when all is done, 1 when a run failed or could not
    start, 75 when runs lost a process and nothing failed, 85 or 86 when a signal or a kill switch stopped it;
    of one run alone its own exit code.

    A run that failed is left alone unless `retry_failed`; one that was interrupted, or killed without a word, goes on.
    Raises ConfigError for a name that is not in the plan, MissingInput, CannotWrite.
    """
    runs_dir = Path(runs_dir)
    chosen = choose(plan, only)
    todo, left = pending(chosen, runs_dir, retry_failed, say)
    say(f"{len(todo)} of {len(chosen)} runs to do, {start.how}")
    with Interruption() as interruption:
        while todo:
            decided = decide(plan, runs_dir, {run["name"] for run in todo})
            todo = [run for run in todo if run["name"] not in decided.gave_way]
            ready = [run for run in todo if run["name"] not in decided.waiting and not lacking(run, runs_dir)]
            if not ready:
                break
            stopped = run_together(ready, runs_dir, start, interruption, say)
            if stopped:
                return stopped
            todo = [run for run in todo if run not in ready]
    decided = decide(plan, runs_dir)
    for run in todo:
        say(f"{run['name']} cannot start: {decided.waiting.get(run['name']) or lacking(run, runs_dir)}")
    return summarize(those_that_stay(chosen, decided, say), runs_dir, bool(todo) or left, say)


def those_that_stay(runs: list[dict], decided: Decided, say: Callable[[str], None] = tell) -> list[dict]:
    """Without those that gave way; says how many did."""
    found = [run for run in runs if run["name"] not in decided.gave_way]
    if len(found) < len(runs):
        say(f"{len(runs) - len(found)} runs are left out: their settings gave way")
    return found


def evaluate(plan, runs_dir: str | Path, start: Start, *, only: list[str] | None = None, checkpoint: str | None = None) -> int:
    """Score the runs one after another. Returns the last exit code that is not 0."""
    failed = 0
    with Interruption() as interruption:
        for run in choose(plan, only):
            words = [*start.words(), sys.executable, *evaluation_line(run, Path(runs_dir), checkpoint)]
            failed = interruption.call(words, start.environ(Path(runs_dir) / f"{run['name']}_eval")) or failed
    return failed if failed >= 0 else 128 - failed


def choose(plan, only: list[str] | None) -> list[dict]:
    """The runs of these names; all without names. Raises ConfigError."""
    known = {run["name"] for run in plan.runs}
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise ConfigError(
            [f"--only {name}: the plan has no such run; it has {', '.join(sorted(known)[:5])}, ..." for name in unknown]
        )
    return [run for run in plan.runs if not only or run["name"] in only]


def pending(runs: list[dict], runs_dir: Path, retry_failed: bool, say: Callable[[str], None] = tell) -> tuple[list[dict], bool]:
    """(runs to start, whether others were left out although they are not done)."""
    found, left = [], False
    for run in runs:
        now = stand(run, runs_dir / run["name"])
        if now.state == "done":
            say(f"{now.run} is finished: skipped")
        elif now.state == "running":
            say(f"{now.run} is running in another process: left alone")
            left = True
        elif now.state == "failed" and now.code is not None and not retry_failed:
            say(f"{now.run} failed before ({now.reason}): left alone; --retry-failed starts it again")
            left = True
        else:
            found.append(run)
    return found, left


def run_together(runs: list[dict], runs_dir: Path, start: Start, interruption: Interruption, say: Callable[[str], None]) -> int:
    """Start runs that wait for nothing. Returns 85 or 86 when they were stopped, else 0."""
    batches = [runs] if start.how == "in-process" else [[run] for run in runs]
    while batches:
        batch = batches.pop(0)
        before = [stamps(runs_dir / run["name"]) for run in batch]
        with listed(batch, runs_dir) as commands:
            words = [*start.words(), sys.executable, str(program("tools/run_list.py")), str(commands)]
            processes = start.processes if start.how == "in-process" else 1
            code = interruption.call(
                [*words, *(["--processes", str(processes)] if processes else [])], start.environ(runs_dir / batch[0]["name"])
            )
        if interruption.arrived or code in (PREEMPTED, KILLED):
            return code if code == KILLED else PREEMPTED
        unstarted = note_deaths(batch, runs_dir, before, code)
        if unstarted and len(unstarted) < len(batch):  # a process died and took its place in the queue along
            batches.insert(0, unstarted)
        elif unstarted:
            say(f"{', '.join(run['name'] for run in unstarted)} did not start (exit code {code}): the reason is above")
    return 0


def stamps(folder: Path) -> list[int]:
    """Times of the lock, which a run takes when it begins, and of exit.json, which it leaves; 0 where there is none."""
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in (folder / LOCK, folder / EXIT)]


def note_deaths(batch: list[dict], runs_dir: Path, before: list[list[int]], code: int) -> list[dict]:
    """Write down which runs ended without a word of their own; returns those that never began. `before`: their stamps."""
    unstarted = []
    for run, (lock, said) in zip(batch, before):
        folder = runs_dir / run["name"]
        now, (lock_now, said_now) = stand(run, folder), stamps(folder)
        if now.state in ("done", "running") or said_now not in (0, said):
            continue
        if len(batch) > 1 and lock_now == lock:
            unstarted.append(run)
        elif code or len(batch) > 1:
            last = last_line(folder)
            record_failure(
                folder, PEER_LOST, f"its process was lost (exit code {code})" + (f"; its log ends: {last}" if last else "")
            )
    return unstarted


def record_failure(folder: Path, code: int, reason: str) -> None:
    """exit.json of a run that ended before it could write its own, as megatron/training/watch.py does. Raises CannotWrite."""
    said = {"code": code, "reason": reason, "step": 0, "rank": 0, "requeue": code in (PREEMPTED, PEER_LOST)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / EXIT, json.dumps(said, indent=1).encode())
    except OSError as error:
        raise CannotWrite(f"{folder / EXIT} cannot be written: {error.strerror}") from None


def summarize(runs: list[dict], runs_dir: Path, unfinished: bool, say: Callable[[str], None]) -> int:
    now = [stand(run, runs_dir / run["name"]) for run in runs]
    for run in now:
        if run.state == "failed" or run.code == PEER_LOST:
            say(f"{run.run} {'FAILED' if run.state == 'failed' else 'stopped'}: {run.reason}")
    counts = {state: sum(run.state == state for run in now) for state in ("done", "failed")}
    say(f"{len(now)} runs: {counts['done']} done, {counts['failed']} failed, {len(now) - sum(counts.values())} unfinished")
    if len(now) == 1 and now[0].code:
        return now[0].code
    if not counts["failed"] and any(run.code == PEER_LOST for run in now):
        return PEER_LOST
    return int(unfinished or counts["done"] < len(now))


# One run's command line


def command_line(run: dict, runs_dir: Path) -> list[str]:
    """The words that start a run, or go on with it from its own last checkpoint; a branch begins at its trunk's, a tuned run
    with the weights of another.
    """
    folder = runs_dir / run["name"]
    load, only_weights = folder, []
    if run.get("load") and not checkpoints(folder):
        other, step = run["load"]["run"], run["load"]["step"]
        if run["load"].get("finetune"):
            load, only_weights = runs_dir / other, ["--finetune"]
        else:
            load = (checkpoints(runs_dir / other, step) or [runs_dir / other / checkpoint_name(step)])[-1]
    words = [str(program(run["entry"])), *run["flags"], "--save", str(folder), "--load", str(load), *only_weights]
    return words if "--kill-switch-file" in words else [*words, "--kill-switch-file", str(folder / "kill")]


def evaluation_line(run: dict, runs_dir: Path, checkpoint: str | None) -> list[str]:
    """The words that score a run's last checkpoint, or another, on its validation data; the result goes to NAME_eval."""
    folder = runs_dir / f"{run['name']}_eval"
    places = ["--load", checkpoint or str(runs_dir / run["name"]), "--run-dir", str(folder)]
    kill = [] if "--kill-switch-file" in run["flags"] else ["--kill-switch-file", str(folder / "kill")]
    return [str(program(run["entry"])), *without(run["flags"], TRAINING), "--skip-train", *places, *kill]


def checkpoints(folder: Path, step: int | None = None) -> list[Path]:
    """A folder's complete checkpoints (of one step), the newest attempt last."""
    found = sorted((step_and_attempt(path.parent.name), path.parent) for path in folder.glob(f"step-*/{MANIFEST}"))
    return [path for (at, _), path in found if at >= 0 and step in (None, at)]


def lacking(run: dict, runs_dir: Path) -> str:
    """What a branch waits for; empty for a run that can start."""
    if not run.get("load") or checkpoints(runs_dir / run["name"]):
        return ""
    trunk, step = run["load"]["run"], run["load"]["step"]
    if run["load"].get("finetune"):
        return "" if (runs_dir / trunk / RESULT).exists() else f"{trunk}, whose weights it begins with, has not finished"
    return "" if checkpoints(runs_dir / trunk, step) else f"its trunk {trunk} has no checkpoint of step {step}"


@contextmanager
def listed(runs: list[dict], runs_dir: Path) -> Iterator[Path]:
    """A file with a command a line, where every node of a job can read it. Raises CannotWrite."""
    text = "".join(shlex.join(command_line(run, runs_dir)) + "\n" for run in runs)
    path = runs_dir / f".commands-{os.uname().nodename}-{os.getpid()}"
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())
    except OSError as error:
        raise CannotWrite(f"{path} cannot be written ({error.strerror}): choose another --runs-dir") from None
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def program(name: str) -> Path:
    """A program of the checkout. Raises MissingInput."""
    path = ROOT / name
    if not path.is_file():
        raise MissingInput(f"{path} is missing: plans are run from a checkout of the project")
    return path


# Choosing


def choose_start(plan, how: str, processes: int | None, nproc: int | None, nodes: int) -> Start:
    """What `auto` means here: in few processes on a CPU, one after another on a GPU, over all ranks where there are several.

    Raises ConfigError for an environment that says no number of ranks.
    """
    told = os.environ.get("NPROC_PER_NODE") or "0"
    if not re.fullmatch("[0-9]{1,9}", told):
        raise ConfigError([f"NPROC_PER_NODE={told} must be a whole number: set it so, or leave it out"])
    gpus, said = num_gpus(), nproc or int(told)
    if how == "auto":
        small = not gpus or all(on_cpu(run["flags"]) for run in plan.runs)
        how = "in-process" if small else "one-by-one"
        if nodes > 1 or said > 1 or (gpus > 1 and not small):
            how = "torchrun"
    return Start(how=how, processes=processes, nproc=said or gpus or 1, nodes=nodes)


def on_cpu(flags: list[str]) -> bool:
    return "--force-cpu" in flags or any(pair == ("--device", "cpu") for pair in zip(flags, flags[1:]))


def num_gpus() -> int:
    """NVIDIA GPUs of this machine."""
    if not shutil.which("nvidia-smi"):
        return 0
    said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return said.stdout.count("GPU ") if said.returncode == 0 else 0
