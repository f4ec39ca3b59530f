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
from megatron.core.parameters import Spec
from megatron.core.tensor_parallel import VocabEmbedding, part


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
    readout: VectorReadout | None = None


def waves(level: Tensor) -> Tensor:
    """Sines and cosines of a level in [0, 1].  [b] -> [b, LEVEL_FEATURES] fp32"""
    angle = level[:, None].float() * 2.0 ** torch.arange(LEVEL_FEATURES // 2, device=level.device)
    return torch.cat((angle.sin(), angle.cos()), -1)


class LevelFeatures(nn.Module):
    """Sines and cosines of the noise level, 2^0 to 2^15 radians a unit. Batches must state `level`."""

    width = LEVEL_FEATURES

    def forward(self, batch: Batch) -> Tensor:
        return waves(self.level(batch))

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


class VectorFeatures(nn.Module):
    """A row's vector, and how much of it is noise. Batches must state `latent` [b, size] and `latent_level` [b]."""

    def __init__(self, size: int):
        super().__init__()
        self.width = size + LEVEL_FEATURES

    def forward(self, batch: Batch) -> Tensor:
        if batch.latent is None or batch.latent_level is None:
            raise ValueError("the network is told a vector, and the batch has none: set Batch.latent and Batch.latent_level")
        return torch.cat((batch.latent.float(), waves(batch.latent_level)), -1)


class Together(nn.Module):
    """Several conditions, one beside the other."""

    def __init__(self, *parts: Condition):
        super().__init__()
        self.parts, self.width = parts, sum(p.width for p in parts)

    def forward(self, batch: Batch) -> Tensor:
        return torch.cat([p(batch) for p in self.parts], -1)


class VectorPlace(nn.Module):
    """Reads a row's vector at position 0, where no token stands, and tokens elsewhere."""

    def __init__(self, hidden: int, size: int, std: float):
        super().__init__()
        self.told, self.std = VectorFeatures(size), std
        self.weight = nn.Parameter(torch.empty(hidden, self.told.width))

    def specs(self) -> dict[str, Spec]:
        return {"weight": Spec(role="embedding", std=self.std, partial=True)}

    def forward(self, batch: Batch, embed: VocabEmbedding, dtype: torch.dtype) -> Tensor:
        vector = (self.told(batch).to(dtype) @ self.weight.to(dtype).t())[:, None]  # [b, 1, h]
        return torch.where(part((batch.positions == 0)[..., None], embed.tp), vector, embed(batch.inputs, dtype))


class VectorReadout(nn.Module):
    """What the last stage predicts of a vector, from the hidden state at its place."""

    def __init__(self, hidden: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, hidden))

    def specs(self) -> dict[str, Spec]:
        return {"weight": Spec(role="head", init="zeros")}

    def forward(self, x: Tensor) -> Tensor:
        """[m, h] -> [m, d]"""
        return x @ self.weight.to(x.dtype).t()
