"""W&B's offline runs, read without W&B: a .wandb file is a LevelDB log of protocol buffers."""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron.errors import BadData, MissingInput
from megatron.files import parse_json
from megatron.scaling.table.ingest.curves import Curves, find_synonym
from megatron.scaling.table.ingest.protobuf import fields, float64

MAGIC = b":W&B\xe1\xbe"
FILE_HEADER = 7  # the magic and a version
BLOCK = 32768
HEADER = struct.Struct("<IHB")  # CRC-32, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
HISTORY, CONFIG, RUN = 2, 5, 17  # fields of a Record
RUN_ID, RUN_CONFIG, DISPLAY_NAME = 1, 4, 8  # of its run
KEY, NESTED_KEY, INTEGER, NUMBER, VALUE_JSON = 1, 2, 5, 6, 16  # of an item of its history or config


def read_wandb(paths: Iterable[Path]) -> Iterator[Curves]:
    """The curves of every .wandb file at or below these; restarts of one run share its key. Raises MissingInput, BadData."""
    for path in paths:
        files = sorted(path.rglob("*.wandb"), key=lambda file: (file.parent.name, file.name)) if path.is_dir() else [path]
        if not files:
            raise MissingInput(f"{path}: no .wandb file in this folder or below it; give an offline run or a CSV export.")
        yield from map(read_wandb_file, files)


def read_wandb_file(path: Path) -> Curves:
    """The numbers of a run's history by `iteration` where it is logged, else by W&B's own step."""
    curves = Curves(run=path.parent.name, path=path, files=[path])
    rows: list[dict[str, float]] = []
    for at, record in _records(path, path.read_bytes()):
        try:
            for number, content in fields(record):
                if number == HISTORY:
                    rows.append(_history(content))
                elif number == CONFIG:
                    curves.arguments |= _config(content)
                elif number == RUN:
                    _identify(curves, content)
        except (ValueError, TypeError, struct.error) as error:
            raise BadData(f"{path}, byte {at}: not a W&B record ({error}); remove the file, or restore it.") from None
    columns: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    own = find_synonym({name for row in rows for name in row if not name.startswith("_")}, "step")
    for row in rows:
        step = row.get(own or "_step", row.get("_step"))
        if step is None:
            continue
        for name, value in row.items():
            columns[name][0].append(int(step))
            columns[name][1].append(value)
    for name, (steps, values) in columns.items():
        curves.add(name, steps, values)
    return curves


def _records(path: Path, data: bytes) -> Iterator[tuple[int, bytes]]:
    """(byte, content) of every whole record. A run that was killed ends within one."""
    if not data.startswith(MAGIC):
        raise BadData(f"{path}: not a .wandb file (it begins with {data[:4]!r}, expected {MAGIC[:4]!r}); give an offline run.")
    at = FILE_HEADER
    parts: list[bytes] = []
    while at + HEADER.size <= len(data):
        if BLOCK - at % BLOCK < HEADER.size:  # padding
            at += BLOCK - at % BLOCK
            continue
        crc, length, kind = HEADER.unpack_from(data, at)
        start, end = at + HEADER.size, at + HEADER.size + length
        if end > len(data) or not any(data[at:end]):
            return
        if zlib.crc32(data[start:end], zlib.crc32(bytes([kind]))) != crc:
            if end == len(data):
                return  # the write that a kill cut short
            raise BadData(f"{path}, byte {at}: the checksum is wrong, the file is damaged; remove it, or restore it.")
        parts = [*parts, data[start:end]] if kind in (MIDDLE, LAST) else [data[start:end]]
        if kind in (FULL, LAST):
            yield at, b"".join(parts)
        at = end


def _item(message: bytes) -> tuple[str, bytes | float | None]:
    """(name, its JSON or number) of an item; a nested name is joined by dots."""
    names: list[str] = []
    value: bytes | float | None = None
    for number, content in fields(message):
        if number in (KEY, NESTED_KEY):
            names.append(content.decode())
        elif number == VALUE_JSON:
            value = content
        elif number == NUMBER:
            value = float64(content)
        elif number == INTEGER:
            value = float(content >> 1 ^ -(content & 1))  # zigzag
    return ".".join(names), value


def _history(message: bytes) -> dict[str, float]:
    found = {}
    for number, content in fields(message):
        if number == 1:
            name, value = _item(content)
            try:
                found[name] = float(value.strip(b'"') if isinstance(value, bytes) else value)  # type: ignore[arg-type]
            except (ValueError, TypeError):
                continue  # text, a table, an image
    return found


def _config(message: bytes) -> dict:
    """Names and values, those of nested sections by their last name."""
    found: dict = {}
    for number, content in fields(message):
        if number == 1:
            name, value = _item(content)
            value = parse_json(value) if isinstance(value, bytes) else value
            found |= value if isinstance(value, dict) else {name: value}
    return found


def _identify(curves: Curves, message: bytes) -> None:
    for number, content in fields(message):
        if number == RUN_ID:
            curves.key = f"wandb {content.decode()}"
        elif number == DISPLAY_NAME:
            curves.run = content.decode()
        elif number == RUN_CONFIG:
            curves.arguments |= _config(content)
