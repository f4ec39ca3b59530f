"""The envelope of training curves (approach 1 of Hoffmann et al.): the least loss of any run at each compute, and the exponents.

Takes tables with several rows a run, or run directories (metrics.jsonl). Writes envelope.json into --out. Leaves with 65 when
no exponent can be had.
"""

from __future__ import annotations

import argparse

from megatron.errors import BadData
from megatron.scaling.answers.envelope import Envelope, as_record, fit_envelope, read_curves
from megatron.scaling.show.screen import interval, show, show_record
from megatron.scaling.table.json_record import by_field
from megatron.scaling.verbs import Answer, conclude, json_argument, load_table, table_arguments


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    table_arguments(parser)
    parser.add_argument(
        "--curve",
        choices=("auto", "val", "train"),
        default="auto",
        help="which losses of a run directory (auto: validation where every run has two, else training)",
    )
    parser.add_argument("--bootstrap", type=int, default=400, metavar="N", help="number of resamples of whole runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", metavar="DIR", help="folder for envelope.json")
    json_argument(parser)


def command(args: argparse.Namespace) -> Answer:
    """Fit, print, write; raises BadData when an objective has no exponent."""
    table = load_table(args)
    found = {}
    for objective in table.objectives:
        rows = table.only(objective)
        curves = read_curves(rows, args.curve)
        found[objective] = fit_envelope(curves, args.bootstrap, [args.seed, *objective.encode()])
        _show(objective, found[objective])
        show_record(table.dropped, found[objective].warnings)
    records = {objective: as_record(envelope, table.only(objective)) for objective, envelope in found.items()}
    answer = conclude(args, "envelope.json", by_field(records), table)
    lacking = [objective for objective, envelope in found.items() if envelope.exponents["a"] is None]
    if lacking:
        raise BadData(
            f"no exponent for {', '.join(lacking)}: fewer than two sizes are best with a smaller and a larger model "
            "beside them; add sizes, or longer runs of the small and shorter records of the large."
        )
    return answer


def _show(objective: str, envelope: Envelope) -> None:
    used = envelope.bracketed
    show(
        f"{objective}: sizes on the envelope of {envelope.num_runs} runs",
        ["N", "best from C (FLOPs)", "to C", "loss there"],
        [
            (f"{size:.4g}", f"{part[0]:.3g}", f"{part[-1]:.3g}", f"{loss[0]:.4f} .. {loss[-1]:.4f}")
            for size, part, loss in (
                (size, envelope.flops[used & (envelope.params == size)], envelope.loss[used & (envelope.params == size)])
                for size in sorted(set(envelope.params[used]))
            )
        ],
    )
    show(
        f"{objective}: exponents",
        ["exponent", "value", "95 % interval"],
        [
            (meaning, f"{envelope.exponents[name]:.4f}", interval(envelope.ci[name], ".4f"))
            for name, meaning in (("a", "a: N ~ C^a"), ("b", "b: D ~ C^b"), ("g", "g: L ~ C^-g"))
            if envelope.exponents[name] is not None
        ],
    )
