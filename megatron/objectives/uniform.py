"""Uniform-state diffusion, and its mixture with masked diffusion. b rows, s positions, V ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron.batch import Batch, Clean, Noise, Purpose, asked_positions
from megatron.core.slots import LevelFeatures, Slots
from megatron.objectives import REFERENCE_STRATA, Objective
from megatron.objectives.autoregressive import places
from megatron.objectives.masked import MaskedDiffusion, followed
from megatron.objectives.schedules import Schedule

if TYPE_CHECKING:
    from megatron import config

LEAST_KEPT = 1e-12  # chance that a token is kept at the end of time, where the loss has gone to 0 as 1 / chance grew


@dataclass(frozen=True, kw_only=True)
class UniformDiffusion(Objective):
    """Replace each token with probability m by noise, a random id or the mask, and tell all positions' tokens from the rest.

    A replaced token is any of the V ids, each alike, with probability `share`, and the mask otherwise. Position by position, with
    a = 1 - m, r the law of the noise, q = a onehot(x) + m r and p = a predicted + m r, the bound on the NLL is the integral over
    t of the mean over z ~ q of m' / a x r_z / q_z x [KL(q | p) + q_z / p_z - log(q_z / p_z) - 1] (von Ruette et al.,
    arXiv:2503.04482, here with a law r that does not change in time). With share 1 it is the bound of Schiff et al. (UDLM,
    arXiv:2412.10193) and Sahoo et al. (Duo, arXiv:2506.10892); with the mask alone it is m' / m x NLL, masked diffusion's. It
    depends on t by dm alone: a schedule says where draws lie, not what their mean is. From m = 0, where the row is read as it
    is, to m = 1, where nothing is left of it, there is no other term: so validation poses it.

    An input may be its own token or not, so that all positions are asked. What predicts best at z is the law of the token given
    all other places, not given z: the loss adds what z says. Padding behind a row's end is noised with it and predicted, and
    counts in the bound, so that it does not tell where the end is.
    """

    plain: MaskedDiffusion  # times and schedule
    share: float = 1.0
    causal: bool = False
    exact: bool = False
    uses_mask: bool = True

    @classmethod
    def build(cls, cfg: config.Config, mask_id: int) -> Objective:
        plain = MaskedDiffusion.build(cfg, mask_id)
        return cls(plain=plain, share=cfg.objective.uniform_share) if cfg.objective.uniform_share else plain

    def reference(self) -> UniformDiffusion:
        """The bound itself."""
        plain = replace(self.plain, eps=0.0, strata=REFERENCE_STRATA, schedule=Schedule(), low_noise_until=0.0)
        return replace(self, plain=plain)

    def slots(self, model: config.Model) -> Slots:
        """What is seen does not tell how much of it is noise, so that the network is told m."""
        return Slots(condition=LevelFeatures()) if self.plain.told else Slots()

    def levels(self, noise: Noise) -> Tensor:
        """t of each row in (0, 1].  -> [b] float64"""
        return self.plain.times(noise, 1.0)

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        tokens, scored = clean.tokens[:, :-1], clean.scored[:, :-1]  # [b, s]
        m, over_slope = self.plain.schedule.rates(self.plain.times(noise, progress), self.plain.eps)  # m, m / m'  [b]
        kept, each = (1 - m).clamp(min=LEAST_KEPT), m * self.share / self.plain.mask_id  # [b]
        noised = scored | (~followed(scored) & scored.any(1, keepdim=True))
        uniform = noise.uniform(Purpose.MASK, tokens.shape[1])  # [b, s]
        replaced, redrawn = (noised & (uniform < level.float()[:, None]) for level in (m, m * self.share))
        inputs = tokens.masked_fill(replaced, self.plain.mask_id).where(~redrawn, self.ids(noise, tokens.shape[1]))
        same = self.share / self.plain.mask_id * m / (kept + each)  # r_z m / q_z where z is the token; elsewhere it is 1
        weights = noised * torch.where(inputs == tokens, same[:, None], 1.0) / (over_slope * kept)[:, None]
        return Batch(
            inputs=inputs,
            targets=tokens,
            weights=weights.float(),
            scored=scored,
            positions=places(scored),
            index=clean.index,
            asked=asked_positions(weights),
            level=m.float() if self.plain.told else None,
            uniform=torch.stack((kept, each), 1).float(),
        )

    def ids(self, noise: Noise, places: int) -> Tensor:
        """Random ids. One uniform has 24 bits, too few for all ids of a large vocabulary to be alike.  -> int64 [b, s]"""
        high, low = noise.uniform(Purpose.UNIFORM_TOKEN, places, 2).double().unbind(-1)
        return ((high + low / (1 << 24)) * self.plain.mask_id).long()
