"""Compare sets of runs, or fits, once they are comparable: the first with each of the others.

Each argument is a table, a run directory or a folder of them (objectives in it are sides of their own), or a fit (fit.json or
its folder). Prints what differs, the compute ratio at equal loss and the ratio of optimal parameters at equal compute with
95 % intervals, and whether losses are exact or bounds. Writes compare.json into --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron.errors import BadData
from megatron.scaling.answers.compare import compare, findings, is_fit, side_of_fit, sides_of_runs
from megatron.scaling.show.screen import say, show_pair
from megatron.scaling.table.table import Table
from megatron.scaling.verbs import Answer, conclude, json_argument, load_table, positive, table_arguments
from megatron.scaling.verbs.isoflop import fit_from, isoflop_arguments


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    parser.add_argument("sets", nargs="+", metavar="SET", help="tables, folders of runs, or fits; the first is the reference")
    parser.add_argument("--at-loss", type=positive, nargs="+", default=[], metavar="L", help="compare compute at these losses")
    parser.add_argument("--at-flops", type=positive, nargs="+", default=[], metavar="C", help="compare sizes at these budgets")
    table_arguments(parser, paths=False)
    isoflop_arguments(parser)
    parser.add_argument("--out", metavar="DIR", help="folder for compare.json")
    json_argument(parser)


def command(args: argparse.Namespace) -> Answer:
    """Lint, compare, print, write."""
    sides, tables = [], []
    for path in args.sets:
        if is_fit(Path(path)):
            sides.append(side_of_fit(Path(path)))
            continue
        tables.append(load_table(args, [path], lint=False))
        sides += sides_of_runs(Path(path).stem, tables[-1], fit_from(args, tables[-1]))
    if len(sides) < 2:
        raise BadData(f"{args.sets[0]} holds one objective and nothing stands beside it: give another set of runs or fit.")
    allow = [name for item in args.allow for name in item]
    said = findings(sides, allow)
    found = [compare(sides[0], other, args.at_loss, args.at_flops) for other in sides[1:]]
    for pair in found:
        show_pair(pair)
        if pair["unreached"]:
            lost = ", ".join(f"{loss:g}" for loss in pair["unreached"])
            said.append(f"--at-loss {lost}: {pair['reference']} or {pair['other']} never has it, or has no law of L*(C).")
    for line in said:
        say(f"note: {line}")
    record = {"sides": [side.label for side in sides], "pairs": found, "warnings": said}
    return conclude(args, "compare.json", record, tables[0] if tables else Table([{}]))
