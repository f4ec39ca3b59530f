"""A source as an ordinary corpus, whose sidecar holds what the oracle is made from again.

The corpus is one endless stream, generated in blocks of BLOCK tokens whose random numbers are addressed by (seed, block,
place): its first N tokens are the same whatever comes behind them, so any range of it is a sample of the stationary source.
A mixture's documents end with its last symbol. Other sources have no documents, and the index cuts the stream into blocks.

What the oracle scores exactly is a contiguous window of the stream, begun anywhere. PackedDataset gives those, but for the
sample on the border of two epochs and one that runs over the end of its range to the beginning: `contiguous` tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatron.data.gpt_dataset import Circle, PackedDataset
from megatron.data.indexed import IndexedDataset, IndexedWriter, best_dtype
from megatron.data.synthetic.presets import uniforms
from megatron.data.synthetic.process import Process, entropy_rate, hidden_markov, markov, mixture
from megatron.errors import BadData, CannotWrite, MissingInput

BLOCK = 2048  # tokens
LANES = 1 << 20  # blocks times possible states that are walked side by side
STREAM, FIRST = 0x53, 0x46  # what a random number is for


# Generation


class Outcomes:
    """What may follow each state, as one sorted table: a uniform number finds the next symbol and state by bisection.

    A state's last symbol comes first: where that is an end of document, all states draw it from the same numbers.
    """

    def __init__(self, source: Process):
        symbol, state, after = np.nonzero(source.transitions)
        order, states = np.lexsort((after, -symbol, state)), np.arange(len(source.start))
        self.symbol, state, self.next = symbol[order], state[order], after[order]
        self.last = np.searchsorted(state, states, side="right") - 1
        ends = np.cumsum(source.transitions[self.symbol, state, self.next])
        self.table = ends - np.concatenate([[0.0], ends[self.last[:-1]]])[state] + state
        self.table[self.last] = states + 1

    def draw(self, state: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Where in the table the outcome is, of the shape of `state`."""
        return np.minimum(np.searchsorted(self.table, state + u, side="right"), self.last[state])


def last_states(outcomes: Outcomes, num_states: int, seed: int, blocks: np.ndarray) -> np.ndarray:
    """The state behind each block for every state before it.  [b] -> [b, states]

    Walks that meet go on as one, and most meet soon: they share their random numbers.
    """
    state = np.broadcast_to(np.arange(num_states), (len(blocks), num_states))
    for place in range(BLOCK):
        state = outcomes.next[outcomes.draw(state, uniforms(seed, STREAM, blocks, place)[:, None])]
        if state.shape[1] > 1 and place % 32 == 31 and (state == state[:, :1]).all():
            state = state[:, :1]
    return np.broadcast_to(state, (len(blocks), num_states))


def stream(source: Process, seed: int, num_tokens: int) -> Iterator[np.ndarray]:
    """The stream's first tokens, some blocks at a time.  -> int64 [n] each"""
    outcomes, num_states = Outcomes(source), len(source.start)
    first = np.searchsorted(source.start.cumsum(), uniforms(seed, FIRST, 0)[0], side="right").clip(max=num_states - 1)
    width = max(1, min(4096, LANES // num_states))
    for at in range(0, -(-num_tokens // BLOCK), width):
        blocks = np.arange(at, min(at + width, -(-num_tokens // BLOCK)))
        state = np.empty(len(blocks), np.int64)
        for i, ends in enumerate(last_states(outcomes, num_states, seed, blocks)):
            state[i], first = first, ends[first]
        ids = np.empty((len(blocks), BLOCK), np.int64)
        for place in range(BLOCK):
            drawn = outcomes.draw(state, uniforms(seed, STREAM, blocks, place))
            ids[:, place], state = outcomes.symbol[drawn], outcomes.next[drawn]
        yield ids.reshape(-1)[: num_tokens - at * BLOCK]


def write_corpus(prefix: str | Path, source: Process, num_tokens: int, seed: int) -> dict:
    """Write the corpus; what its sidecar holds of the source is returned.  Raises CannotWrite, BadData."""
    said = {
        "spec": source.spec,
        "seed": seed,
        "symbols": source.num_symbols,
        "entropy_rate": entropy_rate(source),
        "unit": "nats per token",
    }
    try:
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"{Path(prefix).parent} cannot be made: {error.strerror}; choose another --output") from error
    with IndexedWriter(prefix, best_dtype(source.num_symbols), extra={"entropy": said}) as writer:
        for ids, lengths in documents(source, stream(source, seed, num_tokens)):
            writer.add_documents(ids, lengths)
    return said


def documents(source: Process, parts: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The stream cut into documents: a mixture's behind its last symbol, others every BLOCK tokens.  -> ids [n], lengths [d]"""
    rest = np.empty(0, np.int64)
    for ids in parts:
        ids = np.concatenate([rest, ids])
        ends = np.flatnonzero(ids == source.num_symbols - 1) + 1 if source.parts else np.arange(BLOCK, len(ids) + 1, BLOCK)
        cut = ends[-1] if len(ends) else 0
        yield ids[:cut], np.diff(ends, prepend=0)
        rest = ids[cut:]
    if len(rest):
        yield rest, np.array([len(rest)])


# Back from files


def from_spec(spec: dict) -> Process:
    """The source that a JSON description names.  Raises BadData."""
    try:
        match spec["kind"]:
            case "hmm":
                return hidden_markov(spec["transitions"])
            case "markov":
                return markov(spec["conditionals"], spec["order"])
            case "mixture":
                return mixture([from_spec(part) for part in spec["parts"]], spec["weights"], spec["document_length"])
            case kind:
                raise BadData(f"a source of the kind {kind!r} is not known, expected hmm, markov or mixture")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadData(
            f"the source's description is not complete ({type(error).__name__}: {error}): expected "
            'kind "hmm" with transitions [symbols, states, states], "markov" with order and conditionals, '
            'or "mixture" with parts, weights and document_length'
        ) from None


def read_source(prefix: str) -> Process:
    """The source that a corpus was drawn from, by the word of its sidecar.  Raises MissingInput, BadData."""
    said = ((IndexedDataset(prefix).meta or {}).get("extra") or {}).get("entropy")
    if not said:
        raise MissingInput(
            f"{prefix}.meta.json names no source, so there is no oracle; "
            "make a corpus of known entropy with tools/make_entropy_corpus.py"
        )
    return from_spec(said["spec"])


def contiguous(data: PackedDataset, rows: np.ndarray) -> np.ndarray:
    """Which samples are one stretch of one corpus.  int64 [b] -> bool [b]  Raises BadData for another order than the circle's."""
    circles = [walk for walk in data.walks if isinstance(walk, Circle)]
    if len(circles) < len(data.walks):
        raise BadData(
            "in Megatron's order a sample joins documents from anywhere, and no oracle knows their law; "
            "leave out --epoch-order reference"
        )
    found = np.zeros(len(rows), bool)
    dataset_ids, positions = data.blend.locate(rows)
    for d, walk in enumerate(circles):
        here = dataset_ids == d
        entries, stays, _ = walk.place(positions[here])
        found[here] = (stays == data.seq_length + 1) & (entries + data.seq_length + 1 <= walk.num_tokens)
    return found
