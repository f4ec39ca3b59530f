"""Samplers of sparse distribution diffusion over small tables: what the model reads, and the distribution of what is drawn."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from megatron.objectives.sdd import States
from megatron.sampling.draws import How, Rows
from megatron.sampling.table import SAMPLERS

VOCAB, LENGTH, K, LIVE = 128, 3, 2, 5  # only the first LIVE ids are ever likely


class Fixed:
    """Says the same of each place whatever it reads, and keeps what it read."""

    def __init__(self, p):
        self.p, self.read = torch.cat((torch.tensor(p), torch.zeros(LENGTH, VOCAB - LIVE)), 1), []

    def logits(self, batches):
        (batch,) = batches
        self.read.append(batch)
        table = self.p.log().float().expand(len(batch.index), *self.p.shape).flatten(0, 1)
        return [torch.cat([table, torch.full((len(table), 1), 9.0)], 1)[batch.asked]]  # the mask is never to be drawn


def rows(number=1, given=None, seed=3):
    still = torch.ones(number, LENGTH, dtype=torch.bool)
    ids = torch.full((number, LENGTH), VOCAB)
    if given is not None:
        ids[:, 0], still[:, 0] = given, False
    states = {"states": States(vocab=VOCAB, schedule="cosine"), "candidates": K, "mask": VOCAB}
    return Rows(ids=ids, open=still, numbers=list(range(number)), seed=seed, vocab_size=VOCAB, **states)


def drawn(name, model, asked, **how):
    return SAMPLERS[name].load()(model, asked, How(**how))


def test_what_is_drawn_last_has_the_models_distribution():
    p = np.random.default_rng(1).dirichlet(np.ones(LIVE), LENGTH)
    found = drawn("sdd-renoise", Fixed(p), rows(1500), steps=2)
    for place in range(LENGTH):
        counts = np.bincount(found[:, place].numpy(), minlength=LIVE)
        assert chisquare(counts, 1500 * p[place]).pvalue > 1e-3


@pytest.mark.parametrize("name", ["sdd-renoise", "sdd-top-k"])
def test_given_places_are_certain_and_time_runs_from_all_noise_down(name):
    model = Fixed(np.full((LENGTH, LIVE), 1 / LIVE))
    found = drawn(name, model, rows(4, given=2), steps=5)
    assert (found[:, 0] == 2).all() and len(model.read) == 5 and int(found.max()) < LIVE
    for number, batch in enumerate(model.read):
        assert batch.level.tolist() == pytest.approx([1 - number / 5] * 4)
        assert (batch.candidates[:, 0, :-1] == 2).all() and (batch.mix[:, 0, 0] == 1).all()
        assert (batch.candidates[..., -1] == VOCAB).all() and batch.mix.sum(-1) == pytest.approx(torch.ones(4, LENGTH), abs=1e-6)
    assert (model.read[0].mix[:, 1:, :-1] == torch.tensor(1 / VOCAB)).all()  # nothing is known at first


def test_one_keeps_probabilities_and_the_other_noises_what_it_drew():
    sure = np.full((LENGTH, LIVE), 0.05)
    sure[:, 3] = 0.8
    kept, again = Fixed(sure), Fixed(sure)
    assert drawn("sdd-top-k", kept, rows(), steps=4).tolist() == [[3] * LENGTH]
    assert kept.read[1].candidates[0, 0].tolist() == [3, 0, VOCAB] and kept.read[1].mix[0, 0].tolist() == pytest.approx(
        [0.8, 0.05, 0.15]
    )
    assert drawn("sdd-renoise", again, rows(), steps=50, temperature=0).tolist() == [[3] * LENGTH]
    late = again.read[-1]
    assert late.mix[..., 0] == pytest.approx(torch.full((1, LENGTH), 0.99), abs=2e-3) and (late.candidates[..., 0] == 3).all()


@pytest.mark.parametrize("name", ["sdd-renoise", "sdd-top-k"])
def test_a_sample_is_the_same_alone_and_ends_where_it_ends(name):
    p = np.random.default_rng(2).dirichlet(np.ones(LIVE), LENGTH)
    together = drawn(name, Fixed(p), rows(6), steps=3)
    one = rows(6)
    alone = Rows(**{**vars(one), "ids": one.ids[4:5], "open": one.open[4:5], "numbers": [4]})
    assert drawn(name, Fixed(p), alone, steps=3).tolist() == together[4:5].tolist()
    for row in drawn(name, Fixed(p), rows(20), steps=3, end=1).tolist():
        assert 1 not in row or set(row[row.index(1) :]) == {1}
