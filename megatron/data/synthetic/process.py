"""A stationary hidden Markov source: its entropy rate, and the exact NLL of any window of it.

Every source here is one: transitions[x, s, r] = P(emit x, go to state r | state s), and a law of the state where a window
begins. A Markov chain has its last symbols for a state. A mixture of sources, one drawn for each document, has the parts'
states side by side, and its documents end with a symbol of their own, so that the packed stream is stationary as well and
the forward algorithm is Bayes' rule over parts too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron.errors import BadData

LARGEST = 1 << 24  # numbers in a table: transitions, or the matrices of a suffix tree
TOLERANCE = 1e-4  # nats between the two bounds of an entropy rate


@dataclass(frozen=True, kw_only=True)
class Process:
    """transitions [symbols, states, states], start [states]; `spec` is what corpus.from_spec makes it from again."""

    spec: dict
    transitions: np.ndarray
    start: np.ndarray
    parts: tuple["Process", ...] = ()
    end_of_document: float = 0.0

    @property
    def num_symbols(self) -> int:
        return len(self.transitions)

    @property
    def emissions(self) -> np.ndarray:
        """P(symbol | state).  -> [states, symbols]"""
        return self.transitions.sum(-1).T

    @property
    def unifilar(self) -> bool:
        """Whether a state and the symbol it emits tell the next state."""
        return int((self.transitions > 0).sum(-1).max()) <= 1


# Making one


def hidden_markov(transitions: np.ndarray | Sequence, spec: dict | None = None) -> Process:
    """A source from its labelled transitions [symbols, states, states].  Raises BadData unless they are a law with one class."""
    t = np.array(transitions, np.float64, order="C")  # as from its spec: numpy adds up in the order of memory
    if t.ndim != 3 or t.shape[1] != t.shape[2] or not t.size or t.size > LARGEST:
        raise BadData(
            f"the source's transitions have the shape {list(t.shape)}, expected [symbols, states, states] "
            f"with at most {LARGEST} numbers"
        )
    sums = t.sum((0, 2))
    if not np.isfinite(t).all() or t.min() < 0 or abs(sums - 1).max() > 1e-9:
        raise BadData(
            f"the source's transitions are no law: the smallest is {t.min():g} and the states sum to "
            f"{sums.min():g}..{sums.max():g}, expected 0 or more, and 1 for every state"
        )
    said, t = spec or {"kind": "hmm", "transitions": t.tolist()}, t / sums[:, None]
    return Process(spec=said, transitions=t, start=stationary(t.sum(0)))


def stationary(chain: np.ndarray) -> np.ndarray:
    """The one law that a chain of states keeps.  [s, s] -> [s]  Raises BadData when there are several."""
    n = len(chain)
    equations = np.vstack([chain.T - np.eye(n), np.ones(n)])
    found, _, rank, _ = np.linalg.lstsq(equations, np.eye(n + 1)[n], rcond=1e-10)
    if rank < n:
        raise BadData(f"the source falls into {n - rank + 1} classes of states that never meet: give it as a mixture of them")
    return found.clip(0) / found.clip(0).sum()


def markov(conditionals: np.ndarray | Sequence, order: int = 1) -> Process:
    """A chain: row i of [symbols ** order, symbols] is the law after the context i, its last symbol the lowest digit."""
    law = np.asarray(conditionals, np.float64)
    if law.ndim != 2 or order < 1 or len(law) != law.shape[1] ** order:
        raise BadData(f"the chain's conditionals have the shape {list(law.shape)}, expected [symbols ** {order}, symbols]")
    num_states, m = law.shape
    check_size(m, num_states)
    t, here = np.zeros((m, num_states, num_states)), np.arange(num_states)
    for x in range(m):
        t[x, here, (here * m + x) % num_states] = law[:, x]
    return hidden_markov(t, {"kind": "markov", "order": order, "conditionals": law.tolist()})


def check_size(symbols: int, states: int) -> None:
    if symbols * states**2 > LARGEST:
        raise BadData(
            f"{symbols} symbols and {states} states need {symbols * states**2} transitions, at most {LARGEST}: "
            "lower --symbols, --order, --states or --components"
        )


def mixture(parts: Sequence[Process], weights: Sequence[float], document_length: float) -> Process:
    """Documents of `document_length` tokens in the mean, each of one part, each ended by a symbol behind all the parts' own.

    A document may end at any token with the same probability, so the stream has no memory of its length.  Raises BadData.
    """
    w = np.asarray(weights, np.float64)
    if not len(parts) or w.shape != (len(parts),) or not (w > 0).all() or abs(w.sum() - 1) > 1e-9 or not document_length > 1:
        raise BadData(
            f"a mixture of {len(parts)} parts has the weights {w.tolist()} and documents of {document_length:g} "
            "tokens, expected a positive weight a part, 1 in all, and more than 1 token"
        )
    inside = side_by_side(parts, w)
    end = 1 / document_length
    m, n, _ = inside.transitions.shape
    t = np.zeros((m + 1, n, n))
    t[:m] = inside.transitions * (1 - end)
    t[m] = end * inside.start
    spec = {"kind": "mixture", "weights": w.tolist(), "document_length": document_length, "parts": [p.spec for p in parts]}
    return Process(spec=spec, transitions=t, start=inside.start, parts=tuple(parts), end_of_document=end)


def side_by_side(parts: Sequence[Process], weights: np.ndarray) -> Process:
    """The mixture within a document: windows that lie in one, which no border ends.  It is not ergodic."""
    sizes = [len(p.start) for p in parts]
    edges = np.cumsum([0, *sizes])
    m = max(p.num_symbols for p in parts)
    check_size(m + 1, int(edges[-1]))
    t = np.zeros((m, edges[-1], edges[-1]))
    for p, at, end in zip(parts, edges, edges[1:]):
        t[: p.num_symbols, at:end, at:end] = p.transitions
    start = np.concatenate([w * p.start for w, p in zip(weights, parts)])
    return Process(spec={}, transitions=t, start=start / start.sum())


# What is known of one


def entropy(law: np.ndarray) -> float:
    """Of a law [n], in nats."""
    return float(surprise(np.asarray(law, np.float64)))


def surprise(mass: np.ndarray) -> np.ndarray:
    """p H(y / p) of masses y that sum to p: an entropy by its weight.  [..., n] -> [...]"""
    p = mass.sum(-1)
    return xlogx(p) - xlogx(mass).sum(-1)


def xlogx(y: np.ndarray) -> np.ndarray:
    return y * np.log(np.where(y > 0, y, 1.0))


def entropy_rate(source: Process, tolerance: float = TOLERANCE) -> tuple[float, float]:
    """Bounds in nats a token, alike when there is a closed form: unifilar sources have it (Shannon 1948).

    The bounds of a mixture are a document's cost of naming its part and first state apart.  Raises BadData when those of a
    hidden source do not come within `tolerance`.
    """
    if source.parts:
        return mixture_rate(source, tolerance)
    if source.unifilar:
        h = float(source.start @ surprise(source.emissions))
        return h, h
    return bounded_rate(source, tolerance)


def mixture_rate(source: Process, tolerance: float) -> tuple[float, float]:
    """A document of part k with n symbols costs n h_k at least (its part is told), and at most H(part, first state) more."""
    q, weights = source.end_of_document, source.spec["weights"]
    rates = np.array([entropy_rate(part, tolerance) for part in source.parts])  # [parts, 2]
    low, high = entropy(np.array([q, 1 - q])) + (1 - q) * (np.array(weights) @ rates)
    return float(low), float(high + q * entropy(source.start))


def bounded_rate(source: Process, tolerance: float) -> tuple[float, float]:
    """H(X | suffix, state before it) <= h <= H(X | suffix), for the suffixes that a tree of pasts ends in.

    Cover and Thomas, theorem 4.5.1, has all suffixes of one length; here those whose bounds differ most grow by a symbol.
    """
    t, pi, emissions, n = source.transitions, source.start, source.emissions, len(source.start)
    words = np.eye(n)[None]  # [leaves, s, s]
    while True:
        high = surprise(pi @ words @ emissions)  # [leaves]
        gap = (high - surprise(words @ emissions) @ pi).clip(0)
        width, bound = float(gap.sum()), float(high.sum())
        if width <= tolerance:
            return bound - width, bound
        grow = gap > tolerance / (2 * len(gap))
        if (len(gap) + len(t) * int(grow.sum())) * n * n > LARGEST:
            raise BadData(
                f"the entropy rate of this hidden Markov source is only known to lie in {bound - width:.6f}.."
                f"{bound:.6f} nats after {len(gap)} pasts, expected bounds within {tolerance:g}: "
                "it forgets its state too slowly; take fewer states, or sharper emissions"
            )
        longer = (t[None] @ words[grow][:, None]).reshape(-1, n, n)
        words = np.concatenate([words[~grow], longer[longer.any((1, 2))]])


def token_nll(source: Process, rows: np.ndarray) -> np.ndarray:
    """-log P(x_i | x_0 .. x_{i-1}) of windows that begin anywhere in the stream; inf for what cannot be.

    The forward algorithm.  int [b, n] -> float64 [b, n]  Raises BadData for an id that is no symbol.
    """
    rows = np.asarray(rows)
    if rows.size and (rows.min() < 0 or rows.max() >= source.num_symbols):
        wrong = rows[(rows < 0) | (rows >= source.num_symbols)][0]
        raise BadData(
            f"a window holds id {wrong}, expected a symbol of the source, 0 to {source.num_symbols - 1}; "
            "the oracle belongs to another corpus"
        )
    found, belief = np.empty(rows.shape), np.broadcast_to(source.start, (len(rows), len(source.start)))
    for i, column in enumerate(rows.T):
        after = np.empty(belief.shape)
        for x in np.unique(column):
            here = column == x
            after[here] = belief[here] @ source.transitions[x]
        p = after.sum(1)  # [b]
        found[:, i] = -np.log(p, where=p > 0, out=np.full(len(p), -math.inf))
        belief = after / np.where(p > 0, p, 1.0)[:, None]
    return found
