"""The wire format of protocol buffers, as far as logs need it. One reader for TensorBoard and W&B, without their libraries:
those take 40 us for what takes one here, and neither is needed to look at a run."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

FIXED_SIZES = {1: 8, 5: 4}


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a message: an int for a varint, bytes for everything else. Raises ValueError."""
    at, end = 0, len(message)
    while at < end:
        key, at = varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(message, at)
            yield key >> 3, value
            continue
        size, at = varint(message, at) if kind == 2 else (FIXED_SIZES.get(kind, end), at)
        if at + size > end:
            raise ValueError(f"field {key >> 3} of wire type {kind} goes beyond its message")
        yield key >> 3, message[at : at + size]
        at += size


def varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, place of what follows). Raises ValueError at the end of the data."""
    value = shift = 0
    try:
        while data[at] & 0x80:
            value |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
        return value | data[at] << shift, at + 1
    except IndexError:
        raise ValueError("a number goes beyond its message") from None


def float64(value: bytes) -> float:
    return struct.unpack("<d", value)[0]
