"""Whether a converted model says what the original says: logits and NLL of the same ids. n positions, v ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron.batch import reading
from megatron.config import Model
from megatron.core.transformer import GPT
from megatron.errors import Mismatch

LIMIT = 1e-4  # of a logit, and of the mean NLL in nats
ROWS, PLACES = 2, 64


@dataclass(frozen=True, kw_only=True)
class Agreement:
    logits: float  # largest difference
    nll: float  # difference of the means, nats a token


def our_model(tensors: dict[str, Tensor], model: Model, causal: bool) -> Callable[[Tensor], Tensor]:
    """Weights as a function from ids [b, s] to logits [b, s, v], in float64."""
    gpt = GPT(model, causal, seed=0, dtype=torch.float64, fresh=False).eval()
    gpt.load_state_dict(tensors)

    @torch.no_grad()
    def logits(ids: Tensor) -> Tensor:
        found = gpt(replace(reading(ids), asked=torch.arange(ids.numel())), loss=False)
        assert isinstance(found, Tensor)
        return found.unflatten(0, ids.shape)

    return logits


def their_model(model: Any) -> Callable[[Tensor], Tensor]:
    return torch.no_grad()(lambda ids: model(input_ids=ids).logits)


def questions(model: Model, mask: int | None) -> Tensor:
    """Ids to compare on, the same each time; where there is a mask, half of them are it.  -> [b, s]"""
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, model.vocab_size, (ROWS, min(PLACES, model.seq_length))))
    return ids if mask is None else ids.masked_fill(torch.from_numpy(rng.random(ids.shape) < 0.5), mask)


def compare(what: Path, ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], ids: Tensor) -> Agreement:
    """Raises Mismatch where a logit or the NLL differs by more than LIMIT."""
    a = ours(ids)
    b = theirs(ids)[..., : a.shape[-1]].double()
    targets = targets_of(ids, a.shape[-1])[..., None]
    nll = [-float(x.log_softmax(-1).gather(2, targets).mean()) for x in (a, b)]
    found = Agreement(logits=float((a - b).abs().max()), nll=abs(nll[0] - nll[1]))
    if not (found.logits <= LIMIT and found.nll <= LIMIT):
        raise Mismatch(
            f"{what}: logits differ by {found.logits:.3g} and the NLL by {found.nll:.3g} nats between the two forms, expected at "
            f"most {LIMIT:g}: nothing was written"
        )
    return found


def targets_of(ids: Tensor, columns: int) -> Tensor:
    """An id for each place to ask the probability of: the next one of its row, below `columns`."""
    return ids.roll(-1, 1) % columns


def check_vector(ours: Callable[[Tensor], Tensor], ids: Tensor) -> dict:
    """What check.json holds."""
    log_p = ours(ids).log_softmax(-1)
    targets = targets_of(ids, log_p.shape[-1])
    found = log_p.gather(2, targets[..., None])[..., 0]
    return {"ids": ids.tolist(), "targets": targets.tolist(), "log_probabilities": found.tolist()}
