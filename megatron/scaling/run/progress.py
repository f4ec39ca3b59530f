"""Where a plan's runs stand, read off their folders: how far, how fast, how they ended, and how long the rest will take."""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from megatron.errors import KILLED, PEER_LOST, PREEMPTED

STATES = ("done", "running", "stopped", "failed", "waiting")
GO_ON = (PREEMPTED, KILLED, PEER_LOST)  # saved, or to be started again: no failure
TAIL_BYTES = 65536


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One run of a plan, now. Seconds are wall-clock seconds over all of its processes' lives."""

    run: str
    state: str  # of STATES
    reason: str = ""  # why it failed, stopped or waits
    code: int | None = None  # it ended with
    step: int = 0
    share: float = 0.0  # of its tokens, without those of its trunk
    work: float  # 6 N D of these
    seconds: float | None = None  # so far
    forecast_seconds: float | None = None
    remaining_seconds: float | None = None
    loss: float | None = None
    forecast_loss: float | None = None


def status(plan, runs_dir: str | Path) -> list[Standing]:
    """Every run of a plan, in its order, with the remaining time from the speed measured so far."""
    return with_remaining_time([stand(run, Path(runs_dir) / run["name"]) for run in plan.runs])


def stand(run: dict, folder: Path) -> Standing:
    """What one folder says. A process that holds its lock runs; one that left without a word was killed."""
    forecast = run.get("forecast") or {}
    hours, inherited = forecast.get("hours"), (run["load"]["step"] / run["steps"] if run.get("load") else 0.0)
    found = Standing(
        run=run["name"],
        state="waiting",
        work=run["flops_6nd"] * (1.0 - inherited),
        forecast_loss=forecast.get("loss"),
        forecast_seconds=None if hours is None else 3600.0 * hours,
    )
    result = read_json(folder / "result.json")
    if result is not None:
        return replace(
            found,
            state="done",
            step=result.get("steps", 0),
            share=1.0,
            loss=result.get("loss"),
            seconds=seconds_so_far(folder, result),
        )
    said, last = read_json(folder / "exit.json"), last_record(folder)
    share = min(1.0, max(0.0, last.get("tokens", 0) / run["tokens"] - inherited) / (1.0 - inherited))
    found = replace(found, step=last.get("step", 0), share=share, loss=last.get("loss"), seconds=seconds_so_far(folder))
    if is_claimed(folder):
        rate = last.get("tokens_per_sec") or 0.0
        left = (run["tokens"] - last["tokens"]) / rate if rate else None
        return replace(found, state="running", remaining_seconds=left)
    if said:
        state = "stopped" if said["code"] in GO_ON else "failed"
        return replace(found, state=state, code=said["code"], reason=said.get("reason") or f"exit code {said['code']}")
    if (folder / ".lock").exists():
        return replace(found, state="failed", reason=f"killed without a word; its log ends: {last_line(folder) or 'nothing'}")
    return found


def with_remaining_time(runs: list[Standing]) -> list[Standing]:
    """Fill in what is left of runs that are not on: by how fast the others did their forecast, or their FLOPs."""
    planned = all(r.forecast_seconds for r in runs)
    length = {r.run: r.forecast_seconds if planned else r.work for r in runs}
    begun = [r for r in runs if r.seconds and r.share]
    pace = math.fsum(r.seconds for r in begun) / math.fsum(length[r.run] * r.share for r in begun) if begun else 1.0
    if not (begun or planned):
        return runs
    return [
        replace(r, remaining_seconds=pace * length[r.run] * (1.0 - r.share))
        if r.state != "done" and r.remaining_seconds is None
        else r
        for r in runs
    ]


def total(runs: list[Standing]) -> dict:
    """The plan as a whole: how many in each state, hours spent, hours left with as many at a time as run now, the forecast."""
    counts = {state: sum(r.state == state for r in runs) for state in STATES}
    at_a_time = max(1, counts["running"])
    left = sum_hours(r.remaining_seconds for r in runs if r.state != "done")
    longest = max((r.remaining_seconds or 0.0 for r in runs), default=0.0) / 3600
    return {
        **counts,
        "runs": len(runs),
        "at_a_time": at_a_time,
        "hours": sum_hours(r.seconds or 0.0 for r in runs),
        "run_hours_left": left,
        "hours_left": None if left is None else max(left / at_a_time, longest),
        "forecast_hours": sum_hours(r.forecast_seconds for r in runs),
    }


def sum_hours(seconds: Iterable[float | None]) -> float | None:
    """None where one is not known."""
    seconds = list(seconds)
    return None if None in seconds else math.fsum(seconds) / 3600


def read_json(path: Path) -> dict | None:
    """A small JSON object; None where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_claimed(folder: Path) -> bool:
    """Whether a living process holds the run's lock, here or, on a shared file system, elsewhere."""
    try:
        with open(folder / ".lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read_tail(path: Path) -> list[bytes]:
    """The last whole lines of a file that may still be growing."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - TAIL_BYTES))
            return file.read().split(b"\n")[:-1]
    except OSError:
        return []


def last_record(folder: Path) -> dict:
    """The newest train record; empty before the first."""
    for line in reversed(read_tail(folder / "metrics.jsonl")):
        if b'"train"' in line:
            try:
                return json.loads(line)
            except ValueError:
                continue
    return {}


def last_line(folder: Path) -> str:
    return next((line.decode(errors="replace").strip() for line in reversed(read_tail(folder / "train.log")) if line.strip()), "")


def seconds_so_far(folder: Path, result: dict | None = None) -> float | None:
    """Of every process of a run from its start to its last record; None before the first record."""
    known = read_json(folder / "run.json") or {}
    starts = [known.get("created"), *(resume.get("time") for resume in known.get("resumes", []))]
    if result and len(starts) == 1:
        return result.get("seconds")
    if None in starts:
        return None
    ends = last_times(folder, starts) if len(starts) > 1 else [last_record(folder).get("time")]
    spent = [end - start for start, end in zip(starts, ends) if end]
    if result and result.get("seconds"):
        spent = [*spent[:-1], result["seconds"]]
    return math.fsum(spent) if spent else None


def last_times(folder: Path, starts: list[float]) -> list[float | None]:
    """The time of the last record in each process's life."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except OSError:
        lines = []
    times = sorted(record["time"] for record in map(json.loads, filter(None, lines)) if record.get("time"))
    lives = [[t for t in times if start <= t < end] for start, end in itertools.pairwise([*starts, math.inf])]
    return [life[-1] if life else None for life in lives]
