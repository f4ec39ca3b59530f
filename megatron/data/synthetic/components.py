"""Several kinds of text, each of known entropy, as papers by category: what a model loses by having to tell them apart.

Each category is a random Markov chain of its own over the same symbols: only what has been read says which one a window is of.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatron.data.synthetic.corpus import stream
from megatron.data.synthetic.presets import Shape, random_chain
from megatron.data.synthetic.process import entropy_rate
from megatron.data.token_file import write_paper_folder

HELD_OUT = 10  # one paper in so many validates, the next one tests


def write_components(folder: str | Path, shape: Shape, tokens: int, paper_length: int) -> dict[str, float]:
    """`shape.components` categories of `tokens` each, cut into papers. -> nats a token by category. Raises CannotWrite."""
    chains = {f"chain-{number}": random_chain(shape, number) for number in range(shape.components)}

    def papers() -> Iterator[tuple[str, str, str, np.ndarray]]:
        for number, (name, chain) in enumerate(chains.items()):
            ids = np.concatenate(list(stream(chain, shape.seed + number, tokens)))
            for place, start in enumerate(range(0, tokens - paper_length + 1, paper_length)):
                split = {0: "valid", 1: "test"}.get(place % HELD_OUT, "train")
                yield split, f"{name}_{place}", name, ids[start : start + paper_length]

    write_paper_folder(folder, papers(), shape.symbols)
    return {name: entropy_rate(chain)[0] for name, chain in chains.items()}
