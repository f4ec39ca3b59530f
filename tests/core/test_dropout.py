import torch

from megatron.core.dropout import drop, keep, row_keys


def keys(index, length=64, seed=1):
    index = torch.as_tensor(index)
    return row_keys(seed, index, torch.arange(length).expand(len(index), length))


def test_share_and_independence():
    kept = keep(keys(range(32)), 3, torch.arange(256), 0.1).float()
    assert abs(kept.mean() - 0.9) < 2e-3
    centred = kept.flatten() - kept.mean()
    assert abs((centred[1:] * centred[:-1]).mean() / centred.var()) < 5e-3


def test_is_a_function_of_the_address_alone():
    columns = torch.arange(48)
    whole = keep(keys([5, 9, 2**40 + 7]), 1, columns, 0.3)
    assert torch.equal(whole[1:2], keep(keys([9]), 1, columns, 0.3))
    assert torch.equal(whole[..., 16:32], keep(keys([5, 9, 2**40 + 7]), 1, columns[16:32], 0.3))


def test_each_part_of_the_address_matters():
    base = keep(keys([5]), 1, torch.arange(64), 0.5)
    others = [
        keep(keys([6]), 1, torch.arange(64), 0.5),
        keep(keys([5 + 2**31]), 1, torch.arange(64), 0.5),
        keep(keys([5]), 2, torch.arange(64), 0.5),
        keep(keys([5], seed=2), 1, torch.arange(64), 0.5),
        keep(keys([5], seed=1 + 2**32), 1, torch.arange(64), 0.5),
    ]
    assert all(0.4 < (base == other).float().mean() < 0.6 for other in others)


def test_scales_what_stays():
    x = torch.ones(4, 10_000)
    y = drop(x, keep(keys([1], 4)[0], 0, torch.arange(10_000), 0.25), 0.25)
    assert torch.equal(y.unique(), torch.tensor([0.0, 1 / 0.75])) and abs(y.mean() - 1) < 0.02
