"""Blocks of one token are autoregression, one block is masked diffusion, and in between the loss is the bound by enumeration."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron.batch import Noise, asked_positions
from megatron.config import parse
from megatron.errors import Mismatch
from megatron.objectives import build, checked
from megatron.objectives.block import BlockDiffusion, sight
from megatron.objectives.masked import MaskedDiffusion
from megatron.proof import trial
from megatron.training.trained import refuse_blocks
from tests.objectives.test_schedules import LAYOUTS, clean, words
from tests.test_bound import MASK, SEQ, Oracle, Ordered, Whole, clean_rows, engine, instruct


def blocks(size, **more):
    return BlockDiffusion(mask_id=MASK, eps=0.0, count=True, block=size, **more)


def posed(objective, rows=16, length=4):
    data = clean(rows, length)
    small = replace(data, tokens=data.tokens % MASK)
    return objective.pose(small, Noise(5, small.index), 0.0)


def test_who_sees_whom():
    rows = ["".join(map(str, row)) for row in sight(4, 2).int().tolist()]
    assert " ".join(rows) == "11000000 11000000 00111100 00111100 00001100 00001100 00001111 00001111"


def test_one_block_is_masked_diffusion():
    whole, plain = posed(blocks(4, strata=16)), posed(MaskedDiffusion(mask_id=MASK, eps=0.0, count=True, strata=16))
    assert torch.equal(whole.inputs[:, :4], plain.inputs) and torch.equal(whole.weights[:, :4], plain.weights)
    assert int(whole.scored.sum()) == int(plain.scored.sum()) and not whole.weights[:, 4:].any()
    network = engine(False)
    (ours,), (theirs,) = network.score([whole]), network.score([plain])
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5) and (ours.scored == theirs.scored).all()


def test_blocks_of_one_token_are_an_exact_likelihood_left_to_right():
    """Of a random network: the likelihoods of all rows sum to one, whatever the noise."""
    data = clean_rows(Whole(SEQ, 1, 3))
    for seed in (1, 2):
        batch = blocks(1).reference().pose(data, Noise(seed, data.index), 1.0)
        (scores,) = engine(False).score([batch])
        assert (batch.inputs[:, 1:SEQ] == MASK).all() and set(batch.weights.unique().tolist()) == {0.0, 1.0}
        assert np.exp(-scores.loss).sum() == pytest.approx(1.0, abs=1e-5)


def test_the_loss_is_the_bound_by_enumeration():
    """A tabular model of each place, given which are visible: the mean over orders within each block, block after block."""

    def nll(visible, place):
        return 0.5 + 0.3 * place + 0.7 * len(visible) ** 1.5 / (1 + place) + 0.2 * sum(visible)

    expected = 0.0
    for first in (0, 2):
        for order in itertools.permutations((first, first + 1)):
            expected += sum(nll({*range(first), *order[:i]}, place) for i, place in enumerate(order)) / 2 / 4
    for strata in (None, 64):
        batch = posed(blocks(2, strata=strata), rows=2048)
        hidden, values = batch.inputs[:, :4] == MASK, []
        for row, weights in zip(hidden.tolist(), batch.weights.tolist()):
            seen = [{*range(i // 2 * 2), *(j for j in (i // 2 * 2, i // 2 * 2 + 1) if not row[j])} for i in range(4)]
            values.append(sum(w * nll(seen[i], i) for i, w in enumerate(weights[:4]) if w) / 4)
        assert abs(np.mean(values) - expected) < 4 * np.std(values) / math.sqrt(len(values)) + 1e-9


class Sighted(Oracle):
    """One that sees what `sight` shows to the hidden copy, block after block."""

    def score(self, batches):
        return [SimpleNamespace(loss=sum(self.block_loss(batch, first) for first in (0, 2))) for batch in batches]

    def block_loss(self, batch, first):
        block, seen = slice(first, first + 2), torch.full_like(batch.inputs[:, :4], MASK)
        seen[:, :first], seen[:, block] = batch.inputs[:, 4 : 4 + first], batch.inputs[:, block]
        nll = self.nll(replace(batch, inputs=seen, targets=batch.targets[:, :4]))
        return (nll * batch.weights[:, :4].numpy())[:, block].sum(1)


def test_padding_tells_nothing_of_where_a_row_ends(tmp_path):
    """The bound of a model that knows the law of the rows is tight, of rows of every length, within blocks too."""
    data = clean_rows(instruct(tmp_path, 4))
    rows, law = data.tokens[:, :-1].numpy(), np.random.default_rng(0).dirichlet(np.full(len(data.index), 0.3))
    cases = [(order, (level + 1) / 12) for order in itertools.permutations(range(4)) for level in range(12)]
    batches = []
    for order, t in cases:
        noise = Ordered(data.index, order, t)
        noise.row = torch.tensor([(place + 0.5) / 4 for place in order])
        noise.uniform = lambda purpose, n, row=noise.row: row[:n].expand(len(data.index), -1)
        batches.append(blocks(2, strata=16).pose(data, noise, 1.0))
    bound = np.mean([one.loss for one in Sighted(rows, law).score(batches)], 0)
    assert bound == pytest.approx(-np.log(law), rel=1e-5)


def test_a_rows_blocks_fill_as_many_strata():
    t = blocks(1, strata=8).block_times(Noise(3, torch.arange(8)), 0.0, 16)
    assert t.shape == (8, 16) and 0 < float(t.min()) and float(t.max()) <= 1
    torch.testing.assert_close(t.sort(1).values.diff(dim=1), torch.full((8, 15), 1 / 16, dtype=torch.float64))


def test_nothing_of_a_block_or_behind_it_is_told():
    batch, network = posed(blocks(2), rows=4), engine(False)
    everything = torch.ones(4, 8)
    asked = replace(batch, asked=asked_positions(everything))
    (logits,) = network.logits([asked])
    changed = batch.inputs.clone()
    changed[:, 2:4], changed[:, 6:8] = MASK, (batch.inputs[:, 6:8] + 1) % 3  # the second block, in both copies
    (others,) = network.logits([replace(asked, inputs=changed)])
    logits, others = logits.view(4, 8, -1), others.view(4, 8, -1)
    assert torch.equal(logits[:, :2], others[:, :2]) and not torch.equal(logits[:, 6:], others[:, 6:])
    changed = torch.cat((batch.inputs[:, :4], (batch.inputs[:, 4:] + torch.tensor([0, 0, 1, 1])) % 3), 1)
    (others,) = network.logits([replace(asked, inputs=changed)])
    assert torch.equal(logits[:, :4], others.view(4, 8, -1)[:, :4])


def test_flags_build_it_and_a_whole_row_is_refused():
    cfg = parse([*words("x"), "--objective", "mdm", "--block-size", "4", "--mdm-t-sampling", "iid"])
    found = checked(build(cfg, MASK))
    assert found == blocks(4) and found.reference() == blocks(4, strata=16) == found.reference().reference()
    with pytest.raises(Mismatch, match="was trained with --block-size 4, .* score it with --skip-train --load, or write with"):
        refuse_blocks(Path("runs/b"), cfg)


def test_noise_belongs_to_the_sample():
    whole, alone = posed(blocks(2), rows=8), posed(blocks(2), rows=3)
    assert torch.equal(whole.inputs[:3], alone.inputs) and torch.equal(whole.weights[:3], alone.weights)


def test_it_is_one_experiment_at_every_layout(pool, corpus):
    argv = [*words(corpus), "--objective", "mdm", "--block-size", "4"]
    alone = trial.train(argv, 3)
    for layout in LAYOUTS.values():
        found = pool.run(2, trial.train, [*argv, *layout.split()], 3)
        assert found[0].losses == pytest.approx(alone.losses, abs=5e-6) and found[0].norms == pytest.approx(alone.norms, rel=1e-4)
        assert found[0].validation == pytest.approx(alone.validation, abs=5e-6)
