"""An objective is a function from clean tokens to a weighted prediction problem; model and loss never learn which one."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from megatron.batch import Batch, Clean, Noise
from megatron.catalogue import OBJECTIVES
from megatron.core.slots import Slots

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megatron import config
    from megatron.data.samples import Samples

REFERENCE_STRATA = 16  # validation rows that share one stratification of t; blocks give the noise error


class Objective(Protocol):
    """Everything that is an objective's own. Derive from it: what is not abstract has the answer of a plain objective.

    b rows, s positions, n asked positions. Whatever is drawn comes from `noise`, and so belongs to the sample.
    """

    causal: bool  # which attention the model is built with
    exact: bool  # the loss is an exact NLL, not a bound
    uses_mask: bool  # the mask row of the embedding table is an input
    likelihood: bool = True  # what is not exact is a bound; else the loss says nothing of an NLL
    groups: tuple[str, ...] = ()  # records of training that `count_hits` makes, the same whatever a batch holds
    parts: tuple[str, ...] = ()  # names of the losses that `split` tells apart
    scores: str = ""  # what is scored in each row, in words for the records, where it is not tokens
    unit: str = "nats per token"  # of the loss
    given: str = ""  # what each row's likelihood is conditional on, besides tokens, in words for the records

    @abstractmethod
    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch:
        """What the model reads, what it must predict, and how much each prediction counts; `progress` in [0, 1).

        With `draws` in the batch, `refine` finishes the problem before the first forward pass.
        """

    def finished(self, batch: Batch) -> Batch:
        """What `pose` made, once the dataset has said who sees whom, with whatever is to be added then. It draws nothing."""
        return batch

    @abstractmethod
    def reference(self) -> Objective:
        """The plain problem that validation poses whatever training does: an exact NLL, or a bound on it. Its own reference."""

    @classmethod
    @abstractmethod
    def build(cls, cfg: config.Config, mask_id: int) -> Objective:
        """What the flags ask for."""

    def studied(self, data: Samples) -> Objective:
        """The same once it has looked at the training data, which it does before the first step, alike on every rank."""
        return self

    def slots(self, model: config.Model) -> Slots:
        """What the network has besides the plain transformer; made anew for each stage."""
        return Slots()

    def companion(self, model: config.Model) -> nn.Module | None:
        """A small network of the objective's own that learns beside the model (engine/learner.py), with `specs()`."""
        return None

    def refine(self, batch: Batch, companion: nn.Module) -> Batch:
        """Finish a batch that has draws, without a gradient. It may change all but `scored`, the denominator."""
        raise TypeError(f"{type(self).__name__} poses batches with draws and has no refine(): write it, or leave draws out")

    def auxiliary(self, batch: Batch, companion: nn.Module, nll: Tensor) -> Tensor | None:
        """The companion's loss on one micro-batch, as a SUM over positions: it is divided by the same total as the model's.

        nll [n] of the asked positions, without a gradient -> [], or None where this micro-batch says nothing
        """
        raise TypeError(f"{type(self).__name__} has a companion and no auxiliary(): write what it learns from")

    def split(self, batch: Batch, nll: Tensor) -> Tensor:
        """The losses of `parts` in one micro-batch, each as a sum and what it is a mean over: float64 [parts, 2] on the CPU.

        nll [n] of the asked positions
        """
        raise TypeError(f"{type(self).__name__} names parts and has no split(): write it, or leave them out")

    def besides(self) -> dict[str, Objective]:
        """What validation measures besides the reference: {name of the record: what is posed}."""
        return {}

    def measure(self, batch: Batch) -> dict[str, float]:
        """What training logs besides, as sums over the scored positions of one micro-batch: {name of the record: sum}.

        Of a name that ends in _min or _max it is the least or the largest.
        """
        return {}

    def count_hits(self, batch: Batch, hit: Tensor) -> Tensor:
        """How many of a micro-batch's positions each of `groups` asks, and how many of those were right.

        hit [n] of the asked positions, a tie as its share -> float64 [groups, 2]: right, asked
        """
        raise TypeError(f"{type(self).__name__} names groups and has no count_hits(): write it, or leave them out")

    def levels(self, noise: Noise) -> Tensor | None:
        """The noise level in (0, 1] of each row that `pose` would draw, where records are cut by it.  -> [b]"""
        return None


def build(cfg: config.Config, mask_id: int) -> Objective:
    """The training objective that the flags ask for. Raises TypeError for one that is not whole."""
    known = OBJECTIVES[cfg.objective.objective]
    module, _, name = known.built_by.partition(":")
    found = getattr(import_module(module), name).build(cfg, mask_id)
    if cfg.model.latent_size and not known.vectors:
        from megatron.objectives.vectors import TextGivenVector

        found = TextGivenVector.around(found, cfg)
    plain = checked(found).reference()
    if (found.causal, plain.exact, plain.likelihood) != (known.causal, known.exact, known.likelihood):
        raise TypeError(f"{known.built_by} is not what megatron/catalogue.py says of it: causal, exact, likelihood must be alike")
    return found


def kind_of_loss(objective: Objective) -> str:
    """What the loss of a reference is, as records say it: exact, bound, or denoising where it says nothing of an NLL."""
    return "exact" if objective.exact else "bound" if objective.likelihood else "denoising"


def named(kind: type) -> str:
    try:
        return f"{kind.__name__} ({inspect.getsourcefile(kind)})"
    except TypeError:  # defined in no file
        return kind.__name__


def checked(objective: Objective) -> Objective:
    """The objective, if nothing of it is missing. Raises TypeError saying what to write, and where."""
    where = named(type(objective))
    for name in ("causal", "exact", "uses_mask", "pose", "reference", "slots", "companion", "measure"):
        if not hasattr(objective, name):
            raise TypeError(f"the objective {where} has no {name}: derive it from megatron.objectives.Objective and write it")
    plain = objective.reference()
    if plain is None or not hasattr(plain, "pose"):
        raise TypeError(f"reference() of the objective {where} gives {plain!r}: it must give the objective that validation poses")
    if plain.causal != objective.causal:
        raise TypeError(
            f"the objective {where} is {'' if objective.causal else 'not '}causal and its reference is not alike: "
            "one model cannot be scored under the other's attention"
        )
    return objective
