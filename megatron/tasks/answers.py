"""How likely a model finds continuations of contexts, whatever its objective.

exact   autoregressive: the log-likelihood, given the context
bound   masked diffusion: minus the NELBO, the context visible. k of the n places are hidden, k uniform on 1..n, weight n/k (Ou et
        al., arXiv:2406.03736); all sets of places where they are no more than the draws asked for
chain   masked diffusion: the chain rule from left to right, later places hidden

Answers of one question share their draws: the same share of hidden places, and of the places that both have the same ones.
s positions of a row, n places of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from megatron.batch import Batch, Purpose, asked_positions, stream
from megatron.engine import Engine
from megatron.engine.scoring import TOKENS_A_PASS, score_in_turn
from megatron.errors import BadData
from megatron.sampling.generate import Source

BLOCK = 8  # draws whose k are spread evenly; blocks are independent and give the error
FEWEST_BLOCKS = 4
MOST_ROUNDS = 32  # times the draws asked for, where a tolerance asks for more
ROWS_AT_ONCE = 1 << 15


@dataclass(frozen=True, kw_only=True)
class Answer:
    context: np.ndarray  # [c] int64 ids
    ids: np.ndarray  # [n] int64
    question: int  # names its draws


@dataclass(frozen=True, kw_only=True)
class Method:
    kind: str  # exact, bound or chain
    num_mc: int = 32  # draws of a bound
    eps: float = 0.0  # above 0: each place hidden by itself with p = (1 - eps) t + eps and weight 1/p, as the reference does
    tolerance: float | None = None  # draw on until no answer's standard error is larger, nats
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    log_p: np.ndarray  # [answers] float64, nats; minus a bound on the NLL where the kind is bound
    se: np.ndarray  # [answers] of the draws; 0 where there is no chance, nan where one block cannot tell
    greedy: np.ndarray  # [answers] bool: each id the likeliest, given what was visible; false for a bound
    passes: int  # forward passes of a row


@dataclass(frozen=True, kw_only=True)
class Row:
    inputs: np.ndarray  # [s] int64
    targets: np.ndarray  # [s] int64
    weights: np.ndarray  # [s] float32


def score_answers(
    engine: Engine, source: Source, answers: Sequence[Answer], method: Method, show: Callable[[str], None] = lambda said: None
) -> Likelihoods:
    """Raises BadData for an answer that the window does not hold. Every process of a layout calls it alike."""
    fitted = [fit(answer, source) for answer in answers]
    log_p, se, greedy = np.zeros(len(fitted)), np.zeros(len(fitted)), np.zeros(len(fitted), bool)
    drawn = [i for i, answer in enumerate(fitted) if method.kind == "bound" and not enumerable(answer, method)]
    plain = sorted(set(range(len(fitted))) - set(drawn))
    passes = 0
    for part in chunks(plain, lambda i: num_plain(fitted[i], method)):
        rows = [plain_rows(fitted[i], source, method) for i in part]
        loss, right = score_rows(engine, source, [row for some in rows for row in some])
        cuts = np.cumsum([len(some) for some in rows])[:-1]
        for i, nll, hits in zip(part, np.split(loss, cuts), np.split(right, cuts)):
            log_p[i], greedy[i] = -nll.sum(), method.kind != "bound" and hits.all()
        passes += len(loss)
        show(f"{part[-1] + 1} of {len(fitted)} answers")
    for part in by_question(fitted, drawn):
        found, spent = by_draws(engine, source, [fitted[i] for i in part], method)
        log_p[part], se[part] = found
        passes += spent
        show(f"{part[-1] + 1} of {len(fitted)} answers")
    return Likelihoods(log_p=log_p, se=se, greedy=greedy, passes=passes)


def fit(answer: Answer, source: Source) -> Answer:
    """With the end of its context, as much as the window holds."""
    room, n = source.window + (source.mask is None), len(answer.ids)
    if not 0 < n < room:
        what = "no token" if n == 0 else f"{n} tokens, and the window {source.window}"
        raise BadData(f"an answer of question {answer.question} has {what}: expected at least one, and room for a context")
    return Answer(context=answer.context[-(room - n) :], ids=answer.ids, question=answer.question)


def enumerable(answer: Answer, method: Method) -> bool:
    return method.eps == 0 and 2 ** len(answer.ids) - 1 <= method.num_mc


def chunks(numbers: Sequence[int], size: Callable[[int], int]) -> Iterator[list[int]]:
    """Runs of answers whose rows fit into memory together."""
    part: list[int] = []
    rows = 0
    for i in numbers:
        part, rows = [*part, i], rows + size(i)
        if rows >= ROWS_AT_ONCE:
            yield part
            part, rows = [], 0
    if part:
        yield part


def by_question(answers: Sequence[Answer], numbers: Sequence[int]) -> Iterator[list[int]]:
    """Answers of whole questions, some questions at a time."""
    part: list[int] = []
    for i in numbers:
        if len(part) >= 1024 and answers[i].question != answers[part[-1]].question:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


# Rows


def plain_rows(answer: Answer, source: Source, method: Method) -> list[Row]:
    """The rows of an answer whose score has no chance in it."""
    c, n = len(answer.context), len(answer.ids)
    if method.kind == "exact":
        tokens = np.concatenate((answer.context, answer.ids))
        weights = np.zeros(len(tokens) - 1, np.float32)
        weights[c - 1 :] = 1.0
        return [Row(inputs=tokens[:-1], targets=tokens[1:], weights=weights)]
    if method.kind == "chain":
        return [masked_row(answer, source, np.arange(n) >= j, np.arange(n) == j) for j in range(n)]
    return [masked_row(answer, source, places, weight * places) for places, weight in subsets(n)]


def num_plain(answer: Answer, method: Method) -> int:
    """How many rows these are."""
    n = len(answer.ids)
    return {"exact": 1, "chain": n}.get(method.kind, 2**n - 1)


def subsets(n: int) -> Iterator[tuple[np.ndarray, float]]:
    """Every set of hidden places and its weight: (1/n) (n/k) over the C(n, k) sets of that size."""
    for k in range(1, n + 1):
        for chosen in combinations(range(n), k):
            places = np.zeros(n, bool)
            places[list(chosen)] = True
            yield places, 1.0 / (k * math.comb(n, k))


def masked_row(answer: Answer, source: Source, hidden: np.ndarray, weights: np.ndarray) -> Row:
    """hidden bool [n], weights [n]"""
    c, tokens = len(answer.context), np.concatenate((answer.context, answer.ids))
    inputs, weighted = tokens.copy(), np.zeros(len(tokens), np.float32)
    inputs[c:][hidden], weighted[c:] = source.mask, weights
    return Row(inputs=inputs, targets=tokens, weights=weighted)


def draws(answer: Answer, source: Source, method: Method, block: int, size: int) -> list[Row]:
    """One block of draws, at the address (seed, question, block)."""
    n, rng = len(answer.ids), stream(method.seed, Purpose.ANSWER, answer.question, block)
    t = 1.0 - (rng.random() + np.arange(size) / size) % 1.0  # in (0, 1]
    uniform = rng.random((size, source.window), np.float32)[:, :n]
    if method.eps:
        p = ((1 - method.eps) * t + method.eps)[:, None]
        hidden, weight = uniform < p, 1 / p
    else:
        k = np.ceil(t * n)[:, None]
        hidden, weight = uniform.argsort(1, kind="stable").argsort(1) < k, n / k
    return [masked_row(answer, source, places, places * w) for places, w in zip(hidden, weight)]


def by_draws(engine: Engine, source: Source, answers: list[Answer], method: Method) -> tuple[np.ndarray, int]:
    """Minus the NELBO of each answer and its standard error, from independent blocks.  -> [2, answers], passes"""
    size = max(b for b in range(1, BLOCK + 1) if method.num_mc % b == 0 and (method.num_mc // b > 1 or method.num_mc == 1))
    each, passes = method.num_mc // size, 0
    means: list[list[float]] = [[] for _ in answers]
    active = list(range(len(answers)))
    for number in range(1 if method.tolerance is None else MOST_ROUNDS):
        rows = [
            row
            for i in active
            for block in range(number * each, (number + 1) * each)
            for row in draws(answers[i], source, method, block, size)
        ]
        loss, _ = score_rows(engine, source, rows)
        for i, found in zip(active, loss.reshape(len(active), each, size)):
            means[i] += list(found.mean(1))
        passes += len(rows)
        wide = {answers[i].question for i in active if not sure(means[i], method.tolerance)}
        active = [i for i in active if answers[i].question in wide]
        if not active:
            break
    return np.array([[-np.mean(some) for some in means], [error_of(some) for some in means]]), passes


def sure(means: list[float], tolerance: float | None) -> bool:
    """Whether the error is small enough; of fewer blocks it is too uncertain itself."""
    return tolerance is None or (len(means) >= FEWEST_BLOCKS and error_of(means) <= tolerance)


def error_of(means: list[float]) -> float:
    """Standard error of a mean of blocks; nan where there is one."""
    return float(np.std(means, ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan


# Passes


def score_rows(engine: Engine, source: Source, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Each row's weighted NLL, and whether every asked place was hit alone.  -> float64 [rows], bool [rows]

    Rows of a masked model are read with others of their length, those of a causal one filled up behind.
    """
    lengths = np.array([len(row.inputs) for row in rows])
    order = lengths.argsort(kind="stable")
    passes = list(alike(order, lengths, causal=source.mask is None))
    tp = engine.mesh.tp
    multiple = tp.size if tp.sequence else 1
    found = score_in_turn(
        engine, [len(some) for some in passes], lambda i: batch_of([rows[j] for j in passes[i]], source.mask, multiple)
    )
    loss, hit = np.empty(len(rows)), np.empty(len(rows), bool)
    where = np.concatenate(passes)
    loss[where], hit[where] = found.loss, found.hits == found.asked
    return loss, hit


