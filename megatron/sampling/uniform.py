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

    Given no steps, as many as a row has places, so that rows are drawn alike alone and together. The last step draws the token of
    every place; a row ends at its first end.
    """
    noise, where, count = noise_law(rows), rows.open.nonzero(), rows.open.sum(1)
    steps = torch.full_like(count, how.steps) if how.steps else count.clamp(min=1)  # [b]
    found = chosen_together(noise.expand(len(where), -1), rows, 0)
    for number in range(int(steps.max())):
        kept, kept_then = (1 - (steps - number - later).clamp(min=0) / steps.double() for later in (0, 1))  # [b]
        ids, at = rows.ids.masked_scatter(rows.open, found), where[:, 0]
        p = posterior(found, tokens_law(logits(model, rows, ids, 1 - kept), rows, how), noise, kept[at], kept_then[at])
        found = chosen_together(p, rows, number + 1).where(number < steps[at], found)
    ids = rows.ids.masked_scatter(rows.open, found)
    close(ids, torch.zeros_like(rows.open), where, found, rows, how)
    return ids


def noise_law(rows: Rows) -> Tensor:
    """Of what replaces a token: each id alike, and behind them the mask.  -> float64 [V + 1]"""
    law = torch.full((rows.vocab_size + 1,), rows.uniform_share / rows.vocab_size, dtype=torch.float64)
    law[-1] = 1 - rows.uniform_share
    return law


def posterior(z: Tensor, p: Tensor, noise: Tensor, kept: Tensor, kept_then: Tensor) -> Tensor:
    """What a place holds one step earlier in the noise, up to a factor: its law there times the chance that it becomes z.

    By Bayes' rule (Austin et al., arXiv:2107.03006, eq. 3) with a = kept: (a_then p + (1 - a_then) noise) times
    (a / a_then [y = z] + (1 - a / a_then) noise_z).
    z [n], p [n, V], noise [V + 1], kept and kept_then [n] -> [n, V + 1]
    """
    still, then = ((kept / kept_then)[:, None], kept_then[:, None])
    stays = F.one_hot(z, len(noise))
    becomes = still * stays + (1 - still) * noise[z][:, None]
    found = (then * F.pad(p, (0, 1)) + (1 - then) * noise) * becomes
    return found.where(noise[z][:, None] > 0, stays.double())  # what no noise is stays, whatever a cut says of it


def tokens_law(logits: Tensor, rows: Rows, how: How) -> Tensor:
    """What the network says of each token after temperature and cuts.  [n, v] -> float64 [n, V]"""
    log_p = logits[:, : rows.vocab_size].double().cpu().log_softmax(-1)
    if how.temperature == 0:
        return F.one_hot(likeliest(log_p), rows.vocab_size).double()
    return cut(log_p, how).exp()


def logits(model: Model, rows: Rows, ids: Tensor, level: Tensor) -> Tensor:
    """Of the open places; a network that is told is told m, or of the mask alone counts how many are hidden."""
    batch = replace(reading(ids), asked=rows.open.flatten().nonzero()[:, 0])
    if rows.uniform_share:
        batch = replace(batch, level=level.float())
    return model.logits([batch])[0]
