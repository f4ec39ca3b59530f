"""Runs of different architectures side by side, in one table and one figure.

AR, masked diffusion and sparse distribution diffusion: each run's own loss under its own name (an exact NLL, an upper bound, a
cross-entropy of denoising), its perplexity where there is one, and what all of them can be asked alike: continuations of the same
validation rows, their NLL under an autoregressive --judge, likeness, distinct n-grams, and tokens written a second. Writes
architectures.json and architectures.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megatron.flags import ConfigError
from megatron.likelihood.verbs import folder_of, how


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs, or checkpoints of them")
    parser.add_argument("--judge", type=Path, metavar="RUN", help="an autoregressive run whose NLL of the samples is taken")
    parser.add_argument("--set", default="valid", help="valid, valid:NAME or test [valid]")
    parser.add_argument("--num-samples", type=int, help="rows that each run continues [64, or all there are]")
    parser.add_argument("--steps", type=int, help="of the samplers of diffusion [sdd 25, mdm a step a token]")
    parser.add_argument("--seed", type=int, default=0, help="of all samplers [0]")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]")
    parser.add_argument("--dtype", choices=("fp64", "fp32", "bf16"), help="what the models compute in [each run's]")
    parser.add_argument("--tensor-model-parallel-size", type=int, default=1, help="processes that share each layer [1]")
    parser.add_argument("--pipeline-model-parallel-size", type=int, default=1, help="processes that share the layers [1]")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")
    parser.add_argument("--out", type=Path, required=True, help="folder for architectures.json and architectures.png")


def command(given: argparse.Namespace) -> None:
    """Open, compare, print, write."""
    for flag, least in (("num_samples", 2), ("steps", 1), ("seed", 0)):
        if getattr(given, flag) is not None and getattr(given, flag) < least:
            raise ConfigError([f"--{flag.replace('_', '-')} {getattr(given, flag)}: expected {least} or more"])
    from megatron.files import staged
    from megatron.likelihood.architectures import describe, draw, side_by_side
    from megatron.scaling.show.figures.style import encode
    from megatron.training import open_run

    runs = [open_run(run, **how(given)) for run in given.runs]
    judge = None if given.judge is None else open_run(given.judge, **how(given))
    found = side_by_side(runs, judge, given.set, given.num_samples, given.steps, given.seed)
    if runs[0].engine.mesh.chief:
        picture = encode(draw(found, [folder_of(run) for run in given.runs]), "png")
        with staged(given.out) as stage:
            (stage / "architectures.json").write_text(json.dumps(found, indent=1))
            (stage / "architectures.png").write_bytes(picture)
        print(json.dumps(found, indent=1) if given.json else describe(found))
