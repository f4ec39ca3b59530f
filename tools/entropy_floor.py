"""How far a trained model is above the floor of its corpus: model minus oracle on the run's validation rows, paired.

    python tools/entropy_floor.py RUN_DIR [--checkpoint PATH] [--set valid] [--rows N] [--num-mc N] [--json]

The validation data must be corpora of tools/make_entropy_corpus.py, which hold what the oracle needs. The difference is an
estimate of a KL divergence: 3 standard errors below zero and more (by Student's t, where they have few degrees of freedom)
is a leak, and the exit code is then 1. For masked diffusion it also holds the gap of the bound. Runs in one process,
whatever layout the run had, and writes RUN_DIR/entropy_floor.json.
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

from megatron.errors import exits
from megatron.flags import ConfigError


@exits
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="entropy_floor.py", allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--checkpoint", help="a step, best, newest, or a path [the last of a run that is finished]")
    parser.add_argument("--set", default="valid", help="valid, valid:NAME or test [valid]")
    parser.add_argument("--rows", type=int, help="validation rows to score [the run's own]")
    parser.add_argument("--num-mc", type=int, help="draws of t and masks for masked diffusion [the run's own]")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")
    given = parser.parse_args(argv)
    for flag in ("rows", "num_mc"):
        if getattr(given, flag) is not None and getattr(given, flag) < 1:
            raise ConfigError([f"--{flag.replace('_', '-')} {getattr(given, flag)}: expected 1 or more"])
    from megatron.training import floor, open_run  # torch, once the flags are right
    from megatron.training.branch import write_json

    trained = open_run(given.run_dir, given.checkpoint, device=given.device, say=lambda line: print(line, file=sys.stderr))
    found = floor.measure(trained, given.set, given.rows, given.num_mc)
    write_json(given.run_dir / "entropy_floor.json", found)
    print(json.dumps(found, indent=1) if given.json else floor.describe(found))
    return int(found["below_floor"])


if __name__ == "__main__":
    sys.exit(main())
