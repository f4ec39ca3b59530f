"""Adaptive rates keep the mean rate and the bound, are plain masked diffusion where all tokens are alike, and know no layout."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from megatron.batch import Noise
from megatron.config import ConfigError, parse
from megatron.core.parameters import collect
from megatron.forecast import forecast
from megatron.objectives import build, checked
from megatron.objectives.atat import CURRICULA, Atat, row_mean, staged, tilted
from megatron.objectives.masked import MaskedDiffusion
from megatron.objectives.schedules import SCHEDULES, Schedule
from megatron.proof import trial
from megatron.proof.layouts import random_corpus
from tests.objectives.test_schedules import FLAGS, LAYOUTS, clean, words
from tests.test_bound import MASK, SEQ, Oracle, Whole, clean_rows, instruct

OBJECTIVE = Atat(mask_id=MASK, eps=0.0, mode="learned", curriculum="constant", tilt=3.0, least=0.3)


class ByPlace(nn.Module):
    """Says of each place, whatever stands there, how hard it is."""

    def forward(self, ids, positions):
        return torch.tensor([0.0, 2.0, -1.0, 4.0, -3.0])[positions % 5]


def posed(objective, data, seed=5, progress=0.9, companion=None):
    batch = objective.pose(data, Noise(seed, data.index), progress)
    return batch if batch.draws is None else objective.refine(batch, companion or ByPlace())


def rows_of(tilt, scored):
    generator = torch.Generator().manual_seed(3)
    s = torch.randn(scored.shape, generator=generator, dtype=torch.float64).mul(2).sigmoid()
    return (tilt * (s - row_mean(s, scored))).masked_fill(~scored, 0.0)


@pytest.mark.parametrize("tilt, least", [(1, 0.1), (3, 0.6), (10, 0.0), (10, 0.1), (10, 0.6), (10, 0.99)])
def test_a_rows_mean_rate_is_what_it_was_whatever_is_clipped(tilt, least):
    scored = torch.rand(2000, 64, generator=torch.Generator().manual_seed(1)) < 0.9
    m = torch.linspace(1e-6, 1, 2000, dtype=torch.float64)[:, None] ** 3
    p, slope = tilted(m.clamp(min=1e-6), rows_of(tilt, scored), scored, least)
    assert float((row_mean(p, scored) - m.clamp(min=1e-6)).abs().max()) < 1e-10
    assert float((row_mean(slope, scored) - 1).abs().max()) < 1e-12
    assert (p >= least * m - 1e-12).all() and (p <= 1).all()
    assert bool(((p - least * m).abs() < 1e-12).any()) == (least * math.exp(tilt) > 8)  # some are clipped, in the last two


def test_slopes_are_the_rates_derivatives():
    scored, m, d = torch.ones(500, 16, dtype=torch.bool), torch.linspace(0.01, 0.99, 500, dtype=torch.float64)[:, None], 1e-6
    offsets = rows_of(3, scored)
    _, slope = tilted(m, offsets, scored, 0.0)
    above, below = (tilted(m + x, offsets, scored, 0.0)[0] for x in (d, -d))
    torch.testing.assert_close((above - below) / (2 * d), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["packed", "rows that end"])
def test_the_weights_are_those_of_a_bound(kind, tmp_path):
    """For rates that do not depend on tokens the bound of a model that knows the law of the rows is tight."""
    data = clean_rows(Whole(SEQ, 1, 3) if kind == "packed" else instruct(tmp_path, 5))
    rows, law = data.tokens[:, :-1].numpy(), np.random.default_rng(0).dirichlet(np.full(len(data.index), 0.3))
    oracle = Oracle(rows, law)
    for weighting, right in (("elbo", True), ("importance", False)):
        objective = replace(OBJECTIVE, strata=16, weighting=weighting)
        values = [oracle.score([posed(objective, data, seed)])[0].loss for seed in range(160)]
        apart = (np.mean(values, 0) + np.log(law)) / (np.std(values, 0) / math.sqrt(len(values)))
        assert (np.square(apart).mean() < 1.7) == right, np.square(apart).mean()


@pytest.mark.parametrize("name", SCHEDULES)
def test_where_all_tokens_are_alike_it_is_masked_diffusion_bit_for_bit(name, tmp_path):
    plain = MaskedDiffusion(mask_id=MASK, schedule=Schedule(name=name), strata=4)
    for data in (clean_rows(Whole(SEQ, 1, 3)), clean_rows(instruct(tmp_path, 5))):
        want = posed(plain, data)
        for more in ({"mode": "none"}, {"mode": "none", "tilt": 0.0}, {"mode": "learned", "tilt": 0.0}):
            found = posed(Atat(**vars(plain), **more), data)
            for field in ("inputs", "targets", "weights", "scored", "positions", "asked"):
                assert torch.equal(getattr(found, field), getattr(want, field)), (more, field)
            assert found.draws is None and found.level is None
        if name == "linear":
            assert not torch.equal(posed(Atat(**vars(plain), mode="learned"), data).inputs, want.inputs)


def test_hard_tokens_are_hidden_more_often_at_the_end_and_easy_ones_at_the_beginning():
    data = clean(4096, 5)
    share = {}
    for progress in (0.1, 0.5, 0.9):
        batch = posed(Atat(mask_id=MASK, mode="learned", strata=64), data, progress=progress)
        share[progress] = (batch.inputs == MASK).double().mean(0)
    hard = torch.tensor([0.0, 2.0, -1.0, 4.0, -3.0]).sigmoid()
    for progress, sign in ((0.1, -1), (0.9, 1)):
        moved = share[progress] - share[0.5]
        assert np.corrcoef(moved.numpy(), sign * hard.numpy())[0, 1] > 0.8 and float(moved.mean().abs()) < 0.01
    assert [CURRICULA["steps"](at, 1 / 3, 2 / 3) for at in (0, 99 / 300, 100 / 300, 199 / 300, 200 / 300)] == [-1, -1, 0, 0, 1]
    assert [CURRICULA["linear"](at, 0, 0) for at in (0, 0.5, 1)] == [-1, 0, 1] and CURRICULA["constant"](0, 0, 0) == 1


def test_the_other_weight_favours_the_tokens_of_the_stage():
    importance, scored = torch.tensor([[0.1, 0.3, 0.5, 0.7, 0.9, 0.2]]), torch.tensor([[True, True, True, True, True, False]])
    for lean, expected in ((-1, [2, 2, 1, 1, 1]), (0, [1, 1, 1.5, 1.5, 1]), (0.2, [1, 1, 1, 1, 2])):
        found = staged(importance, torch.tensor([lean]), scored)[0, :5]
        torch.testing.assert_close(found, torch.tensor(expected).double() / np.mean(expected))


def test_what_is_measured():
    data, objective = clean(64, 5), replace(OBJECTIVE, strata=64)
    batch = posed(objective, data)
    said = objective.measure(batch)
    assert said["masking_rate"] == int((batch.inputs == MASK).sum()) and 0.9 < said["noise_level"] / 320 < 1.1
    s = (torch.tensor([0.0, 2.0, -1.0, 4.0, -3.0]) - 0.4).sigmoid().double()
    expected = {"importance_mean": s.mean() * 320, "importance_std": s.std(correction=0) * 320, "curriculum_stage": 3 * 320}
    expected |= {"importance_min": s.min(), "importance_max": s.max()}
    assert {name: said[name] for name in expected} == pytest.approx({n: float(x) for n, x in expected.items()}, rel=1e-6)


# In training

TRAINING = "--objective mdm --atat full --atat-tilt 3 --atat-easy-until 0.01 --atat-hard-from 0.02"


@pytest.fixture(scope="module")
def argv(tmp_path_factory):
    return [*words(random_corpus(tmp_path_factory.mktemp("atat"))), *TRAINING.split()]


def test_it_is_one_experiment_at_every_layout_and_after_a_restart(pool, argv, tmp_path):
    half = trial.train(argv, 2, save=str(tmp_path / "alone"))
    alone = trial.train(argv, 4)
    assert any(name.startswith("companion/model/blocks") for name in half.ended)
    again = trial.train(argv, 2, load=str(tmp_path / "alone" / "step-00000002"))
    assert again.losses == alone.losses[2:] and again.begun == half.ended  # bit for bit
    for name, layout in {**LAYOUTS, "micro": ""}.items():
        folder, count = tmp_path / name, 1 if name == "micro" else 2
        given = " ".join(argv).replace("batch-size 2", "batch-size 1" if name == "micro" else "batch-size 2").split()
        found = pool.run(count, trial.train, [*given, *layout.split()], 2, str(folder))
        moved = trial.train(argv, 2, load=str(folder / "step-00000002"))
        losses, norms = found[0].losses + moved.losses, found[0].norms + moved.norms
        assert losses == pytest.approx(alone.losses, abs=5e-6) and norms == pytest.approx(alone.norms, rel=1e-4), name
        assert found[0].validation == pytest.approx(half.validation, abs=5e-6)


def test_none_trains_bit_for_bit_as_plain_masked_diffusion(argv):
    plain = trial.train(argv[: argv.index("--atat")], 3)
    for mode in ("none", "full"):
        found = trial.train([*argv[: argv.index("--atat")], "--atat", mode, "--atat-tilt", "0"], 3)
        assert (found.losses, found.norms, found.validation) == (plain.losses, plain.norms, plain.validation)
    assert trial.train(argv, 3).losses != plain.losses


# Flags


def flags(*more):
    return parse([*FLAGS, *more])


def test_flags_build_it_and_validation_is_the_plain_bound():
    cfg = flags("--atat", "full", "--noise-schedule", "log-linear", "--time-conditioning")
    found = checked(build(cfg, MASK))
    plain = build(flags("--noise-schedule", "log-linear", "--time-conditioning"), MASK)
    assert isinstance(found, Atat) and found.schedule == plain.schedule and found.told
    assert found.reference() == plain.reference() and type(found.reference()) is MaskedDiffusion
    network = found.companion(cfg.model if cfg.model.vocab_size else replace(cfg.model, vocab_size=257))
    collect(network)
    for mode, learns in (("none", False), ("frequency", False), ("learned", True)):
        assert (build(flags("--atat", mode), MASK).companion(cfg.model) is not None) == learns
    with pytest.raises(TypeError, match="mode frequency needs to know how rare tokens are: call studied"):
        posed(build(flags("--atat", "frequency"), MASK), clean(2, 5))


def test_mistakes_are_told_together():
    bad = """--atat full --atat-width 20 --noise-steps 4 --mdm-loss low-variance --ar-ratio 0.5 --atat-easy-until 0.9
        --atat-hard-from 0.5 --reset-position-ids"""
    with pytest.raises(ConfigError) as told:
        flags(*bad.split())
    said = "\n".join(told.value.mistakes)
    for name in ("noise-steps", "mdm-loss", "ar-ratio", "reset-position-ids"):
        assert f"--{name} and --atat both say what is hidden or how much it counts: give one" in said
    assert "--atat-width 20 must be a multiple of 16" in said and "--atat-hard-from 0.5 must not be below" in said
    for words_, said in (
        ("--atat-tilt 2", "give --atat"),
        ("--atat none --atat-loss importance", "use --atat full, learned or frequency"),
        ("--atat frequency --atat-width 32", "use --atat full or learned"),
        ("--atat full --atat-curriculum linear --atat-hard-from 0.5", "use --atat-curriculum steps"),
    ):
        with pytest.raises(ConfigError, match=f"would do nothing here: {said}"):
            flags(*words_.split())


def test_its_network_is_counted():
    plain, cfg = flags(), flags("--atat", "full", "--atat-width", "32", "--atat-layers", "2")
    network = build(cfg, MASK).companion(cfg.model)
    count = sum(p.numel() for p in network.parameters())
    ours, theirs = (forecast(c).loads[0] for c in (cfg, plain))
    assert ours.weights - theirs.weights == ours.gradients - theirs.gradients == 4 * count == (ours.moments - theirs.moments) / 2
    multiplied = sum(p.numel() for name, p in network.blocks.named_parameters() if p.dim() == 2)
    attention = 4 * 2 * 32 * cfg.model.seq_length  # layers x width x places, scores and values
    assert cfg.flops_per_token() - plain.flops_per_token() == 4 * (2 * multiplied + attention)
