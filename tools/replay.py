"""Re-run one step that was not finite, alone on one process, and name the first bad tensor.

    python tools/replay.py RUN_DIR/bad_batches/step-00000812 [--device cpu] [--json]

A run dumps such a step with its weights and skips it. Weights are looked at first, then micro-batch by micro-batch every
tensor in the order of its computation. Exit code 17: it is not finite here either, so data or numerics did it. 16: every
tensor is finite here, so suspect the machine it happened on (run it there too). Compiled and recomputed blocks run eagerly.
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

from megatron.errors import exits


@exits
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="replay.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument(
        "dump", type=Path, metavar="DUMP", help="a folder of RUN_DIR/bad_batches (of bad_batches itself the newest)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")
    given = parser.parse_args(argv)
    from megatron.training import replay  # torch, once the flags are right

    dump = replay.open_dump(given.dump, given.device)
    out = sys.stderr if given.json else sys.stdout
    print(replay.describe(dump), file=out)
    done = replay.replay(dump)
    if math.isfinite(done.loss):
        print(f"here the loss is {done.loss:.6f} and the gradient norm {done.grad_norm:.6f}", file=out)
    print(replay.verdict(dump, done), file=out)
    if given.json:
        print(json.dumps(replay.record(dump, done), indent=1))
    return done.code


if __name__ == "__main__":
    sys.exit(main())
