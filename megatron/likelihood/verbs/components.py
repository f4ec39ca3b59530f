"""What having learnt K kinds of text costs on one of them: loss by category, by how much has been seen, and by K.

    python tools/evaluate.py components RUN... --windows 1024 --set valid --baseline HF_FOLDER

Runs of --data-kind random-window score the same windows of each category that they were trained on. An autoregressive run's
loss is given by the length of what stands before a token, masked diffusion's by the number of visible tokens. Delta is a run
minus the run of the same objective that was trained on the category alone (same seed first), paired by window; with several
runs of one K its interval is from their scatter. Runs of --shuffle-categories are a control: their delta is 0 but for chance.
Writes components.json and components.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from megatron.flags import ConfigError
from megatron.likelihood.verbs import folder_of


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="runs' folders, or checkpoints of them")
    add("--checkpoint", help="of each run: a step, best or newest [the last of a run that is finished]")
    add("--set", default="valid", choices=("valid", "test"), help="which split's windows [valid]")
    add("--windows", type=int, default=1024, help="of each category; never more than would carry its tokens once [1024]")
    add("--num-mc", type=int, help="draws of a bound [the run's own]")
    add("--baseline", type=Path, metavar="DIR", help="a causal model of a local Hugging Face folder, with the corpus' tokenizer")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]")
    add("--dtype", choices=("fp64", "fp32", "bf16"), help="what the models compute in [each run's]")
    add("--out", type=Path, help="folder for components.json and components.png [the first run's]")
    add("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")


def command(given: argparse.Namespace) -> None:
    """Score, print, write."""
    mistakes = [
        f"--{name.replace('_', '-')} {getattr(given, name)}: expected 1 or more"
        for name in ("windows", "num_mc")
        if getattr(given, name) is not None and getattr(given, name) < 1
    ]
    if len(set(given.runs)) < len(given.runs):
        mistakes.append("a run stands there twice: give each once")
    if mistakes:
        raise ConfigError(mistakes)
    from megatron.files import staged
    from megatron.likelihood.components import score_folder, score_run, table_of, window_slice
    from megatron.likelihood.components_report import describe, draw
    from megatron.scaling.show.figures.style import encode
    from megatron.training import open_run

    how = {"device": given.device, "dtype": given.dtype, "say": lambda line: print(line, file=sys.stderr)}
    subjects, tokenizer = [], None
    like: dict[str, Any] = {}  # the windows of each category
    for run in given.runs:
        trained = open_run(run, given.checkpoint, **how)
        one = score_run(str(run), trained, given.set, given.windows, given.num_mc)
        subjects.append(one)
        if given.baseline and not one.shuffled:
            tokenizer = tokenizer or trained.tokenizer
            like |= {name: window_slice(trained, name, given.set, given.windows) for name in one.scored if name not in like}
    if given.num_mc and all(one.exact for one in subjects):
        raise ConfigError([f"--num-mc {given.num_mc} acts on draws, and these runs have none: leave it out"])
    if given.baseline and not tokenizer:
        raise ConfigError(["--baseline: all runs are controls of shuffled labels; leave it out, or give a run that is none"])
    if tokenizer:
        subjects.append(score_folder(given.baseline, like, tokenizer))
    table = table_of(subjects, given.set)
    with staged(given.out or folder_of(given.runs[0])) as stage:
        (stage / "components.json").write_text(json.dumps(table, indent=1))
        (stage / "components.png").write_bytes(encode(draw(table), "png"))
    print(json.dumps(table, indent=1) if given.json else describe(table))
