"""Run directories: what a finished run says of itself, and its curves; tables as lines."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatron.errors import BadData, MissingInput

RUN_FILES = {"result.json", "run.json", "metrics.jsonl"}  # any of them makes a directory a run
# The beginning of a train record as a run writes it: curves of 100 x 10,000 records must not need as many whole objects.
TRAIN = re.compile(
    rb'\{"kind": "train", "step": (\d+), "samples": \d+, "tokens": (\d+), "flops": ([^,]+), '
    rb'"epoch": [^,]+, "time": [^,]+, "loss": ([-+\d.eE]+)[,}]'
)


def training_curve(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """(FLOPs, loss) of the train records of a run directory, by step; of a step written twice (a resume) the last counts."""
    points = np.array([(record["flops"], record["loss"]) for record in records(path, "train")], np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def records(path: str | Path, kind: str) -> list[dict]:
    """The records of one kind (train, val, test) with a finite loss in a run directory's metrics.jsonl, by rising step.

    {step, tokens, flops, loss, ...}. Of a step written twice (a resume) the last counts; a line cut short by a kill is left
    out. Raises BadData.
    """
    file = Path(path) / "metrics.jsonl"
    if not file.is_file():
        return []
    by_step = {}
    for record in _train_records(file) if kind == "train" else (record for _, record in json_lines(file, f'"{kind}"'.encode())):
        if record.get("kind", kind) == kind and all(_is_number(record.get(name)) for name in ("loss", "flops", "step")):
            by_step[record["step"]] = record
    return [by_step[step] for step in sorted(by_step)]


def _train_records(file: Path) -> Iterator[dict]:
    """Step, tokens, FLOPs and loss of the train records; whole records from files that another program wrote."""
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), 1):
        found = TRAIN.match(line)
        if found:
            step, tokens, flops, loss = found.groups()
            yield {"step": int(step), "tokens": int(tokens), "flops": float(flops), "loss": float(loss)}
        elif b'"train"' in line and (record := _json_line(line, f"{file}, line {number}")):
            yield record


def run_directories(path: Path) -> Iterator[Path]:
    """The run directories at or below a folder, sorted. Raises MissingInput where there is none."""
    found = sorted(_walk(path))
    if not found:
        raise MissingInput(
            f"{path}: no run in this folder or below it (a run has a result.json); give run directories or a table."
        )
    yield from found


def _walk(path: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(path):
        if RUN_FILES & set(files):
            folders.clear()  # checkpoints below a run are no runs
            yield Path(folder)


def read_result(directory: Path) -> dict:
    """What result.json says of a finished run, with its `trunk` where it branched off another run.

    {run, path, reason} of a run without one. Raises BadData for a damaged file.
    """
    result = directory / "result.json"
    if not result.is_file():
        reason = f"no result.json: running or stopped, {last_step(directory)}"
        return {"run": directory.name, "path": str(directory), "reason": reason}
    row = read_json(result)
    trunk, event = _trunk(directory), event_of(row)
    return row | ({"trunk": trunk} if trunk else {}) | ({"event": event} if event else {})


def event_of(record: dict) -> str | None:
    """Whose likelihood a loss is, by the convention recorded with it: what is scored of each row, and what it is given."""
    convention = record.get("convention") or {}
    named = [convention.get(name) for name in ("scored_tokens", "conditioned_on")]
    return f"{named[0]}, given {named[1]}" if all(named) else None


def read_json(path: Path) -> dict:
    """An object of a run directory, {} where the file is not there. Raises BadData."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise BadData(f"{path}: not JSON ({error}); run it again, or move it away.") from None
    if not isinstance(found, dict):
        raise BadData(f"{path}: found a {type(found).__name__}, expected an object; run it again, or move it away.")
    return found


def _trunk(directory: Path) -> str | None:
    """The name of the sibling run whose checkpoint this one went on from, by run.json."""
    if not (directory / "run.json").is_file():
        return None
    for resume in read_json(directory / "run.json").get("resumes", []):
        loaded = Path(str(resume.get("from", "")))
        if loaded.name and directory.name not in loaded.parts:
            home = directory.resolve().parent.name
            return next((at.name for at in loaded.parents if at.parent.name == home), str(loaded.parent))
    return None


def last_step(directory: Path) -> str:
    """A phrase on where the record of an unfinished run ends."""
    try:
        with open(directory / "metrics.jsonl", "rb") as file:
            file.seek(max(0, os.path.getsize(file.name) - 65536))
            steps = [line.split(b'"step":')[1].split(b",")[0].strip() for line in file.read().splitlines() if b'"step":' in line]
        return f"last record at step {steps[-1].decode()}"
    except (OSError, IndexError):
        return "nothing recorded"


def json_lines(path: Path, mark: bytes = b"", whole: bool = False) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a JSONL file's lines that hold `mark`. Raises BadData with file and line.

    A last line that is cut short is left out, as of a run that is being written, unless the file should be `whole`.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if mark not in line or not line.strip():
                continue
            if (row := _json_line(line, f"{path}, line {number}")) is not None:
                yield number, row
            elif whole:
                raise BadData(f"{path}, line {number}: cut short, not JSON; repair that line.")


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
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadData(f"{path}: not JSON ({error}); expected a list of objects, or one object a line.") from None
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise BadData(f"{path}, row {number}: found a {type(row).__name__}, expected an object.")
        yield number, row


def _json_line(line: bytes, where: str) -> dict | None:
    """The object of a line; None where it is cut short: the last line of a run that is being written."""
    try:
        row = json.loads(line)
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
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, delimiter=delimiter(file.readline()), strict=True)
            file.seek(0)
            header = [name.strip() for name in next(lines, [])]
            if twice := [name for name in header if name and header.count(name) > 1]:
                raise BadData(f"{path}, line 1: {twice[0]} heads {header.count(twice[0])} columns; rename all but one.")
            for fields in lines:
                fields = [field.strip() for field in fields]
                if any(fields) and len(fields) != len(header):
                    relation = "more" if len(fields) > len(header) else "fewer"
                    raise BadData(f"{path}, line {lines.line_num}: {relation} fields than the header names; repair that line.")
                if any(fields):
                    yield lines.line_num, dict(zip(header, fields))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{path}: not a CSV table in UTF-8 ({error}).") from None


def delimiter(header: str) -> str:
    return next((sign for sign in ",;\t" if sign in header), ",")


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
