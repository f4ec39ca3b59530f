"""What an objective's network may have besides the plain transformer: a reader of its inputs, a condition that norms read.

b batch, s sequence, h hidden, c features of the condition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from megatron.batch import Batch
from megatron.budget import LEVEL_FEATURES
from megatron.core.tensor_parallel import VocabEmbedding


class Reader(Protocol):
    """From a batch to the first block's input. A module with `specs()`, on the first stage only."""

    def __call__(self, batch: Batch, embed: VocabEmbedding, dtype: torch.dtype) -> Tensor:
        """-> [b, s, h], or [b, s/tp, h] where the sequence is cut: what `embed` gives, or `part` of it"""


class Condition(Protocol):
    """A vector a row that every stage computes for itself, from the batch alone and without parameters."""

    width: int  # c

    def __call__(self, batch: Batch) -> Tensor:
        """-> [b, c] fp32"""


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Made anew for each stage. Empty slots are the plain transformer, bit for bit."""

    reader: Reader | None = None
    condition: Condition | None = None


class LevelFeatures(nn.Module):
    """Sines and cosines of the noise level, 2^0 to 2^15 radians a unit. Batches must state `level`."""

    width = LEVEL_FEATURES

    def forward(self, batch: Batch) -> Tensor:
        level = self.level(batch)  # [b]
        angle = level[:, None].float() * 2.0 ** torch.arange(self.width // 2, device=level.device)
        return torch.cat((angle.sin(), angle.cos()), -1)

    def level(self, batch: Batch) -> Tensor:
        if batch.level is None:
            raise ValueError("the network is told the noise level, and the batch has none: pose() must set Batch.level")
        return batch.level


class HiddenShare(LevelFeatures):
    """The same of the share of a row's places that read the mask, where the batch states no other level.

    What is hidden says all of the noise level that the tokens depend on: given their number, the time adds nothing. So training,
    bounds, chain rules and samplers tell the network alike, and what it predicts is a function of what it sees.
    """

    def __init__(self, mask_id: int):
        super().__init__()
        self.mask_id = mask_id

    def level(self, batch: Batch) -> Tensor:
        return (batch.inputs == self.mask_id).float().mean(1) if batch.level is None else batch.level


class LatentVector(nn.Module):
    """A row's latent vector as it is. Batches must state `latent` [b, width]."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, batch: Batch) -> Tensor:
        if batch.latent is None:
            raise ValueError("the network is told a latent vector, and the batch has none: pose() must set Batch.latent")
        return batch.latent.float()
