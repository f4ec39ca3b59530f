"""The best learning rate, batch size or weight decay over N, D and U: a power law of each, with intervals, for every objective.

The runs vary settings at several places (N, D, U), as those of `plan --lr grid:1e-3,2e-3,4e-3 --weight-decay grid:0.1,0.3,1`. One
parabola in the logarithms of the settings, whose minimum moves with ln N, ln D and ln U, is fitted to ln L of all places at once.
Writes hyper.json into --out, which plans follow: `plan --lr rule:DIR/hyper.json`.
"""

from __future__ import annotations

import argparse

from megatron.errors import BadData
from megatron.scaling.law.hyper import SCHEMA_VERSION, WINDOW, HyperFit, as_record, fit_hyper, settings_of
from megatron.scaling.show.screen import interval, say, show, show_record
from megatron.scaling.table.comparable import check_comparable
from megatron.scaling.table.covariates import spelled
from megatron.scaling.verbs import Answer, conclude, json_argument, load_table, positive, table_arguments, words

SYMBOLS = {"params": "N", "tokens": "D", "unique_tokens": "U"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    table_arguments(parser)
    parser.add_argument(
        "--of",
        type=words,
        default=[],
        metavar="FLAG,...",
        help="settings to find the best of [those of lr, batch-size and weight-decay that runs of one N, D and U differ in]",
    )
    parser.add_argument(
        "--window",
        type=positive,
        default=WINDOW,
        metavar="X",
        help=f"runs within X in ln L of the best of their place [{WINDOW}]",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws behind the intervals [0]")
    parser.add_argument("--out", metavar="DIR", help="folder for hyper.json")
    json_argument(parser)


def command(args: argparse.Namespace) -> Answer:
    """Fit, print, write."""
    table = load_table(args, lint=False)
    parts = {objective: table.only(objective).rows for objective in table.objectives}
    settings = {objective: settings_of(rows, args.of) for objective, rows in parts.items()}
    told = [*args.by, *args.best_of, *(name for names in settings.values() for name in names)]
    check_comparable(table.rows, {*(name for item in args.allow for name in item), *map(spelled, told)})
    fits = {}
    for objective, rows in parts.items():
        try:
            fits[objective] = fit_hyper(rows, settings[objective], args.window, args.seed)
        except BadData as error:
            raise BadData(f"{objective}: {error}") from None
        _show(objective, fits[objective])
        show_record([], table.warnings + fits[objective].warnings)
    show_record(table.dropped, [])
    record = {"schema_version": SCHEMA_VERSION, "objectives": {objective: as_record(fit) for objective, fit in fits.items()}}
    return conclude(args, "hyper.json", record, table)


def _show(objective: str, fit: HyperFit) -> None:
    rows = []
    for name, law in fit.laws.items():
        rows.append((f"{spelled(name)}: ln constant", f"{law.constant:.4g}", interval(fit.ci[name]["constant"], ".4g")))
        rows += [
            (f"{spelled(name)}: exponent of {SYMBOLS[variable]}", f"{slope:.4f}", interval(fit.ci[name][variable], ".4f"))
            for variable, slope in law.exponents.items()
        ]
    show(f"{objective}: best settings, {fit.num_runs} runs at {len(fit.places)} places", ["law", "value", "95 % interval"], rows)
    say(f"ln L scatters by {fit.residual:.2g} around the parabolas")
    show(
        f"{objective}: by place",
        ["N", "D", "U", "runs", *(word for name in fit.laws for word in (spelled(name), "95 % interval", "best tried"))],
        [
            (
                *(f"{place[name]:.4g}" for name in SYMBOLS),
                str(place["runs"]),
                *(word for name in fit.laws for word in _cells(place[name])),
            )
            for place in fit.places
        ],
    )


def _cells(best: dict) -> tuple[str, str, str]:
    return f"{best['best']:.4g}", interval([best["low"], best["high"]], ".3g"), f"{best['tried']:.4g}"
