"""ATAT: masked diffusion that hides hard or easy tokens more often, at the mean rate that it had. b rows, s positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from megatron.batch import Batch, Clean, Noise, Purpose, asked_positions
from megatron.budget import ESTIMATOR_HEAD
from megatron.objectives.autoregressive import places
from megatron.objectives.hardness import Estimator, rarity
from megatron.objectives.masked import MaskedDiffusion, hidden_padding

if TYPE_CHECKING:
    from megatron import config
    from megatron.data.samples import Samples

LEARNT, PRIOR = 0.7, 0.3  # shares of estimate and rarity where both count
EASY, HARD = 0.3, 0.7  # importance below and above which a token is easy or hard
GAINS = (2.0, 1.5, 2.0)  # of easy, medium and hard tokens in their own stage, in the loss `importance`
ROUNDS = 12  # of the search for a row's common shift: below 1e-12 of m up to a tilt of 10
LIMIT = 2.0**-40  # how near 0 and 1 a mean rate may be where it is a logit


@dataclass(frozen=True, kw_only=True)
class Atat(MaskedDiffusion):
    """Hide token i of a row with probability p_i, more often the more important it is, or the less; predict what is hidden.

    z_i says in nats how hard a token is to predict: what a small network learns of the model's own NLLs, how rare the
    token is in the training data, or both. Its importance is s_i = sigmoid(z_i - mean z) of its row, and

        logit p_i = u + lean x tilt x (s_i - mean s),    p_i >= least x m,

    with u such that the row's mean rate is m(t), whatever the importance. `lean` goes from -1 (easy tokens first) to 1 by the
    curriculum. The weight `elbo` is dp_i/dm x m'(t) / p_i, that of a bound on the NLL for rates that do not depend on the
    tokens. These do, so that the pattern of what is hidden says something of them: the training loss is no bound, and
    validation poses the plain one. The weight `importance` is g_i / p_i, with gains for the tokens of the stage.
    Where all importances are alike (mode `none`, or tilt 0) it is MaskedDiffusion, bit for bit.
    """

    mode: str
    tilt: float = 1.0
    least: float = 0.1
    weighting: str = "elbo"
    curriculum: str = "steps"
    easy_until: float = 1 / 3  # shares of the run
    hard_from: float = 2 / 3
    width: int = ESTIMATOR_HEAD  # of the network
    layers: int = 1
    rarity: Tensor | None = field(default=None, compare=False, repr=False)  # [v] nats of each id

    @classmethod
    def with_rates(cls, plain: MaskedDiffusion, cfg: config.Config) -> Atat:
        """The flags' masked diffusion with adaptive rates."""
        o = cfg.objective
        return cls(
            **vars(plain),
            mode=o.atat or "none",
            tilt=o.atat_tilt,
            least=o.atat_least,
            weighting=o.atat_loss,
            curriculum=o.atat_curriculum,
            easy_until=o.atat_easy_until,
            hard_from=o.atat_hard_from,
            width=o.atat_width or ESTIMATOR_HEAD,
            layers=o.atat_layers,
        )

    def studied(self, data: Samples) -> Atat:
        """With the rarity of each id in the first tokens of the training data, where the mode has a use for it."""
        return replace(self, rarity=rarity(data, self.mask_id)) if self.mode in ("full", "frequency") else self

    def companion(self, model: config.Model) -> nn.Module | None:
        if self.mode not in ("full", "learned"):
            return None
        return Estimator(model, self.width, self.layers)

    def auxiliary(self, batch: Batch, companion: nn.Module, nll: Tensor) -> Tensor:
        """The network learns by how much the NLLs of a row's hidden tokens differ from their mean: Huber's loss."""
        estimate, asked = companion(batch.targets, batch.positions), torch.zeros_like(batch.scored)
        asked.view(-1)[batch.asked] = True
        found = torch.zeros_like(estimate).masked_scatter(asked, nll.to(estimate.dtype))
        ours, theirs = ((x - row_mean(x, asked))[asked] for x in (estimate, found))
        return smooth_l1_loss(ours, theirs, reduction="sum")

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        tokens, scored = clean.tokens[:, :-1], clean.scored[:, :-1]  # [b, s]
        t, nothing = self.times(noise, progress), torch.zeros(tokens.shape)
        lean = CURRICULA[self.curriculum](progress, self.easy_until, self.hard_from)
        batch = Batch(
            inputs=tokens,
            targets=tokens,
            weights=nothing,
            scored=scored,
            positions=places(scored),
            index=clean.index,
            asked=asked_positions(nothing),
            draws=noise.uniform(Purpose.MASK, tokens.shape[1]),
            row_notes=torch.stack((t, torch.full_like(t, lean)), 1),
        )
        return batch if self.mode in ("full", "learned") else self.hidden(batch, self.hardness(batch, None))

    def refine(self, batch: Batch, companion: nn.Module) -> Batch:
        return self.hidden(batch, self.hardness(batch, companion))

    def hardness(self, batch: Batch, companion: nn.Module | None) -> Tensor:
        """z of each token, in nats.  -> fp32 [b, s]"""
        if self.mode == "none":
            return torch.zeros_like(batch.weights)
        if self.mode == "learned":
            assert companion is not None  # Learner hands it in
            return companion(batch.targets, batch.positions)
        if self.rarity is None:
            raise TypeError(f"ATAT's mode {self.mode} needs to know how rare tokens are: call studied(training data) first")
        rare = self.rarity.to(batch.targets.device)[batch.targets]
        return rare if companion is None else LEARNT * companion(batch.targets, batch.positions) + PRIOR * rare

    def hidden(self, batch: Batch, hardness: Tensor) -> Batch:
        """The batch with its tokens hidden and weighed."""
        assert batch.draws is not None and batch.row_notes is not None  # pose left them
        t, lean = batch.row_notes.unbind(1)
        scored, importance = batch.scored, torch.sigmoid(hardness - row_mean(hardness, batch.scored))
        offsets = ((lean * self.tilt)[:, None] * (importance - row_mean(importance, scored)).double()).masked_fill(~scored, 0.0)
        level, inverse = (x[:, None] for x in self.schedule.rates(t, self.eps))  # [b, 1] each; level / inverse is m'(t)
        rates, gain = tilted(level, offsets, scored, self.least)
        plain = ~(offsets != 0).any(1, keepdim=True) | ~scored
        rates, gain = torch.where(plain, level, rates).float(), torch.where(plain, 1.0, gain)
        if self.weighting == "importance":
            gain = staged(importance, lean, scored)
        weights = torch.where(plain & (gain == 1), 1 / inverse.float(), (gain * level / inverse).float() / rates)
        below = batch.draws < rates
        chosen = below & scored
        if not scored[:, -1].all():
            chosen |= hidden_padding(below, scored)
        weights = chosen * weights
        return replace(
            batch,
            inputs=batch.targets.masked_fill(chosen, self.mask_id),
            weights=weights,
            asked=asked_positions(weights),
            draws=None,
            place_notes=importance,
        )

    def measure(self, batch: Batch) -> dict[str, float]:
        """Sums over scored positions, but for the smallest and the largest importance."""
        if batch.row_notes is None or batch.place_notes is None or not batch.scored.any():
            return {}
        t, lean = batch.row_notes.unbind(1)
        level, _ = self.schedule.rates(t, self.eps)
        scored, counts, importance = batch.scored, batch.scored.sum(1), batch.place_notes.double()
        mean = row_mean(importance, scored)
        spread = row_mean((importance - mean).square(), scored)[:, 0].sqrt()
        of_rows = {
            "noise_level": -torch.log1p(-level.clamp(max=1 - LIMIT)),
            "importance_mean": mean[:, 0],
            "importance_std": spread,
            "curriculum_stage": 2 + lean.sign(),
        }
        said = {name: float((values * counts).sum()) for name, values in of_rows.items()}
        said["masking_rate"] = float(((batch.inputs == self.mask_id) & scored).sum())
        seen = importance[scored]
        return said | {"importance_min": float(seen.min()), "importance_max": float(seen.max())}


