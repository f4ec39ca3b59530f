"""Samples that are taken back and drawn again, against their exact distribution."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from megatron.sampling.draws import How, Rows
from megatron.sampling.table import SAMPLERS
from tests.sampling.test_masked import DRAWS, LENGTH, MASK, VOCAB, Conditionals

STEPS, ETA = 4, 0.5


def constant(sigma):
    return lambda most, sure: [sigma(most)] * LENGTH


def shared_out(most, sure):
    if not any(sure):
        return [0.0] * LENGTH
    shares = [np.exp(-one) if one else 0.0 for one in sure]
    return [ETA * most * share / sum(shares) for share in shares]


CASES = {
    "remdm-cap": constant(lambda most: min(ETA, most)),
    "remdm-rescale": constant(lambda most: ETA * most),
    "remdm-confidence": shared_out,
}


def law(model, sigma):
    """{row: probability}: states are rows with the probabilities that their visible ids had when they were revealed."""
    states = {((MASK,) * LENGTH, (None,) * LENGTH): 1.0}
    for step in range(STEPS):
        before, after, found = step / STEPS, (step + 1) / STEPS, {}
        most = min(1.0, (1 - after) / before) if before else 1.0
        for (row, sure), chance in states.items():
            again = sigma(most, sure)
            options = []
            for i, one in enumerate(row):
                first = (after - (1 - again[i]) * before) / (1 - before)
                if one == MASK:
                    drawn = [(first * p, id_, p) for id_, p in enumerate(model.table[row][i])]
                    options.append([(1 - first, MASK, None), *drawn])
                else:
                    options.append([(1 - again[i], one, sure[i]), (again[i], MASK, None)])
            for picked in itertools.product(*options):
                here = chance * np.prod([one[0] for one in picked])
                if here > 0:
                    state = tuple(one[1] for one in picked), tuple(one[2] for one in picked)
                    found[state] = found.get(state, 0.0) + here
        states = found
        shown = sum(chance * sum(one != MASK for one in row) for (row, _), chance in states.items()) / LENGTH
        assert shown == pytest.approx(after) or sigma is shared_out  # where a hidden place has the same sigma
    ends = {}
    for (row, _), chance in states.items():
        ends[row] = ends.get(row, 0.0) + chance
    return ends


@pytest.mark.parametrize("name", CASES)
def test_samples_follow_the_exact_distribution(name):
    model, open_places = Conditionals(), torch.ones(DRAWS, LENGTH, dtype=torch.bool)
    ids = torch.full((DRAWS, LENGTH), MASK)
    rows = Rows(ids=ids, open=open_places, numbers=list(range(DRAWS)), seed=4, vocab_size=VOCAB)
    exact = law(model, CASES[name])
    assert sum(exact.values()) == pytest.approx(1) and len(exact) == VOCAB**LENGTH
    counts = dict.fromkeys(exact, 0)
    for row in SAMPLERS[name].load()(model, rows, How(steps=STEPS, eta=ETA)).tolist():
        counts[tuple(row)] += 1
    assert chisquare(list(counts.values()), np.array(list(exact.values())) * DRAWS).pvalue > 0.01
    assert model.read < STEPS * DRAWS


def test_what_is_given_stays_and_a_row_ends_at_its_first_end():
    ids = torch.tensor([[2, MASK, MASK]] * 200)
    rows = Rows(ids=ids, open=ids == MASK, numbers=list(range(200)), seed=0, vocab_size=VOCAB)
    for row in SAMPLERS["remdm-cap"].load()(Conditionals(), rows, How(eta=1.0, end=1)).tolist():
        assert row[0] == 2 and row[1:] in ([0, 0], [0, 1], [0, 2], [1, 1], [2, 0], [2, 1], [2, 2])
