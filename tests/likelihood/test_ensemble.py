"""Ensembles of tables, whose sums over everything are had by hand, and of members whose law is known in closed form."""

import numpy as np
import pytest
import torch
from scipy.special import digamma

from megatron.engine.members import Members
from megatron.likelihood.ensemble import chosen_subsets, estimate, fit_law, leave_one_out, mean_over, of_sequences, posed_by
from megatron.likelihood.orders import chain, mixture
from megatron.objectives.masked import MaskedDiffusion
from tests.likelihood.conftest import MASK, Table

BOUND = MaskedDiffusion(mask_id=MASK, eps=0.0, count=True, strata=16)


def test_the_mean_of_denoisers_is_a_denoiser(rows):
    """Its chain rules and its mixture over orders sum to one over all texts, and its loss stays above that mixture's NLL."""
    tables = [Table(3, seed) for seed in range(3)]
    whole = Members(tables, tables[0].mesh)
    for order in ((1, 2, 3), (3, 1, 2)):
        found = chain(whole, rows, torch.tensor([*order, 0]).expand(27, -1), MASK).sum(1)
        assert found.neg().exp().sum() == pytest.approx(1, abs=1e-12)
    exact = mixture(whole, rows, MASK)
    assert exact.neg().exp().sum() == pytest.approx(1, abs=1e-12)
    # the bound's mean over its draws: at least as large for every text, so that exp(-loss) sums to less than one
    subsets = chosen_subsets(3)
    draws = torch.stack([posed_by(tables, BOUND, 7, 32 * n, subsets)(rows) for n in range(400)])  # [draws, 27, 7]
    loss, error = draws[..., -1].mean(0), draws[..., -1].std(0) / 20
    assert (loss - exact > -4 * error).all() and loss.neg().exp().sum() < 1
    # one network's posed loss is what the estimator says of it
    alone = torch.stack([posed_by([whole], BOUND, 7, 32 * n, [(0,)])(rows)[:, 0] for n in range(3)])
    assert alone.numpy() == pytest.approx(draws[:3, :, -1].numpy(), abs=1e-12)


def test_whole_rows_are_another_distribution(rows):
    nll = torch.stack([mixture(Table(3, seed), rows, MASK) for seed in range(3)], -1)  # [27, 3]
    found = of_sequences(nll[None].numpy(), chosen_subsets(3))
    assert np.exp(-found[0]).sum(0) == pytest.approx(np.ones(7), abs=1e-12)
    assert np.exp(-found[0, :, -1]) == pytest.approx(np.exp(-nll.numpy()).mean(-1))


def gamma_members(count, rows, shape=2.0, seed=0):
    """-log of the mean of K gamma variables of mean 1: log(K m) - digamma(K m).  -> [1, rows, subsets]"""
    p = np.random.default_rng(seed).gamma(shape, 1 / shape, (rows, count))
    return np.stack([-np.log(p[:, list(subset)].mean(1)) for subset in chosen_subsets(count)], -1)[None]


def test_the_curve_over_subsets_is_that_of_fresh_ensembles():
    nll, subsets, shape = gamma_members(6, 40000), chosen_subsets(6), 2.0
    for size in range(1, 7):
        expected = np.log(size * shape) - digamma(size * shape)
        found = mean_over(nll, subsets, size).mean()
        assert found == pytest.approx(expected, abs=0.01)
    ones = np.ones(40000)
    by_size = np.stack([mean_over(nll, subsets, size) for size in range(1, 7)], -1)
    law = fit_law(by_size, leave_one_out(nll, subsets, ones), ones, random=False)
    assert law["L_inf"]["value"] == pytest.approx(0, abs=0.02) and law["a"]["value"] == pytest.approx(1 / (2 * shape), abs=0.05)
    assert 0.9 < law["exponent_if_free"]["value"] < 1.3
    low, high = law["L_inf"]["interval"]
    assert low < law["L_inf"]["value"] < high


def test_the_choice_of_members_is_an_error_of_its_own():
    """Members that differ as wholes: of one of K it is sd / sqrt(K), which rows alone do not see."""
    count, rows = 6, 50
    offset = np.random.default_rng(3).normal(0, 0.1, count)
    nll = np.stack([1 + offset[list(subset)].mean() + np.zeros(rows) for subset in chosen_subsets(count)], -1)[None]
    subsets, ones = chosen_subsets(count), np.ones(rows)
    without = leave_one_out(nll, subsets, ones)
    found = estimate(mean_over(nll, subsets, 1), ones, False, without[:, 0])
    assert found["se_members"] == pytest.approx(offset.std(ddof=1) / count**0.5) and found["se_rows"] == pytest.approx(0)
    assert (found["se"], found["se_df"]) == pytest.approx((found["se_members"], count - 1))


def test_subsets_are_all_or_many():
    assert len(chosen_subsets(4)) == 15 and chosen_subsets(3)[-1] == (0, 1, 2)
    some = chosen_subsets(12)
    sizes = np.bincount([len(subset) for subset in some])
    assert len(set(some)) == len(some) and sizes[1:].tolist() == [12, 66, 220, 252, 252, 252, 252, 252, 220, 66, 12, 1]
