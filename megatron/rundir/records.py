"""metrics.jsonl: one record of numbers a line, written and read here alone.

A line is whole or it is the last: what a kill cut short is left out. Of a step written twice (a resume that could not rewind)
the last counts.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron.errors import BadData, MissingInput
from megatron.files import parse_json
from megatron.rundir.fields import NON_FINITE, RECORD, fault_of
from megatron.rundir.names import LOG, METRICS

TAIL_BYTES = 65536
TRAIN_START = b'{"kind": "train", '
# A train record as a run writes it: curves of 100 x 10,000 records must not need a million whole objects.
TRAIN = re.compile(
    rb'\{"kind": "train", "step": (\d+), "samples": (\d+), "tokens": (\d+), "flops": ([^,]+), '
    rb'"epoch": [^,]+, "time": [^,]+, "loss": ([^,}]+)[,}]'
)
Columns = dict[str, list]  # step, samples, tokens, flops and loss of train records, in the order of the file


def plain(value: Any) -> Any:
    """A value that JSON can hold. JSON has no NaN: non-finite numbers become the strings "nan", "inf", "-inf"."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def encode(record: dict) -> str:
    """One line of JSON."""
    return json.dumps(plain(record), allow_nan=False) + "\n"


def decode(line: bytes) -> dict:
    """`encode` undone. Raises ValueError saying what is wrong with a line that is no record."""
    try:
        record = parse_json(line, object_hook=_restored)
    except ValueError:
        raise ValueError("not JSON, expected one object a line") from None
    if not isinstance(record, dict):
        raise ValueError(f"found a {type(record).__name__}, expected an object")
    if fault := fault_of(record, RECORD):
        raise ValueError(fault)
    return record


def _restored(found: dict) -> dict:
    return {k: NON_FINITE.get(v, v) if isinstance(v, str) else v for k, v in found.items()}


def read(path: str | Path) -> Iterator[tuple[int, dict]]:
    """(line number, record) of a metrics.jsonl. Raises MissingInput, BadData with file and line."""
    return _numbered(Path(path), _whole_lines(Path(path)), b"\n")


def scan(path: str | Path) -> tuple[Columns | None, Iterator[tuple[int, dict]]]:
    """Columns of all train records, and (line number, record) of all others.

    None, and all records, where some are not as a run writes them. Raises as `read`.
    """
    data = _whole_lines(Path(path))
    found = TRAIN.findall(data)
    whole = data.count(b"}\n") == data.count(b"\n") and len(found) == data.count(b'"train"')
    try:
        if not whole:
            raise ValueError
        columns = columns_of(found)
    except ValueError:
        return None, _numbered(Path(path), data, b"\n")
    if len(found) == data.count(b"\n") + (not data.endswith(b"\n")):  # nothing but train records
        return columns, iter(())
    return columns, _numbered(Path(path), data, TRAIN_START)


def columns_of(found: list[tuple[bytes, ...]]) -> Columns:
    """Raises ValueError for what is no number."""
    step, samples, tokens, flops, loss = zip(*found) if found else ((),) * 5
    columns: Columns = {"step": list(map(int, step)), "samples": list(map(int, samples)), "tokens": list(map(int, tokens))}
    losses = map(float, (one.strip(b'"') for one in loss) if b'"nan"' in loss or b'"inf"' in loss else loss)
    return columns | {"flops": list(map(float, flops)), "loss": list(losses)}


def _numbered(path: Path, data: bytes, left_out: bytes) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.startswith(left_out) or not line.strip():
            continue
        try:
            yield number, decode(line)
        except ValueError as error:
            raise BadData(f"{path}, line {number}: {error}; restore the file, or delete that line.") from None


def _whole_lines(path: Path) -> bytes:
    """Without the last line where it was cut short: the run is being written, or was killed."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingInput(f"{path} cannot be read ({error.strerror}): give the metrics.jsonl of a run") from None
    end = data.rfind(b"\n") + 1
    try:
        parse_json(data[end:])
    except ValueError:
        return data[:end]
    return data


# The end of a run that is on


def read_tail(path: Path) -> list[bytes]:
    """The last whole lines of a file that may still be growing."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().split(b"\n")[:-1]
    except OSError:
        return []


def last_record(folder: Path) -> dict:
    """The newest train record; empty before the first."""
    for line in reversed(read_tail(folder / METRICS)):
        if b'"train"' in line:
            try:
                record = decode(line)
            except ValueError:
                continue
            if record.get("kind") == "train":
                return record
    return {}


def last_train_step(path: Path) -> int:
    """The highest step that the train records of a metrics.jsonl have; 0 where there is none."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return 0
    for line in reversed(lines):
        if b'"train"' in line:
            try:
                record = decode(line)
            except ValueError:
                continue
            if record.get("kind") == "train":
                return record.get("step") or 0
    return 0


def last_step(folder: Path) -> str:
    """A phrase on where the record of an unfinished run ends."""
    for line in reversed(read_tail(folder / METRICS)):
        try:
            return f"last record at step {decode(line)['step']}"
        except (ValueError, KeyError):
            continue
    return "nothing recorded"


def last_line(folder: Path) -> str:
    """The last that the run said in train.log."""
    return next((line.decode(errors="replace").strip() for line in reversed(read_tail(folder / LOG)) if line.strip()), "")
