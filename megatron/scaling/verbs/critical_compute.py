"""The compute at which masked diffusion passes the autoregressive model, over unique tokens.

From a fit of each (`fit --form data-constrained`): C_crit(U) with 95 % intervals from paired draws, the epochs there, and the
power law ln C_crit = k + p ln U. From runs themselves: where the best of equal C and U cross, without a law. Writes
critical_compute.json and the figure (crossover.png, crossover.pdf) into --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from megatron.errors import BadData, Mismatch
from megatron.files import read_json
from megatron.flags import ConfigError
from megatron.scaling.answers.compare import is_fit
from megatron.scaling.answers.critical import find_crossover
from megatron.scaling.answers.measured import measured_crossover
from megatron.scaling.answers.predict import read_fits
from megatron.scaling.show.screen import interval, say, show
from megatron.scaling.table.comparable import LINTS, check_comparable
from megatron.scaling.table.covariates import FLAGS, spelled
from megatron.scaling.table.scores import score_of
from megatron.scaling.table.table import Table, read_table
from megatron.scaling.verbs import Answer, conclude, json_argument, positive
from megatron.score_names import read_score

POINTS_A_DECADE = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    for flag, what in (("--ar", "autoregressive"), ("--diffusion", "masked-diffusion")):
        parser.add_argument(
            flag,
            required=True,
            nargs="+",
            metavar="FIT",
            help=f"fit.json of the {what} runs, or its folder; or the runs themselves",
        )
    parser.add_argument(
        "--unique-tokens",
        type=span,
        metavar="LOW:HIGH[:COUNT]|U,U,...",
        help=f"unique tokens U, as 1e8:1e12 ({POINTS_A_DECADE} a decade unless COUNT says)",
    )
    parser.add_argument(
        "--flops", type=span, metavar="LOW:HIGH", help="compute searched (default: 1/100 to 10^8 of what spends U in one epoch)"
    )
    parser.add_argument(
        "--allow",
        action="extend",
        type=_names,
        default=[],
        metavar="X,...",
        help="differences between the two fits to accept: " + ", ".join(LINTS),
    )
    parser.add_argument("--score", metavar="NAME", help="insist that the fit of MDM is by this score (`fit --score`)")
    parser.add_argument(
        "--beside",
        action="append",
        type=_named,
        default=[],
        metavar="NAME=DIR",
        help="draw the critical_compute.json that is there beside this one, into crossings.png and .pdf; again for another",
    )
    parser.add_argument("--label", default="this", metavar="NAME", help="what this one is called there [this]")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for critical_compute.json and the figure")
    json_argument(parser)


def command(args: argparse.Namespace) -> Answer:
    """Find the crossing, print, draw, write."""
    from megatron.scaling.show.figures import draw_crossings, draw_crossover, save

    others = {name: read_crossover(path) for name, path in args.beside}
    names = [args.label, *(name for name, _ in args.beside)]
    if len(set(names)) < len(names):
        raise ConfigError([f"--beside: {', '.join(names)} are the cases, two of one name: name each apart, this one by --label"])
    unknown = sorted(set(args.allow) - set(LINTS))
    if unknown:
        raise ConfigError([f"--allow {unknown[0]}: expected one of {', '.join(LINTS)}."])
    laws = any(is_fit(Path(path)) or Path(path).suffix == ".json" for path in (*args.ar, *args.diffusion))
    found, table = _of_fits(args) if laws else _of_runs(args)
    _show(found)
    answer = conclude(args, "critical_compute.json", found, table)
    pictures = save(draw_crossover(found), Path(args.out) / "crossover")
    if others:
        pictures += save(draw_crossings({args.label: found, **others}), Path(args.out) / "crossings")
    for path in pictures:
        say(f"wrote {path}")
    return answer


def _of_fits(args: argparse.Namespace) -> tuple[dict, Table]:
    if len(args.ar) > 1 or len(args.diffusion) > 1 or not args.unique_tokens:
        raise ConfigError(["of laws, --ar and --diffusion take one fit each, and --unique-tokens says where they are compared"])
    (ar, mdm), sources = read_fits([args.ar[0], args.diffusion[0]])
    _check_score(args.score, {"ar": ar, "mdm": mdm})
    found = find_crossover(ar, mdm, args.unique_tokens, args.flops and (args.flops[0], args.flops[-1]), args.allow)
    return found | {"unit": ar.choices.get("unit") or "nats"}, Table([mdm.conventions], sources=sources)


def _of_runs(args: argparse.Namespace) -> tuple[dict, Table]:
    """The best of all settings stands for each C and U, so that runs may differ in flags of training."""
    if args.unique_tokens or args.flops:
        raise ConfigError(["of runs, the crossing is measured at their own C and U: leave out --unique-tokens and --flops"])
    table = read_table([*args.ar, *args.diffusion], score=args.score, lint=False)
    check_comparable(table.rows, {*args.allow, *map(spelled, FLAGS)})
    ar, mdm = ([row for row in table.rows if row["objective"] == name] for name in ("ar", "mdm"))
    if not (ar and mdm):
        raise BadData("--ar and --diffusion: expected runs of ar and of mdm (the column objective), found those of one alone.")
    return measured_crossover(ar, mdm) | {"unit": "nats"}, table


def read_crossover(folder: Path) -> dict:
    """What this verb wrote there. Raises MissingInput, BadData."""
    path = folder / "critical_compute.json" if folder.is_dir() else folder
    found = read_json(path, "`critical-compute --out` writes one")
    if not all(
        isinstance(found.get(name), list) and found[name] for name in ("critical", "flops", "unique_tokens", "difference")
    ):
        raise BadData(
            f"{path}: no critical compute: `critical-compute --out` writes critical, flops, unique_tokens and difference."
        )
    return found


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and path):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=DIR, as plain=runs/plain")
    return name, Path(path)


def _check_score(name: str | None, fits: dict) -> None:
    """Raise Mismatch where a fit is of another score."""
    for objective, fit in fits.items():
        score = score_of(fit.conventions)
        if name is not None and score not in (read_score(name).text, "exact"):
            raise Mismatch(f"--score {name}: the {objective} fit is of {score or 'no stated score'}; fit with the same --score.")


def span(text: str) -> list[float]:
    """LOW:HIGH, LOW:HIGH:COUNT (evenly in the logarithm) or numbers with commas between them, as positive numbers."""
    parts = [positive(part) for part in text.replace(":", ",").split(",")]
    if ":" not in text:
        return parts
    low, high, *count = parts
    if len(parts) > 3 or low >= high or (count and (count[0] < 2 or count[0] % 1)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected LOW:HIGH or LOW:HIGH:COUNT, as 1e8:1e12")
    number = int(count[0]) if count else 1 + max(1, round(POINTS_A_DECADE * np.log10(high / low)))
    return np.geomspace(low, high, number).tolist()


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _show(found: dict) -> None:
    def ends(pair, form):
        return interval(pair if found["num_draws"] else None, form)

    rows = []
    for point in found["critical"]:
        models = [
            f"{point[name]['epochs']:.4g} ({ends(point[name]['epochs_ci'], '.3g')})" if name in point else "-"
            for name in ("ar", "mdm")
        ]
        rows.append(
            (
                f"{point['unique_tokens']:.3g}",
                f"{point['flops']:.4g}" if point["flops"] else point["reason"],
                ends([point["low"], point["high"]], ".3g"),
                *models,
                f"{point['mdm']['params']:.3g}" if "mdm" in point else "-",
            )
        )
    show(
        "Critical compute: MDM passes AR (95 % intervals; open: draws without a crossing in the range)",
        ["U", "C_crit (FLOPs)", "interval", "epochs of AR", "epochs of MDM", "N of MDM"],
        rows,
    )
    if law := found["power_law"]:
        say(
            f"ln C_crit = k + p ln U: p = {law['p']:.4f} ({ends(law['ci']['p'], '.4f')}), "
            f"k = {law['k']:.4f} ({ends(law['ci']['k'], '.4f')}), over {law['num_points']} values of U"
        )
    say(found["label"])
    for warning in found["warnings"]:
        say(f"warning: {warning}")
