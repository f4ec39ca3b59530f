"""Reading left to right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron.batch import Batch, Clean, Noise, asked_positions
from megatron.objectives import Objective

if TYPE_CHECKING:
    from megatron import config


@dataclass(frozen=True)
class NextToken(Objective):
    """Autoregression: predict the next token. The loss is the exact negative log-likelihood."""

    causal: bool = True
    exact: bool = True
    uses_mask: bool = False

    @classmethod
    def build(cls, cfg: config.Config, mask_id: int) -> NextToken:
        return cls()

    def reference(self) -> NextToken:
        return self

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        scored = clean.scored[:, 1:]  # [b, s]
        weights = scored.float()
        return Batch(
            inputs=clean.tokens[:, :-1],
            targets=clean.tokens[:, 1:],
            weights=weights,
            scored=scored,
            positions=places(scored),
            index=clean.index,
            asked=asked_positions(weights),
        )


def places(like: Tensor) -> Tensor:
    """0, 1, 2, ... in each row.  [b, s] -> [b, s] int64"""
    return torch.arange(like.shape[1]).expand(like.shape)
