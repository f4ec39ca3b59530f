"""Run directories: what a finished run says of itself, and its curves; tables as lines."""

from __future__ import annotations

import csv
import io
import math
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from megatron.errors import BadData, MissingInput
from megatron.files import is_there, parse_json
from megatron.progress import ProgressLine
from megatron.rundir.folders import find_runs, read_file
from megatron.rundir.names import FACTS, METRICS, RESULT
from megatron.rundir.records import last_step, scan

ROWS_A_SHOW = 500  # of a table, between two looks at the clock


def training_curve(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """(FLOPs, loss) of the train records of a run directory, by step; of a step written twice (a resume) the last counts."""
    points = np.array([(record["flops"], record["loss"]) for record in records(path, "train")], np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def records(path: str | Path, kind: str) -> list[dict]:
    """The records of one kind (train, val, test) with a finite loss in a run directory's metrics.jsonl, by rising step.

    {step, tokens, flops, loss, ...}. Of a step written twice (a resume) the last counts; a line cut short by a kill is left
    out. Raises BadData.
    """
    file = Path(path) / METRICS
    if not is_there(file):
        return []
    columns, others = scan(file)
    if kind == "train" and columns is not None:
        deque(others, maxlen=0)  # a damaged line is named, whatever it was
        found: Iterable[dict] = (dict(zip(columns, values)) for values in zip(*columns.values()))
    else:
        found = (record for _, record in others)
    by_step = {}
    for record in found:
        if record.get("kind", kind) == kind and all(_is_number(record.get(name)) for name in ("loss", "flops", "step")):
            by_step[record["step"]] = record
    return [by_step[step] for step in sorted(by_step)]


def run_directories(path: Path) -> Iterator[Path]:
    """The run directories at or below a folder, sorted. Raises MissingInput where there is none."""
    found = find_runs([path]) if path.is_dir() else []
    if not found:
        raise MissingInput(
            f"{path}: no run in this folder or below it (a run has a result.json; links are followed to runs alone); give run "
            "directories or a table."
        )
    yield from found


def read_result(directory: Path) -> dict:
    """What result.json says of a finished run, with its `trunk` where it branched off another run.

    {run, path, reason} of a run without one. Raises BadData for a damaged file.
    """
    if not is_there(directory / RESULT):
        reason = f"no result.json: running or stopped, {last_step(directory)}"
        return {"run": directory.name, "path": str(directory), "reason": reason}
    row, trunk = read_file(directory, RESULT), _trunk(directory)
    event = event_of(row)
    return row | ({"trunk": trunk} if trunk else {}) | ({"event": event} if event else {}) | of_tasks(row)


def of_tasks(row: dict) -> dict[str, float]:
    """The scores of --eval-tasks as columns: task-NAME/answer_bpb, task-NAME/accuracy, ..."""
    return {
        f"task-{name}/{key}": value
        for name, scores in row.get("tasks", {}).items()
        for key, value in scores.items()
        if isinstance(value, (int, float))
    }


def event_of(record: dict) -> str | None:
    """Whose likelihood a loss is, by the convention recorded with it: what is scored of each row, and what it is given."""
    convention = record.get("convention") or {}
    named = [convention.get(name) for name in ("scored_tokens", "conditioned_on")]
    return f"{named[0]}, given {named[1]}" if all(named) else None


def _trunk(directory: Path) -> str | None:
    """The name of the sibling run whose checkpoint this one went on from, by run.json."""
    for resume in read_file(directory, FACTS).get("resumes", []):
        loaded = Path(str(resume.get("from", "")))
        if loaded.name and directory.name not in loaded.parts:
            home = directory.resolve().parent.name
            return next((at.name for at in loaded.parents if at.parent.name == home), str(loaded.parent))
    return None


def json_lines(path: Path, whole: bool = False) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a JSONL file. Raises BadData with file and line.

    A last line that is cut short is left out, as of a run that is being written, unless the file should be `whole`.
    """
    progress = ProgressLine(path.stat().st_size)
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            progress.show(file.tell(), path.name)
            if not line.strip():
                continue
            if (row := _json_line(line, f"{path}, line {number}")) is not None:
                yield number, row
            elif whole:
                raise BadData(f"{path}, line {number}: cut short, not JSON; repair that line.")
    progress.clear()


def table_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, row) of a CSV, JSONL or JSON table: nothing in it is left out. Raises BadData with file and line."""
    if path.suffix not in (".jsonl", ".json", ".ndjson"):
        return csv_lines(path)
    with open(path, "rb") as file:
        if file.read(4096).lstrip()[:2] in (b"[{", b"[\n", b"[\r", b"[ ", b"[]"):
            return listed_rows(path)
    return json_lines(path, whole=True)


def listed_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """(place in the list, row) of a JSON file that is one list of objects. Raises BadData."""
    try:
        found = parse_json(path.read_bytes())
    except ValueError as error:
        raise BadData(f"{path}: not JSON ({error}); expected a list of objects, or one object a line.") from None
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise BadData(f"{path}, row {number}: found a {type(row).__name__}, expected an object.")
        yield number, row


def _json_line(line: bytes, where: str) -> dict | None:
    """The object of a line; None where it is cut short: the last line of a run that is being written."""
    try:
        row = parse_json(line)
    except ValueError:
        if not line.endswith(b"\n"):
            return None
        raise BadData(f"{where}: not JSON; expected one object a line.") from None
    if not isinstance(row, dict):
        raise BadData(f"{where}: found a {type(row).__name__}, expected an object.")
    return row


def csv_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, row) of a CSV table with a header, its fields without blanks around them. Raises BadData with file and line.

    A header without a comma may part its names by semicolons or tabs. A line of empty fields is no row.
    """
    progress = ProgressLine(path.stat().st_size)
    try:
        with open(path, "rb") as raw, io.TextIOWrapper(raw, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, delimiter=delimiter(file.readline()), strict=True)
            file.seek(0)
            header = [name.strip() for name in next(lines, [])]
            if twice := [name for name in header if name and header.count(name) > 1]:
                raise BadData(f"{path}, line 1: {twice[0]} heads {header.count(twice[0])} columns; rename all but one.")
            for fields in lines:
                if lines.line_num % ROWS_A_SHOW == 0:
                    progress.show(raw.tell(), path.name)
                fields = [field.strip() for field in fields]
                if any(fields) and len(fields) != len(header):
                    relation = "more" if len(fields) > len(header) else "fewer"
                    raise BadData(f"{path}, line {lines.line_num}: {relation} fields than the header names; repair that line.")
                if any(fields):
                    yield lines.line_num, dict(zip(header, fields))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{path}: not a CSV table in UTF-8 ({error}).") from None
    progress.clear()


def delimiter(header: str) -> str:
    return next((sign for sign in ",;\t" if sign in header), ",")


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
