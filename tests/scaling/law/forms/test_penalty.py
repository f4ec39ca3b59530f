import csv

import numpy as np
import pytest

from megatron.scaling.law.fit import fit_law
from megatron.scaling.law.form import Rows
from megatron.scaling.law.forms import FORMS
from megatron.scaling.law.forms.penalty import Penalised

LAW = Penalised(E=2.0, A=900.0, B=5000.0, alpha=0.38, beta=0.43, P=1e-3)


def table():
    N, U, epochs = (x.ravel() for x in np.meshgrid([5e7, 2e8, 1e9], [1e8, 1e9], [1, 4, 12, 40]))
    return {"params": N, "tokens": U * epochs, "unique_tokens": U, "loss": LAW.loss(N, U * epochs, U)}


def test_the_penalty_and_its_epochs_of_least_loss():
    found = fit_law(table(), "chinchilla-penalty", num_resamples=0)
    assert {name: found.params[name] for name in ("E", "A", "B", "alpha", "beta", "P")} == pytest.approx(
        {name: getattr(LAW, name) for name in ("E", "A", "B", "alpha", "beta", "P")}, rel=1e-4
    )
    free = fit_law(table(), "chinchilla-penalty-free", num_resamples=0)
    assert (free.params["phi"], free.params["psi"]) == pytest.approx((1, 1), abs=1e-3)
    best = LAW.best_epochs(1e8, 1e8)
    assert best == pytest.approx(105.362, rel=1e-5)
    around = best * np.array([0.97, 1, 1.03])
    assert np.argmin(LAW.loss(1e8, 1e8 * around, 1e8)) == 1
    assert LAW.loss(1e8, 1e9) == pytest.approx(LAW.loss(1e8, 1e9, 1e9))
    assert FORMS["chinchilla-penalty"].doubts(Rows.of([1e8], [2e10], [1e8], [1e19], [3.0]))


@pytest.mark.parametrize("free", ["chinchilla-penalty", "chinchilla-penalty-free"])
def test_the_gradient_is_the_slope(free):
    form, columns = FORMS[free], table()
    rows = Rows.of(*(columns[name] for name in ("params", "tokens", "unique_tokens")), columns["tokens"], columns["loss"])
    theta = form.starts(rows)[4]
    value, gradient = form.log_loss(theta, rows)
    for i in range(len(theta)):
        step = 1e-6 * np.eye(len(theta))[i]
        slope = (form.log_loss(theta + step, rows)[0] - form.log_loss(theta - step, rows)[0]) / 2e-6
        assert gradient[i] == pytest.approx(slope, rel=1e-4, abs=1e-8)
    assert form.theta(dict(zip(form.names, form.values(theta, rows))), rows) == pytest.approx(theta)


@pytest.mark.slow
def test_on_published_runs_it_beats_effective_data_up_to_100_repetitions_and_fails_beyond(published):
    with open(published("datablations_c4_182.csv"), newline="") as file:
        lines = list(csv.DictReader(file))
    names = ("params", "tokens", "unique_tokens", "loss")
    columns = {name: np.array([float(line[name]) for line in lines]) for name in names}
    near = columns["tokens"] / np.minimum(columns["unique_tokens"], columns["tokens"]) - 1 <= 100
    few = {name: column[near] for name, column in columns.items()}
    expected = {
        "chinchilla": (4.76861e-3, 8.95265e-3),
        "data-constrained": (4.20661e-3, 6.56590e-3),
        "chinchilla-penalty": (3.17782e-3, 7.49264e-3),
        "chinchilla-penalty-free": (3.01755e-3, 5.12777e-3),
    }
    assert near.sum() == 139
    for form, objectives in expected.items():
        for rows, objective in zip((few, columns), objectives):
            assert fit_law(rows, form, num_resamples=0).objective <= objective * (1 + 2e-3), form
    assert fit_law(few, "chinchilla-penalty", num_resamples=0).params["P"] == pytest.approx(3.306e-3, rel=0.02)
