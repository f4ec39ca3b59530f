"""Two runs on the same validation rows with the same draws: B minus A, whose error is smaller than that of either.

Of an autoregressive run the score is always `exact`, so that it may be compared with a bound of masked diffusion, or with one of
its samplers. Runs of other tokenizers or other rows are refused.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megatron.likelihood.verbs import check_scoring, how, scoring_arguments


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    for name in ("a", "b"):
        parser.add_argument(name, type=Path, metavar=name.upper(), help="a run's folder, or one of its checkpoints")
    parser.add_argument("--set", default="valid", help="valid, valid:NAME or test [valid]")
    scoring_arguments(parser)
    parser.add_argument("--out", type=Path, help="also write compare.json into this folder")


def command(given: argparse.Namespace) -> None:
    """Compare, print, write."""
    names = check_scoring(given)
    from megatron.files import staged
    from megatron.likelihood.paired import compare
    from megatron.likelihood.report import describe_pair
    from megatron.training import open_run

    a, b = (open_run(run, **how(given)) for run in (given.a, given.b))
    found = compare(a, b, names, given.set, given.rows, given.last, given.num_mc, given.nll_tolerance)
    if a.engine.mesh.chief:
        if given.out:
            with staged(given.out) as stage:
                (stage / "compare.json").write_text(json.dumps(found, indent=1, allow_nan=False))
        print(json.dumps(found, indent=1) if given.json else describe_pair(found))
