#!/usr/bin/env python3
"""Scaling laws from finished runs: `scaling_laws.py report RUN_DIRS... --out DIR`."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))           # run from a checkout that is not installed

from megatron.errors import MissingInput, Refusal, exits  # noqa: E402


def report(args: argparse.Namespace) -> None:
    """Fit isoFLOP minima and L(N, D) per objective; print the tables; write fit.json and isoflop.png."""
    from rich.console import Console

    from megatron.scaling.report import build_report, print_report, write_report
    from megatron.scaling.runs import check_comparable, read_runs

    runs, unfinished = read_runs(args.runs)
    if not runs:
        reasons = "; ".join(f"{run['run']}: {run['reason']}" for run in unfinished[:3]) or "the tables are empty"
        raise MissingInput(f"no finished run in {', '.join(args.runs)} ({reasons}); finish a run first.")
    check_comparable(runs, args.allow)
    found = build_report(runs, unfinished, args.bootstrap, args.seed)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    print_report(found, console)
    for path in write_report(found, args.out):
        console.print(f"wrote {path}", soft_wrap=True, highlight=False)


def add_report(verbs) -> None:
    from megatron.scaling.runs import LINTS

    verb = verbs.add_parser("report", allow_abbrev=False, help="tables, fit.json and one picture", description=report.__doc__)
    verb.add_argument("runs", nargs="+", metavar="RUNS", help="run directories, folders of them, CSV or JSONL tables")
    verb.add_argument("--out", required=True, metavar="DIR", help="folder for fit.json and isoflop.png")
    verb.add_argument("--allow", nargs="+", choices=LINTS, default=[], metavar="DIFFERENCE",
                      help=f"fit runs together although they differ in: {', '.join(LINTS)}")
    verb.add_argument("--bootstrap", type=_count, default=400, metavar="N", help="resamples behind every interval [400]")
    verb.add_argument("--seed", type=_count, default=0, help="of the bootstrap [0]")
    verb.set_defaults(verb=report)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"found {text}, expected 0 or more")
    return number


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse leaves with 2 on a bad one."""
    parser = argparse.ArgumentParser(prog="scaling_laws.py", description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    add_report(verbs)
    return parser.parse_args(argv)


@exits
def main(argv: list[str] | None = None) -> None:
    """Run one verb."""
    args = parse(argv)
    try:
        args.verb(args)
    except OSError as error:
        raise Unreadable(f"{error.filename}: {error.strerror}; check the path and its permissions.") from None


class Unreadable(Refusal):
    """A file that is there cannot be read."""
    code = 74


if __name__ == "__main__":
    sys.exit(main())
