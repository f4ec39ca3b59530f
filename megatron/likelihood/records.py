"""What scoring leaves in a run's folder: a line of likelihood.jsonl for each measurement, and a figure of the newest."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from megatron.errors import CannotWrite
from megatron.files import staged
from megatron.likelihood.report import draw
from megatron.rundir.names import LIKELIHOODS
from megatron.scaling.show.figures.style import encode


def write(folder: Path, found: list[dict]) -> None:
    """Add measurements, one of each set. Raises CannotWrite."""
    with staged(folder) as stage:
        for one in found:
            name = "likelihood" + "".join(f"-{part}" for part in one["set"].split(":") if part != "valid")
            (stage / f"{name}.png").write_bytes(encode(draw(one), "png"))
        lines = "".join(json.dumps({"time": time.time(), **one}, allow_nan=False) + "\n" for one in found)
        append(folder / LIKELIHOODS, lines.encode())


def append(path: Path, lines: bytes) -> None:
    """At once, so that two who score the same run do not mix their lines. Raises CannotWrite."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if os.write(handle, lines) < len(lines):
                raise OSError(28, "No space left on device")
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise CannotWrite(f"{path}: {error.strerror}; make room there, or choose another --out") from error
