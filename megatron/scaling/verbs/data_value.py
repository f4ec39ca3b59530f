"""What a repeated token is worth, by epoch: D'/D from the fitted R_D* with its interval, and measured run by run.

From fits (`--fit`, of `fit --form data-constrained`), from tables of runs at several epoch counts, or from both: then every
repeating run is a point beside the curve. A table alone is fitted here; where it is too small for L(N, D), its fresh runs of
equal size are interpolated instead. Writes data_value.json and data_value.png, .pdf into --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from megatron.errors import BadData
from megatron.flags import ConfigError
from megatron.scaling.answers.data_value import FRESH, DataValue, as_record, curve_at, curve_from_fit, curve_from_runs
from megatron.scaling.answers.predict import read_fits
from megatron.scaling.show.screen import interval, say, show
from megatron.scaling.table.table import Table
from megatron.scaling.verbs import load_table, positive, table_arguments, write_record

SHOWN_EPOCHS = (2, 4, 8, 16, 40, 100, 500)
LEAST_SIZES, LEAST_FRESH = 3, 8  # for L(N, D) of fresh data: otherwise runs are compared with runs


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="CSV or JSONL tables, run directories, folders of them")
    parser.add_argument("--fit", action="append", default=[], metavar="FIT", help="a data-constrained fit.json or its folder")
    parser.add_argument("--max-epochs", type=positive, default=1000.0, metavar="E", help="where the curves end [1000]")
    parser.add_argument("--bootstrap", type=int, default=400, metavar="N", help="resamples of what is fitted here [400]")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap [0]")
    table_arguments(parser, paths=False)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for data_value.json and the figure")


def command(args: argparse.Namespace) -> None:
    """Fit what is not fitted, print, draw, write."""
    from megatron.scaling.show.figures import draw_data_value, save
    from megatron.scaling.show.report.inputs import read_data_value

    if not (args.tables or args.fit):
        raise ConfigError(["data-value needs a table of runs, or --fit with the fit.json of a data-constrained fit."])
    fits, sources = read_fits(args.fit)
    table = load_table(args) if args.tables else Table([fits[0].conventions])
    curves = _curves(args, fits, table)
    for curve in curves.values():
        _show(curve)
    whole = Table(table.rows, table.dropped, [*table.sources, *sources], table.choices, table.warnings)
    path = Path(args.out) / "data_value.json"
    record = {
        "curves": [as_record(curve) | {"objective": objective} for objective, curve in curves.items()],
        "warnings": [warning for curve in curves.values() for warning in curve.warnings],
    }
    write_record(path, record, whole, vars(args))
    for picture in save(draw_data_value(read_data_value(str(path), path.parent)), path.parent / "data_value"):
        say(f"wrote {picture}")


def _curves(args: argparse.Namespace, fits: list, table: Table) -> dict[str, DataValue]:
    """objective -> curve: of each fit, and of each objective of the tables that no fit is about."""
    objectives = table.objectives if args.tables else []
    furthest = np.max(table.column("tokens") / table.column("unique_tokens")) if args.tables else 1.0
    epochs = np.geomspace(1, max(args.max_epochs, furthest, 2), 201)
    curves = {}
    for path, fit in zip(args.fit, fits):
        objective = fit.conventions.get("objective") or (objectives[0] if len(objectives) == 1 else str(path))
        runs = table.only(objective) if objective in objectives else None
        curves[objective] = curve_from_fit(fit, epochs, _label(objective, fit.conventions.get("bound")), runs)
    for objective in (one for one in objectives if one not in curves):
        curves[objective] = _curve_of_runs(args, table.only(objective), epochs, objective)
    return curves


def _curve_of_runs(args: argparse.Namespace, table: Table, epochs, objective: str) -> DataValue:
    from megatron.scaling.law.fit import fit_law

    label = _label(objective, table.rows[0].get("bound"))
    fresh = table.column("tokens") <= FRESH * table.column("unique_tokens")
    if fresh.all():
        raise BadData(
            f"{label}: none of the {len(table)} runs repeats its data (tokens above unique_tokens); "
            "add runs of several epochs, or name the column with --map unique_tokens=..."
        )
    if fresh.sum() < LEAST_FRESH or len(set(table.column("params")[fresh])) < LEAST_SIZES:
        return curve_from_runs(table, epochs, label, args.bootstrap, args.seed)
    fit = fit_law(table, "data-constrained", num_resamples=args.bootstrap, seed=args.seed)
    return curve_from_fit(fit, epochs, label, table)


def _label(objective: str, bound: str | None) -> str:
    from megatron.scaling.show.figures.style import label_of

    return label_of(objective, bound)


def _show(curve: DataValue) -> None:
    at = curve_at(SHOWN_EPOCHS, curve.label, curve.R_D, curve.R_D_ci)
    bands = ["-"] * len(at.value) if at.low is None else [interval(ends, ".4f") for ends in zip(at.low, at.high)]
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
