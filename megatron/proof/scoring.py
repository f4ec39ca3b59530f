"""What is audited: an objective, or a scoring rule given as a function, with its noise integrated exactly.

A rule's noise is a level t ~ U(0, 1] and a uniform a place. All that a rule can do with them, if it only compares uniforms with
each other and with t, and t with multiples of 1/L, depends on the order of the uniforms, on how many lie below t, and smoothly
on t: all orders and counts are gone through, and t is integrated by Gauss' rule, exact for the polynomials in t that arise.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from megatron.batch import Batch, Clean, Noise, Purpose, RowScores, asked_positions
from megatron.core.head import chunk_loss
from megatron.core.mesh import ALONE
from megatron.errors import BadData, Mismatch, MissingInput
from megatron.objectives import Objective
from megatron.objectives.masked import MaskedDiffusion
from megatron.objectives.uniform import UniformDiffusion
from megatron.objectives.vectors import led
from megatron.proof.sources import Model, Rows

MOST_STEPS = 64  # of discrete time
LONGEST_DRAWN = 5  # places whose orders and levels are gone through
WHOLE = (0.0, 1.0)  # where a noise level lies
AT_ONCE = 1 << 16  # rows under draws
NETWORK_ROWS = 1024  # rows of one pass of a network
NODES = 20  # of t where tokens are replaced by ids: its cube root is integrated, since the loss has t log t
GIVEN = ("tokens", "scored", "vocab", "predict", "t", "uniform")  # what a rule may ask for, by the names of its parameters


class Scorer(Protocol):
    """A network: megatron.engine.Engine, or what answers as it does."""

    def score(self, batches: list[Batch]) -> list[RowScores]: ...


class Scoring(Protocol):
    """Total nats of each row."""

    name: str
    given: tuple[str, ...]  # what it conditions on besides the first token: nothing, or the length
    noisy: bool  # whether it draws, which only rows of LONGEST_DRAWN places afford
    likelihood: bool  # whether its draws are averaged as likelihoods, not as nats

    def on(self, rows: Rows, likelihood: bool = False) -> Callable[[Model], Tensor]:
        """From a model to the mean over the noise, of nats or of exp(-nats).  -> [r] nats"""


@dataclass(frozen=True, kw_only=True)
class Times:
    """How t is gone through, and with which probability a uniform lies below what it is compared with there."""

    span: tuple[float, float] | None = WHOLE  # None: there is no t, and orders are all
    level: Callable[[float], float] = float  # of t: t itself, or a schedule's m(t)
    more_nodes: int = 0  # than a polynomial in t needs
    steps: int = 1  # within which the level is smooth
    within: float = 0.5  # where between its neighbours a uniform lies, from 0 to 1


def levels(length: int, times: Times) -> list[tuple[float, float]]:
    """(t, weight) for the mean over t ~ U(span) of what is polynomial between multiples of 1/1 .. 1/length."""
    span = times.span
    if span is None:
        return [(1.0, 1.0)]
    whole = {j / part for part in (*range(1, length + 1), times.steps) for j in range(part + 1)}
    cuts = sorted({*span, *(cut for cut in whole if span[0] < cut < span[1])})
    nodes, weights = np.polynomial.legendre.leggauss(length // 2 + 1 + times.more_nodes)
    return [
        (low + (high - low) * (x + 1) / 2, w * (high - low) / 2 / (span[1] - span[0]))
        for low, high in zip(cuts, cuts[1:])
        for x, w in zip(nodes.tolist(), weights.tolist())
    ]


def draws(length: int, times: Times) -> tuple[Tensor, Tensor, Tensor]:
    """All that noise can do to `length` places.  -> chance [c], t [c], uniforms [c, n]"""
    orders = torch.tensor(list(itertools.permutations(range(length))))  # [o, n]
    chances, ts, uniforms = [], [], []
    for time, weight in levels(length, times):
        level, within = times.level(time), times.within
        for below in range(length + 1) if times.span else [length]:
            low = [level * (rank + within) / below for rank in range(below)]
            high = [level + (1 - level) * (rank + within) / (length - below) for rank in range(length - below)]
            chances.append(weight * math.comb(length, below) * level**below * (1 - level) ** (length - below))
            ts.append(time)
            uniforms.append(torch.tensor([*low, *high], dtype=torch.float64)[orders])
    chance, t = (torch.tensor(x, dtype=torch.float64).repeat_interleave(len(orders)) for x in (chances, ts))
    return chance / len(orders), t, torch.cat(uniforms)


def cases(rows: Rows, times: Times) -> Iterator[tuple[Rows, Tensor, Tensor, Tensor, Tensor]]:
    """Every row under every draw, some thousands at a time.  -> rows [b], their numbers, chance and t [b], uniforms [b, n]"""
    chance, t, uniforms = draws(rows.tokens.shape[1], times)
    r = len(rows.tokens)
    for part in torch.arange(len(chance)).split(max(1, AT_ONCE // r)):
        number, case = torch.arange(r).repeat(len(part)), part.repeat_interleave(r)
        yield replace(rows, tokens=rows.tokens[number], scored=rows.scored[number]), number, chance[case], t[case], uniforms[case]


def replacements(rows: Rows, known: UniformDiffusion) -> Iterator[tuple[Rows, Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """What `cases` yields where a place keeps its token, hides it or has any id instead; and the uniforms of ids [b, n]."""
    r, n = rows.tokens.shape
    v, share = rows.vocab, known.share
    ways = torch.tensor(list(itertools.product(range(-2 if share < 1 else -1, v), repeat=n)))  # [w, n]: hidden, kept, or an id
    chances, below = torch.empty(2, v + 2, dtype=torch.float64)  # of ids, then of hiding and of keeping, counted from behind
    ids = (ways + 0.5) / v
    for x, w in zip(*np.polynomial.legendre.leggauss(NODES)):
        t = torch.tensor([((x + 1) / 2) ** 3], dtype=torch.float64)
        m = float(known.plain.schedule.rates(t, known.plain.eps)[0])
        chances[:v], chances[-2], chances[-1] = m * share / v, m * (1 - share), 1 - m
        below[:v], below[-2], below[-1] = m * share / 2, m * (1 + share) / 2, (1 + m) / 2
        chance, uniforms = chances[ways].prod(1), below[ways]
        for part in torch.arange(len(ways)).split(max(1, AT_ONCE // r)):
            number, case = torch.arange(r).repeat(len(part)), part.repeat_interleave(r)
            drawn = replace(rows, tokens=rows.tokens[number], scored=rows.scored[number])
            weight = chance[case] * w / 2 * 3 * ((x + 1) / 2) ** 2
            yield drawn, number, weight, t.expand(len(case)), uniforms[case], ids[case]


class Fixed(Noise):
    """Noise that is told what each row draws, t [b] and uniforms [b, n], of ids too; the given token's uniform is one half."""

    def __init__(self, t: Tensor, uniforms: Tensor, ids: Tensor | None = None):
        super().__init__(0, torch.arange(len(t)))
        self.t, self.rows = t, torch.nn.functional.pad(uniforms.float(), (1, 0), value=0.5)
        self.ids = None if ids is None else torch.nn.functional.pad(ids.float(), (1, 0))

    def uniform(self, purpose: int, *shape: int) -> Tensor:
        if purpose == Purpose.UNIFORM_TOKEN and self.ids is not None:
            return torch.stack((self.ids, torch.zeros_like(self.ids)), -1)
        if purpose != Purpose.MASK or shape != self.rows.shape[1:]:
            raise Mismatch(
                f"the objective draws {list(shape)} uniforms a row for purpose {purpose}, expected one a position for the mask: "
                "its noise cannot be gone through; write it as a function and audit that"
            )
        return self.rows

    def stratified(self, strata: int, purpose: int = Purpose.RATE_ORDER) -> Tensor:
        return self.t

    def independent(self) -> Tensor:
        return self.t

    def antithetic(self) -> Tensor:
        return self.t


