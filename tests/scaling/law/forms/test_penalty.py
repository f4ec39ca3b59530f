import csv
import math

import numpy as np
import pytest

from megatron.scaling.law.fit import fit_law
from megatron.scaling.law.forms.penalty import OverfitPenalty

LAW = OverfitPenalty(E=1.9, A=500.0, B=5000.0, alpha=0.34, beta=0.43, P=1e-3)


def test_without_repetition_it_is_chinchilla_and_epochs_have_a_best_number():
    """d L / d e = 0 at fixed N: e* = (beta B U^(1 - beta) / (P N))^(1 / (1 + beta))."""
    assert LAW.loss(1e8, 1e9) == LAW.loss(1e8, 1e9, 1e9) == pytest.approx(1.9 + 500 / 1e8**0.34 + 5000 / 1e9**0.43)
    epochs = np.geomspace(1, 1e4, 20001)
    best = epochs[np.argmin(LAW.loss(1e8, 1e8 * epochs, 1e8))]
    closed = (0.43 * 5000 * 1e8**0.57 / (1e-3 * 1e8)) ** (1 / 1.43)
    assert best == pytest.approx(closed, rel=1e-3) == pytest.approx(105.362, rel=1e-3)
    params, tokens = LAW.optimum(1e19, 1e8)
    assert 6 * params * tokens == pytest.approx(1e19) and tokens / 1e8 == pytest.approx(28.8, rel=0.01)


def test_recovers_its_parameters_alone_and_with_the_chinchilla_part_held():
    params, unique, epochs = (grid.ravel() for grid in np.meshgrid([5e7, 3e8, 1e9], [1e8, 1e9, 1e10], [1, 4, 16, 64]))
    columns = {"params": params, "tokens": unique * epochs, "unique_tokens": unique}
    columns["loss"] = LAW.loss(params, unique * epochs, unique)
    fit = fit_law(columns, "overfit-penalty", num_resamples=0)
    assert {name: fit.params[name] for name in vars(LAW)} == pytest.approx(vars(LAW), rel=1e-3)
    held = {name: value for name, value in vars(LAW).items() if name != "P"}
    assert fit_law(columns, "overfit-penalty", chinchilla=held, num_resamples=0).params["P"] == pytest.approx(1e-3, rel=1e-4)


def test_published_runs_up_to_100_repetitions_and_all_of_them(published):
    """182 runs of arXiv:2305.16264: the penalty beats effective data where R <= 100 and loses where it goes on."""
    with open(published("datablations_c4_182.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([float(row[name]) for row in rows]) for name in ("params", "tokens", "unique_tokens", "loss")}
    few = columns["tokens"] / np.minimum(columns["tokens"], columns["unique_tokens"]) - 1 <= 100
    near = {name: column[few] for name, column in columns.items()}
    assert few.sum() == 139
    penalty, effective = (fit_law(near, form, num_resamples=0) for form in ("overfit-penalty", "data-constrained"))
    assert not any("linear in them" in warning for warning in penalty.warnings)
    assert penalty.objective == pytest.approx(3.17782e-3, rel=2e-3) and effective.objective > 1.2 * penalty.objective
    assert (math.log(penalty.params["A"]), math.log(penalty.params["B"])) == pytest.approx((6.864, 9.734), abs=0.02)
    assert [penalty.params[name] for name in ("alpha", "beta", "E")] == pytest.approx([0.3790, 0.4551, 2.1234], abs=2e-3)
    assert penalty.params["P"] == pytest.approx(3.306e-3, rel=0.01)
    penalty, effective = (fit_law(columns, form, num_resamples=0) for form in ("overfit-penalty", "data-constrained"))
    assert any("linear in them was seen to fail beyond 100" in warning for warning in penalty.warnings)
    assert penalty.objective == pytest.approx(7.49264e-3, rel=2e-3) and effective.objective < 0.9 * penalty.objective
