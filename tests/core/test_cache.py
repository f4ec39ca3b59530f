"""Passes over parts of rows against one pass over everything, in float64."""

from dataclasses import replace

import pytest
import torch

from megatron.batch import reading
from megatron.config import Model
from megatron.core.cache import Cache
from megatron.core.transformer import GPT

ROWS, WIDTH = 3, 12
SMALL = Model(
    num_layers=3,
    hidden_size=32,
    num_attention_heads=4,
    kv_channels=8,
    ffn_hidden_size=64,
    seq_length=WIDTH,
    vocab_size=50,
    padded_vocab_size=128,
    init_method_std=0.3,
)


def network(causal, groups=4):
    return GPT(replace(SMALL, num_query_groups=groups), causal, 0, torch.float64).eval()


def ids(seed=0):
    return torch.randint(0, 50, (ROWS, WIDTH), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def read(model, inputs, positions=None, cache=None, attend=None):
    """-> [b, q, v]"""
    batch = replace(reading(inputs), attend=attend, asked=torch.arange(inputs.numel()))
    batch = batch if positions is None else replace(batch, positions=positions)
    return model(batch, loss=False, cache=cache).unflatten(0, inputs.shape)


@pytest.mark.parametrize("groups", [4, 2])
def test_a_causal_model_says_the_same_in_parts(groups):
    model, row = network(True, groups), ids()
    whole, cache, start = read(model, row), Cache(ROWS, WIDTH), 0
    for q in (5, 1, 1, 3, 2):
        places = torch.arange(start, start + q).expand(ROWS, q)
        found = read(model, row[:, start : start + q], places, cache)
        torch.testing.assert_close(found, whole[:, start : start + q], rtol=0, atol=1e-12)
        start += q
    # Rows that stand at different places, of which one reads a place again; the others' rows are given up on the way.
    cache, until = Cache(ROWS, WIDTH), torch.tensor([7, 2, 4])
    read(model, row[:, :7], torch.arange(7).expand(ROWS, 7), cache)
    cache = cache.take(torch.tensor([1, 2]))
    places = until[1:, None] + torch.tensor([[0, 1, 1], [0, 1, 2]])
    found = read(model, row[1:].gather(1, places), places, cache)
    torch.testing.assert_close(found, whole[torch.tensor([[1], [2]]), places], rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [4, 2])
def test_what_is_not_read_again_stays_as_it_was(groups):
    """A model that looks both ways: old places saw old places, and new ones see each other and the rest of the old."""
    model, before, after = network(False, groups), ids(), ids()
    block = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 6], [1, 8, 9, 9]])  # the last row's is shorter, and repeats a place
    after.scatter_(1, block, ids(1).gather(1, block))
    cache = Cache(ROWS, WIDTH)
    torch.testing.assert_close(read(model, before, cache=cache), read(model, before), rtol=0, atol=1e-12)
    found = read(model, after.gather(1, block), block, cache)
    old = torch.ones(ROWS, WIDTH).scatter(1, block, 0).bool()  # what a new place sees of the old
    sees = torch.zeros(ROWS, WIDTH + 4, WIDTH + 4, dtype=torch.bool)
    sees[:, :WIDTH, :WIDTH] = True
    sees[:, WIDTH:, :WIDTH] = old[:, None]
    sees[:, WIDTH:, WIDTH:] = True
    sees[2, WIDTH:, -1] = False  # a repeated place is one place
    both = torch.cat((before, after.gather(1, block)), 1)
    places = torch.cat((torch.arange(WIDTH).expand(ROWS, WIDTH), block), 1)
    expected = read(model, both, places, attend=sees)[:, WIDTH:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert (found - read(model, after).gather(1, block[..., None].expand_as(found))).abs().max() > 1e-3


def test_what_a_cache_cannot_serve_is_said():
    model = network(False)
    with pytest.raises(ValueError, match="must read whole rows before parts of them"):
        read(model, ids()[:, :4], cache=Cache(ROWS, WIDTH))
    with pytest.raises(ValueError, match="3 rows up to place 12 are read with a cache of 2 x 12"):
        read(model, ids(), cache=Cache(2, WIDTH))
    with pytest.raises(ValueError, match="who sees whom is read without a cache"):
        read(model, ids(), cache=Cache(ROWS, WIDTH), attend=torch.ones(WIDTH, WIDTH, dtype=torch.bool))
