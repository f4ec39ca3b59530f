"""Command lines of recipes as a plan: what bash composed is run, watched and compared like what `plan` made."""

from __future__ import annotations

import itertools
import shlex
import time
from pathlib import Path

from megatron.budget import GPT2_VOCAB
from megatron.catalogue import ENTRY_POINTS, default_of
from megatron.config import parse
from megatron.errors import BadData, MissingInput, Untrusted
from megatron.flags import ConfigError
from megatron.scaling.plan.cost import Rates, forecast
from megatron.scaling.plan.entries import Plan, is_folder_name, numbers, unique_tokens
from megatron.scaling.plan.flags import without

PLACES = {"run_dir", "save", "load"}  # where a run lives is for `run` to say


def plan_of_commands(path: Path) -> Plan:
    """The plan of a file with a command a line: `pretrain_gpt.py --num-layers 2 ... --save runs/NAME`.

    Raises MissingInput, BadData for a line that starts with another program, ConfigError with the mistakes in its flags.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise MissingInput(f"{path} cannot be read ({error.strerror}): give a file with a command a line") from None
    runs, mistakes = [], []
    for number, line in enumerate(lines, 1):
        try:
            runs += [planned_run(line, f"{path}:{number}")] if line.strip() else []
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
    scale = "cpu" if all("cpu" in run["flags"] for run in runs) else "gpu"
    return Plan(kind="commands", scale=scale, defaults={}, runs=runs, created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def planned_run(line: str, where: str) -> dict:
    """A plan's entry with the numbers that the command's own flags say. Raises BadData, ConfigError."""
    objectives = {entry: name for entry in ENTRY_POINTS if (name := default_of(entry))}
    try:
        entry, *argv = shlex.split(line)
        objective = objectives[Path(entry).name]
    except (ValueError, KeyError):
        raise BadData(f"{where}: expected a line that starts with {' or '.join(objectives)}, found {line[:60]!r}") from None
    try:
        cfg = parse(argv, objective, environ={})
    except ConfigError as error:
        name = next((Path(value).name for flag, value in itertools.pairwise(argv) if flag in ("--run-dir", "--save")), where)
        raise ConfigError([f"{name}: {mistake}" for mistake in error.mistakes]) from None
    if not is_folder_name(Path(cfg.log.run_dir).name):
        raise Untrusted(f"{where}: {cfg.log.run_dir} is no folder of a run: end --save with a name of letters, digits, ._-")
    cfg = cfg if cfg.model.vocab_size else cfg.with_vocabulary(GPT2_VOCAB)
    return {
        "name": Path(cfg.log.run_dir).name,
        "objective": cfg.objective.objective,
        "size": f"{cfg.model.num_layers}x{cfg.model.hidden_size}",
        "budget": {},
        "trunk": None,
        "varied": {},
        "entry": Path(entry).name,
        **numbers(cfg, unique_tokens(cfg)),
        "flags": without(argv, PLACES),
        "forecast": forecast(cfg, 0, None, Rates()),
    }
