"""The registry of run directories: `ls [DIR...]` lists them, `show RUN` tells all of one, `diff A B` what sets two apart,
`pairs DIR... --by FLAG` what a flag does to the loss, over pairs of one seed.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron.rundir.folders import find_runs
from megatron.scaling.table.pairs import paired
from megatron.scaling.table.registry import compare, describe, error_of, flat, summary
from megatron.scaling.verbs import Answer, json_argument

WIDE = 1000  # columns, where the output is no terminal


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ls|show|diff|pairs")
    listing = actions.add_parser("ls", help="every run at or below some folders", allow_abbrev=False)
    listing.add_argument("folders", nargs="*", default=["."], metavar="DIR")
    showing = actions.add_parser("show", help="config, facts, resumes, skips and final metrics of one run", allow_abbrev=False)
    showing.add_argument("run", type=Path)
    differing = actions.add_parser("diff", help="flags, facts and metrics that differ", allow_abbrev=False)
    differing.add_argument("a", type=Path)
    differing.add_argument("b", type=Path)
    pairing = actions.add_parser("pairs", help="what a flag does to the loss, within pairs of one seed", allow_abbrev=False)
    pairing.add_argument("folders", nargs="+", metavar="DIR")
    pairing.add_argument("--by", required=True, metavar="FLAG", help="the flag in which the runs of a pair differ, such as atat")
    for action in (listing, showing, differing, pairing):
        json_argument(action)


def command(args: argparse.Namespace) -> Answer:
    found, show = {"ls": _ls, "show": _show, "diff": _diff, "pairs": _pairs}[args.action](args)
    show(wide_console(), found)
    return Answer(found)


def wide_console() -> Console:
    """stdout, with no line folded where it is no terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    return console


def _ls(args: argparse.Namespace):
    return [summary(describe(directory)) for directory in find_runs(args.folders)], _print_list


def _show(args: argparse.Namespace):
    return describe(args.run), _print_run


def _diff(args: argparse.Namespace):
    return compare(describe(args.a), describe(args.b)), _print_differences


def _pairs(args: argparse.Namespace):
    return paired([describe(directory) for directory in find_runs(args.folders)], args.by), _print_pairs


def _print_pairs(console: Console, rows: list[dict]) -> None:
    table = _table("run with", "against", "pairs", "loss minus loss", "95 % interval", "least", "largest")
    for row in rows:
        low, high = (None, None) if row["half_width"] is None else (row["difference"] + s * row["half_width"] for s in (-1, 1))
        said = "" if low is None else f"{low:+.4f} to {high:+.4f}"
        ends = ("" if row[name] is None else f"{row[name]:+.4f}" for name in ("least", "largest"))
        mean = "" if row["difference"] is None else f"{row['difference']:+.4f}"
        _row(table, f"{row['flag']} {row['value']}", row["against"], row["pairs"], mean, said, *ends)
    console.print(table)
    if any(row["pairs"] == 1 for row in rows):
        console.print("One pair tells no interval, so it may be the seed's luck: train more seeds.", markup=False, soft_wrap=True)


def _print_list(console: Console, runs: list[dict]) -> None:
    columns = ("run", "status", "objective", "params", "tokens", "step", "loss", "seed", "config", "code", "resumes", "reason")
    table, named = _table(*columns), Counter(run["run"] for run in runs)
    for run in runs:
        loss = _with_error(run["loss"], run["error"]) + (f" ({run['bound']})" if run["bound"] in ("bound", "denoising") else "")
        name = run["run"] if named[run["run"]] == 1 else run["path"]
        _row(
            table,
            name,
            *(run[column] for column in columns[1:6]),
            loss,
            *(run[column] for column in ("seed", "config_hash", "code", "resumes", "reason")),
        )
    console.print(table)
    counts = Counter(run["status"] for run in runs)
    console.print(", ".join([f"{len(runs)} runs", *(f"{n} {state}" for state, n in counts.items())]), highlight=False)


def _print_run(console: Console, run: dict) -> None:
    console.print(
        f"{run['run']}: {run['status']}{f', {reason}' if (reason := run['reason']) else ''}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    facts = {name: value for name, value in run["facts"].items() if name != "resumes"}
    for title, values in (("result", run["result"]), ("facts", facts), ("config", run["config"])):
        table = _table("", "", title=f"{title}, hash {run['config_hash']}" if title == "config" else title)
        for name, value in flat(values).items():
            _row(
                table,
                name,
                _with_error(value, error_of(run["result"]))
                if (title, name) == ("result", "loss")
                else _date(value)
                if name == "created"
                else value,
            )
        console.print(table)
    for resume in run["facts"].get("resumes", []):
        changed = f"; {'; '.join(resume.get('changed', []))}" if resume.get("changed") else ""
        console.print(
            f"resumed at step {resume.get('step')} on {_date(resume.get('time'))} from {resume.get('from')}{changed}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    for line in run["skips"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_differences(console: Console, found: dict) -> None:
    for title in ("flags", "facts"):
        table = _table(title, "A", "B")
        for name, (one, other) in found[title].items():
            _row(table, name, "-" if one is None else one, "-" if other is None else other)
        console.print(table)
    table = _table("metric", "A", "B", "B - A", "95 % of it", "exceeds its error")
    for name, m in found["metrics"].items():
        said = {None: "its error is not known", True: "yes", False: "no"}[m["exceeds"]]
        _row(table, name, m["a"], m["b"], m["difference"], "" if m["error"] is None else m["error"], said)
    console.print(table)


def _table(*headings: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(headings))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _row(table: Table, *cells) -> None:
    table.add_row(*(Text(_plain(cell)) for cell in cells))


def _plain(cell) -> str:
    return "" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell)


def _with_error(value, error) -> str:
    return _plain(value) if error is None or value is None else f"{value:.5f} +- {error:.5f}"


def _date(seconds) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if isinstance(seconds, (int, float)) else ""
