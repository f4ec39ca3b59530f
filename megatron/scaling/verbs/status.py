"""Where a plan stands: done, running, stopped, failed (and why) and waiting runs, the time that is left, forecast against actual.

The training loss of a run that is on is set beside finished runs of its kind at the same share of their length: `expected` is
where 99.9 % of such runs would be, and an alarm says when it is not there.

Exit code 0 when all is done or nothing failed yet (the last line says `unfinished`), 1 when a run failed.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from rich.table import Table

from megatron.scaling.plan.axes import spell
from megatron.scaling.plan.entries import Plan, load_plan
from megatron.scaling.run.halving import decide
from megatron.scaling.run.progress import STATES, Standing, status, total
from megatron.scaling.run.trajectory import watched
from megatron.scaling.show.screen import console
from megatron.scaling.verbs import Answer, json_argument

COLORS = {"done": "green", "running": "cyan", "stopped": "yellow", "failed": "red", "waiting": "default"}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, metavar="PLAN", help="plan.json of the verb plan")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder of the runs [runs]")
    json_argument(parser)


def command(args: argparse.Namespace) -> Answer:
    plan, runs, record = standing(load_plan(args.plan), args.runs_dir)
    screen = console()
    screen.print(as_table(plan, runs))
    if record["gave_way"]:
        screen.print(f"{len(record['gave_way'])} runs gave way to better settings (successive halving)", highlight=False)
    for line in sentences(record["total"], runs):
        screen.print(line, highlight=False)
    return Answer(record, int(record["total"]["failed"] > 0))


def standing(whole: Plan, runs_dir: Path, only: list[str] | None = None) -> tuple[Plan, list[Standing], dict]:
    """(the plan of these names without runs that gave way, where they stand, the same for programs).

    For programs: total; the runs with seconds in full and with their values on the plan's axes; why others gave way.
    """
    decided = decide(whole, runs_dir)
    chosen = [run for run in whole.runs if not only or run["name"] in only]
    plan = replace(whole, runs=[run for run in chosen if run["name"] not in decided.gave_way])
    runs = [replace(run, reason=run.reason or decided.waiting.get(run.run, "")) for run in status(plan, runs_dir)]
    runs, known = watched(plan, runs, runs_dir), points(plan)
    found = [asdict(run) | {"varied": known[run.run]} for run in runs]
    return plan, runs, {"total": total(runs), "runs": found, "gave_way": decided.gave_way}


def points(plan: Plan) -> dict[str, dict]:
    """Each run's values on the plan's axes."""
    return {run["name"]: {name: run.get("varied", {}).get(name) for name in plan.varied} for run in plan.runs}


def as_table(plan: Plan, runs: list[Standing]) -> Table:
    """A line a run: its values on the plan's axes; time as it was and as it was forecast, loss likewise."""
    table, known = Table(box=None, header_style="bold"), points(plan)
    for column in ("run", *plan.varied, "state"):
        table.add_column(column, overflow="fold")
    on = any(run.expected_loss for run in runs)
    for column in ("done", "step", "time", "forecast", "left", "loss", *["forecast"] * has_loss(runs), *["expected"] * on):
        table.add_column(column, justify="right")
    table.add_column("why", overflow="fold")
    for run in runs:
        losses = [number(run.loss), *[number(run.forecast_loss)] * has_loss(runs), *[between(run.expected_loss)] * on]
        left = "" if run.state == "done" else clock(run.remaining_seconds)
        table.add_row(
            run.run,
            *map(spell, known[run.run].values()),
            f"[{COLORS[run.state]}]{run.state}",
            f"{run.share:.0%}",
            str(run.step or ""),
            clock(run.seconds),
            clock(run.forecast_seconds),
            left,
            *losses,
            run.reason,
        )
    return table


def has_loss(runs: list[Standing]) -> bool:
    return any(run.forecast_loss is not None for run in runs)


def sentences(whole: dict, runs: list[Standing]) -> list[str]:
    """The plan as a whole, in words."""
    counts = ", ".join(f"{whole[state]} {state}" for state in STATES if whole[state])
    found = [f"alarm: {run.run}: {run.alarm}" for run in runs if run.alarm]
    without = sum(run.training_loss is not None and run.expected_loss is None for run in runs)
    if without:
        found.append(
            f"{without} running without a band of the expected loss: that takes 3 finished runs alike, 5 where N and D vary"
        )
    found.append(f"{whole['runs']} runs: {counts}; {clock(3600 * whole['hours'])} of run time so far")
    both = [run for run in runs if run.state == "done" and run.seconds and run.forecast_seconds]
    if both:
        ratio = sum(run.seconds or 0.0 for run in both) / sum(run.forecast_seconds or 0.0 for run in both)
        found.append(f"finished runs took {ratio:.2f} x their forecast")
    if whole["done"] < whole["runs"]:
        left = "its length is not known before a run has begun"
        if whole["hours_left"] is not None:
            left = (
                f"{clock(3600 * whole['run_hours_left'])} of run time left, "
                f"about {clock(3600 * whole['hours_left'])} with {whole['at_a_time']} at a time"
            )
        found.append(f"unfinished: {left}")
    return found


def clock(seconds: float | None) -> str:
    """9.04 -> 9.0 s, 90 -> 1:30, 9000 -> 2:30:00."""
    if seconds is None or seconds < 60:
        return "" if seconds is None else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def between(ends: list[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.4g} .. {ends[1]:.4g}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
