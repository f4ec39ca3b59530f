"""N*, D*, epochs and loss for a budget and unique tokens, with intervals; of several fits, which one wins.

`--flops` asks for the optimum; two of --flops, --params and --tokens ask for one run. `--ledger FILE` writes the prediction down
before the run ends (`next --score FILE` scores it). Writes predict.json into --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron.flags import ConfigError
from megatron.scaling.answers.critical import check_fits_comparable
from megatron.scaling.answers.ledger import enter
from megatron.scaling.answers.predict import compare_at_budget, in_words, predict_run, read_laws
from megatron.scaling.show.screen import interval, say, show
from megatron.scaling.table.comparable import LINTS
from megatron.scaling.table.table import Table
from megatron.scaling.verbs import Answer, conclude, json_argument, positive


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    parser.add_argument(
        "fits", nargs="+", metavar="FIT", help="fit.json or isoflop.json files, or their folders, one for each objective"
    )
    parser.add_argument("--flops", type=positive, metavar="C", help="compute budget; alone it asks for the optimum")
    parser.add_argument("--params", type=positive, metavar="N")
    parser.add_argument("--tokens", type=positive, metavar="D", help="tokens seen")
    parser.add_argument("--unique-tokens", type=positive, metavar="U", help="default: no token is seen twice")
    parser.add_argument(
        "--allow",
        nargs="+",
        choices=LINTS,
        default=[],
        metavar="X",
        help="differences between fits to compare across: " + ", ".join(LINTS),
    )
    parser.add_argument("--ledger", metavar="FILE", help="append the predictions, with intervals, to this file")
    parser.add_argument("--run", metavar="NAME", help="the run that the ledger's prediction is about (default: by N, D and U)")
    parser.add_argument("--out", metavar="DIR", help="folder for predict.json")
    json_argument(parser)


def command(args: argparse.Namespace) -> Answer:
    """Predict, say it in words, write it down."""
    given = [value is not None for value in (args.flops, args.params, args.tokens)]
    if sum(given) != 2 and given != [True, False, False]:
        raise ConfigError(["predict needs --flops, or two of --flops, --params and --tokens: they say one run."])
    if args.run and not args.ledger:
        raise ConfigError(["--run names the run of a ledger's prediction: give --ledger too."])
    fits, sources = read_laws(args.fits)
    named = _named(fits, [_as_given(source["path"], args.fits) for source in sources])
    if len(named) > 1:
        check_fits_comparable(named, args.allow)
    found = [predict_run(fit, label, args.flops, args.params, args.tokens, args.unique_tokens) for label, fit in named.items()]
    optimal = args.params is None and args.tokens is None
    verdict = compare_at_budget(named, args.flops, args.unique_tokens) if optimal and len(named) > 1 else None
    answer = in_words(found, verdict)
    _show(found, answer)
    if args.ledger:
        enter(args.ledger, found, sources, fits[0].choices.get("unit", "nats"), args.run)
        say(f"wrote {args.ledger}")
    record = {"predictions": found, "verdict": verdict, "answer": answer}
    return conclude(args, "predict.json", record, Table([fits[0].conventions], sources=sources))


def _as_given(file: str, given: list[str]) -> str:
    """The path of a file, or of its folder where that was given."""
    return next((path for path in given if Path(path) == Path(file).parent), file)


def _named(fits: list, paths: list[str]) -> dict:
    """label -> fit: its objective, or its path where fits share one or do not state it."""
    objectives = [str(fit.conventions.get("objective") or "") for fit in fits]
    return {
        objective
        if objective and objectives.count(objective) == 1
        else f"{path} {objective}"
        if paths.count(path) > 1
        else path: fit
        for fit, path, objective in zip(fits, paths, objectives)
    }


def _show(found: list[dict], answer: str) -> None:
    rows = [
        (
            one["label"],
            *(
                cell
                for name, form in (("params", ".4g"), ("tokens", ".4g"), ("epochs", ".4g"), ("loss", ".4f"))
                for cell in (f"{one[name]:{form}}", interval(one.get(f"{name}_ci"), form))
            ),
            interval(one["run_ci"] if one["ln_sd"] else None, ".4f"),
        )
        for one in found
    ]
    show(
        "Predictions (95 % intervals: of the law, and of the loss of one run)",
        ["fit", "N", "interval", "D", "interval", "epochs", "interval", "loss", "law", "one run"],
        rows,
    )
    say(answer)
    for warning in (warning for one in found for warning in one["warnings"]):
        say(f"warning: {warning}")
