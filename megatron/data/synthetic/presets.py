"""Sources by name: textbook ones, and random ones of a given shape that a seed makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from megatron.data.samples import hash64
from megatron.data.synthetic.process import Process, check_size, hidden_markov, markov, mixture

SOURCE = 0x50  # what these random numbers are for


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a preset may be told; each takes what concerns it."""

    symbols: int = 16
    order: int = 1
    states: int = 3
    components: int = 4
    document_length: float = 512.0
    sharpness: float = 2.0  # powers of exponential variates: 0 is the uniform law, 1 is Dirichlet(1), above is peaked
    zipf: float = 0.0  # symbol r of a random law weighs (r + 1) ** -zipf as much as it would
    seed: int = 1234


def uniforms(seed: int, purpose: int, *words: int | np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) with 53 bits, by address.  -> float64 [b]"""
    return (hash64(seed, purpose, *words) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_laws(rows: int, columns: int, shape: Shape, part: int) -> np.ndarray:
    """A random law in each row.  -> [rows, columns]"""
    u = uniforms(shape.seed, SOURCE, part, np.arange(rows * columns)).reshape(rows, columns)
    weights = (-np.log1p(-u) + 1e-12) ** shape.sharpness * np.arange(1.0, columns + 1) ** -shape.zipf
    return weights / weights.sum(1, keepdims=True)


def random_chain(shape: Shape, part: int = 0) -> Process:
    """A random law of the next symbol after every context."""
    check_size(shape.symbols, shape.symbols**shape.order)
    return markov(random_laws(shape.symbols**shape.order, shape.symbols, shape, part), shape.order)


def random_hidden(shape: Shape) -> Process:
    """States move by one random law and emit by another, each at its own time: a hidden Markov model as in textbooks."""
    check_size(shape.symbols, shape.states)
    moves, emits = random_laws(shape.states, shape.states, shape, 0), random_laws(shape.states, shape.symbols, shape, 1)
    return hidden_markov(emits.T[:, :, None] * moves)


def random_mixture(shape: Shape) -> Process:
    """Each document is of one of several random chains, and ends with a symbol of its own."""
    chains = [random_chain(shape, part) for part in range(shape.components)]
    return mixture(chains, [1 / shape.components] * shape.components, shape.document_length)


def coin(_: Shape) -> Process:
    """Heads in 3 of 10 throws."""
    return hidden_markov([[[0.7]], [[0.3]]])


def golden_mean(_: Shape) -> Process:
    """No two 1 in a row, else a fair coin: 2/3 ln 2."""
    return hidden_markov([[[0.5, 0.0], [1.0, 0.0]], [[0.0, 0.5], [0.0, 0.0]]])


def even(_: Shape) -> Process:
    """Runs of 1 have even length: 2/3 ln 2, and no finite context tells the state."""
    return hidden_markov([[[0.5, 0.0], [0.0, 0.0]], [[0.0, 0.5], [1.0, 0.0]]])


def simple_nonunifilar(_: Shape) -> Process:
    """Two states, fair moves, a 1 only from the second to the first: no finite number of pasts tells all (Crutchfield 1994)."""
    return hidden_markov([[[0.5, 0.5], [0.0, 0.5]], [[0.0, 0.0], [0.5, 0.0]]])


def noisy_golden_mean(shape: Shape) -> Process:
    """The golden mean, each symbol flipped once in 10 times: a hidden source without a closed form."""
    clean = golden_mean(shape).transitions
    return hidden_markov(0.9 * clean + 0.1 * clean[::-1])


PRESETS: dict[str, Callable[[Shape], Process]] = {
    "coin": coin,
    "golden-mean": golden_mean,
    "even": even,
    "simple-nonunifilar": simple_nonunifilar,
    "noisy-golden-mean": noisy_golden_mean,
    "markov": random_chain,
    "hidden": random_hidden,
    "mixture": random_mixture,
}


def build(name: str, shape: Shape | None = None, **over) -> Process:
    """The preset of that name.  Raises KeyError, or BadData for a shape that is too large."""
    return PRESETS[name](replace(shape or Shape(), **over))
