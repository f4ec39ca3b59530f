"""Dropout by address: which element is dropped is an integer hash of (seed, sample, position, site, column).

No generator and no state: bit-equal under any micro-batch, recompute, compile, restart or cut. b batch, s sequence.
The hash is the 32-bit finaliser `lowbias32` (Chris Wellons, "Prospecting for Hash Functions").
"""

from __future__ import annotations

import torch
from torch import Tensor


def mix(x: Tensor) -> Tensor:
    """int32 -> int32; the masks undo the arithmetic shift."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - (1 << 32))
    return x ^ ((x >> 16) & 0xFFFF)


def signed32(number: int) -> int:
    """The low 32 bits as a signed integer."""
    return ((number & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def row_keys(seed: int, index: Tensor, positions: Tensor) -> Tensor:
    """One key for each (sample, position).  index [b] int64, positions [b, s] int64 -> [b, s] int32"""
    low, high = (index & 0x7FFFFFFF).int(), (index >> 31).int()
    sample = mix(mix(low) ^ high ^ signed32(seed) ^ mix(torch.full_like(low, signed32(seed >> 32))))
    return mix(sample[:, None] ^ mix(positions.int()))


def branch(keys: Tensor, number: int) -> Tensor:
    """The keys of one layer, or of one site within it.  [...] int32 -> [...] int32"""
    return mix(keys ^ signed32((number + 1) * 0x9E3779B9))


def keep(keys: Tensor, site: int, columns: Tensor, p: float) -> Tensor:
    """Which elements stay.  keys [...] int32, columns [d] -> [..., d] bool"""
    return mix(branch(keys, site)[..., None] ^ mix(columns.int())) >= int(p * 2**32) - 2**31


def drop(x: Tensor, kept: Tensor, p: float) -> Tensor:
    """Zero what is not kept and scale the rest by 1 / (1 - p)."""
    return torch.where(kept, x / (1 - p), 0.0)
