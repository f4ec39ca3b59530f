import math

import numpy as np
import torch

from megatron.core.norm import global_norm, squares


def test_right_where_torch_is_not():
    x = torch.randn(25_000_000, generator=torch.Generator().manual_seed(0))
    exact = math.sqrt(float((x.numpy().astype(np.float64) ** 2).sum()))
    assert abs(float(global_norm([x])) / exact - 1) < 1e-7


def test_does_not_depend_on_the_cut():
    x = torch.randn(3, 5000, generator=torch.Generator().manual_seed(1))
    whole = float(global_norm([x]))
    cut = float(global_norm([x[:, :1234], x[:, 1234:]]))
    assert abs(whole / cut - 1) < 1e-7


def test_small_empty_and_bf16():
    assert float(squares(torch.tensor([3.0, 4.0]))) == 25.0
    assert float(squares(torch.zeros(0))) == 0.0
    assert float(squares(torch.full((4097,), 0.5, dtype=torch.bfloat16))) == 4097 / 4


def test_non_finite_shows():
    assert not math.isfinite(float(global_norm([torch.ones(5), torch.tensor([math.inf])])))
    assert math.isnan(float(global_norm([torch.full((5000,), math.nan)])))
