"""Scores by name: what each one's number is, of which distribution, and how it is estimated.

exact               an autoregressive model's NLL
nelbo               upper bound by the count form, noise levels stratified over rows; what validation measures
nelbo:bernoulli     the same bound, each token hidden by itself
nelbo:independent   the same bound by the count form, noise levels independent
chain               the same bound by single random orders
korder:K            upper bound by K random orders inside the logarithm
mixture             what these bound, exactly, for few tokens
rule:NAME[:TOKENS]  exact NLL of a sampler that reveals so many TOKENS a step [1] by a rule of rules.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

import numpy as np
import torch
from torch import Tensor

from megatron.batch import Clean, Noise
from megatron.core.mesh import all_reduce
from megatron.errors import BadData
from megatron.likelihood.orders import MOST_PLACES, chain, draw_order, k_order, mixture
from megatron.likelihood.rows import Model, Rows, over_rows
from megatron.likelihood.rules import RULES, by_rule, num_steps
from megatron.objectives import REFERENCE_STRATA, Objective
from megatron.objectives.masked import MaskedDiffusion

MOST_DRAWS = 4096
MIXTURE = "mixture over all orders"


@dataclass(frozen=True)
class Draw:
    """One draw of all rows, and what it cost."""

    nll: np.ndarray  # [rows] nats
    forwards: int  # passes of one row
    seconds: float  # of all processes' CPU


@dataclass(frozen=True, kw_only=True)
class Score:
    """One estimator. `draw` number n is a function of the seed and n alone."""

    name: str
    value: str  # exact, or upper bound
    of: str  # the distribution whose NLL it is, or bounds
    random: bool
    draw: Callable[[int], Draw]
    orders: int = 1  # inside the logarithm of one draw


@dataclass
class Estimators:
    """Everything that the scores of one model on one set of rows have in common; an order is evaluated once."""

    model: Model
    objective: Objective  # the reference
    rows: Rows
    seed: int
    vocab_size: int
    orders: list[Draw] = field(default_factory=list)

    def score(self, name: str) -> Score:
        """Raises BadData for a name that does not exist, or that this model has no such likelihood for."""
        kind, _, rest = name.partition(":")
        if self.objective.exact:
            if name != "exact":
                raise BadData(f"--score {name}: an autoregressive model has one order, and its NLL is exact; give exact")
            return self.posed(name, self.objective, "exact", "model, left to right", False)
        if not isinstance(self.objective, MaskedDiffusion):
            raise BadData(f"--score {name}: known for autoregressive and masked-diffusion models only; choose another run")
        posers = {
            "nelbo": self.objective,
            "nelbo:bernoulli": replace(self.objective, count=False),
            "nelbo:independent": replace(self.objective, strata=None),
        }
        if name in posers:
            return self.posed(name, posers[name], "upper bound", MIXTURE, True)
        if name == "chain":
            return Score(name=name, value="upper bound", of=MIXTURE, random=True, draw=self.order)
        if kind == "korder" and rest.isdecimal() and int(rest):
            draw = partial(self.several, int(rest))
            return Score(name=name, value="upper bound", of=MIXTURE, random=True, draw=draw, orders=int(rest))
        if name == "mixture":
            return self.mixture()
        if kind == "rule":
            return self.rule(name, *rest.partition(":")[::2])
        raise BadData(
            f"--score {name}: expected nelbo, nelbo:bernoulli, nelbo:independent, chain, korder:K, mixture or rule:NAME[:TOKENS] "
            f"with NAME one of {', '.join(RULES)}"
        )

    def posed(self, name: str, objective: Objective, value: str, of: str, random: bool) -> Score:
        def draw(number: int) -> Draw:
            offset = number * self.blocks

            def nll(part: Rows) -> Tensor:
                clean = replace(part.clean, index=part.clean.index + offset)
                return posed_nll(self.model, objective, clean, Noise(self.seed, clean.index))

            return self.timed(nll, 1)

        return Score(name=name, value=value, of=of, random=random, draw=draw)

    @property
    def blocks(self) -> int:
        """Sample numbers between two draws, as validation has them."""
        return -(-len(self.rows.tokens) // REFERENCE_STRATA) * REFERENCE_STRATA

    def order(self, number: int) -> Draw:
        """The chain rule in random order `number`."""
        while len(self.orders) <= number:
            self.orders.append(self.timed(partial(self.in_random_order, len(self.orders) * self.blocks), self.rows.steps))
        return self.orders[number]

    def in_random_order(self, offset: int, part: Rows) -> Tensor:
        return chain(self.model, part, draw_order(part, self.seed, offset), self.mask_id)

    def several(self, orders: int, number: int) -> Draw:
        drawn = [self.order(n) for n in range(number * orders, (number + 1) * orders)]
        inside = k_order(torch.from_numpy(np.stack([d.nll for d in drawn]))).numpy()
        return Draw(inside, sum(d.forwards for d in drawn), sum(d.seconds for d in drawn))

    def mixture(self) -> Score:
        most, least = self.rows.steps, int(self.rows.open.sum(1).min())
        if most > MOST_PLACES or least < most:
            found = f"{most}" if least == most else f"{least} to {most}"
            raise BadData(
                f"--score mixture: 2^n passes for n hidden tokens, the same number in each row and at most {MOST_PLACES}; found "
                f"{found}: give --last {MOST_PLACES} or fewer"
            )
        nll = partial(mixture, self.model, mask_id=self.mask_id)
        return Score(name="mixture", value="exact", of=MIXTURE, random=False, draw=lambda _: self.timed(nll, (1 << most) - 1))

    def rule(self, name: str, rule: str, tokens: str) -> Score:
        if rule not in RULES or (tokens and not (tokens.isdecimal() and int(tokens))):
            raise BadData(f"--score {name}: expected rule:NAME or rule:NAME:TOKENS with NAME one of {', '.join(RULES)}")
        a_step = int(tokens or 1)
        nll, steps = (
            partial(by_rule, self.model, rule=rule, mask_id=self.mask_id, a_step=a_step),
            num_steps(self.rows.steps, a_step),
        )
        of = f"sampler by {rule}, {a_step} token{'s' * (a_step > 1)} a step"
        return Score(name=name, value="exact", of=of, random=False, draw=lambda _: self.timed(nll, steps))

    @property
    def mask_id(self) -> int:
        assert isinstance(self.objective, MaskedDiffusion)  # no other has these scores
        return self.objective.mask_id

    def timed(self, of: Callable[[Rows], Tensor], forwards: int) -> Draw:
        mesh, start = self.model.mesh, time.process_time()
        found = over_rows(mesh, self.rows, self.vocab_size, of).numpy()
        seconds = all_reduce(torch.tensor(time.process_time() - start, dtype=torch.float64), mesh.control)
        return Draw(found, forwards, float(seconds))


def posed_nll(model: Model, objective: Objective, clean: Clean, noise: Noise) -> Tensor:
    """Each row's weighted NLL as the objective poses it.  -> float64 [b] nats"""
    batch = objective.pose(clean, noise, 1.0)
    (logits,) = model.logits([batch])
    targets = batch.targets.flatten()[batch.asked]
    log_p = logits.cpu().double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    nll = torch.zeros(batch.weights.numel(), dtype=torch.float64)
    nll[batch.asked] = -log_p * batch.weights.flatten()[batch.asked]
    return nll.view(batch.weights.shape).sum(1)


def drawn(score: Score, enough: Callable[[np.ndarray], bool]) -> list[Draw]:
    """Draws until they are enough; one of what is not random.  enough: nll [draws, rows] -> bool"""
    draws: list[Draw] = []
    for number in count():
        draws.append(score.draw(number))
        if not score.random or enough(np.stack([d.nll for d in draws])):
            break
        if len(draws) == MOST_DRAWS:
            raise BadData(f"--nll-tolerance: not reached after {MOST_DRAWS} draws of {score.name}; give a larger one")
    return draws


def predicted_gap(orders: list[Draw], tokens: int) -> float | None:
    """By how much the mixture is below the NELBO if the NLL of a random order is normal: half its variance. Nats a token."""
    return float(np.stack([d.nll for d in orders]).var(0, ddof=1).sum() / 2 / tokens) if len(orders) > 1 else None
