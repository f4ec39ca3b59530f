"""CSV and JSONL tables, W&B's three CSV exports among them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from megatron.errors import BadData
from megatron.scaling.table.ingest.curves import Curves, find_synonym
from megatron.scaling.table.runs import table_lines

OWN_STEP = "_step"  # W&B's, in the history of a run
SPREAD = ("__MIN", "__MAX")  # columns that a W&B chart adds to every run's


def read_rows(path: Path) -> list[tuple[int, dict]]:
    """(line, row) of a table; CSV cells are text, empty ones None. Raises BadData with file and line."""
    rows = [(line, {name: None if cell == "" else cell for name, cell in row.items()}) for line, row in table_lines(path)]
    if not rows:
        raise BadData(f"{path}: no rows; a table needs a header and at least one.")
    return rows


def read_wandb_export(path: Path) -> Iterator[Curves] | None:
    """The curves of an exported chart (a column for each run) or history (one run); None for a table of runs."""
    rows = read_rows(path)
    names = list(rows[0][1])
    charted = [name for name in names if " - " in name and not name.endswith(SPREAD)]
    if charted:
        return _chart(path, rows, names[0], charted)
    return iter([_history(path, rows, names)]) if OWN_STEP in names else None


def _chart(path: Path, rows: list, x: str, charted: list[str]) -> Iterator[Curves]:
    metrics: dict[str, list] = defaultdict(list)
    for name in charted:
        run, _, metric = name.rpartition(" - ")
        metrics[run].append((name, metric))
    for run, columns in metrics.items():
        curves = Curves(run=run, path=path, files=[path], key=f"{path.resolve()} {run}")
        for name, metric in columns:
            steps, values = _points(path, rows, x, name)
            curves.add(metric, steps, values)
            curves.add(x, steps, steps.astype(np.float64))
        yield curves


def _history(path: Path, rows: list, names: list[str]) -> Curves:
    curves = Curves(run=path.stem, path=path, files=[path])
    x = find_synonym([name for name in names if name != OWN_STEP], "step") or OWN_STEP
    for name in names:
        if any(_is_number(row[name]) for _, row in rows):
            curves.add(name, *_points(path, rows, x, name))
    return curves


def _points(path: Path, rows: list, x: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps int64 [n] and values float64 [n] of the rows that have a number in this column."""
    pairs = [
        (number(row[x], f"{path}, line {line}", x), float(row[name]))
        for line, row in rows
        if row[x] is not None and _is_number(row[name])
    ]
    points = np.array(pairs, np.float64).reshape(-1, 2)
    return points[:, 0].astype(np.int64), points[:, 1]


def number(cell, where: str, column: str) -> float | None:
    """A cell as float64, None where it is empty. Raises BadData."""
    try:
        return None if cell is None else float(cell)
    except (TypeError, ValueError):
        raise BadData(f"{where}, column {column}: found {cell!r}, expected a number; repair it, or map another column.") from None


def _is_number(cell) -> bool:
    try:
        return cell is not None and float(cell) is not None
    except (TypeError, ValueError):
        return False


def renamed(rows: Iterable[tuple[int, dict]], old_names: dict[str, str]) -> list[tuple[int, dict]]:
    """The rows with columns under new names; a column that had the new name gives way."""
    out = []
    for line, row in rows:
        new = {name: cell for name, cell in row.items() if name not in old_names and name not in old_names.values()}
        out.append((line, {name: row.get(old) for name, old in old_names.items()} | new))
    return out
