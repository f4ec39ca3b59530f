"""Absorbing-state (masked) diffusion with the linear schedule."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from megatron.batch import Batch, Clean, Noise, Purpose, asked_positions
from megatron.objectives.autoregressive import places


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusion:
    """Hide each token with probability p = (1 - eps) t + eps and predict the hidden ones, weighted by 1/p.

    The mean over t ~ U(0, 1] and masks is an upper bound on the negative log-likelihood when eps is 0 (Sahoo et al.,
    arXiv:2406.07524, eq. 10; Nie et al., arXiv:2410.18514). A row in which nothing was hidden contributes 0.

    `count` hides exactly k = ceil(t L) of a row's L scored tokens, weighted by L/k: the same mean with less than half
    of the variance (Ou et al., arXiv:2406.03736; LLaDA, arXiv:2502.09992), which is what validation asks for.
    """

    mask_id: int
    eps: float = 1e-3
    count: bool = False
    strata: int | None = None  # samples that share one stratification of t; None: independent t
    causal: bool = False
    exact: bool = False
    uses_mask: bool = True

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        tokens, scored = clean.tokens[:, :-1], clean.scored[:, :-1]  # [b, s]
        t = noise.stratified(self.strata) if self.strata else noise.independent()  # [b]
        if self.count:
            hidden, p = exactly(t, scored, noise)
        else:
            p = ((1 - self.eps) * t + self.eps).float()[:, None]  # [b, 1]
            hidden = (noise.uniform(Purpose.MASK, tokens.shape[1]) < p) & scored
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


def exactly(t: Tensor, scored: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """The k = ceil(t L) scored positions with the smallest uniforms, and k / L.  t [b], scored [b, s] -> [b, s] bool, [b, 1]"""
    length = scored.sum(1, keepdim=True)  # [b, 1]
    k = (t[:, None] * length).ceil()
    order = noise.uniform(Purpose.MASK, scored.shape[1]).masked_fill(~scored, 2.0).argsort(dim=1, stable=True)
    hidden = (order.argsort(1) < k) & scored
    return hidden, (k / length.clamp(min=1)).clamp(min=1e-9).float()
