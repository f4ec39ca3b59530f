"""Next-token models. b rows, s places."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from megatron.batch import reading
from megatron.sampling.draws import How, Model, Rows, close, drawn


def autoregressive(model: Model, rows: Rows, how: How) -> Tensor:
    """Fill the open places from left to right; rows may have prompts of different lengths, and end when they draw the end.

    An open place reads what it holds only in places behind all that are asked, which a causal model does not see.  -> [b, s]
    """
    ids, still = rows.ids.clone(), rows.open.clone()
    while still.any():
        active = still.any(1).nonzero()[:, 0]
        place = still[active].to(torch.uint8).argmax(1)  # the first open one
        width = int(place.max())
        batch = replace(
            reading(ids[active, :width]),
            index=torch.tensor(rows.numbers)[active],
            asked=torch.arange(len(active)) * width + place - 1,
        )
        (logits,) = model.logits([batch])
        where = torch.stack((active, place), 1)
        found = drawn(logits, where, rows, how)
        ids[active, place], still[active, place] = found, False
        close(ids, still, where, found, rows, how)
        if how.stops is not None:
            for row, end in where.tolist():
                if how.stops(ids[row, : end + 1][rows.open[row, : end + 1]].tolist()):
                    still[row] = False
    return ids
