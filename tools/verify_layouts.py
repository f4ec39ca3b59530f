"""Prove that a layout changes speed and memory, and nothing else: the same experiment at every layout and in one process.

    python tools/verify_layouts.py                                          AR and MDM, a tiny model, the whole list
    python tools/verify_layouts.py --objective mdm --layouts tp2,pp2+zero1
    python tools/verify_layouts.py --layouts tp2xpp2,dp2+zero3+bf16 -- --num-layers 4 ... --data-path PREFIX     your own

Flags of pretrain_*.py describe the experiment; without a corpus among them, random tokens are made. Flags of the layout
among them (--tensor-model-parallel-size 2 --zero-stage 1 ...) stand for one layout, `as given`. A layout's name is its sizes
joined by x, and what else it does behind a +.

Each layout trains a few steps with an evaluation half way and must agree with one process. Bit for bit: sample numbers,
inputs with their masks, noise levels, initial weights and, with --checkpoints, every tensor of a checkpoint that this layout
saves and one process loads. Within rounding: losses, gradient norms, the validation
loss, and what all steps did to each weight, as gradients may agree where updates do not. On GPUs (--device cuda) the ranks need
one each and use NCCL. Leaves with 1 on a difference or a failure, with 2 when the flags or a named layout cannot be.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed
from megatron import stopping

if __name__ == "__main__":
    stopping.heed_interrupt()

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.table import Table

from megatron.catalogue import OBJECTIVES
from megatron.errors import exits
from megatron.proof.agreement import COLUMNS, LIMITS, Row, Verifier, open_pool
from megatron.proof.layouts import choose, read_experiment, served

LINE = "{:9} {:38} {:5} " + "{:18} " * len(COLUMNS) + "{:>6}"
LEGEND = "; ".join(
    f"{kind}: loss {limits.loss:g}, gradient norm {limits.norm:g} (relative), validation {limits.validation:g}, "
    f"updates {limits.updates:g} (relative)"
    for kind, limits in LIMITS.items()
)


def new_table() -> Table:
    return Table("objective", "layout", "ranks", *COLUMNS, "s", title="Largest difference from one process", caption=LEGEND)


def cells(row: Row, marked: bool = False) -> list[str]:
    """A layout's line of the table; `marked`: what differs in red."""
    bad = "[bold red]{}[/]" if marked else "{}"
    said = [check.text if check.passed else bad.format(check.text) for check in row.checks] or [bad.format("failed")]
    said += [""] * (len(COLUMNS) - len(said))
    return [row.objective, row.layout.name, str(row.layout.world_size), *said, f"{row.seconds:.1f}"]


class Shown:
    """The rows so far: on a terminal a table that grows, elsewhere a line each as soon as it is known."""

    def __init__(self, console: Console):
        self.console, self.rows, self.table = console, [], new_table()

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        if self.console.is_terminal:
            with Live(self.table, console=self.console):
                yield
        else:
            self.say(f"Largest difference from one process; {LEGEND}")
            self.say(LINE.format("objective", "layout", "ranks", *COLUMNS, "s"))
            yield

    def say(self, line: str) -> None:
        print(line, file=self.console.file, flush=True)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.table.add_row(*cells(row, marked=True))
        if not self.console.is_terminal:
            self.say(LINE.format(*cells(row)))


def read_words(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """This tool's flags, and those of pretrain_*.py."""
    parser = argparse.ArgumentParser(
        prog="verify_layouts.py", allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objective", choices=OBJECTIVES, action="append", help="verify this one [all]")
    parser.add_argument("--layouts", default="", help="names joined by commas [what the other flags say, or the whole list]")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of each layout [6]")
    parser.add_argument("--checkpoints", action="store_true", help="also save at each layout and load in one process")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")
    given, words = parser.parse_known_args(argv)
    if given.steps < 2:
        parser.error(f"--steps {given.steps} must be at least 2")
    return given, [word for word in words if word != "--"]


def verify(given: argparse.Namespace, words: list[str], shown: Shown, left_out: list[str]) -> None:
    """Show a row for each layout, as they come. Raises ConfigError for flags or a named layout that cannot be."""
    names = [name.strip() for name in given.layouts.split(",") if name.strip()]
    asked = given.objective or served(words)
    with tempfile.TemporaryDirectory() as folder:
        experiments = [read_experiment(words, objective, Path(folder)) for objective in asked]
        with open_pool(experiments[0].cfg) as pool:
            plans = [(experiment, *choose(names, experiment, pool.size)) for experiment in experiments]
            left_out += dict.fromkeys(line for _, _, reasons in plans for line in reasons)
            with shown.live():
                for experiment, layouts, _ in plans:
                    verifier = Verifier(pool, experiment, given.steps, given.checkpoints)
                    for layout in layouts:
                        shown.add(verifier.verify(layout))


def conclude(shown: Shown, left_out: list[str]) -> int:
    """Say what the table leaves open; 1 when a layout differs or failed."""
    shown.say("")
    for line in left_out:
        shown.say(f"left out: {line}")
    wrong = [row for row in shown.rows if not row.passed]
    for row in wrong:
        print(f"{row.objective} {row.layout.name}: {row.trouble or 'differs from one process'}", file=sys.stderr)
    shown.say(f"{len(shown.rows) - len(wrong)} of {len(shown.rows)} layouts do what one process does")
    return int(bool(wrong))


@exits
def main(argv: list[str] | None = None) -> int:
    given, words = read_words(argv)
    shown, left_out = Shown(Console(stderr=given.json)), []
    try:
        verify(given, words, shown, left_out)
    except KeyboardInterrupt:
        conclude(shown, left_out)
        raise
    finally:
        if shown.rows and given.json:  # also when it was stopped
            print(json.dumps([row.record() for row in shown.rows], indent=1), flush=True)
    return conclude(shown, left_out)


if __name__ == "__main__":
    sys.exit(main())
