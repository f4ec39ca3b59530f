"""Which form of law predicts runs that it has not seen: every form fitted without a part of the runs, and scored on that part.

`rank TABLE --forms chinchilla coupled 'E + A/N^alpha' --leave-out largest flops --out DIR` writes DIR/rank.json and rank.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron.flags import ConfigError
from megatron.scaling.answers.ranking import parts_of, rank_forms, usual_forms
from megatron.scaling.law.form import Form
from megatron.scaling.law.forms import FORMS
from megatron.scaling.law.observations import observe
from megatron.scaling.show.figures.ranking import draw_ranking
from megatron.scaling.show.figures.style import save
from megatron.scaling.show.screen import interval, say, show, show_record
from megatron.scaling.verbs import Answer, conclude, json_argument, table_arguments
from megatron.scaling.verbs.fit import beside_argument, load_for, objective_arguments, read_form_argument


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    table_arguments(parser)
    group = parser.add_argument_group("the ranking")
    group.add_argument(
        "--forms",
        nargs="+",
        type=read_form_argument,
        default=[],
        metavar="FORM",
        help="as of fit --form (default: the named forms of N and D that these runs can tell apart)",
    )
    group.add_argument(
        "--leave-out",
        nargs="+",
        type=_way,
        default=["largest", "flops"],
        metavar="largest[:SHARE]|random:K|COLUMN",
        help="the runs of most FLOPs (share: 0.2), K random parts, or the values of a column, in 12 bands at the most "
        "(default: largest flops)",
    )
    objective_arguments(group)
    beside_argument(parser)
    parser.add_argument("--out", metavar="DIR", help="folder for rank.json and rank.png")
    json_argument(parser)


def command(args: argparse.Namespace) -> Answer:
    """Fit every form without every part, print, draw, write."""
    table = load_for(args, args.forms)
    fitting = {"delta": args.delta, "residual": args.residual, "weights": args.weights}
    found = []
    for objective in table.objectives:
        rows = table.only(objective)
        forms = _named(args.forms or [FORMS[name] for name in usual_forms(rows, FORMS)])
        for how in args.leave_out:
            parts_of(how, observe(rows))  # a word that does not fit is told before any fit
        for how in args.leave_out:
            found.append({"objective": objective} | rank_forms(rows, forms, how, **fitting))
            _show(found[-1])
    show_record(table.dropped, table.warnings)
    args.forms = [form.name for form in args.forms]
    answer = conclude(args, "rank.json", {"rankings": found}, table)
    if args.out:
        for picture in save(draw_ranking(found), Path(args.out) / "rank"):
            say(f"wrote {picture}")
    return answer


def _named(forms: list[Form]) -> dict[str, Form]:
    """By name. Raises ConfigError where two files give one name to their forms."""
    named = {form.name: form for form in forms}
    twice = [form.name for form in forms if named[form.name] is not form and named[form.name].origin != form.origin]
    if twice:
        raise ConfigError([f"--forms: two forms are called {twice[0]}; give one of them another name in its file."])
    return named


def _show(one: dict) -> None:
    parts = one["parts"]
    what = f"{parts[0]['name']}" if len(parts) == 1 else f"{len(parts)} parts by {one['leave_out']}"
    show(
        f"{one['objective']}: error on {one['rows']} rows that were left out ({what})",
        ["form", "parameters", "rms fitted", "error of ln L", "bias", "behind the first", "95 % interval"],
        [
            (
                form["form"],
                str(form["parameters"]),
                f"{form['rms_fitted']:.4g}",
                f"{form['error']:.4g}",
                f"{form['bias']:+.4g}",
                "-" if not number else f"{form['behind']:.4g}",
                interval(form["ci"], ".3g"),
            )
            for number, form in enumerate(one["forms"])
        ],
    )
    say(in_words(one))
    for left in one["not_ranked"]:
        say(f"not ranked: {left['form']}: {left['reason']}")


def in_words(one: dict) -> str:
    """Which form leads, and which are not told apart from it."""
    first, *others = one["forms"]
    near = [form["form"] for form in others if form["ci"] is None or form["ci"][0] <= 0]
    said = f"{first['form']} predicts best here ({first['error']:.3g} of ln L)"
    said += f"; not told apart from it: {', '.join(near)}" if near else "; all others are further off" if others else ""
    basis = f"{one['units']} independent parts" if len(one["parts"]) > 1 else f"{one['units']} runs of one part, given one fit"
    return f"{said} ({basis}; the first was chosen by these errors, so that its lead is a little flattered)."


def _way(text: str) -> str:
    word, sign, number = text.partition(":")
    try:
        if word == "largest" and sign and not 0 < float(number) < 1:
            raise ValueError
        if word == "random" and not int(number) >= 2:
            raise ValueError
        if sign and word not in ("largest", "random"):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected largest, largest:0.2, random:10, or a column") from None
    return text
