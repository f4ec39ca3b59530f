"""Passes without a gradient that replicas take in turn, so that every rank learns all rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
import torch

from megatron.batch import Batch, RowScores
from megatron.core.head import pieces
from megatron.core.mesh import all_reduce
from megatron.engine import Engine

TOKENS_A_PASS = 16384
PASSES_AT_ONCE = 16  # through a pipeline, whose stages work on different ones


def score_in_turn(
    engine: Engine, sizes: Sequence[int], pose: Callable[[int], Batch], show: Callable[[int], None] | None = None
) -> RowScores:
    """Scores of all rows, pass after pass; pass i has sizes[i] rows, and only the replica that takes it poses it.

    `show` hears how many rows are done.
    """
    starts, mesh = np.cumsum([0, *sizes]), engine.mesh
    table = np.zeros((len(fields(RowScores)), starts[-1]))  # [fields, rows]
    num_turns = -(-len(sizes) // mesh.dp.size)
    for turns in pieces(num_turns, PASSES_AT_ONCE if mesh.pp.size > 1 else 1):
        mine = [turn * mesh.dp.size + mesh.dp.rank for turn in range(turns.start, turns.stop)]
        # All replicas must take part: one without a pass left scores the last one again, and does not count it.
        posed = [pose(min(i, len(sizes) - 1)) for i in mine]
        for i, part in zip(mine, engine.score(posed)):
            if i < len(sizes) and mesh.tp.rank == 0:
                table[:, starts[i] : starts[i + 1]] = [getattr(part, f.name) for f in fields(RowScores)]
        if show:
            show(int(starts[min(mine[-1] + 1, len(sizes))]))
    all_reduce(torch.from_numpy(table), mesh.control)
    return RowScores(**{f.name: rows for f, rows in zip(fields(RowScores), table)})
