"""Borders of documents within packed rows, by the ids in a row alone: Megatron's three flags, for every objective.

An eod closes its own document (Megatron-LM, `get_ltor_masks_and_position_ids`). b rows, s positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from megatron.batch import Batch, Clean


@dataclass(frozen=True, kw_only=True)
class Borders:
    """What an end of a document does to a posed problem; nothing by default."""

    eod: int = -1
    attention: bool = False  # nothing is seen across it
    positions: bool = False  # the position behind it is 0
    loss: bool = False  # what is asked where it is read (ar), or of it (mdm), is not scored and it is never hidden

    def apply(self, batch: Batch, clean: Clean) -> Batch:
        """The problem that `clean` was posed as, within documents."""
        if not (self.attention or self.positions or self.loss):
            return batch
        import torch  # the tools of data read samples without it

        from megatron.batch import asked_positions

        ids = clean.tokens[:, : batch.inputs.shape[1]]
        ends = ids == self.eod
        if self.loss:
            weights = batch.weights.masked_fill(ends, 0.0)
            batch = replace(
                batch,
                inputs=torch.where(ends, ids, batch.inputs),
                weights=weights,
                scored=batch.scored & ~ends,
                asked=asked_positions(weights),
            )
        if self.attention:
            batch = replace(batch, segments=ends.cumsum(1) - ends.long())
        return replace(batch, positions=batch.positions - starts(ends)) if self.positions else batch

    def event(self, scored: str, given: str, causal: bool) -> tuple[str, str]:
        """What a validation scores and is given. Left to right a border is seen when it has been scored, and given to nobody."""
        if self.loss:
            what = "the first token" if causal else "the end"
            return f"{scored} but {what} of each document", f"{given} and {what} of each document"
        return scored, given if causal or not (self.attention or self.positions) else f"{given} and document borders"


def starts(ends: Tensor) -> Tensor:
    """The place at which each position's document begins in its row.  bool [b, s] -> int64 [b, s]"""
    import torch

    place = torch.arange(ends.shape[1]).expand(ends.shape)
    behind = torch.where(ends, place + 1, 0).cummax(1).values
    return torch.cat((torch.zeros_like(behind[:, :1]), behind[:, :-1]), 1)
