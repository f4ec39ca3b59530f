"""Uniform-state diffusion and its mixture with the mask: each step draws every open place again.

b rows, s places, n open ones, V ids.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.batch import reading
from megatron.sampling.draws import How, Rows, chosen_together, close, cut, likeliest
from megatron.sampling.reading import Model


def ancestral(model: Model, rows: Rows, how: How) -> Tensor:
    """From nothing but noise to text in equal steps of m, by the posterior of each place given what it holds.  -> [b, s]

    Given no steps, as many as there are places. The last step draws the token of every place; a row ends at its first end.
    """
    steps, where = how.steps or int(rows.open.sum(1).max()), rows.open.nonzero()
    noise = noise_law(rows)
    found = chosen_together(noise.expand(len(where), -1), rows, 0)
    for number in range(steps):
        kept, kept_then = (1 - (steps - number - later) / steps for later in (0, 1))
        ids = rows.ids.masked_scatter(rows.open, found)
        p = posterior(found, tokens_law(logits(model, rows, ids, 1 - kept), rows, how), noise, kept, kept_then)
        found = chosen_together(p, rows, number + 1)
    ids = rows.ids.masked_scatter(rows.open, found)
    close(ids, torch.zeros_like(rows.open), where, found, rows, how)
    return ids


def noise_law(rows: Rows) -> Tensor:
    """Of what replaces a token: each id alike, and behind them the mask.  -> float64 [V + 1]"""
    law = torch.full((rows.vocab_size + 1,), rows.uniform_share / rows.vocab_size, dtype=torch.float64)
    law[-1] = 1 - rows.uniform_share
    return law


def posterior(z: Tensor, p: Tensor, noise: Tensor, kept: float, kept_then: float) -> Tensor:
    """What a place holds one step earlier in the noise, up to a factor: its law there times the chance that it becomes z.

    By Bayes' rule (Austin et al., arXiv:2107.03006, eq. 3) with a = kept: (a_then p + (1 - a_then) noise) times
    (a / a_then [y = z] + (1 - a / a_then) noise_z).
    z [n], p [n, V], noise [V + 1] -> [n, V + 1]
    """
    still = kept / kept_then
    becomes = still * F.one_hot(z, len(noise)) + ((1 - still) * noise[z])[:, None]
    return (kept_then * F.pad(p, (0, 1)) + (1 - kept_then) * noise) * becomes


def tokens_law(logits: Tensor, rows: Rows, how: How) -> Tensor:
    """What the network says of each token after temperature and cuts.  [n, v] -> float64 [n, V]"""
    log_p = logits[:, : rows.vocab_size].double().cpu().log_softmax(-1)
    if how.temperature == 0:
        return F.one_hot(likeliest(log_p), rows.vocab_size).double()
    return cut(log_p, how).exp()


def logits(model: Model, rows: Rows, ids: Tensor, level: float) -> Tensor:
    """Of the open places; a network that is told is told m, or of the mask alone counts how many are hidden."""
    batch = replace(reading(ids), asked=rows.open.flatten().nonzero()[:, 0])
    if rows.uniform_share:
        batch = replace(batch, level=torch.full((len(ids),), level))
    return model.logits([batch])[0]
