#!/usr/bin/env python3
"""Speed and memory against peers written for the same shapes: `benchmark.py [NAME ...] [--check]`.

One thread, CPU seconds, variants in turn, and the median over rounds of the ratio peer / ours within a round: on a busy
machine times move, such ratios hardly do. A gate is the least ratio that counts as passed; a limit is turned into one.
Peers: a plain nanoGPT-style step, and LlamaForCausalLM where transformers is installed, each in its faster mode. Layouts of
several processes are measured in wall seconds, for what their ranks wait for is part of the cost: give them a core each.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed
from megatron import stopping

if __name__ == "__main__":
    stopping.heed_interrupt()

import argparse
import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TextIO

from megatron.errors import exits
from tools.benchmark_generate import generate
from tools.benchmark_gpu import gpu
from tools.benchmark_layouts import communication, dp, layers
from tools.benchmark_startup import startup
from tools.benchmark_step import head, mdm, step, step_compiled, step_fp32
from tools.benchmark_sweep import sweep
from tools.benchmark_timing import Row

SECTIONS: dict[str, Callable[[int], list[Row]]] = {
    "step": step,
    "step-fp32": step_fp32,
    "step-compiled": step_compiled,
    "head": head,
    "mdm": mdm,
    "generate": generate,
    "dp": dp,
    "communication": communication,
    "layers": layers,
    "startup": startup,
    "sweep": sweep,
    "gpu": gpu,
}


def print_rows(rows: list[Row], out: TextIO | None = None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "ours", "peer", "ratio", "gate", "verdict")
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        gate = "-" if row.gate is None else f">= {row.gate:g}"
        table.add_row(f"{row.section}: {row.what}", row.ours or "-", row.peer or "-", ratio, gate, row.verdict())
    out = out or sys.stdout
    Console(file=out, width=None if out.isatty() else 160).print(table)


def conclude(rows: list[Row], check: bool) -> int:
    """Name the gates that failed; 1 when there are any and `check`."""
    failed = [row for row in rows if row.verdict() == "FAILED"]
    for row in failed:
        print(f"gate failed: {row.section}: {row.what}: {row.ratio:.3f}, expected at least {row.gate:g}", file=sys.stderr)
    return int(check and bool(failed))


def records(rows: list[Row]) -> str:
    """The rows as JSON."""
    return json.dumps([asdict(row) | {"verdict": row.verdict()} for row in rows], indent=1)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark.py", allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"sections to run, of {', '.join(SECTIONS)} [all]")
    parser.add_argument("--check", action="store_true", help="leave with exit code 1 when a gate fails")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison [5]")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")
    given = parser.parse_args(argv)
    unknown = [name for name in given.names if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {' or '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    if given.rounds < 1:
        parser.error(f"--rounds {given.rounds} must be at least 1")
    return given


@exits
def main(argv: list[str] | None = None) -> int:
    given = parse(argv)
    rows, out = [], sys.stderr if given.json else sys.stdout
    with contextlib.redirect_stdout(out):  # a section may print a table of its own
        for name in given.names or SECTIONS:
            found = SECTIONS[name](given.rounds)
            if found:
                print_rows(found, out)
            rows += found
    if given.json:
        print(records(rows))
    return conclude(rows, given.check)


if __name__ == "__main__":
    sys.exit(main())
