"""Fit a law to a table: parameters with intervals, the optimum's exponents, and every reason for distrust.

`fit TABLE.csv --form chinchilla --out DIR` writes DIR/fit.json, residuals.csv and table.txt. It leaves with 70 when no start
converges. A table of several objectives is fitted apart, each into DIR/OBJECTIVE.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron.errors import Refusal
from megatron.flags import ConfigError
from megatron.scaling.answers.parts import compare_parts, trend_line, trends
from megatron.scaling.law.expression import read_form
from megatron.scaling.law.fit import METHODS, WEIGHTS, Fit, fit_law, load_fit, save_fit
from megatron.scaling.law.fitted import OBJECTIVES, as_record, parameter_lines, setting_lines
from megatron.scaling.law.form import Form
from megatron.scaling.law.forms import FORMS
from megatron.scaling.show.screen import interval, say, show, show_pair, show_record
from megatron.scaling.table.covariates import spelled, unspelled
from megatron.scaling.table.downstream import OTHER, beside
from megatron.scaling.table.labels import file_name
from megatron.scaling.table.table import Table
from megatron.scaling.verbs import Answer, json_argument, load_table, positive, table_arguments

GIVEN = re.compile(r"\s*(\w+)\s*=\s*([-+.\deE]+)\s*")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    table_arguments(parser)
    fit_arguments(parser)
    beside_argument(parser)
    parser.add_argument("--out", metavar="DIR", help="folder for fit.json, residuals.csv and table.txt")
    json_argument(parser)


def fit_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what is fitted and how."""
    group = parser.add_argument_group("the fit")
    group.add_argument(
        "--form",
        type=read_form_argument,
        default="chinchilla",
        metavar="FORM",
        help=f"{', '.join(FORMS)}; a formula of N, D, U and R = D/U - 1, as 'E + A/N^alpha + B/D^beta; alpha in 0.1:1'; "
        "or a Python file that defines FORM",
    )
    objective_arguments(group)
    group.add_argument("--reduction", choices=("sum", "mean"), default="sum", help="on record; the optimum is the same")
    group.add_argument(
        "--starts",
        type=_starts,
        default="default",
        metavar="default|grid|N",
        help="grid: the 4500 of Hoffmann et al.; N: that many, drawn at random",
    )
    group.add_argument("--bootstrap", type=_count, default=1000, metavar="N", help="resamples of whole clusters (see --group-by)")
    group.add_argument("--ci", choices=METHODS, default="percentile", help="which 95 %% intervals stand in `ci`")
    group.add_argument("--holdout", metavar="CONDITION", help="rows to predict instead of fit, as flops>=1e21")
    group.add_argument(
        "--chinchilla",
        type=_chinchilla,
        metavar="fit.json|single-epoch|E=..,A=..,..",
        help="two stages: hold this part of a data-constrained form (default: fit everything jointly)",
    )
    group.add_argument("--seed", type=int, default=0)


