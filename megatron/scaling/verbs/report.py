"""Fit isoFLOP minima and L(N, D) per objective; print the tables; write report.json, figures (PNG and PDF) and report.html."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from megatron.scaling.show.screen import say
from megatron.scaling.verbs import Answer, json_argument, load_table, table_arguments


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    table_arguments(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for report.json, figures and report.html")
    parser.add_argument("--bootstrap", type=_count, default=400, metavar="N", help="resamples behind every interval [400]")
    parser.add_argument("--seed", type=_count, default=0, help="of the bootstrap [0]")
    json_argument(parser)
    parser.add_argument(
        "--fit", action="append", default=[], metavar="FIT", help="a fit.json of the verb fit to show too [DIR/*/fit.json]"
    )
    parser.add_argument("--data-value", metavar="FILE", help="what the verb data-value wrote [DIR/data_value.json]")
    parser.add_argument("--critical", metavar="FILE", help="what the verb critical-compute wrote [DIR/critical_compute.json]")


def command(args: argparse.Namespace) -> Answer:
    """Do it; matplotlib is imported here."""
    from megatron.scaling.show.report import as_record, build_report, write_report
    from megatron.scaling.show.report.inputs import read_critical, read_data_value, read_fits
    from megatron.scaling.show.report.listing import print_report

    folder, words = Path(args.out), shlex.join(["scaling_laws.py", *sys.argv[1:]])
    found = build_report(
        load_table(args),
        args.bootstrap,
        args.seed,
        fits=read_fits(args.fit, folder),
        data_value=read_data_value(args.data_value, folder),
        crossover=read_critical(args.critical, folder),
        command=words,
    )
    print_report(found)
    written = write_report(found, folder)
    for path in written:
        say(f"wrote {path}")
    return Answer(as_record(found) | {"written": list(map(str, written))})


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"found {text}, expected 0 or more")
    return number
