"""What samplers read: whole rows, or only what is new where the model keeps the rest.

b rows, s places of a row, q places that a pass reads, n asked places, v ids that can be predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from megatron.batch import Batch, reading
from megatron.core.cache import Cache
from megatron.objectives.block import of_text

Kept = Literal["prefix", "dual", "delayed"]


class Model(Protocol):
    """What a sampler asks: megatron.engine.Engine, or a table in a test."""

    def logits(self, batches: list[Batch]) -> list[Tensor]: ...


@runtime_checkable
class CachingModel(Protocol):
    """An engine, which can keep what it has read."""

    def logits(self, batches: list[Batch], caches: Sequence[Cache | None] | None = None) -> list[Tensor]: ...

    def cache(self, rows: int, width: int) -> Cache: ...


class NextToken:
    """Logits of the first open place of rows of different lengths. A model that keeps what it has read reads each place once."""

    def __init__(self, model: Model, rows: int, width: int, latent: Tensor | None = None):
        self.model, self.width, self.latent = model, width, latent
        self.rows, self.until = torch.arange(rows), torch.zeros(rows, dtype=torch.int64)  # of the cache, and what it knows
        self.cache = model.cache(rows, width) if isinstance(model, CachingModel) else None

    def logits(self, ids: Tensor, active: Tensor, place: Tensor) -> Tensor:
        """ids [b, s], active [m] the rows that are asked, place [m] their first open places -> [m, v]

        Rows that were left out once may not be asked again.
        """
        if not isinstance(self.model, CachingModel) or self.cache is None:
            width = int(place.max())
            asked = torch.arange(len(active)) * width + place - 1
            batch = replace(reading(ids[active, :width]), asked=asked, **told(self.latent, active))
            return self.model.logits([batch])[0]
        if len(active) < len(self.rows):
            kept = torch.searchsorted(self.rows, active)
            self.rows, self.until, self.cache = active, self.until[kept], self.cache.take(kept)
        q = int((place - self.until).max())
        positions = (place[:, None] + torch.arange(-q, 0)).clamp(min=0)  # a place that is read again stays what it is
        self.until = place
        inputs = ids[active[:, None], positions]
        asked = torch.arange(1, len(active) + 1) * q - 1
        batch = replace(reading(inputs), positions=positions, asked=asked, **told(self.latent, active))
        return self.model.logits([batch], [self.cache])[0]


class Places:
    """Logits of hidden places, by passes over whole rows, or over parts of them with the rest kept from before.

    `dual`: when a block of places begins the whole row is read; then only the block is, and everything else stays what it
    was (Wu et al., arXiv:2505.22618). `prefix`: only what stands left of the block stays. `delayed`: as dual, and of the block
    only what is hidden and what has changed since it was last read is read again (Ma et al., arXiv:2505.15781). Each is another
    model than the one without, whose distribution it approximates; what it says is a function of the row and its blocks alone.
    `mask` is what hidden places read, which `delayed` must know, and models that are told the noise level.
    `block`: a place sees its own block of so many and those before it, as in objectives/block.py; what stands behind is not read.
    """

    def __init__(
        self,
        model: Model,
        shape: tuple[int, ...],
        kept: Kept | None = None,
        mask: int | None = None,
        latent: Tensor | None = None,
        level: Tensor | None = None,
        block: int = 0,
    ):
        self.model, self.kept, self.mask, self.latent, self.level = model, kept, mask, latent, level
        self.model_block = block
        self.block = torch.zeros(shape, dtype=torch.bool)  # for which each row's cache was made
        self.ids = torch.full(shape, -1)  # as each row was last read
        self.cache = None if kept is None else caching(model).cache(*shape)

    def logits(self, ids: Tensor, asked: Tensor, block: Tensor) -> Tensor:
        """Logits of the places asked, in the order of `asked.nonzero()`; rows of which nothing is asked are not read.

        ids [b, s], asked bool [b, s], block bool [b, s]: where each row's next block is, and all that is asked -> [n, v]
        """
        active = asked.any(1)
        if self.cache is None:
            return self.whole(ids, asked, active.nonzero()[:, 0])
        begun = active & (block != self.block).any(1)
        self.block[begun] = block[begun]
        found = [
            read(ids, asked, rows.nonzero()[:, 0])
            for read, rows in ((self.whole, begun), (self.part, active & ~begun))
            if rows.any()
        ]
        self.ids[active] = ids[active]
        if len(found) == 1:
            return found[0]
        of_begun = begun[asked.nonzero()[:, 0]]
        joined = found[0].new_empty(len(of_begun), found[0].shape[1])
        joined[of_begun], joined[~of_begun] = found
        return joined

    def whole(self, ids: Tensor, asked: Tensor, rows: Tensor) -> Tensor:
        """-> [n, v] of these rows"""
        ids, asked, rest = ids[rows], asked[rows], told(self.latent, rows, self.level)
        if self.model_block:
            ids, asked = (self.to_block_end(x, asked, fill) for x, fill in ((ids, self.mask), (asked, False)))
            rest["attend"] = of_text(ids.shape[1], self.model_block)
        batch = replace(reading(ids), asked=asked.flatten().nonzero()[:, 0], **rest)
        return self.model.logits([batch])[0].cpu() if self.cache is None else self.passed(batch, rows)

    def to_block_end(self, x: Tensor, asked: Tensor, fill: int | bool | None) -> Tensor:
        """Up to the end of the last block of which something is asked; places behind the row's end are hidden."""
        end = (int(asked.any(0).nonzero().max()) // self.model_block + 1) * self.model_block
        return torch.nn.functional.pad(x, (0, end - x.shape[1]), value=fill)  # a negative number cuts

    def part(self, ids: Tensor, asked: Tensor, rows: Tensor) -> Tensor:
        """-> [n, v] of these rows, whose block has been begun"""
        read = self.block[rows]
        if self.kept == "prefix":
            read = read.cumsum(1) > 0
        if self.kept == "delayed":
            read = read & (asked[rows] | (ids[rows] == self.mask) | (ids[rows] != self.ids[rows]))
        places, own = listed(read)
        rest: dict[str, Tensor] = {"positions": places, "asked": (asked[rows].gather(1, places) & own).flatten().nonzero()[:, 0]}
        if self.mask is not None:
            rest["level"] = (ids[rows] == self.mask).float().mean(1)
        rest |= told(self.latent, rows, self.level)
        return self.passed(replace(reading(ids[rows].gather(1, places)), **rest), rows)

    def passed(self, batch: Batch, rows: Tensor) -> Tensor:
        model, cache = caching(self.model), self.cache
        assert cache is not None
        if len(rows) == cache.rows:
            return model.logits([batch], [cache])[0].cpu()
        some = cache.take(rows) if cache.layers else model.cache(len(rows), cache.width)
        (found,) = model.logits([batch], [some])
        cache.put(rows, some)
        return found.cpu()


class Guided:
    """Logits that are moved away from those of the same rows with what is given hidden (classifier-free guidance).

    l_u + (1 + w) (l_c - l_u), l_u with every given place masked: unsupervised guidance (Nie et al., arXiv:2410.18514);
    where rows have vectors, also without them.
    """

    def __init__(
        self, model: Model, given: Tensor, mask: int, weight: float, kept: Kept | None = None, latent: Tensor | None = None
    ):
        self.given, self.mask, self.weight = given, mask, weight
        level = torch.arange(2).repeat_interleave(len(given)).float()
        latent = None if latent is None else torch.cat((latent, torch.zeros_like(latent)))
        self.places = Places(model, (2 * len(given), given.shape[1]), kept, mask, latent, level)

    def logits(self, ids: Tensor, asked: Tensor, block: Tensor) -> Tensor:
        """As of `Places`.  -> float64 [n, v]"""
        ids = torch.cat((ids, ids.masked_fill(self.given, self.mask)))
        with_it, without = self.places.logits(ids, asked.repeat(2, 1), block.repeat(2, 1)).double().chunk(2)
        return without + (1 + self.weight) * (with_it - without)


def told(latent: Tensor | None, rows: Tensor, level: Tensor | None = None) -> dict[str, Tensor]:
    """What a batch of these rows says of their vectors, as they are or at a level of noise; nothing where there are none.

    latent [b, d], rows [m], level [b]
    """
    if latent is None:
        return {}
    return {"latent": latent[rows], "latent_level": torch.zeros(len(rows)) if level is None else level[rows]}


def caching(model: Model) -> CachingModel:
    if not isinstance(model, CachingModel):
        raise TypeError(f"{type(model).__name__} keeps nothing of what it has read: it has no method `cache`")
    return model


def listed(read: Tensor) -> tuple[Tensor, Tensor]:
    """The true places of each row, as many columns as the most have; the others repeat their last one, and are not their own.

    bool [b, s] -> int64 [b, q], bool [b, q]
    """
    count = read.sum(1, keepdim=True)
    number = torch.arange(int(count.max())).expand(len(read), -1)
    order = read.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return order.gather(1, number.minimum(count - 1)), number < count
