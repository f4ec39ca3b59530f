"""The rows whose likelihood is asked for, what of them is given, and what a model says of their hidden places.

b rows, s places, n asked places, v ids that can be predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from megatron.batch import Batch, Clean, asked_positions
from megatron.core.mesh import Mesh, all_reduce
from megatron.data.borders import Borders
from megatron.engine.scoring import TOKENS_A_PASS
from megatron.flags import ConfigError
from megatron.objectives.autoregressive import places
from megatron.objectives.masked import hidden_padding
from megatron.training.evaluate import Slice, cleans

LOGITS_A_PASS = 2**26  # numbers, half a GiB of float64


class Model(Protocol):
    """What an estimator asks: megatron.engine.Engine, or a table in a test."""

    mesh: Mesh

    def logits(self, batches: list[Batch]) -> list[Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows, their scored tokens, and how many places of one may be hidden: the same number wherever a part of them is read."""

    clean: Clean
    steps: int  # most places of a row that an order reveals: the scored tokens, and padding behind an end
    borders: Borders = field(default_factory=Borders)
    block: Tensor | None = None  # bool [b, s]: what is scored now; places left of it are given, those right of it stay hidden

    @property
    def tokens(self) -> Tensor:
        """What a masked model reads when nothing is hidden.  -> [b, s]"""
        return self.clean.tokens[:, :-1]

    @property
    def scored(self) -> Tensor:
        """-> bool [b, s]"""
        return self.clean.scored[:, :-1] & ~self.shown

    @property
    def shown(self) -> Tensor:
        """Ends of documents that --eod-mask-loss gives away.  -> bool [b, s]"""
        return (self.tokens == self.borders.eod) & self.borders.loss

    @property
    def fillable(self) -> Tensor:
        """The scored tokens and what follows from them; what comes before is given.  -> bool [b, s]"""
        return (self.scored | self.scored.flip(1).cumsum(1).flip(1).eq(0)) & ~self.shown

    @property
    def open(self) -> Tensor:
        """What an order reveals.  -> bool [b, s]"""
        return self.fillable if self.block is None else self.fillable & self.block

    @property
    def later(self) -> Tensor:
        """What stays hidden throughout.  -> bool [b, s]"""
        return self.fillable & ~self.open & (self.open.cumsum(1) > 0)

    def take(self, numbers: Tensor) -> Rows:
        c = self.clean
        return replace(
            self,
            clean=Clean(tokens=c.tokens[numbers], scored=c.scored[numbers], index=c.index[numbers]),
            block=None if self.block is None else self.block[numbers],
        )

    def hidden(self, unrevealed: Tensor) -> Tensor:
        """What is hidden: padding that something visible tells already is shown.  bool [b, s] -> bool [b, s]"""
        whole = (unrevealed | self.later) & self.fillable
        return (whole & self.scored) | (hidden_padding(whole, self.scored) & self.fillable)

    def in_blocks(self, size: int) -> tuple[Rows, Tensor]:
        """A row for each block of so many places, and the row here that each belongs to: these rows are its blocks' sum.

        -> rows [c], int64 [c]
        """
        number = (self.open.cumsum(1) - 1) // size  # [b, s]
        parts = [(row, number[row] == n) for row in range(len(self.open)) for n in range(int(number[row].max()) + 1)]
        owner, chosen = torch.tensor([row for row, _ in parts]), torch.stack([places for _, places in parts])
        whole = self.take(owner)
        return replace(whole, steps=min(size, self.steps), block=whole.open & chosen), owner


def read_rows(data: Slice, causal: bool, last: int | None = None) -> Rows:
    """The rows of a slice as validation scores them; with `last` so many tokens of each, given the rest. Raises ConfigError."""
    parts = cleans(data, 0)
    tokens, scored, index = (torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "scored", "index"))
    scored[:, 0 if causal else -1] = False  # with the first token scored, each objective leaves out one end of a row
    if last is not None:
        if last > (most := int(scored.sum(1).max())):
            raise ConfigError([f"--last {last}: no row has more than {most} scored tokens; give {most} or fewer"])
        scored &= scored.flip(1).cumsum(1).flip(1) <= last
    found = Rows(clean=Clean(tokens=tokens, scored=scored, index=index), steps=0, borders=data.dataset.borders)
    return replace(found, steps=int(found.open.sum(1).max()))


def log_probabilities(model: Model, rows: Rows, hidden: Tensor, asked: Tensor, mask_id: int) -> Tensor:
    """Of every id at the asked places, in the order of `asked.nonzero()`.  bool [b, s], bool [b, s] -> float64 [n, v]"""
    batch = Batch(
        inputs=rows.tokens.masked_fill(hidden, mask_id),
        targets=rows.tokens,
        weights=asked.float(),
        scored=rows.scored,
        positions=places(hidden),
        index=rows.clean.index,
        asked=asked_positions(asked),
    )
    batch = rows.borders.apply(batch, rows.clean)
    (logits,) = model.logits([batch])
    return logits.cpu().double().log_softmax(-1)


def of_targets(log_p: Tensor, rows: Rows, asked: Tensor) -> Tensor:
    """Log-probability of the row's own token at the asked places, 0 elsewhere.  [n, v] -> float64 [b, s]"""
    found = torch.zeros(asked.shape, dtype=torch.float64)
    found[asked] = log_p.gather(1, rows.tokens[asked][:, None])[:, 0]
    return found


def over_rows(mesh: Mesh, rows: Rows, vocab_size: int, of: Callable[[Rows], Tensor]) -> Tensor:
    """`of` each row, computed in passes that fit; replicas share the work, and every rank learns all.  -> float64 [rows, ...]"""
    num_rows, width = rows.tokens.shape
    fit = min(TOKENS_A_PASS // width, LOGITS_A_PASS // (rows.steps * vocab_size))
    size = max(1, min(fit, -(-num_rows // mesh.dp.size)))
    table, once = None, mesh.tp.rank == mesh.pp.rank == 0
    for start in range(0, num_rows, size * mesh.dp.size):
        numbers = start + mesh.dp.rank * size + torch.arange(size)
        # Replicas must read equally often: one without rows left reads the last one again, and does not count it.
        found, inside = of(rows.take(numbers.clamp(max=num_rows - 1))), numbers < num_rows
        if table is None:
            table = torch.zeros(num_rows, *found.shape[1:], dtype=torch.float64)
        if once:
            table[numbers[inside]] = found[inside]
    assert table is not None  # a slice has a row
    return all_reduce(table, mesh.control)
