import sys

import numpy as np
import pytest

from megatron.data import blend, gpt_dataset
from megatron.data.compiled import extension
from megatron.data.gpt_dataset import PackedDataset, permute
from megatron.data.sources import Source
from megatron.errors import BadData

CIRCLES = [(96, 8), (97, 8), (103, 8), (9, 8), (10, 8), (15, 8), (16, 8), (17, 8), (1000, 33), (50, 49), (7, 1)]  # T, s


def dataset(prefix, seq_length, seed=1, start=0, stop=1.0):
    return PackedDataset([Source(1.0, start, stop, str(prefix))], seq_length, seed)


# One corpus


@pytest.mark.parametrize(("num_tokens", "s"), CIRCLES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_token_is_visited_once_an_epoch(counting, num_tokens, s, seed):
    data = dataset(counting("c", num_tokens), s, seed)
    num_epochs = 6
    rows = data.rows(np.arange(-(-num_epochs * num_tokens // s)))
    visited = rows[:, :-1].reshape(-1)
    for epoch in range(num_epochs):
        assert np.array_equal(np.sort(visited[epoch * num_tokens : (epoch + 1) * num_tokens]), np.arange(num_tokens))


@pytest.mark.parametrize(("num_tokens", "s"), CIRCLES)
def test_only_border_samples_are_not_contiguous(counting, num_tokens, s):
    data = dataset(counting("c", num_tokens), s)
    numbers = np.arange(6 * num_tokens // s)
    jumps = ((np.diff(data.rows(numbers)) % num_tokens) != 1).sum(1)
    epochs = numbers * s // num_tokens
    on_border = (numbers + 1) * s > (epochs + 1) * num_tokens
    assert not jumps[~on_border].any() and jumps[on_border].max(initial=0) <= 1


def test_a_range_is_a_circle_of_its_own(counting):
    data = dataset(counting("c", 1000), 16, start=300, stop=500)
    rows = data.rows(np.arange(100))
    assert data.tokens_per_epoch == 200
    assert np.array_equal(np.unique(rows), np.arange(300, 500))


def test_epochs_differ_in_rotation_and_order(counting):
    data = dataset(counting("c", 4096), 16)
    epochs = data.rows(np.arange(4 * 256)).reshape(4, 256, 17)[:, :, 0]
    assert len(set(epochs[:, 0].tolist())) == 4
    assert len({tuple(np.argsort(epoch)) for epoch in epochs}) == 4
    assert len(set((epochs[:, 0] % 16).tolist())) > 1  # sample borders move too


def test_seeds_and_places_differ(counting):
    prefix = counting("c", 4096)
    first = [dataset(prefix, 16, seed).rows(np.arange(64)).tobytes() for seed in range(8)]
    assert len(set(first)) == 8
    twice = PackedDataset([Source(1.0, 0, 1.0, prefix)] * 2, 16, 1).rows(np.arange(64))
    assert not np.array_equal(twice[::2], twice[1::2])


def test_rows_do_not_depend_on_the_calls(counting):
    prefix = counting("c", 1003)
    data = PackedDataset([Source(0.3, 0, 500, prefix), Source(0.7, 500, 1003, prefix)], 10, 5)
    numbers = np.arange(300)
    whole = data.rows(numbers)
    shuffled = np.random.default_rng(0).permutation(numbers)
    fresh = PackedDataset([Source(0.3, 0, 500, prefix), Source(0.7, 500, 1003, prefix)], 10, 5)
    assert np.array_equal(fresh.rows(shuffled), whole[shuffled])
    assert np.array_equal(np.concatenate([data.rows([number]) for number in numbers]), whole)
    assert whole.dtype == np.int64 and whole.shape == (300, 11)


def test_the_order_is_pinned(counting):
    """These numbers are part of every experiment: a change of them changes all runs."""
    data = dataset(counting("c", 1000), 10, seed=1234)
    assert data.rows(np.array([0, 1, 99, 100, 12345, 10**9]))[:, 0].tolist() == [988, 698, 248, 244, 577, 220]


def test_far_samples_need_no_memory(counting):
    data = dataset(counting("c", 1000), 7)
    rows = data.rows(np.array([10**12, 10**15]))
    assert rows.shape == (2, 8) and rows.min() >= 0 and rows.max() < 1000


def test_negative_numbers_are_refused(corpus):
    with pytest.raises(IndexError, match="-1"):
        dataset(corpus, 32).rows(np.array([3, -1]))


def test_counts_of_an_epoch(corpus):
    data = dataset(corpus, 60)
    assert data.tokens_per_epoch == 8192 and data.samples_per_epoch == pytest.approx(8192 / 60)
    assert data.epoch(0) == 0 and data.epoch(8192) == pytest.approx(60)
    assert data.rows_in_first_epoch == 8192 // 60


@pytest.mark.parametrize("num_tokens", [1, 32])
def test_a_corpus_shorter_than_one_sample_is_refused(counting, num_tokens):
    prefix = counting("c", num_tokens)
    with pytest.raises(BadData, match=f"32 needs at least 33 tokens, has {num_tokens}; lower --seq-length or add data"):
        dataset(prefix, 32)


@pytest.mark.parametrize("size", [*range(1, 70), 127, 128, 129, 1000, 4095, 4096, 4097, 65537])
def test_permute_is_a_bijection(size):
    order = permute(np.arange(size), np.full(size, size), np.full(size, 99, np.uint64))
    assert np.array_equal(np.sort(order), np.arange(size))


def test_permute_reaches_large_sizes():
    size = 2**40
    places = np.arange(size - 1000, size)
    order = permute(places, np.full(1000, size), np.full(1000, 5, np.uint64))
    assert len(np.unique(order)) == 1000 and order.max() < size
    assert abs(order.astype(float).mean() / size - 0.5) < 0.05


def test_permute_is_uniform():
    """All 120 orders of 5 come up alike: chi-square over 60000 keys."""
    keys = gpt_dataset.hash64(np.arange(60000))
    orders = np.stack([permute(np.full(60000, place), np.full(60000, 5), keys) for place in range(5)], 1)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 120 and ((counts - 500) ** 2 / 500).sum() < 185  # 119 degrees of freedom: p < 1e-4


# Several corpora


def test_weight_zero_gives_no_sample(two):
    a, b = two
    with_zero = PackedDataset([Source(0.0, 0, 1.0, a), Source(1.0, 0, 1.0, b)], 16, 1)
    without = PackedDataset([Source(1.0, 0, 1.0, b)], 16, 1)
    assert np.array_equal(with_zero.rows(np.arange(500)), without.rows(np.arange(500)))
    assert with_zero.tokens_per_epoch == 3000 and with_zero.fingerprint() == without.fingerprint()
    assert with_zero.describe().splitlines()[0] == f"{a}: weight 0, not used"


def test_rows_in_first_epoch_of_a_blend(two, monkeypatch):
    monkeypatch.setattr(blend, "BLEND_BLOCK", 16)
    a, b = two
    data = PackedDataset([Source(0.5, 0, 1.0, a), Source(0.5, 1000, 1.0, b)], 10, 1)
    num_rows = data.rows_in_first_epoch
    assert num_rows == 200  # 100 samples of a, 100 of b
    rows = data.rows(np.arange(num_rows))[:, :-1]
    assert len(np.unique(rows)) == rows.size
    assert len(np.unique(data.rows(np.arange(num_rows + 2))[:, :-1])) < (num_rows + 2) * 10


def test_without_a_compiler_the_same_rows_and_one_line(two, monkeypatch, capsys):
    sources = [Source(w, 0, 1.0, prefix) for w, prefix in zip((0.3, 0.7), two, strict=True)]
    fast = PackedDataset(sources, 16, 1).rows(np.arange(200))
    monkeypatch.setitem(sys.modules, "megatron.data._helpers", None)
    extension.cache_clear()
    capsys.readouterr()
    slow = [PackedDataset(sources, 16, 1).rows(np.arange(200)) for _ in range(2)]
    extension.cache_clear()
    assert np.array_equal(fast, slow[0]) and np.array_equal(fast, slow[1])
    assert capsys.readouterr().err.count("\n") == 1


def test_describe_and_fingerprint(two):
    a, b = two
    data = PackedDataset([Source(0.25, 0, 0.5, a), Source(0.75, 0, 1.0, b)], 16, 1)
    assert data.describe().split("\n") == [
        f"{a}: 1 documents, 1000 tokens, weight 0.25, range 0:500",
        f"{b}: 1 documents, 3000 tokens, weight 0.75, range 0:3000",
    ]
    prints = [
        PackedDataset(sources, s, seed).fingerprint()
        for sources, s, seed in [
            (data.sources, 16, 1),
            (data.sources, 8, 1),
            (data.sources, 16, 2),
            (data.sources[:1], 16, 1),
            ([Source(0.5, 0, 0.5, a), Source(0.5, 0, 1.0, b)], 16, 1),
            ([Source(0.25, 0, 0.6, a), Source(0.75, 0, 1.0, b)], 16, 1),
        ]
    ]
    assert len(set(prints)) == 6 and prints[0] == data.fingerprint()


def test_check_ids_names_the_corpus(two):
    data = PackedDataset([Source(0.5, 0, 1.0, prefix) for prefix in two], 16, 1, vocab_size=1000)
    numbers = np.arange(100)
    with pytest.raises(BadData, match=rf"{two[1]}: sample \d+ holds id [12]\d\d\d, .* below the vocabulary size 1000"):
        data.check_ids(data.rows(numbers), numbers)
    data.vocab_size = 3000
    data.check_ids(data.rows(numbers), numbers)
    with pytest.raises(BadData, match="holds id -1"):
        data.check_ids(np.full((1, 17), -1), np.array([0]))


def test_a_range_beyond_the_corpus_is_refused(two):
    with pytest.raises(BadData, match="the range 0:2000 ends behind the last of 1000 tokens"):
        dataset(two[0], 16, stop=2000)
