"""N*, D*, epochs and loss for a budget and unique tokens, with intervals; of several fits, which one wins.

`--flops` asks for the optimum; two of --flops, --params and --tokens ask for one run. `--ledger FILE` writes the prediction down
before the run ends (`next --score FILE` scores it). Writes predict.json into --out.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from megatron.flags import ConfigError
from megatron.scaling.answers.critical import check_fits_comparable
from megatron.scaling.answers.ledger import enter
from megatron.scaling.answers.predict import compare_at_budget, in_words, predict_run, read_fits, read_laws
from megatron.scaling.show.screen import interval, say, show
from megatron.scaling.table.comparable import LINTS
from megatron.scaling.table.covariates import unspelled
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
        "--at",
        type=_value,
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="of a law of a further column, as weight-decay=0.1",
    )
    parser.add_argument(
        "--then",
        nargs="+",
        default=[],
        metavar="FIT",
        help="laws of the loss, as --form accuracy and loss-to-loss fit: what they say of the loss that is predicted",
    )
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
    laws, more = read_fits(args.then)
    fits, laws = _asked_at(fits, laws, args.at)
    then = {_as_given(source["path"], args.then): law for law, source in zip(laws, more)}
    sources += more
    named = _named(fits, [_as_given(source["path"], args.fits) for source in sources[: len(fits)]])
    if len(named) > 1:
        check_fits_comparable(named, args.allow)
    place = args.flops, args.params, args.tokens, args.unique_tokens
    found = [predict_run(fit, label, *place, then=then) for label, fit in named.items()]
    optimal = args.params is None and args.tokens is None
    verdict = compare_at_budget(named, args.flops, args.unique_tokens) if optimal and len(named) > 1 else None
    answer = in_words(found, verdict)
    _show(found, answer)
    if args.ledger:
        enter(args.ledger, found, sources, fits[0].choices.get("unit", "nats"), args.run)
        say(f"wrote {args.ledger}")
    record = {"predictions": found, "verdict": verdict, "answer": answer}
    return conclude(args, "predict.json", record, Table([fits[0].conventions], sources=sources))


def _asked_at(fits: list, laws: list, given: list[tuple[str, float]]) -> tuple[list, list]:
    """Both, each at the values of its own columns. Raises ConfigError for a column that none has, or that is given twice."""
    values = dict(given)
    known = {name for fit in (*fits, *laws) for pair in fit.law_form.columns.items() for name in pair}
    faults = [
        f"--at {name}: the laws are of {', '.join(sorted(known)) or 'N, D and U alone'}." for name in values if name not in known
    ]
    twice = [name for name in values if [one for one, _ in given].count(name) > 1]
    pairs = {pair for fit in (*fits, *laws) for pair in fit.law_form.columns.items()}
    twice += [column for symbol, column in pairs if symbol != column and {symbol, column} <= values.keys()]
    faults += [f"--at {name}: it is given twice; say it once." for name in dict.fromkeys(twice)]
    if faults:
        raise ConfigError(faults)

    def own(fit):
        names = {name for pair in fit.law_form.columns.items() for name in pair}
        return fit.given({name: value for name, value in values.items() if name in names})

    return [own(fit) for fit in fits], [own(fit) for fit in laws]


def _value(text: str) -> tuple[str, float]:
    name, sign, value = text.partition("=")
    try:
        if not math.isfinite(float(value)):
            raise ValueError
        return unspelled(name), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected COLUMN=VALUE, as weight-decay=0.1") from None


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


def _further(one: dict) -> str:
    return f"{one['of']} -> {one['value']:.4f} [{interval(one['ci'], '.4f')}]"


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
    for one in found:
        if one["accuracy"]:
            say(f"{one['label']}: {_further(one['accuracy'])}, of chance {one['accuracy']['chance']:g}")
        for after in one["then"]:
            say(f"{one['label']}: by {after['label']} ({after['form']}) {_further(after)}")
    for warning in (warning for one in found for part in (one, *one["then"]) for warning in part["warnings"]):
        say(f"warning: {warning}")
