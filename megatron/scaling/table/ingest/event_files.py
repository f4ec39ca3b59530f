"""TensorBoard's event files: every scalar of a folder, whole and at the speed of a scan.

A file is a row of TFRecords (length, CRC, payload, CRC), each an Event. A record cut short at the end is how a killed run ends;
damage before that is refused.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron.errors import BadData, MissingInput
from megatron.scaling.table.ingest.curves import Curves
from megatron.scaling.table.ingest.protobuf import fields, varint

EVENTS = "events.out.tfevents."
LENGTH = struct.Struct("<Q")
HEADER, FOOTER = 12, 4
LARGEST_SCALARS = 1 << 16  # bytes of a record; larger ones are images, graphs and histograms, and are passed over
NUMBERS = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}  # TensorFlow's dtypes in a tensor's raw content
PACKED = {5: "<f4", 6: "<f8"}  # and its float_val and double_val fields
STRING = 7
STARTED = 1  # a SessionLog with this status: what was written from its step on is void
AXES = re.compile(r"(.+) vs (samples|tokens)")


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    return table


CRC32C = _crc_table()


@dataclass
class Series:
    steps: list[int] = field(default_factory=list)
    values: list = field(default_factory=list)  # float32 as its four bytes


@dataclass
class EventFile:
    """What one process wrote: its curves in the order of writing, its texts, and the step it started over from."""

    series: dict[str, Series] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    restart: int | None = None


def read_tensorboard(folders: Iterable[Path]) -> Iterator[Curves]:
    """The curves of every folder with event files, at or below these. Raises MissingInput, BadData."""
    for top in folders:
        found = sorted(Path(folder) for folder, _, files in os.walk(top) if any(EVENTS in file for file in files))
        if not found:
            raise MissingInput(
                f"{top}: no event file in this folder or below it (events.out.tfevents.*); "
                "give the folder that --tensorboard-dir named."
            )
        for folder in found:
            yield _read_folder(folder)


def _read_folder(folder: Path) -> Curves:
    """Later processes overwrite earlier ones, step by step; a restart mark voids what lay beyond it, as TensorBoard does."""
    files = sorted(path for path in folder.iterdir() if EVENTS in path.name)
    curves = Curves(run=folder.name, path=folder, files=files)
    for path in files:
        wrote = read_events(path)
        if wrote.restart is not None:
            curves.forget_from(wrote.restart)
        for tag, series in wrote.series.items():
            steps, values = _arrays(series)
            axis = AXES.fullmatch(tag)
            if axis is None:
                curves.add(tag, steps, values)
            elif axis[1] in wrote.series:  # a copy of the curve, in the same order: its steps are the other axis
                by_step = _arrays(wrote.series[axis[1]])[0]
                n = min(len(steps), len(by_step))
                curves.add(axis[2], by_step[:n], steps[:n].astype(np.float64))
        curves.arguments |= {tag.removesuffix("/text_summary"): text for tag, text in wrote.texts.items()}
    return curves


def _arrays(series: Series) -> tuple[np.ndarray, np.ndarray]:
    steps = np.array(series.steps, np.uint64).astype(np.int64)
    if isinstance(series.values[0], bytes):
        return steps, np.frombuffer(b"".join(series.values), "<f4").astype(np.float64)
    return steps, np.array(series.values, np.float64)


def read_events(path: Path) -> EventFile:
    """The scalars, texts and restart mark of one event file. Raises BadData with the byte where it is damaged."""
    data, found = path.read_bytes(), EventFile()
    known: dict[bytes, Series] = {}
    for start, end in zip(*_checked_records(path, data)):
        try:
            _read_event(data, start, end, found, known)
        except (ValueError, IndexError, struct.error) as error:
            raise BadData(f"{path}, byte {start}: not a TensorBoard event ({error}); remove the file, or restore it.") from None
    return found


def _read_event(data: bytes, start: int, end: int, found: EventFile, known: dict[bytes, Series]) -> None:
    """Add one event. One float alone, as add_scalar writes it, is its last four bytes once the bytes before are known."""
    at = start + 9
    timed = end - start > 10 and data[start] == 0x09
    if timed and data[at] == 0x10:  # wall_time, step
        step, at = varint(data, at + 1)
        series = known.get(data[at : end - 4])
        if series is not None:
            series.steps.append(step)
            series.values.append(data[end - 4 : end])
            return
    step, values = _parse(data[start:end], found)
    for tag, value in values:
        series = found.series.setdefault(tag, Series())
        if series.values and isinstance(value, bytes) != isinstance(series.values[0], bytes):
            raise ValueError(f"{tag} is a float here and a tensor before")
        series.steps.append(step)
        series.values.append(value)
        if timed and len(values) == 1 and isinstance(value, bytes) and data[end - 5] == 0x15 and data[end - 4 : end] == value:
            known[data[at : end - 4]] = series


def _parse(event: bytes, found: EventFile) -> tuple[int, list]:
    """(step, [(tag, float or the bytes of one)]); texts and restart marks go to `found`."""
    step, values, restarts = 0, [], False
    for number, value in fields(event):
        if number == 2:
            step = value
        elif number == 5:
            values += [_scalar(v, found.texts) for n, v in fields(value) if n == 1]
        elif number == 7:
            restarts = (1, STARTED) in fields(value)
    if restarts:
        found.restart = step
    return step, [pair for pair in values if pair is not None]


def _scalar(message: bytes, texts: dict[str, str]) -> tuple[str, float | bytes] | None:
    tag = ""
    value: float | bytes | str | None = None
    for number, content in fields(message):
        if number == 1:
            tag = content.decode()
        elif number == 2:
            value = content
        elif number == 8:
            value = _one_of_tensor(content)
    if isinstance(value, str):
        texts[tag] = value
    return (tag, value) if isinstance(value, (bytes, float)) else None


def _one_of_tensor(message: bytes) -> float | str | None:
    """The only element of a tensor; None where there are more, or none that is a number or text."""
    kind, numbers = 0, []
    for number, content in fields(message):
        if number == 1:
            kind = content
        elif number == 4 and kind in NUMBERS:
            numbers += np.frombuffer(content, NUMBERS[kind]).tolist()
        elif number in PACKED:
            numbers += np.frombuffer(content, PACKED[number]).tolist()
        elif number == 8 and kind == STRING:
            return content.decode(errors="replace")
    return float(numbers[0]) if len(numbers) == 1 else None


def _checked_records(path: Path, data: bytes) -> tuple[list[int], list[int]]:
    """(starts, ends) of the payloads that may hold scalars."""
    starts, ends = [], []
    at, size = 0, len(data)
    while at + HEADER <= size:
        start = at + HEADER
        at = start + LENGTH.unpack_from(data, at)[0] + FOOTER
        starts.append(start)
        ends.append(at - FOOTER)
    content, heads = np.frombuffer(data, np.uint8), np.array(starts, np.int64)
    _check(path, content, heads - HEADER, heads - FOOTER)  # the length that cut the last record short is no damage
    if at > size and starts:
        starts.pop()
        ends.pop()
    small = np.array([end - start <= LARGEST_SCALARS for start, end in zip(starts, ends)], bool)
    _check(path, content, heads[: len(starts)][small], np.array(ends, np.int64)[small])
    return [s for s, is_small in zip(starts, small) if is_small], [e for e, is_small in zip(ends, small) if is_small]


def _check(path: Path, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
    """Compare the CRC-32C of data[start:end] [n] with the masked one that follows each."""
    crc = crc32c(data, starts, ends)
    expected = (crc >> 15 | crc << 17) + np.uint32(0xA282EAD8)
    stored = data[ends[:, None] + np.arange(4)].astype(np.uint8).view("<u4").ravel() if len(ends) else expected
    if (stored != expected).any():
        raise BadData(
            f"{path}, byte {starts[np.argmax(stored != expected)]}: the checksum is wrong, the file is damaged; "
            "remove it, or restore it."
        )


def crc32c(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """CRC-32C of data[start:end] uint32 [n], all spans at once: a span joins when as many bytes are left as it is long."""
    lengths = ends - starts
    order = np.argsort(-lengths, kind="stable")
    last, crc = ends[order], np.full(len(order), 0xFFFFFFFF, np.uint32)
    longest = int(lengths.max(initial=0))
    at_least = np.searchsorted(-lengths[order], -np.arange(longest + 1), side="right")
    for left in range(longest, 0, -1):
        n = at_least[left]
        crc[:n] = CRC32C[(crc[:n] ^ data[last[:n] - left]) & 0xFF] ^ crc[:n] >> 8
    out = np.empty_like(crc)
    out[order] = ~crc
    return out
