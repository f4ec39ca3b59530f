import numpy as np
import pytest
import torch

from megatron.data.gpt_dataset import PackedDataset, Source
from megatron.data.loader import micro_batches
from megatron.errors import BadData


def dataset(prefix, vocab_size=None):
    return PackedDataset([Source(1.0, 0, 1.0, prefix)], 32, seed=7, vocab_size=vocab_size)


def test_samples_by_number_the_last_batch_smaller(corpus):
    data = dataset(corpus)
    batches = micro_batches(data, 10, 7, 3)
    assert [len(b.tokens) for b in batches] == [3, 3, 1]
    tokens = torch.cat([b.tokens for b in batches])
    assert tokens.dtype == torch.int64 and tokens.shape == (7, 33)
    assert np.array_equal(tokens.numpy(), data.rows(np.arange(10, 17)))
    assert torch.cat([b.index for b in batches]).tolist() == list(range(10, 17))
    assert all(b.scored.dtype == torch.bool and b.scored.shape == b.tokens.shape and b.scored.all() for b in batches)


def test_no_samples_are_no_rows(corpus):
    assert sum(len(b.tokens) for b in micro_batches(dataset(corpus), 0, 0, 4)) == 0


def test_micro_batch_size_does_not_choose_the_tokens(corpus):
    data = dataset(corpus)
    whole = torch.cat([b.tokens for b in micro_batches(data, 0, 12, 12)])
    assert torch.equal(whole, torch.cat([b.tokens for b in micro_batches(data, 0, 12, 5)]))


def test_ids_outside_the_vocabulary_are_refused(corpus):
    micro_batches(dataset(corpus, 250), 0, 256, 8)
    with pytest.raises(BadData, match=r"corpus: sample \d+ holds id 2\d\d, .*below the vocabulary size 200"):
        micro_batches(dataset(corpus, 200), 0, 256, 8)
