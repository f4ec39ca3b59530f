"""Vectors for texts, by DDIM: from noise to a vector in a few steps, along what the model says. b rows, s places, d numbers."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from megatron.batch import Batch, Purpose, asked_positions, reading, stream
from megatron.flags import ConfigError
from megatron.sampling.draws import How
from megatron.sampling.reading import Model

STEPS = 50


def vectors_for(
    model: Model,
    texts: list[list[int]],
    size: int,
    length: int,
    end: int,
    mask: int,
    how: How,
    seed: int = 0,
    num_samples: int = 1,
    batch_size: int = 32,
) -> Tensor:
    """`num_samples` standardised vectors of each text, which stands in a row of `length` as in the corpus.  -> [m, size] fp32

    Sample i is of text i // num_samples, and a function of (seed, i). Of `how`, steps [50] and guidance are read.
    Raises ConfigError.
    """
    check(how)
    ids, found = closed(texts, end, length), []
    for numbers in torch.arange(len(texts) * num_samples).split(batch_size):
        rows = ids[numbers // num_samples]
        found.append(ddim(model, rows, numbers.tolist(), seed, how.steps or STEPS, size, mask, how.guidance or 0.0))
    return torch.cat(found)


def check(how: How) -> None:
    read = How(steps=how.steps, guidance=how.guidance)
    other = [f"--{name.replace('_', '-')}" for name, value in vars(how).items() if value != vars(read)[name]]
    mistakes = [f"{name} is of tokens, and vectors have none: leave it out" for name in other]
    if how.steps is not None and how.steps < 1:
        mistakes.append(f"--steps {how.steps}: expected 1 or more")
    if how.guidance is not None and not 0 < how.guidance < math.inf:
        mistakes.append(f"--guidance {how.guidance}: expected above 0")
    if mistakes:
        raise ConfigError(mistakes)


def ddim(
    model: Model, ids: Tensor, numbers: list[int], seed: int, steps: int, size: int, mask: int, guidance: float = 0.0
) -> Tensor:
    """A standardised vector for each row of text, without noise after the first (Song et al., arXiv:2010.02502, with v for e).

    With v = a e - s z the step from t to t' is z_t' = a' (a z_t - s v) + s' (s z_t + a v). The first z is normal, at the address
    (seed, number). `guidance` w moves away from what is predicted without the text: v_u + (1 + w) (v_c - v_u).
    ids [b, s - 1] int64, closed and filled with the end -> [b, d] fp32
    """
    drawn = [stream(seed, Purpose.SAMPLED_VECTOR, number).standard_normal(size) for number in numbers]
    z = torch.from_numpy(np.stack(drawn))  # float64
    for step in range(steps):
        t, after = (math.pi / 2 * (1 - i / steps) for i in (step, step + 1))
        v = velocity(model, ids, z, 1 - step / steps)
        if guidance:
            without = velocity(model, torch.full_like(ids, mask), z, 1 - step / steps)
            v = without + (1 + guidance) * (v - without)
        clean, noise = math.cos(t) * z - math.sin(t) * v, math.sin(t) * z + math.cos(t) * v
        z = math.cos(after) * clean + math.sin(after) * noise
    return z.float()


def velocity(model: Model, ids: Tensor, z: Tensor, t: float) -> Tensor:
    """ids [b, s - 1], z [b, d] -> float64 [b, d]"""
    (found,) = model.logits([asking(ids, z.float(), t)])
    return found.double().cpu()


def asking(ids: Tensor, z: Tensor, t: float) -> Batch:
    """Texts behind their vectors at time t, of which v is asked."""
    row = torch.nn.functional.pad(ids, (1, 0))
    weights = torch.zeros(row.shape)
    weights[:, 0] = 1
    told = {"latent": z, "latent_level": torch.full((len(ids),), t), "latent_target": torch.zeros_like(z)}
    return Batch(**vars(reading(row)) | {"weights": weights, "asked": asked_positions(weights)} | told)


def closed(texts: list[list[int]], end: int, length: int) -> Tensor:
    """Texts as rows of the corpus are: cut at `length`, and filled with the end behind.  -> [b, length] int64"""
    rows = torch.full((len(texts), length), end)
    for row, ids in zip(rows, texts):
        row[: min(len(ids), length)] = torch.tensor(ids[:length], dtype=torch.int64)
    return rows
