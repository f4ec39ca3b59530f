"""Several networks that answer as one: the mean of what they predict, position by position. n asked positions, v ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megatron.batch import Batch
from megatron.core.mesh import Mesh


class Answers(Protocol):
    """What is asked of a member: megatron.engine.Engine, or a table in a test."""

    mesh: Mesh

    def logits(self, batches: list[Batch]) -> list[Tensor]: ...


@dataclass
class Members:
    """A network whose prediction at each place is the mean of its members' probabilities, of one and the same input.

    A left-to-right product of such means is a distribution over texts, and a mean of denoisers is a denoiser: whatever is true of
    a score of any network, a likelihood or a bound, is true of it.
    """

    of: Sequence[Answers]
    mesh: Mesh

    def logits(self, batches: list[Batch]) -> list[Tensor]:
        """Log-probabilities, which are logits of themselves.  -> [n, v] each, in the members' own precision"""
        total: list[Tensor] = []
        for member in self.of:
            own = [logits.log_softmax(-1) for logits in member.logits(batches)]
            total = [torch.logaddexp(a, b) for a, b in zip(total, own)] if total else own
        return [x - math.log(len(self.of)) for x in total]
