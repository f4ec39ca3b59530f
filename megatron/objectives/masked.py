"""Absorbing-state (masked) diffusion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron.batch import Batch, Clean, Noise, Purpose, asked_positions
from megatron.core.slots import HiddenShare, Slots
from megatron.objectives import REFERENCE_STRATA, Objective
from megatron.objectives.autoregressive import places
from megatron.objectives.schedules import Schedule

if TYPE_CHECKING:
    from megatron import config


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusion(Objective):
    """Hide each token with probability p = (1 - eps) t + eps and predict the hidden ones, weighted by 1/p.

    So the linear schedule has it; others (objectives/schedules.py) hide with probability m(t) and weigh by m'(t) / m(t).
    The mean over t ~ U(0, 1] and masks is an upper bound on the negative log-likelihood when eps is 0 (Sahoo et al.,
    arXiv:2406.07524, eq. 10; Nie et al., arXiv:2410.18514). A row in which nothing was hidden contributes 0.

    `count` hides exactly k = ceil(t L) of a row's L scored tokens, weighted by L/k: the same mean with less than half
    of the variance (Ou et al., arXiv:2406.03736; LLaDA, arXiv:2502.09992), which is what validation asks for.

    Padding tells where a row ends, so it is hidden and predicted like the rest, until something visible tells it already:
    behind a visible end or padding there can only be padding, which is then shown and costs nothing, as it costs an
    autoregressive model nothing after the end. Each order of revealing the places is then a distribution over whole rows,
    of every length, and the loss bounds the same NLL as the exact one that NextToken measures.
    """

    mask_id: int
    eps: float = 1e-3
    count: bool = False
    strata: int | None = None  # samples that share one stratification of t; None: independent t
    antithetic: bool = False  # without strata: samples 2k and 2k + 1 have opposite t
    schedule: Schedule = Schedule()
    low_variance: bool = False  # train on the plain sum over hidden tokens (arXiv:2602.15014), which is no bound
    low_noise_until: float = 0.0  # up to this share of the run t is low_noise_ratio t
    low_noise_ratio: float = 0.5
    left_to_right: float = 0.0  # share of rows that hide their last tokens, as many as were drawn
    random_length: float = 0.0  # share of rows that are cut to a random length
    told: bool = False  # the network is told the share of hidden places
    causal: bool = False
    exact: bool = False
    uses_mask: bool = True

    @classmethod
    def build(cls, cfg: config.Config, mask_id: int) -> MaskedDiffusion:
        o, batch = cfg.objective, cfg.train.global_batch_size
        strata, antithetic = batch if o.mdm_t_sampling == "stratified" else None, o.mdm_t_sampling == "antithetic"
        if o.block_size:
            from megatron.objectives.block import BlockDiffusion

            return BlockDiffusion(mask_id=mask_id, eps=0.0, count=True, block=o.block_size, strata=strata, antithetic=antithetic)
        low_noise = o.low_noise_fraction
        if low_noise is None:
            low_noise = o.low_noise_iter * batch / max(1, cfg.train.num_samples)
        sigmas = {"sigma_min": o.noise_sigma_min, "sigma_max": o.noise_sigma_max}
        plain = cls(
            mask_id=mask_id,
            eps=o.mdm_eps,
            strata=strata,
            antithetic=antithetic,
            schedule=Schedule(name=o.noise_schedule, power=o.noise_power, steps=o.noise_steps, **sigmas),
            low_variance=o.mdm_loss == "low-variance",
            low_noise_until=low_noise if o.low_noise_start else 0.0,
            low_noise_ratio=o.low_noise_ratio,
            left_to_right=o.ar_ratio,
            random_length=o.random_length_prob,
            told=cfg.model.time_conditioning,
        )
        if o.atat:
            from megatron.objectives.atat import Atat

            return Atat.with_rates(plain, cfg)
        return plain

    def reference(self) -> MaskedDiffusion:
        """The bound itself, by its count form."""
        return MaskedDiffusion(mask_id=self.mask_id, eps=0.0, count=True, strata=REFERENCE_STRATA, told=self.told)

    def slots(self, model: config.Model) -> Slots:
        return Slots(condition=HiddenShare(self.mask_id)) if self.told else Slots()

    def times(self, noise: Noise, progress: float) -> Tensor:
        """t of each row in (0, 1].  -> [b] float64"""
        if self.strata:
            t = noise.stratified(self.strata)
        else:
            t = noise.antithetic() if self.antithetic else noise.independent()
        return t * self.low_noise_ratio if progress < self.low_noise_until else t

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        tokens, scored = clean.tokens[:, :-1], clean.scored[:, :-1]  # [b, s]
        t = self.times(noise, progress)  # [b]
        uniform = noise.uniform(Purpose.MASK, tokens.shape[1])  # [b, s]
        if self.count:
            below, p = lowest(uniform, t, scored)
        else:
            level, p = (x.float()[:, None] for x in self.schedule.rates(t, self.eps))  # [b, 1] each
            below = uniform < level
        hidden = below & scored
        if not scored[:, -1].all():
            hidden |= hidden_padding(below, scored)
        if self.left_to_right:
            hidden = at_the_end(hidden, scored, noise.uniform(Purpose.ROW_KIND, 1) < self.left_to_right)
        weights = hidden.float() if self.low_variance else hidden / p
        batch = Batch(
            inputs=tokens.masked_fill(hidden, self.mask_id),
            targets=tokens,
            weights=weights,
            scored=scored,
            positions=places(scored),
            index=clean.index,
            asked=asked_positions(weights),
        )
        return shortened(batch, hidden, noise, self.random_length) if self.random_length else batch


def lowest(uniform: Tensor, t: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
    """Where the k = ceil(t L) smallest uniforms of the L scored positions lie, and k / L.

    A position that is not scored lies below with the largest of the k: given k, that one is distributed as the noise level
    is, Beta(k, L - k + 1), and L/k is the right weight for padding too. Where k would be 0 the end is visible and padding free.
    uniform [b, s], t [b], scored [b, s] -> bool [b, s], fp32 [b, 1]
    """
    length = scored.sum(1, keepdim=True)  # [b, 1]
    k = (t[:, None] * length).ceil()
    order = uniform.masked_fill(~scored, 2.0).argsort(dim=1, stable=True)
    chosen = (order.argsort(1) < k) & scored
    level = uniform.masked_fill(~chosen, -1.0).amax(1, keepdim=True)
    return chosen | (~scored & (uniform <= level)), (k / length.clamp(min=1)).clamp(min=1e-9).float()


def hidden_padding(below: Tensor, scored: Tensor) -> Tensor:
    """The padding that no visible place to its left tells: an unbroken run of places below the level, from the end on.

    The end is the last scored token of a row that has padding behind it.  bool [b, s], bool [b, s] -> bool [b, s]
    """
    behind = ~followed(scored) & scored.any(1, keepdim=True)
    tail = behind | behind.roll(-1, 1)  # with the end
    tail[:, -1] = behind[:, -1]
    return behind & (below | ~tail).cumprod(1).bool()


def followed(scored: Tensor) -> Tensor:
    """Where this place or one behind it is scored.  bool [b, s] -> [b, s]"""
    return scored.flip(1).cumsum(1).flip(1) > 0


def at_the_end(hidden: Tensor, scored: Tensor, chosen: Tensor) -> Tensor:
    """In the chosen rows as many of the last scored places as were hidden.  bool [b, s], [b, s], [b, 1] -> [b, s]"""
    from_here = scored.flip(1).cumsum(1).flip(1)
    return torch.where(chosen, scored & (from_here <= hidden.sum(1, keepdim=True)), hidden)


def shortened(batch: Batch, hidden: Tensor, noise: Noise, chance: float) -> Batch:
    """Rows of which that share is cut to a length in 1..s: nothing behind it is seen or asked, and a row counts as it did.

    A batch of shorter rows in SMDM and LLaDA (arXiv:2502.09992), drawn row by row so that micro-batches do not matter.
    """
    s, drawn = hidden.shape[1], noise.uniform(Purpose.ROW_LENGTH, 2).double()  # [b, 2]
    length = torch.where(drawn[:, 0] < chance, 1 + (drawn[:, 1] * s).long(), s)[:, None]
    kept = batch.positions < length  # [b, s]
    if kept.all():
        return batch
    share = batch.scored.sum(1, keepdim=True) / (batch.scored & kept).sum(1, keepdim=True).clamp(min=1)
    weights = batch.weights * kept * share
    level = ((hidden & kept).sum(1, keepdim=True) / length)[:, 0]
    return replace(batch, weights=weights, asked=asked_positions(weights), segments=(~kept).long(), level=level)
