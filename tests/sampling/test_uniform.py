"""The reverse process of uniform-state diffusion: a posterior by Bayes' rule, and exact where the network is."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from megatron.sampling.draws import How, Rows
from megatron.sampling.table import SAMPLERS, sampler_for
from megatron.sampling.uniform import posterior

V, LENGTH = 5, 3


class Fixed:
    """Says the same of each place whatever it reads, and keeps what it read."""

    def __init__(self, p):
        self.p, self.read = torch.tensor(p), []

    def logits(self, batches):
        (batch,) = batches
        self.read.append(batch)
        return [self.p.log().float().expand(len(batch.index), *self.p.shape).flatten(0, 1)[batch.asked]]


def rows(numbers, share, given=None):
    still = torch.ones(len(numbers), LENGTH, dtype=torch.bool)
    ids = torch.full(still.shape, V)
    if given is not None:
        ids[:, 0], still[:, 0] = given, False
    return Rows(ids=ids, open=still, numbers=numbers, seed=3, vocab_size=V, mask=V, uniform_share=share)


def drawn(model, asked, **how):
    return SAMPLERS["udm-ancestral"].load()(model, asked, How(**how))


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_places_that_say_nothing_of_each_other_are_drawn_from_their_own_law(share):
    """What the network says is then the law given all other places, and any number of steps is exact."""
    p = np.random.default_rng(1).dirichlet(np.ones(V), LENGTH)
    model = Fixed(p)
    found = drawn(model, rows(list(range(1500)), share), steps=4)
    for place in range(LENGTH):
        assert chisquare(np.bincount(found[:, place].numpy(), minlength=V), 1500 * p[place]).pvalue > 1e-3
    assert (model.read[0].inputs == V).float().mean() == pytest.approx(1 - share, abs=0.03)
    assert [batch.level is None for batch in model.read] == [share == 0] * 4


def test_given_places_stay_and_a_sample_does_not_depend_on_its_batch():
    p = np.random.default_rng(2).dirichlet(np.ones(V), LENGTH)
    together, alone = (drawn(Fixed(p), rows(numbers, 0.5, given=2)) for numbers in ([0, 1, 2, 3], [2]))
    assert (together[:, 0] == 2).all() and torch.equal(together[2], alone[0]) and int(together.max()) < V


def test_rows_of_other_lengths_beside_it_change_no_sample_and_what_was_revealed_stays():
    p = np.random.default_rng(2).dirichlet(np.ones(V), LENGTH)
    short = rows([7, 8], 0.5)
    short.open[0, 1:], short.ids[0, 1:] = False, 1
    alone = replace(short, ids=short.ids[:1], open=short.open[:1], numbers=[7])
    assert torch.equal(drawn(Fixed(p), short)[0], drawn(Fixed(p), alone)[0])
    greedy = drawn(Fixed(p), rows(list(range(50)), 0.0), temperature=0.0)
    assert torch.equal(greedy, torch.tensor(p.argmax(-1)).expand(50, -1))


def test_a_step_back_is_bayes_rule():
    noise = torch.tensor([0.1] * V + [0.5], dtype=torch.float64)
    p = torch.rand(1, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p /= p.sum()
    kept, then = 0.3, 0.6
    joint = torch.zeros(V + 1, V + 1, dtype=torch.float64)  # [then, now], by all that can happen to a token
    for x, middle, now in itertools.product(range(V), range(V + 1), range(V + 1)):
        first = then * (x == middle) + (1 - then) * noise[middle]
        second = kept / then * (middle == now) + (1 - kept / then) * noise[now]
        joint[middle, now] += p[0, x] * first * second
    for z in range(V + 1):
        found = posterior(torch.tensor([z]), p, noise, *torch.tensor([[kept], [then]], dtype=torch.float64))[0]
        torch.testing.assert_close(found / found.sum(), joint[:, z] / joint[:, z].sum())
    assert sampler_for("udm-ancestral", "udm").reads == ("steps",)
