"""Limits on CPU time that hold on a slow, loaded or warm machine: they are multiples of a fixed piece of work done beside."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

LINE = json.dumps({"kind": "train", "step": 123, "tokens": 128000, "loss": 2.345, "names": ["a", "b"], "norms": {"grad": 1.25}})


def unit() -> float:
    """CPU seconds of 30,000 small JSON objects: 0.2 on a quiet core of 2024."""
    start = time.process_time()
    kept = [json.loads(LINE) for _ in range(30_000)]
    return (time.process_time() - start) * len(kept) / 30_000


@contextmanager
def within(units: float) -> Iterator[None]:
    """Fails when the block takes more CPU time than so many units, measured before and after it."""
    before, start = unit(), time.process_time()
    yield
    taken = time.process_time() - start
    pace = max(before, unit())
    assert taken < units * pace, f"{taken:.2f} CPU-s are {taken / pace:.1f} units of {pace:.3f}, limit {units}"
