"""The compiled loops, where the installation had a compiler; each has a Python twin beside its caller, with the same arrays."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType


def compiled(name: str) -> Callable | None:
    """A function of megatron.data._helpers; None where it was not built."""
    return getattr(extension(), name, None)


@functools.cache
def extension() -> ModuleType | None:
    """The extension module; None, said once, where the installation had no compiler."""
    try:
        return importlib.import_module("megatron.data._helpers")
    except ImportError:
        print(
            "megatron.data._helpers is not built: data are ordered and blended in Python, slower, with the same result",
            file=sys.stderr,
        )
        return None
