import numpy as np

from megatron.data import blend as module
from megatron.data.blend import Blend


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
