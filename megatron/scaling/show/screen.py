"""Tables, warnings and intervals on the screen, the same for every verb."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table as Grid

SHOWN = 10  # rows that were left out, before the rest is a number


def console() -> Console:
    """As wide as the terminal, or 160 columns into a file."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a title and a table, its first column to the left and the others to the right; nothing without rows."""
    grid = Grid(highlight=False)
    for number, column in enumerate(columns):
        grid.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    if grid.row_count:
        say(title)
        console().print(grid)


def say(line: str) -> None:
    """Print a line as it is."""
    console().print(line, markup=False, highlight=False, soft_wrap=True)


def show_record(dropped: Sequence[dict], warnings: Iterable[str]) -> None:
    """Print what was left out, with reasons, and the warnings."""
    for row in dropped[:SHOWN]:
        say(f"not used: {row['run']}: {row['reason']}")
    if len(dropped) > SHOWN:
        say(f"not used: {len(dropped) - SHOWN} more rows (listed in the file)")
    for warning in warnings:
        say(f"warning: {warning}")


def interval(ends: Sequence | None, form: str) -> str:
    """'low .. high' with 'open' for an end that the data do not bound, '-' where there is no interval."""
    if not ends or ends[0] is ends[1] is None:
        return "-" if not ends else "open"
    return " .. ".join("open" if end is None else f"{end:{form}}" for end in ends)


def show_pair(pair: dict) -> None:
    """Print what `compare` found of two sides."""
    show(
        f"compute of {pair['other']} over {pair['reference']} at equal loss (*: extrapolated)",
        ["loss", "ratio", "95 % interval"],
        [
            (f"{row['loss']:.4f}", f"{row['ratio']:.4g}{'*' * row['extrapolated']}", interval(row["ci"], ".4g"))
            for row in pair["compute"]
        ],
    )
    show(
        f"optimal parameters of {pair['reference']} over {pair['other']} at equal compute (*: extrapolated)",
        ["C (FLOPs)", "ratio", "95 % interval", "parameters"],
        [
            (
                f"{row['flops']:.3g}",
                f"{row['ratio']:.4g}{'*' * row['extrapolated']}",
                interval(row["ci"], ".4g"),
                " / ".join(f"{size:.4g}" for size in row["params"]),
            )
            for row in pair["params"]
        ],
    )
    if not (pair["compute"] or pair["params"] or "differences" in pair):
        say(f"{pair['reference']} and {pair['other']}: no ratio; both need two budgets with their minimum inside the data.")
