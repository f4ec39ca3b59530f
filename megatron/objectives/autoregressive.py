"""Reading left to right, whole or with less to see, or in other orders. b rows, s positions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from megatron.batch import Batch, Clean, Noise, Purpose, asked_positions, stream
from megatron.objectives import Objective

if TYPE_CHECKING:
    from megatron import config

EDGE_EPS = 1e-3  # an edge is hidden with probability (1 - eps) u + eps


@dataclass(frozen=True)
class NextToken(Objective):
    """Autoregression: predict the next token. The loss is the exact negative log-likelihood."""

    causal: bool = True
    exact: bool = True
    uses_mask: bool = False

    @classmethod
    def build(cls, cfg: config.Config, mask_id: int) -> NextToken:
        o = cfg.objective
        if o.randmask_ratio:
            return TokenMasking(ratio=o.randmask_ratio, kind=o.randmask_kind, mask_id=mask_id, uses_mask=o.uses_mask)
        if o.num_order_list > 1:
            return Orders(number=o.num_order_list, predefined=o.use_predefined_order)
        return NextToken()

    def reference(self) -> NextToken:
        return NextToken()

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


@dataclass(frozen=True, kw_only=True)
class TokenMasking(NextToken):
    """Some positions lose something of what is seen, in training alone (token masking of arXiv:2507.15857).

    edges: a chosen position draws a level p, and sees each earlier one with probability 1 - p, itself always; tokens: a chosen
    position is seen by itself alone; inputs: a chosen position reads the mask. What is asked stays what it is.
    """

    ratio: float  # of positions chosen
    kind: str
    mask_id: int

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        batch = super().pose(clean, noise, progress)
        s = batch.inputs.shape[1]
        chosen = noise.uniform(Purpose.ROW_KIND, s) < self.ratio  # [b, s]
        if self.kind == "inputs":
            return replace(batch, inputs=batch.inputs.masked_fill(chosen, self.mask_id))
        if self.kind == "tokens":
            hidden = chosen[:, None, :]
        else:
            drawn = noise.uniform(Purpose.HIDDEN_EDGES, s, s + 1)
            hidden = chosen[..., None] & (drawn[..., 1:] < (1 - EDGE_EPS) * drawn[..., :1] + EDGE_EPS)
        seen = ~hidden | torch.eye(s, dtype=torch.bool)
        return replace(batch, attend=seen & torch.ones(s, s, dtype=torch.bool).tril())


@dataclass(frozen=True, kw_only=True)
class Orders(NextToken):
    """Each row is read in one of N orders, of which the first is left to right, in training alone (arXiv:2507.15857).

    The first token comes first in all. The others are uniform, or `predefined`: order i sorts the places by place + i times a
    standard normal, so that it is the more disturbed the higher i. A token keeps its own rotary position; which position comes
    next, the network is not told.
    """

    number: int
    predefined: bool

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        s = clean.tokens.shape[1] - 1
        chosen = (noise.uniform(Purpose.ROW_ORDER, 1)[:, 0].double() * self.number).long()
        behind = torch.stack([self.order(noise.seed, number, s) for number in chosen.tolist()]) + 1  # [b, s]
        order = torch.cat((torch.zeros_like(behind[:, :1]), behind), 1)  # [b, s + 1]
        moved = replace(clean, tokens=clean.tokens.gather(1, order), scored=clean.scored.gather(1, order))
        return replace(super().pose(moved, noise, progress), positions=order[:, :-1])

    def order(self, seed: int, number: int, length: int) -> Tensor:
        """A permutation of 0 .. length - 1.  -> [length] int64"""
        place, rng = np.arange(length), stream(seed, Purpose.ORDER, number)
        if number and self.predefined:
            place = np.argsort(place + number * rng.standard_normal(length), kind="stable")
        elif number:
            place = rng.permutation(length)
        return torch.from_numpy(place)


def places(like: Tensor) -> Tensor:
    """0, 1, 2, ... in each row.  [b, s] -> [b, s] int64"""
    return torch.arange(like.shape[1]).expand(like.shape)
