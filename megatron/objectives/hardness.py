"""How hard tokens are to predict, in nats: as a network estimates it, or as they are rare. b rows, s positions, v ids."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from megatron.budget import ESTIMATOR_HEAD, swiglu_width
from megatron.core.mesh import ALONE
from megatron.core.parameters import Spec
from megatron.core.transformer import Block, RMSNorm, rotary

if TYPE_CHECKING:
    from megatron.config import Model
    from megatron.data.samples import Samples

COUNTED_TOKENS = 1 << 24  # of the training data, for how rare each id is
ROWS_AT_ONCE = 1024


class Estimator(nn.Module):
    """A small transformer that reads the clean row, with blocks of the model's own kind in fp32. At first it says 0 of all."""

    def __init__(self, model: Model, width: int, layers: int):
        super().__init__()
        self.cfg = replace(
            model,
            num_layers=layers,
            hidden_size=width,
            num_attention_heads=width // ESTIMATOR_HEAD,
            num_query_groups=None,
            kv_channels=ESTIMATOR_HEAD,
            ffn_hidden_size=swiglu_width(width),
            parametrization="standard",  # its sizes have no base model
            mup_base_hidden_size=None,
            mup_base_num_layers=None,
            mup_base_kv_channels=None,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            parameter_dropout=0.0,
        )
        self.embed = nn.Embedding(model.vocab_size, width)
        self.blocks = nn.ModuleList(Block(self.cfg, False, ALONE, False) for _ in range(layers))
        self.norm, self.score = RMSNorm(width, model.norm_epsilon), nn.Linear(width, 1, bias=False)

    def specs(self) -> dict[str, Spec]:
        embed = Spec(role="embedding", std=self.cfg.initial_std)
        return {"embed.weight": embed, "score.weight": Spec(role="head", init="zeros", decay=False)}

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """int64 [b, s] each -> nats, fp32 [b, s]"""
        x, rope = self.embed(ids), rotary(positions, self.cfg.kv_channels, self.cfg.rotary_base, torch.float32)
        for block in self.blocks:
            x = block(x, rope, None)
        return self.score(self.norm(x))[..., 0]


def rarity(data: Samples, vocab_size: int) -> Tensor:
    """-log of each id's share of the training data's first tokens, each counted once more than found.  -> fp32 [v], nats"""
    length = data.rows(np.arange(1)).shape[1]
    rows = min(data.rows_in_first_epoch, -(-COUNTED_TOKENS // length))
    counts = np.ones(vocab_size, np.int64)
    for first in range(0, rows, ROWS_AT_ONCE):
        numbers = np.arange(first, min(rows, first + ROWS_AT_ONCE))
        found, scored = data.rows(numbers), data.scored(numbers)
        counts += np.bincount(found.ravel() if scored is None else found[scored], minlength=vocab_size)
    return torch.from_numpy(np.log(counts.sum() / counts)).float()
