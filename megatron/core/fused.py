"""Pieces of the block whose eager gradients would walk memory several times more on a CPU. Compiled code and GPUs, which
fuse by themselves, get the plain expressions.

b batch, s sequence, n heads, d head width, f ffn.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WRITTEN_OUT_BYTES = 32 << 20  # attention probabilities of one sample that are kept for the backward pass


def eager_on_cpu(x: Tensor) -> bool:
    return not x.is_cuda and not torch.compiler.is_compiling()


def rotated_heads(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys turned by their rotary angles, and values; g groups of r = n/g queries share a key and a value.

    qkv [b, s, g, r + 2, d], cos and sin [b, s, 1, 1, d/2] -> three [b, n, s, d]
    """
    shared = qkv.shape[-2] - 2
    if shared == 1 and eager_on_cpu(qkv):
        q, k, v = _RotatedHeads.apply(qkv, cos, sin) if torch.is_grad_enabled() else separate(qkv, cos, sin).unbind(0)
        return q, k, v
    turned = rotate(qkv[..., :-1, :], cos, sin)  # [b, s, g, r + 1, d]
    q, k, v = turned[..., :-1, :].flatten(2, 3), turned[..., -1, :], qkv[..., -1, :]
    if shared > 1:
        k, v = k.repeat_interleave(shared, 2), v.repeat_interleave(shared, 2)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (i, i + d/2), as GPT-NeoX and Megatron do.  [..., d] -> [..., d]"""
    low, high = x.chunk(2, -1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


def rotate_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, way: int) -> None:
    """`rotate`, or its inverse with `way` -1, written to `out`."""
    (low, high), (out_low, out_high) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(low, cos, out=out_low).addcmul_(high, sin, value=-way)
    torch.mul(high, cos, out=out_high).addcmul_(low, sin, value=way)


def separate(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries, keys and values of heads that share none, laid out as attention reads fastest.  -> [3, b, n, s, d]"""
    b, s, n, _, d = qkv.shape
    heads = qkv.new_empty(3, b, n, s, d)
    places = heads.permute(1, 3, 2, 0, 4)  # [b, s, n, 3, d]
    rotate_into(places[..., :2, :], qkv[..., :2, :], cos, sin, 1)
    heads[2] = qkv[..., 2, :].transpose(1, 2)
    return heads


class _RotatedHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cos, sin):
        ctx.save_for_backward(cos, sin)
        return separate(qkv, cos, sin).unbind(0)

    @staticmethod
    def backward(ctx, d_q, d_k, d_v):
        (cos, sin), (b, n, s, d) = ctx.saved_tensors, d_q.shape
        d_qkv = d_q.new_empty(b, s, n, 3, d)
        for i, d_head in enumerate((d_q, d_k)):
            rotate_into(d_qkv[..., i, :], d_head.transpose(1, 2), cos[..., 0, :], sin[..., 0, :], -1)
        d_qkv[..., 2, :] = d_v.transpose(1, 2)
        return d_qkv, None, None


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, seen: Tensor | None = None) -> Tensor:
    """Softmax attention.  three [b, n, s, d] -> [b, n, s, d]; `seen` [b or 1, 1, s, s] says who sees whom, in place of `causal`

    A CPU's bf16 matrix unit is so much faster than torch's flash kernel there that short rows are quicker written out.
    """
    if seen is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    if eager_on_cpu(q) and q.dtype == torch.bfloat16 and 2 * q.shape[1] * q.shape[2] ** 2 <= WRITTEN_OUT_BYTES:
        return _Attention.apply(q, k, v, causal)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal):
        b, n, s, d = q.shape
        probs, out = q.new_empty(b, n, s, s), torch.empty_like(q)
        later = torch.ones(s, s, dtype=torch.bool).triu_(1) if causal else None
        for row in range(b):
            scores = (q[row] * d**-0.5) @ k[row].mT  # [n, s, s]
            if causal:
                scores.masked_fill_(later, -math.inf)
            torch.softmax(scores, -1, out=probs[row])
            torch.matmul(probs[row], v[row], out=out[row])
        ctx.save_for_backward(q, k, v, probs)
        return out

    @staticmethod
    def backward(ctx, d_out):
        q, k, v, probs = ctx.saved_tensors
        d_q, d_k, d_v, scale = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), q.shape[-1] ** -0.5
        for row in range(len(q)):
            torch.matmul(probs[row].mT, d_out[row], out=d_v[row])
            d_probs = d_out[row] @ v[row].mT  # [n, s, s]
            d_scores = torch.ops.aten._softmax_backward_data(d_probs, probs[row], -1, q.dtype)
            torch.matmul(d_scores, k[row], out=d_q[row]).mul_(scale)
            torch.matmul(d_scores.mT, q[row], out=d_k[row]).mul_(scale)
        return d_q, d_k, d_v, None


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up.  [..., gate | up] -> [..., f]"""
    if eager_on_cpu(gate_up) and torch.is_grad_enabled():
        return _Gated.apply(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, d_y):
        (gate_up,) = ctx.saved_tensors
        d_gate_up = torch.empty_like(gate_up)
        (gate, up), (d_gate, d_up) = gate_up.chunk(2, -1), d_gate_up.chunk(2, -1)
        torch.mul(d_y, F.silu(gate), out=d_up)
        torch.ops.aten.silu_backward.grad_input(d_y * up, gate, grad_input=d_gate)
        return d_gate_up


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight, its statistics in fp32 (float64 for a float64 x).  x [..., h], weight [h] -> [..., h]"""
    if eager_on_cpu(x) and torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = torch.promote_types(x.dtype, torch.float32)
        mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square() / x.shape[-1]
        scale = (mean + eps).rsqrt().to(x.dtype)  # [..., 1]
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx, d_y):
        normed, scale, weight = ctx.saved_tensors
        product = (d_y * normed).flatten(0, -2)  # [rows, h]
        along = (product @ weight).view(scale.shape) / len(weight)
        return torch.addcmul(d_y * weight, normed, along, value=-1).mul_(scale), product.sum(0), None