def alike(order: Iterable[int], lengths: np.ndarray, causal: bool) -> Iterator[np.ndarray]:
    """Rows by rising length, as many as make a pass; of one length where the model looks behind."""
    part: list[int] = []
    for i in order:
        full = part and (len(part) + 1) * lengths[i] > TOKENS_A_PASS
        if part and (full or (not causal and lengths[i] != lengths[part[-1]])):
            yield np.array(part)
            part = []
        part.append(int(i))
    if part:
        yield np.array(part)


def batch_of(rows: Sequence[Row], mask: int | None, multiple: int = 1) -> Batch:
    """Rows side by side. What only fills up, so that `multiple` divides the length, is a segment of its own: nobody sees it."""
    longest = max(len(row.inputs) for row in rows)
    width = -(-longest // multiple) * multiple
    inputs, targets = (torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(2))
    weights, filler = torch.zeros(len(rows), width), torch.ones(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        n = len(row.inputs)
        inputs[i, :n], targets[i, :n] = torch.from_numpy(row.inputs), torch.from_numpy(row.targets)
        weights[i, :n], filler[i, :n] = torch.from_numpy(row.weights), 0
    padded = mask is not None and width > longest
    level = torch.tensor([float((row.inputs == mask).mean()) for row in rows]) if padded else None
    return Batch(
        inputs=inputs,
        targets=targets,
        weights=weights,
        scored=weights > 0,
        positions=torch.arange(width).expand(len(rows), width),
        index=torch.arange(len(rows)),
        asked=asked_positions(weights),
        segments=filler if padded else None,
        level=level,
    )
