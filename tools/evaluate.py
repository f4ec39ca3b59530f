"""What a trained model is worth beyond its loss.

    python tools/evaluate.py likelihood RUN [--score nelbo,korder:16,rule:confidence] [--rows N] [--last N] [--json]

`likelihood` computes how likely the model finds the run's validation rows, under each distribution that it can be read as, with
errors from rows and from noise and paired differences. Scores: `exact` of an autoregressive model, which gives token 0 no
probability of its own; of masked diffusion `nelbo`, `nelbo:bernoulli`, `nelbo:independent`, `chain` (upper bounds on the
mixture over orders), `korder:K` (a tighter one by K random orders), `mixture` (exact, --last 12 or fewer) and
`rule:NAME[:TOKENS]` (the exact likelihood of the sampler that reveals so many tokens a step, NAME being left-to-right,
confidence, margin or entropy). Writes likelihood.json and likelihood.png; exit code 1 if bounds are surely out of order.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed
from megatron import stopping

if __name__ == "__main__":
    stopping.heed_interrupt()

import argparse
import json
import math

from megatron.errors import BadData, exits  # noqa: E402
from megatron.files import staged  # noqa: E402
from megatron.rundir.names import CHECKPOINT  # noqa: E402


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="evaluate.py", allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = top.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("likelihood", allow_abbrev=False, help="how likely the model finds the run's validation rows")
    one.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
    one.add_argument("--checkpoint", help="a step, best, newest, or a path [the last of a run that is finished]")
    one.add_argument("--score", help="names with commas between; others are compared with the first [exact or nelbo]")
    one.add_argument("--set", default="valid", help="valid, valid:NAME or test [valid]")
    one.add_argument("--rows", type=int, help="rows to score [the run's own]")
    one.add_argument("--last", type=int, help="score only the last N tokens of each row, given all before [all]")
    one.add_argument("--num-mc", type=int, help="draws of a bound, and orders of chain [the run's own]")
    one.add_argument("--nll-tolerance", type=float, help="draw until the standard error from noise is at most this, nats a token")
    one.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]")
    one.add_argument("--dtype", choices=("fp64", "fp32", "bf16"), default="fp64", help="what the model computes in [fp64]")
    one.add_argument("--out", type=Path, help="folder for likelihood.json and likelihood.png [the run's]")
    one.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")
    return top


def check(given: argparse.Namespace) -> list[str] | None:
    """The scores that were asked for. Raises BadData."""
    for flag in ("rows", "last", "num_mc"):
        if getattr(given, flag) is not None and getattr(given, flag) < 1:
            raise BadData(f"--{flag.replace('_', '-')} {getattr(given, flag)}: expected 1 or more")
    if given.nll_tolerance is not None and not 0 < given.nll_tolerance < math.inf:
        raise BadData(f"--nll-tolerance {given.nll_tolerance}: expected a number above 0")
    if given.score is None:
        return None
    names = given.score.split(",")
    if len(set(names)) < len(names):
        raise BadData(f"--score {given.score}: expected each score once")
    return names


@exits
def main(argv: list[str] | None = None) -> int:
    given = parser().parse_args(argv)
    names = check(given)
    from megatron.likelihood.measure import measure
    from megatron.likelihood.report import describe, draw
    from megatron.scaling.show.figures.style import encode
    from megatron.training import open_run

    trained = open_run(
        given.run, given.checkpoint, device=given.device, dtype=given.dtype, say=lambda line: print(line, file=sys.stderr)
    )
    found = measure(trained, names, given.set, given.rows, given.last, given.num_mc, given.nll_tolerance)
    if trained.engine.mesh.chief:
        with staged(given.out or (given.run.parent if CHECKPOINT.fullmatch(given.run.name) else given.run)) as stage:
            (stage / "likelihood.json").write_text(json.dumps(found, indent=1, allow_nan=False))
            (stage / "likelihood.png").write_bytes(encode(draw(found), "png"))
        print(json.dumps(found, indent=1) if given.json else describe(found))
    return int(not found["in_order"])


if __name__ == "__main__":
    sys.exit(main())
