"""Value and gradient of each fused piece against the plain expression that compiled code gets."""

import pytest
import torch
import torch.nn.functional as F

from megatron.core.fused import attention, gated, rms_norm, rotate, rotated_heads
from megatron.core.transformer import rotary


def gradients(f, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = f(*inputs)
    out = out if isinstance(out, tuple) else (out,)
    rng = torch.Generator().manual_seed(7)
    sum((y * torch.randn(y.shape, generator=rng)).sum() for y in out).backward()
    return [y.detach() for y in out], [x.grad for x in inputs]


def same(fused, plain, *inputs, **tolerance):
    for a, b in zip(gradients(fused, *inputs), gradients(plain, *inputs), strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, **({"rtol": 1e-5, "atol": 1e-5} | tolerance))


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("positions", [torch.arange(5).expand(2, 5), torch.tensor([[4, 0, 3, 1, 2], [0, 1, 2, 3, 4]])])
def test_rotated_heads(positions):
    cos, sin = rotary(positions, 8, 10000.0, torch.float32)

    def plain(qkv):
        q, k = rotate(qkv[..., :2, :], cos, sin).unbind(-2)
        return q.transpose(1, 2), k.transpose(1, 2), qkv[..., 2, :].transpose(1, 2)

    same(lambda qkv: rotated_heads(qkv, cos, sin), plain, normal(2, 5, 3, 3, 8))


@pytest.mark.parametrize("causal", [True, False])
def test_written_out_attention_is_as_near_to_fp32_as_the_flash_kernel(causal):
    q, k, v = torch.randn(3, 2, 3, 33, 16, generator=torch.Generator().manual_seed(0)).unbind(0)

    def low(f):
        return gradients(lambda *x: f(*(t.bfloat16() for t in x)).float(), q, k, v)

    def flash(*x):
        return F.scaled_dot_product_attention(*x, is_causal=causal)

    exact = gradients(flash, q, k, v)
    mine = low(lambda *x: attention(*x, causal))
    for ours, theirs, true in zip(sum(mine, []), sum(low(flash), []), sum(exact, []), strict=True):
        assert (ours - true).norm() < 1.5 * (theirs - true).norm() + 1e-6


def test_gated():
    same(gated, lambda x: F.silu(x[..., :6]) * x[..., 6:], normal(3, 4, 12))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rms_norm(scale):
    same(
        lambda x, w: rms_norm(x, w, 1e-5),
        lambda x, w: F.rms_norm(x, w.shape, w, 1e-5),
        normal(3, 4, 16) * scale,
        normal(16) + 1,
        atol=1e-5 / scale,
    )


def test_rms_norm_in_bf16_is_near_fp32():
    x, weight = normal(3, 4, 64), normal(64) + 1
    low = rms_norm(x.bfloat16(), weight.bfloat16(), 1e-5)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), F.rms_norm(x, weight.shape, weight, 1e-5), rtol=3e-2, atol=3e-2)


def test_rms_norm_of_zero_is_zero():
    assert (rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-5) == 0).all()
