"""Nothing in a step may draw from torch's global streams: they are others at every layout, and after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def untouched(device: torch.device, looking: bool = True) -> Iterator[None]:
    """Raises RuntimeError when what is done inside has drawn from a global stream of the CPU or of `device`."""
    before = states(device) if looking else []
    yield
    if looking and not all(torch.equal(a, b) for a, b in zip(before, states(device))):
        raise RuntimeError(
            "a module of the model drew from torch's global random stream, which no restart and no other layout repeats: "
            "draw in pose() from `noise.uniform(Purpose.YOURS, ...)` and hand the draws on in the batch (megatron/batch.py), "
            "or use the addressed dropout of megatron/core/dropout.py"
        )


def states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
