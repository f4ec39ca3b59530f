"""Absorbing-state (masked) diffusion with the linear schedule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from megatron.batch import Batch, Clean, Noise, Purpose, asked_positions
from megatron.objectives import REFERENCE_STRATA, Objective
from megatron.objectives.autoregressive import places

if TYPE_CHECKING:
    from megatron import config


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusion(Objective):
    """Hide each token with probability p = (1 - eps) t + eps and predict the hidden ones, weighted by 1/p.

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
    causal: bool = False
    exact: bool = False
    uses_mask: bool = True

    @classmethod
    def build(cls, cfg: config.Config, mask_id: int) -> MaskedDiffusion:
        strata = cfg.train.global_batch_size if cfg.objective.mdm_t_sampling == "stratified" else None
        return cls(mask_id=mask_id, eps=cfg.objective.mdm_eps, strata=strata)

    def reference(self) -> MaskedDiffusion:
        """The bound itself, by its count form."""
        return replace(self, eps=0.0, count=True, strata=REFERENCE_STRATA)

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        tokens, scored = clean.tokens[:, :-1], clean.scored[:, :-1]  # [b, s]
        t = noise.stratified(self.strata) if self.strata else noise.independent()  # [b]
        uniform = noise.uniform(Purpose.MASK, tokens.shape[1])  # [b, s]
        if self.count:
            below, p = lowest(uniform, t, scored)
        else:
            p = ((1 - self.eps) * t + self.eps).float()[:, None]  # [b, 1]
            below = uniform < p
        hidden = (below & scored) | hidden_padding(below, scored)
        weights = hidden / p
        return Batch(
            inputs=tokens.masked_fill(hidden, self.mask_id),
            targets=tokens,
            weights=weights,
            scored=scored,
            positions=places(scored),
            index=clean.index,
            asked=asked_positions(weights),
        )


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
    behind = scored.flip(1).cumsum(1).flip(1).eq(0) & scored.any(1, keepdim=True)
    tail = behind | behind.roll(-1, 1)  # with the end
    tail[:, -1] = behind[:, -1]
    return behind & (below | ~tail).cumprod(1).bool()
