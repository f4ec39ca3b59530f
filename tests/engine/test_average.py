"""The average of the weights: what it is, who reads it, and that neither layout nor restart changes it."""

from dataclasses import replace

import pytest
import torch

from megatron.core import checkpoint
from tests.engine.test_native import LAYOUTS, OPTIM, batch, engine, engine_at, part_of, poisoned, same, state

DECAY = 0.3
AVERAGED = replace(OPTIM, ema=DECAY)


def of(pieces, root):
    return {name.removeprefix(f"{root}/"): t for name, t in pieces.items() if name.startswith(f"{root}/")}


def test_it_follows_the_weights_and_leaves_training_as_it_is():
    e, plain = engine(optim=AVERAGED), engine()
    expected = of(state(e), "model")
    assert of(state(e), "ema") == {}
    for n in (1, 2, 3):
        assert e.step([batch(n)], 1e-2) == plain.step([batch(n)], 1e-2)
        weights, d = of(state(e), "model"), min(DECAY, (1 + n) / (10 + n))
        expected = {name: d * a + (1 - d) * weights[name] for name, a in expected.items()}
        for name, average in of(state(e), "ema").items():
            torch.testing.assert_close(average, expected[name], rtol=1e-5, atol=1e-7)
    before = state(e)
    e.step([poisoned(batch(4))], 1e-2)
    assert same(before, state(e)) and same(of(before, "model"), of(state(plain), "model"))


def test_validation_and_those_who_open_the_run_read_it(tmp_path):
    e, plain = engine(optim=AVERAGED), engine()
    for each in (e, plain):
        each.step([batch(1)], 1e-1)
        each.step([batch(2)], 1e-1)
    before = state(e)
    (scored,), (logits,) = e.score([batch(3)]), e.logits([batch(3)])
    assert same(before, state(e))  # and training goes on from the weights
    assert abs(scored.loss - plain.score([batch(3)])[0].loss).min() > 1e-3
    saved = checkpoint.load(checkpoint.Saving(tmp_path, 2, e.pieces(), {}).finish())
    for optim in (OPTIM, AVERAGED):
        opened = engine(seed=9, optim=optim)
        opened.load(saved, weights_only=True)
        assert (opened.score([batch(3)])[0].loss == scored.loss).all() and torch.equal(opened.logits([batch(3)])[0], logits)
        assert same(of(state(opened), "model"), of(before, "ema"))


def test_it_may_begin_and_end_on_the_way(tmp_path):
    late, early = engine(), engine(optim=AVERAGED)
    for each in (late, early):
        each.step([batch(1)], 1e-2)
    begun, ended = engine(seed=9, optim=AVERAGED), engine(seed=9)
    begun.load(checkpoint.load(checkpoint.Saving(tmp_path / "late", 1, late.pieces(), {}).finish()))
    ended.load(checkpoint.load(checkpoint.Saving(tmp_path / "early", 1, early.pieces(), {}).finish()))
    weights = of(state(begun), "model")
    assert begun.step([batch(2)], 1e-2) == ended.step([batch(2)], 1e-2)
    d = min(DECAY, 3 / 12)
    for name, average in of(state(begun), "ema").items():
        torch.testing.assert_close(average, d * weights[name] + (1 - d) * of(state(begun), "model")[name], rtol=1e-5, atol=1e-7)
    assert of(state(ended), "ema") == {}


def two_steps(flags, folder, moved):
    """Two steps with scores between, a restart, and a step from a checkpoint that one process wrote.  -> scores, bits"""
    e = engine_at(flags, optim=AVERAGED)
    found = []

    def score(one):
        return [rows.loss.tolist() for rows in one.score([batch(9)])]

    for seed in (0, 2):
        e.step([part_of(seed, e.mesh), part_of(seed + 1, e.mesh)], 1e-2)
        found.append(score(e))
    path = checkpoint.Saving(folder, 2, e.pieces(), {}, group=e.mesh.control, say=lambda line: None).finish()
    other, elsewhere = (engine_at(flags, seed=9, optim=AVERAGED) for _ in range(2))
    other.load(checkpoint.load(path, group=e.mesh.control))
    elsewhere.load(checkpoint.load(moved, group=e.mesh.control))
    for one in (e, other, elsewhere):
        one.step([part_of(4, e.mesh), part_of(5, e.mesh)], 1e-2)
    return found, score(elsewhere), same(state(e), state(other)) and score(e) == score(other)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_same_and_goes_on_bit_for_bit(pool, tmp_path, layout):
    alone, expected = engine(optim=AVERAGED), []
    for seed in (0, 2):
        alone.step([batch(seed), batch(seed + 1)], 1e-2)
        expected.append(alone.score([batch(9)])[0].loss.tolist())
    path = checkpoint.Saving(tmp_path / "alone", 2, alone.pieces(), {}).finish()
    found = pool.run(2, two_steps, LAYOUTS[layout], tmp_path / "there", path)
    alone.step([batch(4), batch(5)], 1e-2)
    assert all(rank[2] for rank in found)
    (there, moved, _) = next(rank for rank in found if rank[1])  # the last stage knows the scores
    assert [scores[0] for scores in there] == [pytest.approx(scores, rel=1e-5) for scores in expected]
    assert moved[0] == pytest.approx(alone.score([batch(9)])[0].loss.tolist(), rel=1e-5)
    back = engine(seed=9, optim=AVERAGED)
    back.load(checkpoint.load(tmp_path / "there" / "step-00000002"))
    assert back.score([batch(9)])[0].loss.tolist() == pytest.approx(expected[-1], rel=1e-5)
