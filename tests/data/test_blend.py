import numpy as np

from megatron.data import blend as module
from megatron.data.blend import Blend, blend_shares, fill_blend


def test_blend_keeps_the_shares_at_every_prefix():
    weights = [5.0, 3.0, 2.0]
    ids, positions = Blend(weights).locate(np.arange(2000))
    counts = np.cumsum(ids[:, None] == np.arange(3), 0)
    assert np.abs(counts - np.arange(1, 2001)[:, None] * np.array(weights) / 10).max() <= 1.5
    assert all(np.array_equal(positions[ids == d], np.arange((ids == d).sum())) for d in range(3))


def test_blend_blocks_join(monkeypatch):
    whole = Blend([0.2, 0.5, 0.3]).locate(np.arange(1000))
    monkeypatch.setattr(module, "BLEND_BLOCK", 64)
    blend = Blend([0.2, 0.5, 0.3])
    numbers = np.random.default_rng(0).permutation(1000)
    for found, right in zip(blend.locate(numbers), whole, strict=True):
        assert np.array_equal(found, right[numbers])
    assert len(blend.counts) == -(-1000 // 64) + 1


def test_shares_are_normalized_twice_as_megatron_does():
    """By shares normalized once, sample 2 of this blend would come from corpus 1."""
    ids, counts = np.empty(20, np.int32), np.zeros(3, np.int64)
    fill_blend(np.array(blend_shares([0.1, 0.4, 0.1], "core")), counts, 0, ids, np.empty(20, np.int64))
    assert ids.tolist() == [1, 0, 2, 1, 1, 1, 0, 1, 2, 1, 1, 1, 0, 1, 2, 1, 1, 1, 0, 1]  # megatron-core 0.16.1
    weights = [0.1 * n for n in range(1, 13)]
    assert blend_shares(weights, "core") != blend_shares(weights, "deepspeed")  # sums of eight and more differ