@dataclass(frozen=True, kw_only=True)
class Posed:
    """An objective as it poses rows. Its loss is linear in the weights, so like problems are one with the sum of theirs."""

    name: str
    objective: Objective
    given: tuple[str, ...] = ()
    likelihood: bool = False
    vector: Tensor | None = None  # [d] that a network is told before the text

    @property
    def noisy(self) -> bool:
        return not self.objective.exact

    @property
    def times(self) -> Times:
        """Of what hides each token by itself, the schedule's probabilities. Raises Mismatch for too many steps of time."""
        known = self.objective
        if not isinstance(known, MaskedDiffusion) or known.count:
            return Times()
        steps = known.schedule.steps or 1
        if steps > MOST_STEPS:
            raise Mismatch(f"--noise-steps {steps}: at most {MOST_STEPS} are gone through; audit fewer, or continuous time")

        def level(t: float) -> float:
            return float(known.schedule.rates(torch.tensor([t], dtype=torch.float64), known.eps)[0])

        return Times(level=level, more_nodes=4, steps=steps)

    def problem(self, rows: Rows) -> Batch:
        """One batch; the losses of a row's problems, which have its number, add up to its mean over the noise."""
        parts = [self.distinct(*case) for case in self.cases(rows)]
        return merged([batch for batch, _ in parts], torch.cat([weights for _, weights in parts]))

    def cases(self, rows: Rows) -> Iterator[tuple[Any, ...]]:
        """Every row under every draw: what `distinct` is called with."""
        if isinstance(self.objective, UniformDiffusion):
            return replacements(rows, self.objective)
        return cases(rows, self.times) if self.noisy else iter([undrawn(rows)])

    def num_draws(self, vocab: int, length: int) -> int:
        if isinstance(self.objective, UniformDiffusion):
            return NODES * (vocab + 1 + (self.objective.share < 1)) ** length
        return len(draws(length, Times())[0]) if self.noisy else 1

    def num_problems(self, vocab: int, length: int) -> int:
        """How many different ones the draws of a row make, at most."""
        hides = self.noisy and not isinstance(self.objective, UniformDiffusion)
        return 2**length - 1 if hides else self.num_draws(vocab, length)

    def distinct(
        self, rows: Rows, number: Tensor, chance: Tensor, t: Tensor, uniforms: Tensor, ids: Tensor | None = None
    ) -> tuple[Batch, Tensor]:
        tokens, scored = (torch.nn.functional.pad(x, (1, 1)) for x in (rows.tokens, rows.scored))
        clean = Clean(tokens=tokens, scored=scored, index=number)
        batch = self.objective.pose(clean, Fixed(t, uniforms, ids), 1.0)
        found = merged([batch], chance[:, None] * batch.weights)
        return found, found.weights

    def on(self, rows: Rows, likelihood: bool = False) -> Callable[[Model], Tensor]:
        batch = self.problem(rows)
        nothing = torch.zeros(len(rows.tokens), dtype=torch.float64)
        return lambda model: nothing.index_add(0, batch.index, (batch.weights * self.nll(model, batch, rows.vocab)).sum(1))

    def nll(self, model: Model, batch: Batch, vocab: int) -> Tensor:
        """Of every position. A causal model sees what stands before the place that it predicts.  -> [b, s]"""
        targets, found = batch.targets[..., None], torch.zeros(batch.inputs.shape, dtype=torch.float64)
        seen = batch.inputs[:, 1:]
        if batch.uniform is not None:
            whole = replace(batch, inputs=seen, asked=torch.arange(seen.numel()))
            log_p, every = model.predict(seen).flatten(0, 1).clone(), slice(0, seen.numel())
            found[:, 1:] = chunk_loss(log_p, every, batch.targets[:, 1:].flatten(), vocab, ALONE, whole.known())[0].view(
                seen.shape
            )
            return found
        if not self.objective.causal:
            found[:, 1:] = -model.predict(seen).gather(2, targets[:, 1:])[..., 0]
            return found
        for i in range(seen.shape[1]):
            before = seen.clone()
            before[:, i:] = vocab
            found[:, i] = -model.predict(before)[:, i].gather(1, targets[:, i])[:, 0]
        return found

    def network_loss(self, engine: Scorer, rows: Rows) -> Tensor:
        """The same under a network.  -> [r]"""
        batch, found = self.problem(rows), torch.zeros(len(rows.tokens), dtype=torch.float64)
        for part in torch.arange(len(batch.index)).split(NETWORK_ROWS):
            here = replace(batch, **{name: x[part] for name, x in batch.tensors().items() if name != "asked"})
            here = replace(here, weights=here.weights.float(), asked=asked_positions(here.weights))
            if self.vector is not None:
                here = led(here, self.vector.expand(len(here.index), -1), torch.zeros(len(here.index)))
            (scores,) = engine.score([here])
            found.index_add_(0, here.index, torch.from_numpy(scores.loss))
        return found


