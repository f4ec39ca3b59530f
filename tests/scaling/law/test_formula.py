"""A form of a law that this file alone defines: what a newcomer writes, fitted as every form is."""

import numpy as np
import pytest

from megatron.errors import BadData
from megatron.scaling.answers.design import parse_quantity, rank_runs, standard_error, weigh_evidence
from megatron.scaling.answers.predict import predict_run
from megatron.scaling.law.fit import fit_law, load_fit, save_fit
from megatron.scaling.law.form import Rows
from megatron.scaling.law.forms import FORMS
from megatron.scaling.law.formula import Formula

TRUTH = {"A": 300.0, "B": 900.0, "P": 2e-3, "E": 1.7, "alpha": 0.34, "beta": 0.37, "phi": 0.6}


def memorising(p, N, D, U):
    """Chinchilla's law, and a loss that rises with the passes over the data."""
    return p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"] + p["P"] * (D / U) ** p["phi"]


TOY = Formula(
    "memorising",
    "L = E + A/N^alpha + B/D^beta + P (D/U)^phi",
    memorising,
    terms={"A": "alpha", "B": "beta", "P": "phi"},
    exponents={"alpha": (0.01, 3), "beta": (0.01, 3), "phi": (0.05, 3)},
    repeats=True,
)


def table(noise):
    params, unique, epochs = (grid.ravel() for grid in np.meshgrid([5e7, 3e8, 1e9, 4e9], [1e9, 1e10], [1, 4, 30, 100]))
    loss = memorising(TRUTH, params, unique * epochs, unique)
    loss = loss * np.exp(noise * np.random.default_rng(0).standard_normal(len(loss)))
    return {"params": params, "tokens": unique * epochs, "unique_tokens": unique, "loss": loss}


def test_a_form_of_ones_own_is_fitted_with_intervals_predicts_and_designs(tmp_path):
    exact = fit_law(table(0), TOY, num_resamples=0)
    assert exact.params == pytest.approx(TRUTH, rel=1e-3)
    fit = fit_law(table(0.002), TOY, num_resamples=40)
    assert all(fit.ci[name][0] < TRUTH[name] < fit.ci[name][1] for name in ("E", "alpha", "beta", "phi"))
    save_fit(fit, tmp_path)
    with pytest.raises(BadData, match="memorising"):  # its formula is not in the file
        load_fit(tmp_path)
    again = load_fit(tmp_path, forms=FORMS | {TOY.name: TOY})
    assert again.params == fit.params and again.ci == fit.ci
    found = predict_run(again, "toy", flops=1e20, unique_tokens=1e9)
    nearby = found["params"] * np.exp(np.linspace(-1, 1, 21))
    assert found["loss"] <= np.min(again.predict(nearby, 1e20 / 6 / nearby, 1e9)) + 1e-9
    assert found["loss_ci"][0] < found["loss"] < found["loss_ci"][1] and found["params_ci"][0] < found["params_ci"][1]
    known, phi = weigh_evidence(again), parse_quantity("phi")
    assert 0 < standard_error(known, phi)[1] < 0.4
    assert rank_runs(known, phi, [1e9], [1e12], [1e9], 1e18)[0]["shrinkage"] > 0.01


def test_the_gradient_of_a_formula_is_that_of_the_form_written_by_hand():
    columns = table(0.01)
    rows = Rows.of(*(columns[name] for name in ("params", "tokens", "unique_tokens")), columns["tokens"], columns["loss"])
    plain = Formula(
        "plain",
        "L = E + A/N^alpha + B/D^beta",
        lambda p, N, D, U: p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"],
        terms={"A": "alpha", "B": "beta"},
        exponents={"alpha": (0.01, 3), "beta": (0.01, 3)},
    )
    fits = [fit_law(columns, form, num_resamples=0) for form in (plain, "chinchilla")]
    assert fits[0].objective == pytest.approx(fits[1].objective, rel=1e-9)
    theta = plain.starts(rows)[:3]
    value, gradient = plain.log_loss(theta, rows)
    step = 1e-6 * np.eye(5)[3]
    difference = plain.log_loss(theta + step, rows)[0] - plain.log_loss(theta - step, rows)[0]
    np.testing.assert_allclose(gradient[:, 3], difference / 2e-6, rtol=1e-5)
    assert value.shape == (3, 32) and gradient.shape == (3, 5, 32)


def test_a_formula_that_is_not_linear_in_its_terms_is_told_so():
    def nested(p, N, D, U):
        return p["E"] + (p["A"] / N) ** p["alpha"]

    bad = Formula("bad", "L = E + (A/N)^alpha", nested, {"A": "alpha"}, {"alpha": (0.01, 2)})
    with pytest.raises(BadData, match="bad is not linear in A, E"):
        fit_law(table(0), bad, num_resamples=0)
