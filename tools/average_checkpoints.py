"""One network from several checkpoints: the mean of each weight, by default with equal weights.

    python tools/average_checkpoints.py RUN --last 5 --out FOLDER              the last five that a run saved
    python tools/average_checkpoints.py RUN --steps 800,900,1000 --out FOLDER
    python tools/average_checkpoints.py RUN/step-00000900 RUN/step-00001000 --weights 1,3 --out FOLDER

What is written opens, is evaluated and is trained from (--load FOLDER --finetune) like any checkpoint, and its records name what
it is made of. Sums are float64, at any layout that the checkpoints were saved at. Of a run with --ema the average that its
validation scores is taken. Other architectures, objectives or tokenizers are refused.
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

from megatron.errors import CannotWrite, exits
from megatron.flags import ConfigError


def parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(prog="average_checkpoints.py", allow_abbrev=False, description=__doc__, formatter_class=plain)
    found.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="a run, or checkpoints one by one")
    which = found.add_mutually_exclusive_group()
    which.add_argument("--last", type=int, metavar="N", help="the run's last N checkpoints")
    which.add_argument("--steps", help="the run's checkpoints of these steps, with commas between")
    found.add_argument("--weights", help="of each checkpoint, with commas between, in any unit [all alike]")
    found.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder for the average")
    found.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")
    return found


def numbers(flag: str, text: str | None, kind: type) -> list | None:
    """Positive numbers with commas between. Raises ConfigError."""
    if text is None:
        return None
    try:
        found = [kind(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < number < math.inf for number in found):
        raise ConfigError([f"{flag} {text}: expected positive numbers with commas between"])
    return found


@exits
def main(argv: list[str] | None = None) -> None:
    given = parser().parse_args(argv)
    if given.last is not None and given.last < 2:
        raise ConfigError([f"--last {given.last}: expected 2 or more"])
    steps, weights = numbers("--steps", given.steps, int), numbers("--weights", given.weights, float)
    if given.out.is_file() or (given.out.is_dir() and any(given.out.iterdir())):
        raise CannotWrite(f"{given.out} is taken: give a folder that is new or empty")
    from megatron.exchange.average import average

    said = average(
        given.sources, given.out, last=given.last, steps=steps, weights=weights, say=lambda line: print(line, file=sys.stderr)
    )
    parts = ", ".join(f"{step} ({share:.3g})" for step, share in zip(said["steps"], said["weights"]))
    print(
        json.dumps(said, indent=1)
        if given.json
        else f"{said['out']}: {said['parameters']:,} weights, the mean of steps {parts}; evaluate it as a run, or train with "
        f"--load {given.out} --finetune"
    )


if __name__ == "__main__":
    sys.exit(main())
