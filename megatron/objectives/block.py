"""Block diffusion: blocks from left to right, masked diffusion within each. b rows, n tokens of a row, B in a block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.batch import Batch, Clean, Noise, Purpose, asked_positions
from megatron.objectives import REFERENCE_STRATA
from megatron.objectives.autoregressive import places
from megatron.objectives.masked import MaskedDiffusion, followed, hidden_padding, lowest


@dataclass(frozen=True, kw_only=True)
class BlockDiffusion(MaskedDiffusion):
    """log p(x) = sum of log p(block | those before), each bounded as masked diffusion is (Arriola et al., arXiv:2503.09573).

    A row is read twice in one pass, [z; x]: hidden tokens of z see what is visible of their own block and the blocks of x before
    it, x sees itself up to its own block. Each block has a time of its own, a row's blocks fill as many strata, and exactly
    ceil(t B) of its B tokens are hidden. Padding in the block of a row's end is hidden and predicted as in masked diffusion; to
    later blocks the end is visible. With B = 1 every token is hidden, and the loss is an exact NLL, left to right; with B = n it
    is the bound of masked diffusion.
    """

    block: int

    def reference(self) -> BlockDiffusion:
        return BlockDiffusion(mask_id=self.mask_id, eps=0.0, count=True, strata=REFERENCE_STRATA, block=self.block)

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        tokens, scored = clean.tokens[:, :-1], clean.scored[:, :-1]  # [b, n]
        n, t = tokens.shape[1], self.block_times(noise, progress, tokens.shape[1] // self.block)
        uniform, asked = (x.reshape(-1, self.block) for x in (noise.uniform(Purpose.MASK, n), scored))  # [b n/B, B]
        below, p = lowest(uniform, t.flatten(), asked)
        chosen = below & asked
        if not scored[:, -1].all():
            chosen |= hidden_padding(below, asked) & ~followed(scored).view_as(asked)
        hidden, weights = chosen.view_as(tokens), (chosen / p).view_as(tokens)
        nothing, where = torch.zeros_like(scored), places(scored)
        weights = torch.cat((weights, nothing.float()), 1)
        return Batch(
            inputs=torch.cat((tokens.masked_fill(hidden, self.mask_id), tokens), 1),
            targets=torch.cat((tokens, tokens), 1),
            weights=weights,
            scored=torch.cat((scored, nothing), 1),
            positions=torch.cat((where, where), 1),
            index=clean.index,
            asked=asked_positions(weights),
            attend=sight(n, self.block),
        )

    def block_times(self, noise: Noise, progress: float, blocks: int) -> Tensor:
        """t of each block in (0, 1].  -> [b, blocks] float64"""
        stratum = noise.uniform(Purpose.ROW_KIND, blocks).argsort(1)
        return 1 - (1 - self.times(noise, progress)[:, None] + stratum / blocks) % 1.0


def of_text(length: int, block: int) -> Tensor:
    """What `sight` shows to x of x alone, which a block of hidden tokens in the place of its own sees as well.  -> [n, n] bool"""
    of = torch.arange(length) // block
    return of[:, None] >= of


def sight(length: int, block: int) -> Tensor:
    """Which place (row) of [z; x] sees which (column).  -> [2n, 2n] bool"""
    x, own = of_text(length, block), of_text(length, block)
    own = own & own.T
    return torch.cat((torch.cat((own, x & ~own), 1), torch.cat((torch.zeros_like(x), x), 1)))
