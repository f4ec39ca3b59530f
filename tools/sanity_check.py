"""Whether a short run did what a run should: a line for each check, and PASSED or FAILED at the end.

    python tools/sanity_check.py RUN_DIR

By the run's records alone: every step finite, a falling loss, the rate, gradients, a validation, an end; with --atat also the
share of hidden tokens, the curriculum and what the small network learned. Leaves with 1 when a check fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed
from megatron import stopping

if __name__ == "__main__":
    stopping.heed_interrupt()

import argparse

from megatron.errors import exits
from megatron.rundir.sanity import check_run


@exits
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="sanity_check.py", allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    checks = check_run(parser.parse_args(argv).run_dir)
    for check in checks:
        print(f"{'ok' if check.passed else 'FAILED':6}  {check.name}: {check.found}")
    failed = sum(not check.passed for check in checks)
    print(f"Sanity check {f'FAILED: {failed} of {len(checks)} checks' if failed else f'PASSED: {len(checks)} checks'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
