"""Where a plan's runs stand, read off their folders: how far, how fast, how they ended, and how long the rest will take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from megatron.errors import BadData
from megatron.rundir import status as rundir
from megatron.rundir.folders import read_file
from megatron.rundir.names import FACTS, METRICS, RESULT
from megatron.rundir.records import last_record, read
from megatron.rundir.status import STATES


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
    training_loss: float | None = None  # of a run that is on: the mean of its last records
    expected_loss: list[float] | None = None  # where that should be, by the finished runs of the plan: the band's ends
    alarm: str = ""  # it is not there


def status(plan, runs_dir: str | Path) -> list[Standing]:
    """Every run of a plan, in its order, with the remaining time from the speed measured so far."""
    return with_remaining_time([stand(run, Path(runs_dir) / run["name"]) for run in plan.runs])


def stand(run: dict, folder: Path) -> Standing:
    """What one folder says."""
    forecast = run.get("forecast") or {}
    hours, inherited = forecast.get("hours"), (run["load"]["step"] / run["steps"] if run.get("load") else 0.0)
    now, last = rundir.status(folder), last_record(folder)
    found = Standing(
        run=run["name"],
        state="waiting" if now.state == "evaluated" else now.state,
        reason="" if now.state == "running" else now.reason,
        code=now.code,
        work=run["flops_6nd"] * (1.0 - inherited),
        forecast_loss=forecast.get("loss"),
        forecast_seconds=None if hours is None else 3600.0 * hours,
    )
    if now.state == "done":
        result = read_file(folder, RESULT)
        step, loss = result.get("steps") or 0, result.get("loss")
        return replace(found, step=step, share=1.0, loss=loss, seconds=seconds_so_far(folder, result))
    tokens = last.get("tokens") or 0
    share = min(1.0, max(0.0, tokens / run["tokens"] - inherited) / (1.0 - inherited))
    found = replace(found, step=last.get("step") or 0, share=share, loss=last.get("loss"), seconds=seconds_so_far(folder))
    if now.state == "running" and (rate := last.get("tokens_per_sec")):
        return replace(found, remaining_seconds=(run["tokens"] - tokens) / rate)
    return found


def with_remaining_time(runs: list[Standing]) -> list[Standing]:
    """Fill in what is left of runs that are not on: by how fast the others did their forecast, or their FLOPs."""
    planned = all(r.forecast_seconds for r in runs)
    length = {r.run: (r.forecast_seconds or 0.0) if planned else r.work for r in runs}
    begun = [(r.seconds, length[r.run] * r.share) for r in runs if r.seconds and r.share]
    pace = math.fsum(seconds for seconds, _ in begun) / math.fsum(done for _, done in begun) if begun else 1.0
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
    found = list(seconds)
    known = [value for value in found if value is not None]
    return math.fsum(known) / 3600 if len(known) == len(found) else None


def seconds_so_far(folder: Path, result: dict | None = None) -> float | None:
    """Of every process of a run from its start to its last record; None before the first, and where its files are damaged."""
    try:
        known = read_file(folder, FACTS)
        starts = [known.get("created"), *(resume.get("time") for resume in known.get("resumes", []))]
        if result and len(starts) == 1:
            return result.get("seconds")
        times = record_times(folder) if len(starts) > 1 else [t for t in [last_record(folder).get("time")] if t]
    except BadData:
        return None
    if not all(isinstance(start, (int, float)) for start in starts):
        return None
    lives = [[t for t in times if start <= t < end] for start, end in itertools.pairwise([*starts, math.inf])]
    spent = [life[-1] - start for life, start in zip(lives, starts) if life]
    if result and result.get("seconds"):
        spent = [*spent[:-1], result["seconds"]]
    return math.fsum(spent) if spent else None


def record_times(folder: Path) -> list[float]:
    """When the records were made, sorted. Raises BadData."""
    if not (folder / METRICS).is_file():
        return []
    return sorted(record["time"] for _, record in read(folder / METRICS) if record.get("time"))