def row_mean(x: Tensor, scored: Tensor) -> Tensor:
    """Of the scored positions.  [b, s], bool [b, s] -> [b, 1]"""
    return (x * scored).sum(1, keepdim=True) / scored.sum(1, keepdim=True).clamp(min=1)


def tilted(level: Tensor, offsets: Tensor, scored: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Rates p_i = max(least m, sigmoid(u + o_i)) whose mean over a row's scored positions is m, and their slopes dp_i/dm.

    The mean grows with u, which is found by Newton's steps, kept within what bounds it. The slopes follow from the mean's being
    m: of what is not clipped p_i (1 - p_i) du/dm, with du/dm = (1 - least x share clipped) / mean of p_i (1 - p_i).
    level [b, 1] float64 in (0, 1], offsets [b, s] float64 -> [b, s] float64 each, mean slope 1
    """
    m = level.clamp(LIMIT, 1 - LIMIT)
    base, floor = m.logit(), least * m
    low, high = base - offsets.amax(1, keepdim=True), base - offsets.amin(1, keepdim=True)
    u = base
    for _ in range(ROUNDS):
        p = torch.sigmoid(u + offsets)
        excess = row_mean(p.maximum(floor), scored) - m
        slope = row_mean(p * (1 - p) * (p > floor), scored)
        low, high = torch.where(excess < 0, u, low), torch.where(excess > 0, u, high)
        step = u - excess / slope.clamp(min=LIMIT * LIMIT)
        u = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
    p = torch.sigmoid(u + offsets)
    free = p > floor
    rise = (1 - least * row_mean((~free).double(), scored)) / row_mean(p * (1 - p) * free, scored).clamp(min=LIMIT * LIMIT)
    return p.maximum(floor), torch.where(free, p * (1 - p) * rise, least)


def staged(importance: Tensor, lean: Tensor, scored: Tensor) -> Tensor:
    """Gains of the tokens that a stage is about, with a row's mean at 1.  importance [b, s], lean [b] -> [b, s]"""
    stage = torch.where(importance > HARD, 1, 0) - torch.where(importance <= EASY, 1, 0)  # -1 easy, 0 medium, 1 hard
    now = lean.sign().long()[:, None]
    gains = torch.where(stage == now, torch.tensor(GAINS, device=lean.device)[now + 1], 1.0).double()
    return gains / row_mean(gains, scored)


# Curricula: how far along the run (0 to 1) the tilt is towards hard tokens, from -1 to 1. A new one is a function and its name.


def steps(progress: float, easy_until: float, hard_from: float) -> float:
    """Three stages: easy tokens first, all alike, hard ones."""
    return float(progress >= hard_from) - float(progress < easy_until)


def linear(progress: float, easy_until: float, hard_from: float) -> float:
    return 2 * progress - 1


def constant(progress: float, easy_until: float, hard_from: float) -> float:
    """Hard tokens more often, all along."""
    return 1.0


CURRICULA: dict[str, Callable[[float, float, float], float]] = {"steps": steps, "linear": linear, "constant": constant}
