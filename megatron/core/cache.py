"""Keys and values of what a model has read, for passes that read only what is new.

b rows, q places that a pass reads, S places of a row; n heads (this rank's), d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Of each layer of this rank [b, n, S, d]. A pass writes what it reads, and its queries see all that stands there.

    Rows of a batch are the cache's, and its positions are places of a row: one that is read again is overwritten. A causal
    model sees places up to its own, so that its logits are those of one pass over everything. A model that looks both ways
    must read all places first; what was read before an input changed keeps what it saw then.
    """

    def __init__(self, rows: int, width: int):
        self.rows, self.width = rows, width
        self.layers: dict[str, tuple[Tensor, Tensor]] = {}  # keys and values
        self.columns: slice | Tensor = slice(0, 0)  # that the current pass writes, [b, q] where rows differ
        self.until = 0  # places that it may see

    def begin(self, positions: Tensor, causal: bool) -> Tensor | None:
        """A pass over these places.  int64 [b, q] -> bool [b, 1, q, until], or None where plain attention sees what it should"""
        start, stop = int(positions.min()), int(positions.max()) + 1
        if len(positions) != self.rows or stop > self.width:
            raise ValueError(f"{len(positions)} rows up to place {stop} are read with a cache of {self.rows} x {self.width}")
        if not causal and not self.layers and stop - start < self.width:
            raise ValueError("a model that looks both ways must read whole rows before parts of them")
        q = positions.shape[1]
        together = stop - start == q and bool((positions == torch.arange(start, stop, device=positions.device)).all())
        self.columns = slice(start, stop) if together else positions
        self.until = stop if causal else self.width
        if not causal or (together and (start == 0 or q == 1)):
            return None
        return (torch.arange(stop, device=positions.device) <= positions[..., None])[:, None]

    def join(self, layer: str, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What a layer makes of these places, for all that may be seen.  two [b, n, q, d] -> two [b, n, until, d]"""
        if layer not in self.layers:  # zeros, because what no one sees is still multiplied
            self.layers[layer] = self.empty(k), self.empty(v)
        for kept, new in zip(self.layers[layer], (k, v)):
            if isinstance(self.columns, slice):
                kept[:, :, self.columns] = new
            else:
                kept.scatter_(2, self.columns[:, None, :, None].expand_as(new), new)
        keys, values = self.layers[layer]
        return keys[:, :, : self.until], values[:, :, : self.until]

    def empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.rows, like.shape[1], self.width, like.shape[3])

    def take(self, rows: Tensor) -> Cache:
        """A copy of some rows.  int64 [m]"""
        found = Cache(len(rows), self.width)
        found.layers = {layer: (k[rows.to(k.device)], v[rows.to(v.device)]) for layer, (k, v) in self.layers.items()}
        return found

    def put(self, rows: Tensor, found: Cache) -> None:
        """Write these rows over.  int64 [m]"""
        for layer, pair in found.layers.items():
            if layer not in self.layers:
                self.layers[layer] = self.empty(pair[0]), self.empty(pair[1])
            for kept, new in zip(self.layers[layer], pair):
                kept[rows.to(kept.device)] = new
