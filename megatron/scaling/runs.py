"""Finished runs as rows of one table, whatever they come from, and whether they may be compared at all.

A path is a run directory (it explains itself: result.json, run.json, metrics.jsonl), a folder of such directories, or a
CSV or JSONL table with columns params, tokens, loss and, where known, flops, objective, run, ...
"""
from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from megatron.errors import BadData, Mismatch, MissingInput

RUN_FILES = {"result.json", "run.json", "metrics.jsonl"}        # any of them makes a directory a run
NUMBERS = ("params", "tokens", "loss", "flops", "loss_se_noise", "loss_se_data", "bits_per_byte", "unique_tokens", "budget")
SAME_FOR_ALL = ("tokenizer", "eval_slice", "params_convention", "flops_convention")
LINTS = (*SAME_FOR_ALL, "lr_decayed", "bound")


def load_runs(paths: Iterable[str | Path]) -> list[dict]:
    """The finished runs of these paths, numbers as floats (6 params tokens overflows an int64). Raises as `read_runs`."""
    return read_runs(paths)[0]


def read_runs(paths: Iterable[str | Path]) -> tuple[list[dict], list[dict]]:
    """(finished runs, unfinished ones as {run, path, reason}).

    Raises MissingInput where a path holds no run at all, BadData with file and line for a row that cannot be read.
    """
    finished, unfinished, seen = [], [], set()
    for path in map(Path, paths):
        for source, row in _rows(path):
            if source in seen:
                continue
            seen.add(source)
            reason = row.get("reason") or _flaw(row)
            if reason:
                unfinished.append({"run": row["run"], "path": row["path"], "reason": reason})
            else:
                finished.append(row)
    return finished, unfinished


def check_comparable(runs: list[dict], allow: Iterable[str] = ()) -> None:
    """Raise Mismatch, naming the runs, for what makes losses or axes incomparable; names of LINTS in `allow` pass.

    A run that does not state a convention differs from one that does.
    """
    for name in (name for name in SAME_FOR_ALL if name not in allow):
        by_value: dict = {}
        for run in runs:
            by_value.setdefault(run.get(name), []).append(run["run"])
        if len(by_value) > 1:
            raise Mismatch(f"runs differ in {name}: {_sides(by_value)}; fit them apart, or give --allow {name}.")
    undecayed = [run["run"] for run in runs if run.get("lr_decayed") is False]
    if undecayed and "lr_decayed" not in allow:
        raise Mismatch(f"the learning rate was not decayed to its end in {_some(undecayed)}; "
                       "finish them, or give --allow lr_decayed.")
    if "bound" not in allow:
        _check_bounds(runs)


