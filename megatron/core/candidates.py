"""Readers of several ids a position. b batch, s sequence, c candidates, h hidden, r features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.batch import Batch
from megatron.budget import CANDIDATE_FEATURES
from megatron.core.head import wide
from megatron.core.parameters import Spec
from megatron.core.tensor_parallel import VocabEmbedding, part

LEAST = 1e-9  # probability that is told from none


class Bilateral(nn.Module):
    """The candidates of a position attend to each other, and a learned query reads one vector out of them.

    Each is told how likely it is; keys, here and in the reading, have s log p beside them, with s learned. Nothing says which
    place among the candidates one has, so that their order says nothing. At first it is their mean by probability: what is
    added to a candidate and what the query asks for begin at zero, and s at one. The blocks are the other side: position to
    position, on what is read here.
    """

    def __init__(self, hidden: int, std: float, width_factor: float = 1.0):
        super().__init__()
        r = CANDIDATE_FEATURES
        self.std, self.width_factor = std, width_factor
        self.query, self.key, self.value = (nn.Parameter(torch.empty(r, hidden)) for _ in range(3))
        self.out, self.sure = (nn.Parameter(torch.empty(hidden, r)) for _ in range(2))
        self.surer = nn.Parameter(torch.empty(2, r))  # weight and bias of what is made of log p
        self.ask = nn.Parameter(torch.empty(hidden))
        self.trust, self.trust_read = (nn.Parameter(torch.empty(1)) for _ in range(2))  # s

    def specs(self) -> dict[str, Spec]:
        drawn, nothing = (Spec(role="head", std=self.std, partial=True), Spec(role="embedding", init="zeros", partial=True))
        found = {name: drawn for name in ("query", "key", "value")} | {name: nothing for name in ("out", "sure")}
        found["surer"] = Spec(role="vector", decay=False, partial=True)
        found["ask"] = Spec(role="head", init="zeros", decay=False, partial=True)
        return found | {name: Spec(init="ones", decay=False, partial=True) for name in ("trust", "trust_read")}

    def forward(self, batch: Batch, embed: VocabEmbedding, dtype: torch.dtype) -> Tensor:
        ids, mix = batch.candidates, batch.mix
        if ids is None or mix is None:  # plain ids, each of them certain
            ids, mix = batch.inputs[..., None], torch.ones(*batch.inputs.shape, 1, device=batch.inputs.device)
        c = ids.shape[-1]
        x = embed(ids.flatten(1), dtype).unflatten(1, (-1, c))  # [b, s, c, h], where the sequence is cut this part
        log_p = part(mix, embed.tp).to(wide(dtype)).clamp(min=LEAST).log()  # [b, s, c]
        weight, bias = self.surer.to(log_p.dtype).unbind()
        x = x + F.linear(F.silu(log_p[..., None] * weight + bias).to(dtype), self.sure.to(dtype))
        seen = self.seen(x)
        q, k, v = (F.linear(seen, w.to(dtype)) for w in (self.query, self.key, self.value))  # [b, s, c, r] each
        scores = (q @ k.transpose(-1, -2)).to(log_p.dtype) / math.sqrt(q.shape[-1]) + (self.trust * log_p)[..., None, :]
        x = x + F.linear(scores.softmax(-1).to(dtype) @ v, self.out.to(dtype))
        read = ((self.seen(x) @ self.ask.to(dtype)).to(log_p.dtype) + self.trust_read * log_p).softmax(-1)  # [b, s, c]
        return (read[..., None, :].to(dtype) @ x)[..., 0, :]

    def seen(self, x: Tensor) -> Tensor:
        """What products with a head read: they stay as large at any width."""
        return x if self.width_factor == 1 else x / self.width_factor
