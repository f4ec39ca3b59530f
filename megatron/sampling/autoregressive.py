"""Next-token models. b rows, s places."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron.sampling.draws import How, Rows, close, drawn
from megatron.sampling.reading import Model, NextToken


def autoregressive(model: Model, rows: Rows, how: How) -> Tensor:
    """Fill the open places from left to right; rows may have prompts of different lengths, and end when they draw the end.

    An open place reads what it holds only in places behind all that are asked, which a causal model does not see.  -> [b, s]
    """
    ids, still, read = rows.ids.clone(), rows.open.clone(), NextToken(model, len(rows.ids), rows.ids.shape[1], rows.latent)
    while still.any():
        active = still.any(1).nonzero()[:, 0]
        place = still[active].to(torch.uint8).argmax(1)  # the first open one
        logits = read.logits(ids, active, place)
        where = torch.stack((active, place), 1)
        found = drawn(logits, where, rows, how)
        ids[active, place], still[active, place] = found, False
        close(ids, still, where, found, rows, how)
        if how.stops is not None:
            for row, end in where.tolist():
                if how.stops(ids[row, : end + 1][rows.open[row, : end + 1]].tolist()):
                    still[row] = False
    return ids
