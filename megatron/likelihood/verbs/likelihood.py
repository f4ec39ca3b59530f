"""How likely a run finds its validation rows, under each distribution that it can be read as.

Errors are from rows and from noise, differences paired by row. Scores: `exact` of an autoregressive model, which gives token 0
no probability of its own; of masked diffusion `nelbo`, `nelbo:bernoulli`, `nelbo:independent`, `nelbo:pilot`, `chain` (upper
bounds on the mixture over orders), `korder:K` (a tighter one by K random orders), `mixture` (exact, for 12 places or fewer),
`tangent:K` (a lower bound, for 10 or fewer) and `rule:NAME[:TOKENS]` (the exact likelihood of the sampler that reveals so many
tokens a step, NAME being left-to-right, confidence, margin or entropy). With /B behind, as mixture/8 or rule:confidence:2/8:
of the model that fills blocks of B places from left to right. Adds a line for each set to the run's likelihood.jsonl, which
`tools/scaling_laws.py fit --score` reads, and draws likelihood.png; exit code 1 if bounds are surely out of order.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megatron.likelihood.verbs import check_scoring, folder_of, how, scoring_arguments


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
    parser.add_argument("--checkpoint", help="a step, best, newest, or a path [the last of a run that is finished]")
    parser.add_argument("--set", default="valid", help="valid, valid:NAME or test, with commas between [valid]")
    parser.add_argument("--by", default="", help="also by position, level, frequency or category, with commas between")
    scoring_arguments(parser)
    parser.add_argument("--out", type=Path, help="folder for likelihood.jsonl and likelihood.png [the run's]")


def command(given: argparse.Namespace) -> int:
    """Score, print, write."""
    names = check_scoring(given)
    from megatron.likelihood.measure import measure
    from megatron.likelihood.records import write
    from megatron.likelihood.report import describe
    from megatron.training import open_run

    trained = open_run(given.run, given.checkpoint, **how(given))
    by = tuple(filter(None, given.by.split(",")))
    found = [
        measure(trained, names, which, given.rows, given.last, given.num_mc, given.nll_tolerance, by)
        for which in given.set.split(",")
    ]
    if trained.engine.mesh.chief:
        write(given.out or folder_of(given.run), found)
        print(json.dumps(found, indent=1) if given.json else "\n".join(map(describe, found)))
    return int(not all(one["in_order"] for one in found))
