"""Results as JSON that any reader takes, and the versions that made them."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from types import ModuleType

import numpy as np

import megatron


def versions(*packages: ModuleType) -> dict[str, str]:
    """Of this program, Python, numpy, and further packages whose arithmetic is in a result."""
    found = {"megatron": megatron.__version__, "python": platform.python_version(), "numpy": np.__version__}
    return found | {package.__name__: package.__version__ for package in packages}


def json_text(value) -> str:
    """A result as JSON: no numpy, and null for what is not finite."""
    return json.dumps(json_value(value), indent=1, allow_nan=False)


def json_value(value):
    """As JSON takes it: no numpy, paths as text, and null for what is not finite."""
    if isinstance(value, dict):
        return {str(name): json_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    if isinstance(value, np.ndarray):
        return json_value(value.tolist())
    if isinstance(value, Path):
        return str(value)
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def by_field(records: dict[str, dict]) -> dict:
    """The record of the only objective, or every field by objective: exponents["ar"]["a"], ..."""
    first = next(iter(records.values()))
    return first if len(records) == 1 else {name: {o: record[name] for o, record in records.items()} for name in first}
