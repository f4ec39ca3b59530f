"""Learning from a teacher besides the text. b rows, s positions, n asked positions, v ids that can be predicted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from megatron.batch import Batch, Clean, Noise
from megatron.core.slots import Slots
from megatron.objectives import Objective

if TYPE_CHECKING:
    from megatron import config


class Teacher(Protocol):
    """What is asked of it: megatron.engine.members.Members, or a table in a test."""

    def logits(self, batches: list[Batch]) -> list[Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Distilled(Objective):
    """(1 - alpha) cross-entropy + alpha tau^2 KL(teacher || student), both at temperature tau, of what `text` poses.

    Hinton et al., arXiv:1503.02531: tau^2 keeps the gradient of the second part as large at any temperature. The teacher reads
    the very input that the student reads, masks included, and answers at the asked positions, which weigh as they do in the
    text's own loss. Several teachers are one, the mean of their probabilities. Validation poses the text's reference.
    """

    text: Objective
    teacher: Teacher
    weight: float  # alpha
    temperature: float
    causal: bool
    exact: bool
    uses_mask: bool
    parts: tuple[str, ...] = ("loss_of_text",)

    @classmethod
    def around(cls, text: Objective, teacher: Teacher, weight: float, temperature: float) -> Distilled:
        return cls(
            text=text,
            teacher=teacher,
            weight=weight,
            temperature=temperature,
            causal=text.causal,
            exact=text.exact,
            uses_mask=text.uses_mask,
        )

    @classmethod
    def build(cls, cfg: config.Config, mask_id: int) -> Distilled:
        raise TypeError("Distilled is built around a problem of text: use around()")

    def reference(self) -> Objective:
        return self.text.reference()

    def slots(self, model: config.Model) -> Slots:
        return self.text.slots(model)

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        return self.text.pose(clean, noise, progress)

    def finished(self, batch: Batch) -> Batch:
        batch = self.text.finished(batch)
        if not self.weight:
            return batch
        (logits,) = self.teacher.logits([batch])
        taught = (logits / self.temperature).softmax(-1).float()
        return replace(batch, taught=taught, teaching=torch.tensor([self.weight, self.temperature]))

    def split(self, batch: Batch, nll: Tensor) -> Tensor:
        """The text's own loss, over an interval a mean of positions; the whole is 1 - alpha of it and the teacher's part."""
        weights = batch.weights.flatten()[batch.asked].double().cpu()
        return torch.stack([(weights * nll.double()).sum(), batch.scored.sum().double().cpu()])[None]

    def measure(self, batch: Batch) -> dict[str, float]:
        return self.text.measure(batch)

    def levels(self, noise: Noise) -> Tensor | None:
        return self.text.levels(noise)
