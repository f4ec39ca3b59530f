"""How each score of megatron/score_names.py is estimated. b rows, s places."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

import numpy as np
import torch
from torch import Tensor

from megatron.batch import Batch, Noise
from megatron.core.head import chunk_loss
from megatron.core.mesh import ALONE, all_reduce
from megatron.flags import ConfigError
from megatron.likelihood.orders import chain, draw_order, hidden_sets, k_order, mixture, tangent
from megatron.likelihood.rows import Model, Rows, over_rows
from megatron.likelihood.rules import by_rule, num_steps
from megatron.objectives import REFERENCE_STRATA, Objective
from megatron.objectives.block import BlockDiffusion
from megatron.objectives.masked import MaskedDiffusion
from megatron.objectives.uniform import UniformDiffusion
from megatron.score_names import MOST_PLACES, ScoreName, read_score
from megatron.training.evaluate import noise_error

MOST_DRAWS = 4096
CANDIDATES = ("nelbo", "nelbo:bernoulli", "nelbo:independent", "chain")  # of a pilot
PILOT_ROWS, PILOT_DRAWS = 32, 4


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One draw of all rows, and what it cost."""

    nll: np.ndarray  # [rows] nats
    forwards: float  # passes of one row
    seconds: float  # of all processes' CPU
    places: np.ndarray | None = None  # [rows, s] nats of each place, where the score is a sum over places
    level: np.ndarray | None = None  # [rows] noise level, where a draw has one


@dataclass(frozen=True, kw_only=True)
class Score:
    """One estimator. `draw` number n is a function of the seed and n alone."""

    name: ScoreName
    random: bool
    draw: Callable[[int], Draw]
    pilot: dict | None = None  # what a pilot found of each candidate, and which one draws


