"""What a repeated token is worth, by epoch: D'/D from the fitted R_D* with its interval, and measured run by run.

From fits (`--fit`, of `fit --form data-constrained`), from tables of runs at several epoch counts, or from both: then every
repeating run is a point beside the curve. A table alone is fitted here; where it is too small for L(N, D), its fresh runs of
equal size are interpolated instead. Writes data_value.json and data_value.png, .pdf into --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron.flags import ConfigError
from megatron.scaling.answers.data_value import DataValue, as_record, curve_at, curves_of
from megatron.scaling.answers.predict import read_fits
from megatron.scaling.show.screen import interval, say, show
from megatron.scaling.table.table import Table
from megatron.scaling.verbs import Answer, conclude, json_argument, load_table, positive, table_arguments

SHOWN_EPOCHS = (2, 4, 8, 16, 40, 100, 500)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="CSV or JSONL tables, run directories, folders of them")
    parser.add_argument("--fit", action="append", default=[], metavar="FIT", help="a data-constrained fit.json or its folder")
    parser.add_argument("--max-epochs", type=positive, default=1000.0, metavar="E", help="where the curves end [1000]")
    parser.add_argument("--bootstrap", type=int, default=400, metavar="N", help="resamples of what is fitted here [400]")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap [0]")
    table_arguments(parser, paths=False)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for data_value.json and the figure")
    json_argument(parser)


def command(args: argparse.Namespace) -> Answer:
    """Fit what is not fitted, print, draw, write."""
    from megatron.scaling.show.figures import draw_data_value, save
    from megatron.scaling.show.report.inputs import read_data_value

    if not (args.tables or args.fit):
        raise ConfigError(["data-value needs a table of runs, or --fit with the fit.json of a data-constrained fit."])
    fits, sources = read_fits(args.fit)
    table = load_table(args) if args.tables else Table([fits[0].conventions])
    named = dict(zip(args.fit, fits))
    curves = curves_of(named, table if args.tables else None, args.max_epochs, args.bootstrap, args.seed)
    for curve in curves.values():
        _show(curve)
    whole = Table(table.rows, table.dropped, [*table.sources, *sources], table.choices, table.warnings)
    path = Path(args.out) / "data_value.json"
    record = {
        "curves": [as_record(curve) | {"objective": objective} for objective, curve in curves.items()],
        "warnings": [warning for curve in curves.values() for warning in curve.warnings],
    }
    answer = conclude(args, path.name, record, whole)
    for picture in save(draw_data_value(read_data_value(str(path), path.parent)), path.parent / "data_value"):
        say(f"wrote {picture}")
    return answer


def _show(curve: DataValue) -> None:
    at = curve_at(SHOWN_EPOCHS, curve.label, curve.R_D, curve.R_D_ci)
    bands = ["-"] * len(at.value)
    if at.low is not None and at.high is not None:
        bands = [interval(ends, ".4f") for ends in zip(at.low, at.high)]
    show(
        f"{curve.label}: value of a token D'/D, R_D* = {curve.R_D:.4g} ({interval(curve.R_D_ci, '.4g')})",
        ["epochs", "D'/D", "95 % interval"],
        [(str(epochs), f"{value:.4f}", band) for epochs, value, band in zip(SHOWN_EPOCHS, at.value, bands)],
    )
    show(
        f"{curve.label}: fresh tokens that a run's loss equals, over the tokens it saw",
        ["run", "epochs", "N", "U", "loss", "D'/D", "95 % interval"],
        [
            (
                point["run"],
                f"{point['epochs']:.4g}",
                f"{point['params']:.3g}",
                f"{point['unique_tokens']:.3g}",
                f"{point['loss']:.4f}",
                "none" if point["value"] is None else f"{point['value']:.4f}",
                interval(point["ci"], ".4f"),
            )
            for point in curve.points
        ],
    )
    for warning in curve.warnings:
        say(f"warning: {curve.label}: {warning}")
