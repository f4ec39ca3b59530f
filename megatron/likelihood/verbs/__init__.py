"""Flags and commands of tools/evaluate.py, a module a verb. Torch is imported only when a command runs."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from megatron.flags import ConfigError
from megatron.rundir.names import CHECKPOINT
from megatron.score_names import read_scores


def scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say what is scored, of which rows, and how."""
    parser.add_argument("--score", help="names with commas between; the first is what others are compared with [exact or nelbo]")
    parser.add_argument("--rows", type=int, help="rows to score [the run's own]")
    parser.add_argument("--last", type=int, help="score only the last N tokens of each row, given all before [all]")
    parser.add_argument("--num-mc", type=int, help="draws of a bound, and orders of chain [the run's own]")
    parser.add_argument(
        "--nll-tolerance", type=float, help="draw until the standard error from noise is at most this, nats a token"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]")
    parser.add_argument("--dtype", choices=("fp64", "fp32", "bf16"), default="fp64", help="what the model computes in [fp64]")
    parser.add_argument("--tensor-model-parallel-size", type=int, default=1, help="processes that share each layer [1]")
    parser.add_argument("--pipeline-model-parallel-size", type=int, default=1, help="processes that share the layers [1]")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")


def check_scoring(given: argparse.Namespace) -> list[str] | None:
    """The names of the scores that were asked for. Raises ConfigError."""
    for flag in ("rows", "last", "num_mc"):
        if getattr(given, flag) is not None and getattr(given, flag) < 1:
            raise ConfigError([f"--{flag.replace('_', '-')} {getattr(given, flag)}: expected 1 or more"])
    if given.nll_tolerance is not None and not 0 < given.nll_tolerance < math.inf:
        raise ConfigError([f"--nll-tolerance {given.nll_tolerance}: expected a number above 0"])
    return None if given.score is None else [name.text for name in read_scores(given.score.split(","))]


def how(given: argparse.Namespace) -> dict:
    """How a run is opened."""
    return {
        "device": given.device,
        "dtype": given.dtype,
        "tensor_model_parallel_size": given.tensor_model_parallel_size,
        "pipeline_model_parallel_size": given.pipeline_model_parallel_size,
        "say": lambda line: print(line, file=sys.stderr),
    }


def folder_of(run: Path) -> Path:
    """Of a run, or of one of its checkpoints."""
    return run.parent if CHECKPOINT.fullmatch(run.name) else run