@dataclass
class Estimators:
    """Everything that the scores of one model on one set of rows have in common; an order is evaluated once."""

    model: Model
    objective: Objective  # the reference
    rows: Rows
    seed: int
    vocab_size: int
    by_place: bool = False  # whether draws keep what each place costs
    orders: dict[int | None, list[Draw]] = field(default_factory=dict)  # by block: each random order, over all parts
    blocks: dict[int, tuple[Rows, Tensor]] = field(default_factory=dict)  # by size: the parts, and the row of each

    def score(self, name: str) -> Score:
        """Raises ConfigError for a name that does not exist, or that this model has no such likelihood for."""
        said = read_score(name)
        if self.objective.exact:
            if said.kind != "exact":
                raise ConfigError([f"--score {name}: an autoregressive model has one order, and its NLL is exact; give exact"])
            return Score(name=said, random=False, draw=partial(self.posed, self.objective))
        if isinstance(self.objective, UniformDiffusion):
            if said.kind not in ("nelbo", "nelbo:independent"):
                raise ConfigError([f"--score {name}: of --objective udm the bound alone is computed; give nelbo"])
            known, plain = self.objective, replace(self.objective.plain, strata=None)
            known = known if said.kind == "nelbo" else replace(known, plain=plain)
            return Score(name=replace(said, process="reverse process"), random=True, draw=partial(self.posed, known))
        if not isinstance(self.objective, MaskedDiffusion) or said.kind == "exact":
            raise ConfigError(
                [f"--score {name}: of a masked-diffusion model give nelbo, korder:K, rule:NAME or another; it has no exact"]
            )
        if isinstance(self.objective, BlockDiffusion) and said.kind != "nelbo":
            raise ConfigError([f"--score {name}: of a run with --block-size the bound alone is computed; give nelbo"])
        posers = {
            "nelbo": self.objective,
            "nelbo:bernoulli": replace(self.objective, count=False),
            "nelbo:independent": replace(self.objective, strata=None),
        }
        if said.kind in posers:
            return Score(name=said, random=True, draw=partial(self.posed, posers[said.kind]))
        if said.kind == "nelbo:pilot":
            return self.pilot(said)
        parts = self.parts(said)
        if said.kind in ("chain", "korder"):
            return Score(name=said, random=True, draw=partial(self.several, said, k_order))
        if said.kind == "tangent":
            most = MOST_PLACES["tangent"]
            if parts.steps > most:
                raise ConfigError(
                    [
                        f"--score {name}: usable for {most} places at most, found {parts.steps}: give --last {most} or fewer, or "
                        f"tangent:{said.orders}/{most} for blocks"
                    ]
                )
            return Score(name=said, random=True, draw=partial(self.several, said, tangent))
        draw = self.mixture if said.kind == "mixture" else self.rule
        return Score(name=said, random=False, draw=partial(draw, said, parts))

    def parts(self, said: ScoreName) -> Rows:
        """The rows, or their blocks as rows."""
        if said.block is None:
            return self.rows
        if said.block not in self.blocks:
            self.blocks[said.block] = self.rows.in_blocks(said.block)
        return self.blocks[said.block][0]

    def summed(self, said: ScoreName, nll: np.ndarray) -> np.ndarray:
        """Of parts, the sum over each row.  [parts, ...] -> [rows, ...]"""
        if said.block is None:
            return nll
        found = np.zeros((len(self.rows.tokens), *nll.shape[1:]))
        np.add.at(found, self.blocks[said.block][1].numpy(), nll)
        return found

    def posed(self, objective: Objective, number: int) -> Draw:
        offset = number * self.apart

        def nll(part: Rows) -> Tensor:
            clean = replace(part.clean, index=part.clean.index + offset)
            return posed_nll(self.model, objective, replace(part, clean=clean), Noise(self.seed, clean.index))

        level = None
        if isinstance(objective, MaskedDiffusion) and not isinstance(objective, BlockDiffusion):  # whose blocks have one each
            level = objective.times(Noise(self.seed, self.rows.clean.index + offset), 1.0).numpy()
        return self.timed(self.rows, nll, 1, level)

    @property
    def apart(self) -> int:
        """Sample numbers between two draws, as validation has them."""
        return -(-len(self.rows.tokens) // REFERENCE_STRATA) * REFERENCE_STRATA

    def order(self, said: ScoreName, number: int) -> Draw:
        """The chain rule of all parts in random order `number`."""
        parts, known = self.parts(said), self.orders.setdefault(said.block, [])
        while len(known) <= number:
            nll = partial(self.in_random_order, len(known) * self.apart)
            known.append(self.timed(parts, nll, parts.steps * len(parts.tokens) / len(self.rows.tokens)))
        return known[number]

    def in_random_order(self, offset: int, part: Rows) -> Tensor:
        return chain(self.model, part, draw_order(part, self.seed, offset), self.mask_id)

    def num_orders(self, said: ScoreName) -> int:
        """Orders that one draw reads."""
        return said.orders + (said.kind == "tangent")

    def several(self, said: ScoreName, inside: Callable[[Tensor], Tensor], number: int) -> Draw:
        """One draw of what is made of several orders of each part."""
        each = self.num_orders(said)
        drawn = [self.order(said, n) for n in range(number * each, (number + 1) * each)]
        nll = inside(torch.from_numpy(np.stack([d.nll for d in drawn]))).numpy()
        places = drawn[0].places if said.kind == "chain" else None
        return Draw(
            nll=self.summed(said, nll),
            forwards=sum(d.forwards for d in drawn),
            seconds=sum(d.seconds for d in drawn),
            places=None if places is None else self.summed(said, places),
        )

    def mixture(self, said: ScoreName, parts: Rows, number: int) -> Draw:
        """By rows whose tokens and padding stand in the same places."""
        patterns = torch.stack([parts.open, parts.scored, parts.later], 1).flatten(1)  # [parts, 3 s]
        kinds, kind_of = torch.unique(patterns, dim=0, return_inverse=True)
        nll, forwards, seconds = np.zeros(len(patterns)), 0.0, 0.0
        numbers = [(kind_of == kind).nonzero()[:, 0] for kind in range(len(kinds))]
        passes = [len(hidden_sets(parts.take(some[:1]))) - 1 for some in numbers]
        most = MOST_PLACES["mixture"]
        if min(passes) < 0 or max(passes) >= 1 << most:
            raise ConfigError(
                [
                    f"--score {said.text}: 2^n passes for n hidden tokens, {most} at most; found "
                    f"{int(parts.open.sum(1).max())}: give --last {most} or fewer, or mixture/{most} for blocks"
                ]
            )
        for some, each in zip(numbers, passes):
            found = self.timed(parts.take(some), lambda part: mixture(self.model, part, self.mask_id), each)
            nll[some.numpy()] = found.nll
            forwards, seconds = forwards + each * len(some) / len(self.rows.tokens), seconds + found.seconds
        return Draw(nll=self.summed(said, nll), forwards=forwards, seconds=seconds)

    def rule(self, said: ScoreName, parts: Rows, number: int) -> Draw:
        assert said.rule is not None
        nll = partial(by_rule, self.model, rule=said.rule, mask_id=self.mask_id, a_step=said.tokens)
        passes = num_steps(parts.steps, said.tokens) * len(parts.tokens) / len(self.rows.tokens)
        found = self.timed(parts, nll, passes)
        places = None if found.places is None else self.summed(said, found.places)
        return replace(found, nll=self.summed(said, found.nll), places=places)

    def pilot(self, said: ScoreName) -> Score:
        """Of the bound's estimators the one with the least noise a pass: sd of a draw x sqrt(passes), on a few rows."""
        few = replace(self, rows=self.rows.take(torch.arange(min(PILOT_ROWS, len(self.rows.tokens)))), orders={}, blocks={})
        costs = {name: few.cost(few.score(name)) for name in CANDIDATES}
        best = min(CANDIDATES, key=lambda name: costs[name]["sd_times_root_forwards"])
        return replace(self.score(best), name=said, pilot={"chosen": best, "rows": len(few.rows.tokens), "candidates": costs})

    def cost(self, score: Score) -> dict:
        """Of one draw over these rows."""
        draws = [score.draw(number) for number in range(PILOT_DRAWS)]
        scored = self.rows.scored.sum(1).numpy()
        error, _ = noise_error(np.stack([d.nll for d in draws]), scored)
        assert error is not None  # of several draws
        sd, forwards = error * len(draws) ** 0.5, draws[0].forwards
        return {"sd": sd, "forwards_per_row": forwards, "sd_times_root_forwards": sd * forwards**0.5}

    @property
    def mask_id(self) -> int:
        assert isinstance(self.objective, MaskedDiffusion)  # no other has these scores
        return self.objective.mask_id

    def timed(self, rows: Rows, of: Callable[[Rows], Tensor], forwards: float, level: np.ndarray | None = None) -> Draw:
        """`of` gives nats of each row [b], or of each place [b, s]."""
        mesh, start = self.model.mesh, time.process_time()
        found = over_rows(mesh, rows, self.vocab_size, of).numpy()
        seconds = float(all_reduce(torch.tensor(time.process_time() - start, dtype=torch.float64), mesh.control))
        nll, places = (found, None) if found.ndim == 1 else (found.sum(1), found)
        return Draw(nll=nll, forwards=forwards, seconds=seconds, places=places if self.by_place else None, level=level)


def posed_nll(model: Model, objective: Objective, rows: Rows, noise: Noise) -> Tensor:
    """Each place's weighted NLL as the objective poses it.  -> float64 [b, s] nats"""
    batch = rows.borders.apply(objective.pose(rows.clean, noise, 1.0), rows.clean)
    nll = torch.zeros(batch.weights.numel(), dtype=torch.float64)
    nll[batch.asked] = -target_log_p(model, batch) * batch.weights.flatten()[batch.asked]
    return nll.view(batch.weights.shape)


def target_log_p(model: Model, batch: Batch) -> Tensor:
    """Of each asked position's target; of inputs that are noise, minus their loss.  -> float64 [n]"""
    (logits,) = model.logits([batch])
    targets = batch.targets.flatten()[batch.asked]
    loss, *_ = chunk_loss(logits.cpu().double(), slice(0, len(targets)), targets, logits.shape[1], ALONE, batch.known())
    return -loss


def drawn(score: Score, enough: Callable[[list[Draw]], bool]) -> list[Draw]:
    """Draws until they are enough; one of what is not random. Raises ConfigError where they never are."""
    draws: list[Draw] = []
    for number in count():
        draws.append(score.draw(number))
        if not score.random or enough(draws):
            break
        if len(draws) == MOST_DRAWS:
            raise ConfigError([f"--nll-tolerance: not reached after {MOST_DRAWS} draws of {score.name.text}; give a larger one"])
    return draws


def predicted_gap(orders: list[Draw], tokens: int) -> float | None:
    """By how much the mixture is below the NELBO if the NLL of a random order is normal: half its variance. Nats a token."""
    return float(np.stack([d.nll for d in orders]).var(0, ddof=1).sum() / 2 / tokens) if len(orders) > 1 else None
