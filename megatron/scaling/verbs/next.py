"""The run that would shrink the interval of a quantity most per GPU-hour; or the scores of past predictions.

`next FIT --quantity alpha` proposes runs by optimal design on the fitted law: quantities are its parameters and exponents (a, b,
alpha, beta, E, R_D, ...), and N*, D*, epochs and loss at a budget, as `N*@1e21`, `loss@1e21,U=1e9`, or `loss@N=7e9,D=4e12`.
Costs are 6 N D over --flops-per-second of one GPU. `next --score LEDGER RUNS` scores what `predict --ledger` wrote down.
Writes next.json or score.json into --out.
"""

from __future__ import annotations

import argparse

from megatron.flags import ConfigError
from megatron.scaling.answers.design import parse_quantity, propose
from megatron.scaling.answers.ledger import read_ledger, score
from megatron.scaling.answers.predict import read_fits
from megatron.scaling.show.screen import interval, say, show
from megatron.scaling.table.table import Table
from megatron.scaling.verbs import Answer, conclude, json_argument, load_table, positive, table_arguments

EPOCHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    parser.add_argument("paths", nargs="*", metavar="FIT|RUNS", help="fits (fit.json or folder); with --score, tables or runs")
    parser.add_argument("--quantity", metavar="Q", help="what the run should tell, as alpha, R_D, 'N*@1e21', loss@1e21,U=1e9")
    parser.add_argument(
        "--flops-per-second", type=positive, default=4e14, metavar="F", help="6ND throughput of one GPU behind the costs [4e14]"
    )
    parser.add_argument("--max-flops", type=positive, metavar="C", help="of one run (default: the largest of the data)")
    parser.add_argument(
        "--reach", type=positive, default=2.0, metavar="X", help="offer sizes and tokens up to X times beyond the data [2]"
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        nargs="+",
        default=EPOCHS,
        metavar="E",
        help="epoch counts to offer where the law has R_D [1, 2, 4 .. 512]",
    )
    parser.add_argument(
        "--least",
        type=positive,
        default=0.05,
        metavar="SHARE",
        help="prefer runs that shrink the interval by this share or more [0.05]",
    )
    parser.add_argument("--top", type=int, default=5, metavar="N", help="runs to print for each fit [5]")
    parser.add_argument("--score", metavar="LEDGER", help="score this ledger's predictions by finished runs")
    parser.add_argument("--runs", action="append", default=[], metavar="RUNS", help="with --score: more tables or runs")
    table_arguments(parser, paths=False, score=False)
    parser.add_argument("--out", metavar="DIR", help="folder for next.json or score.json")
    json_argument(parser)


def command(args: argparse.Namespace) -> Answer:
    """Propose runs, or score a ledger."""
    if args.score is not None:
        return _score(args)
    if not (args.paths and args.quantity):
        raise ConfigError(["next needs a FIT and --quantity, or --score LEDGER with runs."])
    quantity = parse_quantity(args.quantity)
    fits, sources = read_fits(args.paths)
    asked = args.flops_per_second, args.max_flops, args.reach, args.epochs, args.least, args.top
    found = [{"fit": path, **propose(fit, quantity, *asked)} for fit, path in zip(fits, args.paths)]
    for proposal in found:
        _show_proposal(proposal, args)
    table = Table([fits[0].conventions], sources=sources)
    return conclude(args, "next.json", {"quantity": args.quantity, "proposals": found}, table)


def _show_proposal(proposal: dict, args: argparse.Namespace) -> None:
    name = proposal["objective"] or proposal["fit"]
    say(
        f"{name}: {args.quantity} = {proposal['value']:.5g}, linearised 95 % interval {interval(proposal['ci_now'], '.5g')}"
        + (f", resampled {interval(proposal['ci_of_fit'], '.5g')}" if proposal["ci_of_fit"] else "")
    )
    runs = [("per GPU-hour", run) for run in proposal["runs"]] + [("at any cost", proposal["strongest"])]
    show(
        f"{name}: the next run ({args.flops_per_second:.3g} FLOP/s a GPU)",
        ["best", "N", "D", "epochs", "C (FLOPs)", "GPU-hours", "interval shrinks by", "to"],
        [
            (
                how,
                *(f"{run[column]:.3g}" for column in ("params", "tokens", "epochs", "flops", "gpu_hours")),
                f"{run['shrinkage']:.1%}",
                interval(run["ci_after"], ".5g"),
            )
            for how, run in runs
        ],
    )
    if proposal["runs"][0]["shrinkage"] < args.least:
        say(f"warning: no single run of this budget shrinks the interval by {args.least:.0%}; these shrink it most.")


def _score(args: argparse.Namespace) -> Answer:
    paths = [*args.paths, *args.runs]
    if not paths:
        raise ConfigError(["next --score needs the runs to score by: tables or folders of runs."])
    entries, table = read_ledger(args.score), load_table(args, paths, lint=False)
    found = score(entries, table)
    show(
        "Predictions and what came of them",
        ["run", "label", "predicted", "95 % interval", "loss", "inside", "z", "made"],
        [
            (
                row["run"],
                row["label"],
                f"{row['predicted']:.4f}",
                interval(row["run_ci"], ".4f"),
                f"{row['loss']:.4f}",
                "yes" if row["inside"] else "no",
                f"{row['z']:+.2f}",
                row["made"] + (" (after the run: not counted)" if row["late"] else ""),
            )
            for row in found["scored"]
        ],
    )
    said = found["calibration"]
    say(
        f"{said['inside']} of {said['num_scored']} inside (expected {said['expected']:.1f}); {said['verdict']}; "
        f"{len(found['pending'])} predictions wait for their run."
    )
    return conclude(args, "score.json", found, table)
