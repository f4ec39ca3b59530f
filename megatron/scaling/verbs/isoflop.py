"""IsoFLOP analysis: a parabola of the loss over size for every compute budget, its minimum, and the exponents of the minima.

Writes isoflop.json (N*(C), D*(C) and L*(C) with prefactors, exponents, intervals and bands, which `predict` reads; minima, rows
used and dropped, warnings) and the figures isoflop, frontier and contours, each .png and .pdf, into --out. Leaves with 65 when no
exponent can be had.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron.errors import BadData
from megatron.scaling.answers.compare import compare, sides_of_runs
from megatron.scaling.answers.frontier import equal_loss_ratios, frontier_of, warnings_of
from megatron.scaling.answers.isoflop import IsoFlop, as_record, fit_table
from megatron.scaling.show.screen import interval, say, show, show_pair, show_record
from megatron.scaling.table.json_record import by_field
from megatron.scaling.table.table import Table
from megatron.scaling.verbs import Answer, conclude, json_argument, load_table, positive, table_arguments

MEANING = {"a": "a: N* ~ C^a", "b": "b: D* ~ C^b", "g": "g: L* ~ C^-g"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    table_arguments(parser)
    isoflop_arguments(parser)
    parser.add_argument("--out", metavar="DIR", help="folder for isoflop.json and the figure")
    json_argument(parser)


def isoflop_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how minima are fitted."""
    parser.add_argument(
        "--budgets",
        default="auto",
        metavar="auto|column|COLUMN",
        help="auto: by gaps in the column budget or in the compute; else equal values of the column budget, "
        "or of another, are one budget",
    )
    parser.add_argument(
        "--window", type=positive, metavar="DECADES", help="use sizes within this many decades of a budget's lowest loss"
    )
    parser.add_argument(
        "--curve",
        choices=("auto", "parabola", "law"),
        default="auto",
        help="through the runs of a budget; auto: a parabola, or the shape of a law in N and D where parabolas do not fit",
    )
    parser.add_argument("--x", choices=("params", "tokens"), default="params", help="the curves' axis")
    parser.add_argument("--optima", action="store_true", help="every row is an optimum already: one a budget")
    parser.add_argument(
        "--ci",
        choices=("parametric", "cluster"),
        default="parametric",
        help="losses drawn around the curves, or clusters of rows drawn with replacement",
    )
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="number of resamples")
    parser.add_argument("--seed", type=int, default=0)


def fit_from(args: argparse.Namespace, table: Table) -> dict[str, IsoFlop]:
    """objective -> IsoFlop, as the flags of `isoflop_arguments` say."""
    return fit_table(
        table,
        budgets=args.budgets,
        window=args.window,
        x=args.x,
        ci=args.ci,
        curve=args.curve,
        optima=args.optima,
        num_resamples=args.bootstrap,
        seed=args.seed,
    )


def command(args: argparse.Namespace) -> Answer:
    """Fit, print, write; raises BadData when an objective has no exponent."""
    table = load_table(args)
    found = fit_from(args, table)
    records = {objective: _record(isoflop, table.only(objective)) for objective, isoflop in found.items()}
    for objective, isoflop in found.items():
        _show(objective, isoflop, records[objective]["optimum"])
        show_record(records[objective]["rows_dropped"], records[objective]["warnings"])
    sides = sides_of_runs("runs", table, found) if args.by else []
    pairs = [compare(sides[0], other) for other in sides[1:]]
    for pair in pairs:
        show_pair(pair)
    answer = conclude(args, "isoflop.json", by_field(records) | ({"pairs": pairs} if pairs else {}), table)
    if args.out:
        _draw(found, table, Path(args.out), args.optima)
    lacking = [objective for objective, isoflop in found.items() if isoflop.exponents["a"] is None]
    if lacking:
        raise BadData(
            f"no exponent for {', '.join(lacking)}: two budgets with their minimum inside the data are needed, found "
            f"{len(found[lacking[0]].interior)} of {len(found[lacking[0]].minima)}; add sizes, or give --budgets."
        )
    return answer


def _record(isoflop: IsoFlop, table: Table) -> dict:
    record, optimum = as_record(isoflop, table), frontier_of(isoflop)
    return record | {"optimum": optimum, "warnings": record["warnings"] + warnings_of(optimum)}


def _show(objective: str, isoflop: IsoFlop, optimum: dict | None) -> None:
    show(
        f"{objective}: isoFLOP minima (95 % intervals; open: the data do not bound it)",
        ["C (FLOPs)", "N*", "interval", "D*", "loss", "interval", "runs", "used"],
        [
            (
                f"{m.flops:.3g}",
                f"{m.params:.4g}",
                interval(m.params_ci, ".4g"),
                f"{m.tokens:.4g}",
                f"{m.loss:.4f}",
                interval(m.loss_ci, ".4f"),
                str(m.num_runs),
                m.reason or "yes",
            )
            for m in isoflop.minima
        ],
    )
    show(
        f"{objective}: exponents ({isoflop.ci_method}, {isoflop.num_resamples} resamples)",
        ["exponent", "value", "95 % interval"],
        [
            (MEANING[name], f"{value:.4f}", interval(isoflop.ci[name], ".4f"))
            for name, value in isoflop.exponents.items()
            if value is not None
        ],
    )
    if optimum:
        show(
            f"{objective}: {optimum['equation']}",
            ["constant", "value", "95 % interval"],
            [
                ("E", "not fitted", "-")
                if name == "E" and optimum["irreducible"] is None
                else (name, f"{value:.4g}", interval(optimum["ci"].get(name), ".4g"))
                for name, value in optimum["params"].items()
            ],
        )


def _draw(found: dict[str, IsoFlop], table: Table, folder: Path, optima: bool) -> None:
    from megatron.scaling.show.figures import draw_contours, draw_frontier, draw_isoflop, save
    from megatron.scaling.show.report.study import Study, by_budget, fit_runs, to_draw

    studies = []
    for objective, isoflop in found.items():
        runs = by_budget(table.only(objective).rows)
        law = None if optima else fit_runs(runs, num_resamples=0)[0]
        studies.append(to_draw(Study(objective, runs, isoflop, law)))
    ratios, unit = equal_loss_ratios(found["ar"], found["mdm"]) if {"ar", "mdm"} <= set(found) else [], table.choices["unit"]
    figures = {"isoflop": draw_isoflop(studies, ratios, unit), "frontier": draw_frontier(studies, unit)}
    if any(study.law for study in studies):
        figures["contours"] = draw_contours(studies, unit)
    for name, figure in figures.items():
        for path in save(figure, folder / name):
            say(f"wrote {path}")
