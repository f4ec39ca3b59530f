"""What samplers write and what it costs, beside real text, in one table and one figure.

Each sampler continues the beginnings of the same validation rows: `NAME:SETTING=VALUE:...`, with commas between, such as
confidence:temperature=0 or threshold:threshold=0.8:block_length=32:cache=dual; settings are the flags of tools/generate.py.
One that reads steps and names none is taken with each of --steps. Measured on what follows the beginnings: distinct n-grams,
self-BLEU, entropy, repeats, the NLL under an autoregressive --judge; passes, places read and tokens a second, in which the
beginnings do not count; and the exact NLL of the same rows under the sampler itself, where its rule has one.
Writes samples.json and samples.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megatron.flags import ConfigError
from megatron.likelihood.verbs import folder_of, how


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
    parser.add_argument("--checkpoint", help="a step, best, newest, or a path [the last of a run that is finished]")
    parser.add_argument("--samplers", help="with their settings, with commas between [the objective's own]")
    parser.add_argument("--steps", help="for samplers that read steps and name none, with commas between [a token a step]")
    parser.add_argument("--judge", type=Path, metavar="RUN", help="an autoregressive run whose NLL of the samples is taken")
    parser.add_argument(
        "--set", default="valid", help="valid, valid:NAME or test: where beginnings and real text are from [valid]"
    )
    parser.add_argument("--num-samples", type=int, help="rows that are continued [64, or all there are]")
    parser.add_argument("--prompt-tokens", type=int, default=1, help="of each row that are given [1]")
    parser.add_argument("--seed", type=int, default=0, help="of all samplers [0]")
    parser.add_argument("--batch-size", type=int, default=32, help="samples at once [32]")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]")
    parser.add_argument("--dtype", choices=("fp64", "fp32", "bf16"), help="what the models compute in [each run's]")
    parser.add_argument("--tensor-model-parallel-size", type=int, default=1, help="processes that share each layer [1]")
    parser.add_argument("--pipeline-model-parallel-size", type=int, default=1, help="processes that share the layers [1]")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")
    parser.add_argument("--out", type=Path, help="folder for samples.json and samples.png [the run's]")


def command(given: argparse.Namespace) -> None:
    """Sample, measure, print, write."""
    for flag in ("num_samples", "batch_size"):
        if getattr(given, flag) is not None and getattr(given, flag) < 1:
            raise ConfigError([f"--{flag.replace('_', '-')} {getattr(given, flag)}: expected 1 or more"])
    steps = [] if given.steps is None else given.steps.split(",")
    if not all(n.isdecimal() and int(n) for n in steps):
        raise ConfigError([f"--steps {given.steps}: expected whole numbers of 1 or more, with commas between"])
    from megatron.files import staged
    from megatron.likelihood.samples import compare_samplers, read_samplers
    from megatron.likelihood.samples_report import describe, draw
    from megatron.sampling.table import default_of
    from megatron.scaling.show.figures.style import encode
    from megatron.training import open_run

    trained = open_run(given.run, given.checkpoint, **how(given))
    samplers = default_of(trained.cfg.objective.objective) if given.samplers is None else given.samplers
    asked = read_samplers(samplers, [int(n) for n in steps])
    judge = None if given.judge is None else open_run(given.judge, **how(given))
    settings = {"which": given.set, "num_samples": given.num_samples, "prompt_tokens": given.prompt_tokens}
    found = compare_samplers(trained, asked, judge, seed=given.seed, batch_size=given.batch_size, **settings)
    if trained.engine.mesh.chief:
        with staged(given.out or folder_of(given.run)) as stage:
            (stage / "samples.json").write_text(json.dumps(found, indent=1))
            (stage / "samples.png").write_bytes(encode(draw(found), "png"))
        print(json.dumps(found, indent=1) if given.json else describe(found))