def training_curve(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """(FLOPs, loss) of the train records of a run directory, by step; of a step written twice (a resume) the last counts."""
    file = Path(path) / "metrics.jsonl"
    by_step = {}
    if file.is_file():
        for _, record in _json_lines(file):
            if record.get("kind") == "train" and _is_number(record.get("loss")) and _is_number(record.get("flops")):
                by_step[record.get("step")] = (record["flops"], record["loss"])
    points = np.array([by_step[step] for step in sorted(by_step)], np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _rows(path: Path) -> Iterator[tuple]:
    """(identity, row) for every run under a path; the identity lets a run given twice count once."""
    if path.is_dir():
        found = sorted(_run_directories(path))
        if not found:
            raise MissingInput(f"{path}: no run in this folder or below it (a run has a result.json); "
                               "give run directories or a table.")
        yield from ((directory.resolve(), _run_row(directory)) for directory in found)
    elif not path.is_file():
        raise MissingInput(f"{path}: no such file or folder; give run directories or a CSV or JSONL table.")
    else:
        lines = _json_lines(path) if path.suffix in (".jsonl", ".json") else _csv_lines(path)
        yield from (((path.resolve(), line), _typed(row, f"{path}, line {line}", f"{path.stem}:{line}")) for line, row in lines)


def _run_directories(path: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(path):
        if RUN_FILES & set(files):
            folders.clear()             # checkpoints below a run are no runs
            yield Path(folder)


def _run_row(directory: Path) -> dict:
    result = directory / "result.json"
    if not result.is_file():
        reason = f"no result.json: running or stopped, {_last_step(directory)}"
        return {"run": directory.name, "path": str(directory), "reason": reason}
    try:
        row = json.loads(result.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadData(f"{result}: not JSON ({error}); run it again, or move it away.") from None
    if not isinstance(row, dict):
        raise BadData(f"{result}: found a {type(row).__name__}, expected an object; run it again, or move it away.")
    return _typed(row, str(result), directory.name) | {"path": str(directory)}


def _last_step(directory: Path) -> str:
    """Where the record of an unfinished run ends."""
    try:
        with open(directory / "metrics.jsonl", "rb") as file:
            file.seek(max(0, os.path.getsize(file.name) - 65536))
            steps = [line.split(b'"step":')[1].split(b",")[0].strip() for line in file.read().splitlines() if b'"step":' in line]
        return f"last record at step {steps[-1].decode()}"
    except (OSError, IndexError):
        return "nothing recorded"


def _json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                if not line.endswith(b"\n"):
                    return              # the last line of a run that is being written
                raise BadData(f"{path}, line {number}: not JSON; expected one object a line.") from None
            if not isinstance(row, dict):
                raise BadData(f"{path}, line {number}: found a {type(row).__name__}, expected an object.")
            yield number, row


def _csv_lines(path: Path) -> Iterator[tuple[int, dict]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for row in reader:
                if None in row or None in row.values():
                    relation = "more" if None in row else "fewer"
                    raise BadData(f"{path}, line {reader.line_num}: {relation} fields than the header names; repair that line.")
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{path}: not a CSV table ({error}).") from None


def _typed(row: dict, where: str, name: str) -> dict:
    """A row with float64 columns, `flops` = 6 N D where absent, and the names every reader relies on."""
    row = {key: None if value == "" else value for key, value in row.items()}
    for column in NUMBERS:
        if row.get(column) is not None:
            row[column] = _number(row[column], where, column)
    for column in ("params", "tokens", "loss"):
        if column not in row:
            raise BadData(f"{where}: no column {column}; a table needs params, tokens and loss "
                          f"(found {', '.join(map(str, row)) or 'none'}).")
    if row.get("flops") is None and None not in (row["params"], row["tokens"]):
        row |= {"flops": 6.0 * row["params"] * row["tokens"], "flops_convention": "6ND"}
    if isinstance(row.get("lr_decayed"), str):
        row["lr_decayed"] = row["lr_decayed"].strip().lower() in ("true", "1", "yes")
    name = str(row.get("run") or row.get("name") or name)
    return row | {"run": name, "path": where, "objective": row.get("objective") or "unlabelled"}


def _number(value, where: str, column: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BadData(f"{where}, column {column}: found {value!r}, expected a number.") from None


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _flaw(row: dict) -> str | None:
    """Why a row is no finished run: an empty, zero or non-finite number where a law needs a positive one."""
    for column in ("params", "tokens", "flops", "loss"):
        value = row.get(column)
        if value is None or not (math.isfinite(value) and value > 0):
            return f"{column} is {'empty' if value is None else f'{value:g}'}"
    return None


def _sides(runs_by_value: dict) -> str:
    return "; ".join(f"{'not stated' if value is None else value} in {_some(names)}" for value, names in runs_by_value.items())


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_bounds(runs: list[dict]) -> None:
    """An exact NLL and a bound may stand side by side, each under its own objective and its own label."""
    labels: dict = {}
    for run in runs:
        labels.setdefault(run["objective"], {}).setdefault(run.get("bound"), []).append(run["run"])
    for objective, by_bound in labels.items():
        if len(by_bound) > 1:
            raise Mismatch(f"{objective} runs mix exact losses and bounds: {_sides(by_bound)}; "
                           "fit them apart, or give --allow bound.")
        if len(labels) > 1 and None in by_bound:
            raise Mismatch(f"{objective} runs do not say whether their loss is exact or a bound ({_some(by_bound[None])}), "
                           "and would stand beside another objective; add the column bound, or give --allow bound.")
