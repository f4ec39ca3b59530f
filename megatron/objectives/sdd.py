"""Sparse distribution diffusion. b rows, s positions, n asked, k candidates of a position, V ids of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron.batch import Batch, Clean, Noise, Purpose, asked_positions
from megatron.core.candidates import Bilateral
from megatron.core.slots import LevelFeatures, Slots
from megatron.objectives import REFERENCE_STRATA, Objective
from megatron.objectives.autoregressive import places
from megatron.objectives.masked import followed
from megatron.objectives.schedules import SCHEDULES, Schedule

if TYPE_CHECKING:
    from megatron import config

OTHER = 0.01  # probability that a clean position gives each candidate but the token itself
EMPTY = 0.1  # weight of an empty place without noise, beside a token's 1


@dataclass(frozen=True, kw_only=True)
class States:
    """What positions are between clean and noise: k ids with probabilities, of which the rest is any other id's.

    Clean: the token with 1 - 0.01 (k - 1), k - 1 random others with 0.01 each. At noise level n a candidate of probability p is
    swapped for a random id of probability 1/V with chance n (1 - (1 - n) p / max p); the others are left with (1 - n) p + n / V.
    """

    vocab: int
    schedule: str  # cosine: n = 1 - cos(pi t / 2); linear: n = t

    def noised(self, tokens: Tensor, t: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and probabilities; the token is the first candidate.

        tokens [b, s], t [b] in [0, 1], uniform [b, s, 3, k] -> int64 [b, s, k], fp32 [b, s, k]
        """
        n = SCHEDULES[self.schedule](t.double(), 0.0, Schedule())[0].float()[:, None, None]
        k = uniform.shape[-1]
        drawn, chance, swap = uniform.double().unbind(2)  # [b, s, k] each
        others = (drawn[..., 1:] * (self.vocab - 1)).long()
        ids = torch.cat((tokens[..., None], others + (others >= tokens[..., None])), -1)  # no other is the token
        p = torch.full((k,), OTHER)
        p[0] = 1 - OTHER * (k - 1)
        swapped = chance.float() < n * (1 - (1 - n) * p / p.max())
        ids = ids.where(~swapped, (swap * self.vocab).long())
        return ids, ((1 - n) * p + n / self.vocab).where(~swapped, torch.tensor(1 / self.vocab))

    def certain(self, tokens: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Given tokens, of which nothing is in doubt.  [b, s] -> as `noised`"""
        p = torch.zeros(k)
        p[0] = 1
        return tokens[..., None].expand(*tokens.shape, k), p.expand(*tokens.shape, k)

    def read(self, ids: Tensor, p: Tensor) -> dict[str, Tensor]:
        """What a batch says of them: the mask, which is beyond the vocabulary, has what is left to all other ids."""
        rest = (1 - p.sum(-1, keepdim=True)).clamp(min=0)
        return {"candidates": torch.cat((ids, torch.full_like(ids[..., :1], self.vocab)), -1), "mix": torch.cat((p, rest), -1)}


@dataclass(frozen=True, kw_only=True)
class SparseDistributions(Objective):
    """Predict the token of every position from k weighted candidates of it and of all others, at a random noise level.

    Defined by code without a paper, with what makes it sound: no reader knows which place among its candidates the token was
    put at, the others are not the token, and given text is not noised. Its loss is a mean over t of a cross-entropy of
    denoising, in which positions count that show their token: no likelihood, and no perplexity.
    Padding behind a row's end is noised with the row, so that it does not tell where that is; `ignore` predicts it too, as the
    end token that fills it, with weight (1 - t)^2 / 10.
    """

    states: States
    ks: tuple[int, ...]  # one after the other
    growth: float = 1.0  # share of the run at each but the last
    strata: int | None = None  # samples that share one stratification of t; None: independent t
    t_weights: tuple[int, ...] = (1,)
    ignore: bool = False
    bilateral: bool = False
    told: bool = False  # the network is told t
    causal: bool = False
    exact: bool = False
    likelihood: bool = False
    uses_mask: bool = True
    groups: tuple[str, ...] = ("accuracy_t1", "accuracy_t2", "accuracy_t3", "accuracy_t4", "ignore_acc")

    @classmethod
    def build(cls, cfg: config.Config, mask_id: int) -> SparseDistributions:
        o = cfg.objective
        return cls(
            states=States(vocab=mask_id, schedule=o.sdd_schedule),
            ks=tuple(o.sdd_k or ()),
            growth=o.growth(cfg.train),
            strata=cfg.train.global_batch_size,
            t_weights=tuple(o.sdd_t_weights or (1,)),
            ignore=o.sdd_ignore,
            bilateral=cfg.model.sdd_denoiser == "bilateral",
            told=cfg.model.time_conditioning,
        )

    def reference(self) -> SparseDistributions:
        """The last number of candidates, every token alike."""
        return replace(self, ks=self.ks[-1:], strata=REFERENCE_STRATA, t_weights=(1,), ignore=False)

    def slots(self, model: config.Model) -> Slots:
        reader = Bilateral(model.hidden_size, model.initial_std, model.width_factor) if self.bilateral else None
        return Slots(reader=reader, condition=LevelFeatures() if self.told else None)

    def k_at(self, progress: float) -> int:
        step = int(progress / self.growth + 1e-9)  # progress is a rounded quotient
        return self.ks[min(step, len(self.ks) - 1)]

    def levels(self, noise: Noise) -> Tensor:
        """t of each row in (0, 1].  -> [b] float64"""
        return noise.stratified(self.strata) if self.strata else noise.independent()

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        tokens, scored = clean.tokens[:, :-1], clean.scored[:, :-1]  # [b, s]
        t, k = self.levels(noise), self.k_at(progress)
        behind = ~followed(scored) & scored.any(1, keepdim=True)
        ids, p = self.states.noised(tokens, t, noise.uniform(Purpose.CANDIDATES, tokens.shape[1], 3, k))
        if not scored.all():
            given = ~(scored | behind)[..., None]
            sure_ids, sure = self.states.certain(tokens, k)
            ids, p = ids.where(~given, sure_ids), p.where(~given, sure)
        by_bin = torch.tensor(self.t_weights, dtype=torch.float32) * len(self.t_weights) / sum(self.t_weights)
        weights = scored * by_bin[bins(t, len(by_bin))][:, None]
        if self.ignore:
            weights = weights + behind * (EMPTY * (1 - t).square()).float()[:, None]
        return Batch(
            inputs=tokens.masked_fill(scored | behind, self.states.vocab),
            targets=tokens,
            weights=weights,
            scored=scored,
            positions=places(scored),
            index=clean.index,
            asked=asked_positions(weights),
            level=t.float(),
            **self.states.read(ids, p),
        )

    def measure(self, batch: Batch) -> dict[str, float]:
        assert batch.candidates is not None
        return {"k": float(batch.scored.sum()) * (batch.candidates.shape[-1] - 1)}

    def count_hits(self, batch: Batch, hit: Tensor) -> Tensor:
        """Of tokens by the quarter of t that their row is in, and of empty places."""
        assert batch.level is not None
        number = len(self.groups) - 1
        rows = batch.asked // batch.inputs.shape[1]
        group = torch.where(batch.scored.flatten()[batch.asked], bins(batch.level, number)[rows], number)  # [n]
        found = torch.zeros(2, number + 1, dtype=torch.float64)
        found[0].index_add_(0, group, hit.double().cpu())
        found[1].index_add_(0, group, torch.ones(len(group), dtype=torch.float64))
        return found.t()


def bins(t: Tensor, number: int) -> Tensor:
    """Which of so many equal parts of (0, 1] each t lies in.  -> int64"""
    return (t * number).ceil().long().clamp(1, number) - 1
