"""The plain peer: a nanoGPT-style model and step in torch alone, as a script would have them.

As a program it is a whole short training run, and its standard output says what CPU seconds the start and all of it took:
`python tools/benchmark_plain.py '{"num_layers": 2, ...}'`, its shape and what to do in one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

LEARNING_RATE = 1e-4


class Shape(Protocol):
    """What a peer reads of a model, by the names of megatron.config.Model."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    kv_channels: int | None
    ffn_hidden_size: int
    seq_length: int
    padded_vocab_size: int


def peer_step(parameters: list, loss: Callable[[], Tensor], autocast: bool) -> Callable[[], Tensor]:
    """What a training script does around a loss: backward, clip to 1, fused AdamW."""
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    return step


def plain_weights(model: Shape, dtype) -> dict[str, Tensor]:
    import torch

    h, f = model.hidden_size, model.ffn_hidden_size
    block = {"norm1": (h,), "qkv": (3 * h, h), "out": (h, h), "norm2": (h,), "gate_up": (2 * f, h), "down": (h, f)}
    shapes = {"table": (model.padded_vocab_size, h), "norm": (h,)}
    shapes |= {f"{name}{i}": shape for i in range(model.num_layers) for name, shape in block.items()}
    start = {name: 0.02 * torch.randn(shape) if len(shape) > 1 else torch.ones(shape) for name, shape in shapes.items()}
    return {name: value.to(dtype).requires_grad_() for name, value in start.items()}


def plain_rope(model: Shape, dtype) -> list[Tensor]:
    import torch

    d = model.kv_channels or model.hidden_size // model.num_attention_heads
    angle = torch.outer(torch.arange(model.seq_length), 1e4 ** (-torch.arange(0, d, 2) / d))
    return [t.to(dtype) for t in (angle.cos(), angle.sin())]


def plain_loss(
    w: dict[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    rope: list[Tensor],
    model: Shape,
    autocast: bool,
    weights: Tensor | None = None,
) -> Tensor:
    """Next-token loss; with `weights` [b, s], the weighted loss of a model that sees both ways."""
    import torch
    import torch.nn.functional as F

    n = model.num_attention_heads
    cos, sin = rope

    def norm(x, weight):
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), 1e-5)

    def rotate(x):
        low, high = x.chunk(2, -1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)

    x = F.embedding(inputs, w["table"])
    x = x.bfloat16() if autocast else x
    for i in range(model.num_layers):
        q, k, v = F.linear(norm(x, w[f"norm1{i}"]), w[f"qkv{i}"]).unflatten(-1, (3, n, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=weights is None)
        x = x + F.linear(y.transpose(1, 2).flatten(2), w[f"out{i}"])
        gate, up = F.linear(norm(x, w[f"norm2{i}"]), w[f"gate_up{i}"]).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, w[f"down{i}"])
    logits = F.linear(norm(x, w["norm"]), w["table"]).flatten(0, 1).float()
    if weights is None:
        return F.cross_entropy(logits, targets.flatten())
    return (F.cross_entropy(logits, targets.flatten(), reduction="none") * weights.flatten()).mean()


def training(given: SimpleNamespace) -> Callable[[], Tensor]:
    """A step of fp32 training on random rows of a file of ids, left to right or masked.  -> the loss, without a gradient"""
    import torch

    torch.set_num_threads(1)
    ids = np.memmap(given.ids, np.uint16, "r")
    weights, rope = plain_weights(given, torch.float32), plain_rope(given, torch.float32)
    forward = torch.compile(plain_loss) if given.compile else plain_loss

    def loss() -> Tensor:
        s = given.seq_length
        starts = torch.randint(len(ids) - s - 1, (given.batch,)).tolist()
        rows = torch.stack([torch.from_numpy(ids[at : at + s + 1].astype(np.int64)) for at in starts])
        if not given.masked:
            return forward(weights, rows[:, :-1], rows[:, 1:], rope, given, False)
        rows = rows[:, :-1]
        p = (1 - 1e-3) * torch.rand(given.batch, 1) + 1e-3
        hidden = torch.rand(rows.shape) < p
        return forward(weights, rows.masked_fill(hidden, given.mask_id), rows, rope, given, False, hidden / p)

    return peer_step(list(weights.values()), loss, False)


def main(words: list[str]) -> None:
    given = SimpleNamespace(**json.loads(words[0]))
    step = training(given)
    step()
    start = sum(os.times()[:4])
    for number in range(1, given.steps):
        value = step()
        if number % 10 == 0:
            print(f"{number} {float(value)}", file=sys.stderr)
    print(json.dumps([start, sum(os.times()[:4])]))


if __name__ == "__main__":
    main(sys.argv[1:])