def undrawn(rows: Rows) -> tuple[Rows, Tensor, Tensor, Tensor, Tensor]:
    """What `cases` gives, for what draws nothing."""
    one = torch.ones(len(rows.tokens), dtype=torch.float64)
    return rows, torch.arange(len(one)), one, one, torch.full(rows.tokens.shape, 0.5, dtype=torch.float64)


def merged(batches: list[Batch], weights: Tensor) -> Batch:
    """Problems that differ by their weight alone as one, with the sum of the weights.  weights float64 [b, s]"""
    own = {name: torch.cat([b.tensors()[name] for b in batches]) for name in batches[0].tensors() if name != "asked"}
    told = [x.reshape(len(x), -1).double() for name, x in own.items() if name not in ("weights", "scored", "positions")]
    group = alike(torch.cat(told, 1))
    first = torch.zeros(int(group.max()) + 1, dtype=torch.long).scatter_(0, group.flip(0), torch.arange(len(group)).flip(0))
    summed = torch.zeros(len(first), weights.shape[1], dtype=torch.float64).index_add(0, group, weights)
    kept = {name: x[first] for name, x in own.items()} | {"weights": summed, "asked": asked_positions(summed)}
    return replace(batches[0], **kept)


def alike(table: Tensor) -> Tensor:
    """Which of the different rows of a table each one is, in their order: what unique(dim=0) says, in a tenth of its time.

    [b, n] -> int64 [b]
    """
    group = torch.zeros(len(table), dtype=torch.long)
    for column in table.unbind(1):
        values, number = column.unique(return_inverse=True)
        if len(values) > 1:
            group = (group * len(values) + number).unique(return_inverse=True)[1]
    return group


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A function of some of GIVEN that returns total nats [r]; it states what it is in attributes of its own.

    `given = ("length",)`: it scores rows of a length that is known. `levels = (low, high)`: its t is uniform between them.
    `average = "likelihood"`: the mean over its noise is taken of exp(-nats), not of nats.
    """

    name: str
    function: Callable[..., Tensor]
    wants: tuple[str, ...]
    given: tuple[str, ...] = ()
    span: tuple[float, float] = WHOLE
    likelihood: bool = False

    @property
    def noisy(self) -> bool:
        return bool({"t", "uniform"} & set(self.wants))

    def on(self, rows: Rows, likelihood: bool = False) -> Callable[[Model], Tensor]:
        return (
            functools.partial(self.mean, rows=rows, likelihood=likelihood) if self.noisy else lambda model: self.call(model, rows)
        )

    @property
    def times(self) -> Times:
        return Times(span=self.span if "t" in self.wants else None)

    def mean(self, model: Model, rows: Rows, likelihood: bool, times: Times | None = None) -> Tensor:
        logs, r = [], len(rows.tokens)
        for drawn, _, chance, t, uniforms in cases(rows, times or self.times):
            nats = self.call(model, drawn, t, uniforms)
            logs.append((chance.log() - nats if likelihood else chance * nats).view(-1, r))
        return -torch.cat(logs).logsumexp(0) if likelihood else torch.cat(logs).sum(0)

    def refuse_other_noise(self, model: Model, rows: Rows) -> None:
        """Raises BadData where nats depend on more of the noise than is gone through. Rows are few and short."""
        times = self.times
        mean = self.mean(model, rows, False, times)
        if not torch.allclose(mean, self.mean(model, rows, False, replace(times, more_nodes=3)), atol=1e-6):
            raise BadData(f"{self.name} does with t what is no polynomial times 1/t, so that its mean cannot be taken exactly")
        if not torch.allclose(mean, self.mean(model, rows, False, replace(times, within=0.3)), atol=1e-6):
            raise BadData(
                f"{self.name} does more with its uniforms than to compare them with t and with each other, so that its noise "
                "cannot be gone through: compare them"
            )

    def call(self, model: Model, rows: Rows, t: Tensor | None = None, uniforms: Tensor | None = None) -> Tensor:
        offered = {
            "tokens": rows.tokens,
            "scored": rows.scored,
            "vocab": rows.vocab,
            "predict": model.predict,
            "t": t,
            "uniform": uniforms,
        }
        found, r = self.function(**{name: offered[name] for name in self.wants}), len(rows.tokens)
        if not isinstance(found, Tensor) or found.shape != (r,) or not found.isfinite().all():
            got = f"{list(found.shape)} with {int((~found.isfinite()).sum())} not finite" if isinstance(found, Tensor) else found
            raise BadData(f"{self.name} returned {got}: expected a tensor of finite total nats, one for each of the {r} rows")
        return found.double()


def find_rule(named: str) -> Rule:
    """`module:function`, looked for from the current folder.  Raises MissingInput, Mismatch."""
    module, _, name = named.partition(":")
    sys.path.insert(0, "")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise MissingInput(f"{named}: {error}; give module:function of a module that Python finds from this folder") from None
    finally:
        sys.path.remove("")
    return rule(function, named)


def rule(function: Callable[..., Tensor], named: str | None = None) -> Rule:
    """A function as a rule. Raises Mismatch for parameters or attributes that mean nothing."""
    name = named or str(getattr(function, "__name__", "the rule"))
    wants = tuple(inspect.signature(function).parameters) if callable(function) else ()
    if not wants or set(wants) - set(GIVEN) or "predict" not in wants:
        raise Mismatch(f"{name} takes {', '.join(wants) or 'nothing'}: expected predict and any of {', '.join(GIVEN)}")
    given, average = tuple(getattr(function, "given", ())), getattr(function, "average", "nats")
    span = tuple(getattr(function, "levels", WHOLE))
    if set(given) - {"length"} or average not in ("nats", "likelihood") or not (len(span) == 2 and 0 <= span[0] < span[1] <= 1):
        raise Mismatch(
            f'{name} states given = {given}, average = {average!r}, levels = {span}: expected () or ("length",), '
            "nats or likelihood, and two numbers that rise between 0 and 1"
        )
    if "t" in wants and "uniform" not in wants:
        raise Mismatch(f"{name} takes t and no uniform: a level hides nothing without the uniforms that it is compared with")
    return Rule(name=name, function=function, wants=wants, given=given, span=span, likelihood=average == "likelihood")
