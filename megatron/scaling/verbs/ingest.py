"""Logs of any trainer -> one table of points: run, step, params, tokens, flops, loss, and what else is known.

Tokens are what was consumed (samples x sequence length), never steps x batch size. Of a step that was written twice, by a
run that went on from an earlier checkpoint, the last counts. Nothing is guessed: what is unknown stays empty.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rich.table import Table
from rich.text import Text

from megatron.scaling.table.ingest.points import Choices, Points, Sources, ingest, write_points
from megatron.scaling.table.table import MAPPING
from megatron.scaling.verbs import Answer, json_argument
from megatron.scaling.verbs.runs import wide_console

SETTING = re.compile(r"(?:(.+):)?(\w+)=(.*)")
NUM_SHOWN = 40
LAST_K = re.compile(r"last-k:([1-9]\d*)")


def arguments(parser: argparse.ArgumentParser) -> None:
    sources = parser.add_argument_group("what to read (any of them, more than once)")
    for flag, metavar, what in (
        ("--metrics", "RUN_DIR", "our run directories, or folders of them"),
        ("--tb", "DIR", "TensorBoard event directories, ours, Megatron's or others'; every folder with events is a run"),
        ("--wandb", "PATH", "offline W&B runs (folders, .wandb files), or CSV exports of a chart, a history or runs"),
        ("--csv", "FILE", "tables"),
        ("--jsonl", "FILE", "tables, an object a line"),
        ("--log", "FILE", "what Megatron, Megatron-DeepSpeed or we print; a file is a run"),
    ):
        sources.add_argument(flag, type=Path, nargs="+", action="extend", default=[], metavar=metavar, help=what)
    parser.add_argument(
        "--map",
        type=_mapping,
        action="append",
        default=[],
        metavar="NEW=OLD,...",
        help="which column or metric is meant, as loss=lm-loss-validation,tokens=consumed-tokens; params=size*1e6 also scales",
    )
    parser.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="[RUN:]COLUMN=VALUE",
        help="a constant, as params=124e6 or seq_length=2048, for the runs whose name or path matches RUN; "
        "run=NAME joins several sources to one run",
    )
    parser.add_argument("--smooth", type=_last_k, default=1, metavar="last-k:N", help="every loss is the mean of its last N")
    parser.add_argument("--rows", choices=("all", "final"), default="all", help="every point, or the last of every run")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="runs.csv or runs.jsonl")
    json_argument(parser)


def command(args: argparse.Namespace) -> Answer:
    """Read, write the table, say what is in it and what is missing."""
    sources = Sources(metrics=args.metrics, tensorboard=args.tb, wandb=args.wandb, csv=args.csv, jsonl=args.jsonl, logs=args.log)
    choices = Choices(
        mapping={new: old for item in args.map for new, old in item.items()},
        constants=args.set,
        last_k=args.smooth,
        only_final=args.rows == "final",
    )
    runs, notes = ingest(sources, choices)
    write_points(args.out, runs, choices)
    console = wide_console()
    console.print(_summary(runs))
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{args.out}: {sum(map(len, runs))} rows of {len(runs)} runs", highlight=False, soft_wrap=True)
    return Answer(
        {"table": args.out, "num_rows": sum(map(len, runs)), "runs": [_record(points) for points in runs], "notes": notes}
    )


def _record(points: Points) -> dict:
    """A run that was read, and its last point."""
    last = {name: points.last(name) for name in ("step", "params", "tokens", "loss")}
    return {"run": points.run, "num_rows": len(points), "num_overwritten": points.num_overwritten, **last}


def _summary(runs: list[Points]) -> Table:
    table = Table()
    for heading in ("run", "rows", "overwritten", "last step", "params", "tokens", "loss", "of"):
        table.add_column(heading, justify="left" if heading in ("run", "of") else "right")
    for points in runs[:NUM_SHOWN]:
        numbers = [points.last(name) for name in ("step", "params", "tokens", "loss")]
        table.add_row(
            Text(points.run),
            str(len(points)),
            str(points.num_overwritten),
            *("" if n is None else f"{n:.6g}" if isinstance(n, (int, float)) else str(n) for n in numbers),
            Text(points.loss_metric),
        )
    if len(runs) > NUM_SHOWN:
        table.add_row(f"and {len(runs) - NUM_SHOWN} more runs")
    return table


def _mapping(text: str) -> dict[str, tuple[str, float]]:
    found = {}
    for item in text.split(","):
        matched = MAPPING.fullmatch(item)
        if matched is None:
            raise argparse.ArgumentTypeError(f"{item!r}: expected NEW=OLD, as loss=lm-loss-validation,tokens=consumed-tokens")
        found[matched[1]] = (matched[2], float(matched[3] or 1))
    return found


def _setting(text: str) -> tuple[str, str, str | float]:
    matched = SETTING.fullmatch(text)
    if matched is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected COLUMN=VALUE or RUN:COLUMN=VALUE, as params=124e6")
    pattern, column, value = matched.groups()
    try:
        number = float(value)
        return pattern or "*", column, int(number) if number.is_integer() else number
    except ValueError:
        return pattern or "*", column, value


def _last_k(text: str) -> int:
    matched = LAST_K.fullmatch(text)
    if matched is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected last-k:N with N of at least 1")
    return int(matched[1])
