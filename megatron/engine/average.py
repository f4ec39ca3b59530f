"""The exponential moving average of the weights, kept beside whatever an optimizer changes in place, cut as that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from megatron.core.checkpoint import Checkpoint

ROOT = "ema"  # of its tensors' names in checkpoints


class Average:
    """a <- d a + (1 - d) w after update n, with d = min(decay, (1 + n) / (10 + n)), so that the start is soon forgotten.

    The rule of MDLM (arXiv:2406.07524) and of TensorFlow's ExponentialMovingAverage. `kept` is empty until the first update.
    """

    def __init__(self, decay: float, live: Sequence[Tensor]):
        self.decay, self.live = decay, [x.detach() for x in live]
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def begin(self) -> None:
        """Before an update: start from the weights, if nothing is kept yet."""
        if self.decay and not self.kept:
            self.kept = [x.clone() for x in self.live]

    @torch.no_grad()
    def follow(self, updates: float) -> None:
        """After update number `updates`, from 1, which `begin` came before."""
        torch._foreach_lerp_(self.kept, self.live, 1 - min(self.decay, (1 + updates) / (10 + updates)))

    @contextmanager
    def read(self, spread: Callable[[], None]) -> Iterator[None]:
        """Inside, the weights are the average, where one is kept; `spread` brings changed ones to where the model reads them."""
        self.exchange(spread)
        try:
            yield
        finally:
            self.exchange(spread)

    @torch.no_grad()
    def exchange(self, spread: Callable[[], None]) -> None:
        for kept, live in zip(self.kept, self.live):
            weights = live.clone()
            live.copy_(kept)
            kept.copy_(weights)
        if self.kept:
            spread()

    def expect(self, checkpoint: Checkpoint, weights_only: bool) -> list[Tensor]:
        """Memory for the average of a checkpoint to fill, if a run that goes on needs it and it has one."""
        wanted = self.decay and not weights_only and averaged(checkpoint)
        self.kept = [torch.zeros_like(x) for x in self.live] if wanted else []
        return self.kept


def averaged(checkpoint: Checkpoint) -> bool:
    return any(name.startswith(f"{ROOT}/") for name in checkpoint.shapes)


def root_of_weights(checkpoint: Checkpoint, weights_only: bool) -> str:
    """Of what the model reads: who takes the weights alone takes those that validation scored."""
    return ROOT if weights_only and averaged(checkpoint) else "model"
