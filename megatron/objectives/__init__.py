"""An objective is a function from clean tokens to a weighted prediction problem; model and loss never learn which one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from megatron.batch import Batch, Clean, Noise
from megatron.objectives.autoregressive import NextToken
from megatron.objectives.masked import MaskedDiffusion

if TYPE_CHECKING:
    from megatron import config

REFERENCE_STRATA = 16  # validation rows that share one stratification of t; blocks give the noise error


class Objective(Protocol):
    causal: bool  # which attention the model is built with
    exact: bool  # the loss is an exact NLL, not a bound
    uses_mask: bool  # the mask row of the embedding table is an input

    def pose(self, clean: Clean, noise: Noise, progress: float) -> Batch: ...


def build(cfg: config.Objective, mask_id: int, global_batch_size: int) -> Objective:
    """The training objective."""
    match cfg.objective:
        case "ar":
            return NextToken()
        case "mdm":
            strata = global_batch_size if cfg.mdm_t_sampling == "stratified" else None
            return MaskedDiffusion(mask_id=mask_id, eps=cfg.mdm_eps, strata=strata)


def build_reference(cfg: config.Objective, mask_id: int) -> Objective:
    """The plain problem that validation poses whatever training does: the exact NLL, or the bound with eps 0."""
    if cfg.objective == "ar":
        return NextToken()
    return MaskedDiffusion(mask_id=mask_id, eps=0.0, count=True, strata=REFERENCE_STRATA)