def objective_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags that say what a fit minimises."""
    group.add_argument("--delta", type=positive, default=1e-3, help="of the Huber loss, in units of ln L")
    group.add_argument(
        "--residual",
        choices=OBJECTIVES,
        default="huber-log",
        help="what is summed: Huber of ln L, its square, or square or size of L itself",
    )
    group.add_argument(
        "--weights", choices=WEIGHTS, default="equal", help="se: rows count by the error they state (loss_se, loss_se_noise)"
    )


def fit_from(args: argparse.Namespace, table) -> Fit:
    """The fit that the flags of `fit_arguments` describe."""
    chinchilla = args.chinchilla
    if isinstance(chinchilla, str) and chinchilla != "single-epoch":
        chinchilla = load_fit(chinchilla)
    return fit_law(
        table,
        args.form,
        delta=args.delta,
        residual=args.residual,
        weights=args.weights,
        reduction=args.reduction,
        starts=args.starts,
        num_resamples=args.bootstrap,
        ci=args.ci,
        holdout=args.holdout,
        seed=args.seed,
        chinchilla=chinchilla,
    )


def load_for(args: argparse.Namespace, forms: Sequence[Form]) -> Table:
    """The table with the columns that these forms are laws of, the loss of --beside among them. Raises as `read_table`."""
    columns = list(dict.fromkeys(column for form in forms for column in form.columns.values()))
    if args.beside and OTHER not in columns:
        raise ConfigError([f"--beside makes the column {OTHER}, of which no form here is a law: give --form loss-to-loss."])
    apart = [spelled(column) for column in columns if column in map(unspelled, (*args.by, *args.best_of))]
    if apart:
        raise ConfigError([f"{apart[0]} is a variable of the form, and --by or --best-of fixes it: leave out one of them."])
    table = load_table(args, columns=[column for column in columns if column != OTHER])
    if not args.beside and OTHER in columns and OTHER not in table.rows[0]:
        raise ConfigError([f"there is no column {OTHER}: give --beside TABLE, whose runs' loss it is, or --map {OTHER}=COLUMN."])
    if not args.beside:
        return table
    other = load_table(argparse.Namespace(**{**vars(args), "drop": []}), args.beside)
    rows, left_out = beside(table.rows, other.rows)
    dropped, warnings = table.dropped + left_out + other.dropped, table.warnings + other.warnings
    return replace(table, rows=rows, dropped=dropped, sources=table.sources + other.sources, warnings=warnings)


def beside_argument(parser: argparse.ArgumentParser) -> None:
    """Add --beside, which `load_for` acts on."""
    parser.add_argument(
        "--beside",
        nargs="+",
        metavar="TABLE",
        help="runs, without --drop, whose loss at the same N, D and U is the column other_loss of --form loss-to-loss",
    )


def command(args: argparse.Namespace) -> Answer:
    """Fit, print, write."""
    table = load_for(args, [args.form])
    fits = {objective: fit_from(args, table.only(objective)) for objective in table.objectives}
    written = []
    for objective, fit in fits.items():
        _show(fit, objective)
        if args.out:
            folder = Path(args.out) / (file_name(objective) if len(fits) > 1 else "")
            save_fit(fit, folder)
            written.append(str(folder / "fit.json"))
            say(f"wrote {written[-1]}, residuals.csv and table.txt")
    pairs, lines = (compare_parts(fits), trends(fits, table.rows, args.by)) if args.by else ([], [])
    for pair in pairs:
        show_pair(pair)
        _show_differences(pair)
    _show_trends(lines)
    records = {objective: as_record(fit) | {"draws": None} for objective, fit in fits.items()}  # the files have the draws
    return Answer({"fits": records, "pairs": pairs, "trends": lines, "written": written})


def _show(fit: Fit, objective: str) -> None:
    columns = ("parameter", "value", "std. error", f"95 % interval ({fit.ci_method})", "profile interval")
    show(f"{fit.form} ({objective})", columns, parameter_lines(fit))
    for what, value in setting_lines(fit):
        say(f"{what}: {value}")
    show_record(fit.rows_dropped, fit.warnings)


def _show_differences(pair: dict) -> None:
    show(
        f"{pair['other']} minus {pair['reference']}",
        ["parameter", "difference", "95 % interval", "values"],
        [
            (
                one["name"],
                f"{one['difference']:.4g}",
                interval(one["ci"], ".4g"),
                " / ".join(f"{value:.4g}" for value in one["values"]),
            )
            for one in pair["differences"]
        ],
    )


def _show_trends(lines: list[dict]) -> None:
    show(
        "Laws of the parameters over these flags",
        ["law", "slope of", "value", "95 % interval", "scatter / expected"],
        [
            (
                trend_line(line) if not number else "",
                one["of"],
                f"{one['value']:.4g}",
                interval(one["ci"], ".4g"),
                f"{line['excess']:.2g}",
            )
            for line in lines
            for number, one in enumerate(line["slopes"])
        ],
    )


def read_form_argument(text: str) -> Form:
    """A word of --form."""
    try:
        return read_form(text, FORMS)
    except Refusal as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _starts(text: str):
    if text in ("default", "grid"):
        return text
    return _count(text, least=1)


def _count(text: str, least: int = 0) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {least}")
    return int(text)


def _chinchilla(text: str):
    """A path, the word single-epoch, or parameters as E=1.87,A=521,B=1488,alpha=0.35,beta=0.35."""
    if "=" not in text or Path(text).exists():
        return text
    found = [item for item in map(GIVEN.fullmatch, text.split(",")) if item]
    try:
        if len(found) < len(text.split(",")):
            raise ValueError
        return {item[1]: float(item[2]) for item in found}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected E=..,A=..,B=..,alpha=..,beta=..") from None
