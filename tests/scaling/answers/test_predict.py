import dataclasses

import numpy as np
import pytest

from megatron.scaling.answers.predict import compare_at_budget, in_words, predict_run, read_fits
from megatron.scaling.law.fit import save_fit
from megatron.scaling.law.forms.chinchilla import Chinchilla
from megatron.scaling.law.forms.data_constrained import DataConstrained
from tests.scaling.answers.test_critical import AR, MDM, stated_fit

DATABLATIONS = DataConstrained(E=1.86914, A=520.82, B=1487.72, alpha=0.3526596, beta=0.3526596, R_D=15.387756, R_N=5.309743)


def test_published_losses_of_a_run():
    """Check values of the datablations law, arXiv:2305.16264."""
    fit = stated_fit(DATABLATIONS)
    for N, D, loss in ((6.34e9, 242e9, 2.2256440890), (8.67e9, 178e9, 2.2269634075)):
        found = predict_run(fit, "ar", params=N, tokens=D, unique_tokens=25e9)
        assert found["loss"] == pytest.approx(loss, abs=1e-5) and found["epochs"] == pytest.approx(D / 25e9)


def test_published_optimum_for_repeated_data():
    """C = 1e22 over 25e9 unique tokens: 2.373e11 tokens, 9.49 epochs, 7.02e9 parameters by grid search (ibid.)."""
    found = predict_run(stated_fit(DATABLATIONS), "ar", flops=1e22, unique_tokens=25e9)
    assert found["epochs"] == pytest.approx(9.49, rel=0.02) and found["params"] == pytest.approx(7.02e9, rel=0.02)
    assert found["loss_ci"] == pytest.approx([found["loss"]] * 2)


def test_the_optimum_of_fresh_data_is_the_closed_form():
    law = Chinchilla(1.8, 482.0, 2085.0, 0.348, 0.366)
    found = predict_run(stated_fit(law), "ar", flops=6e20)
    assert (found["params"], found["tokens"]) == pytest.approx(law.optimum(6e20)) and found["epochs"] == 1
    assert found["params"] * found["tokens"] == pytest.approx(1e20)


def test_two_of_three_say_the_run():
    fit = stated_fit(AR, 0.01)
    one, two, three = (
        predict_run(fit, "ar", unique_tokens=1e9, **given)
        for given in ({"flops": 6e20, "params": 1e9}, {"flops": 6e20, "tokens": 1e11}, {"params": 1e9, "tokens": 1e11})
    )
    assert one["loss"] == pytest.approx(two["loss"]) == pytest.approx(three["loss"])
    assert one["params_ci"] == [1e9, 1e9] and one["epochs"] == 100


def test_a_run_scatters_more_than_the_law():
    fit = dataclasses.replace(stated_fit(AR, 0.01), residual_rms=0.05)
    found = predict_run(fit, "ar", flops=1e20, unique_tokens=1e9)
    assert found["run_ci"][0] < found["loss_ci"][0] < found["loss"] < found["loss_ci"][1] < found["run_ci"][1]
    assert found["ln_sd"] == pytest.approx(np.hypot(0.05, np.log(found["loss_ci"][1] / found["loss_ci"][0]) / 3.92), rel=1e-3)


def test_a_fit_that_states_no_scatter_says_so():
    found = predict_run(stated_fit(AR), "ar", flops=1e20, unique_tokens=1e9)
    assert "states no scatter of its runs" in found["warnings"][0]


def test_extrapolation_is_said():
    fit = dataclasses.replace(stated_fit(AR), residual_rms=0.01)  # its data: 1e17 to 1e21 FLOPs
    assert predict_run(fit, "ar", flops=9e21, unique_tokens=1e9)["warnings"] == []
    assert "flops lies 1e+03x beyond" in predict_run(fit, "ar", flops=1e24, unique_tokens=1e9)["warnings"][0]


def test_which_objective_wins_depends_on_the_budget():
    fits = {"ar": stated_fit(AR, 0.001), "mdm": stated_fit(MDM, 0.001, "bound", seed=1)}
    poor, rich = (compare_at_budget(fits, C, 1e8) for C in (1e17, 1e21))
    assert (poor["best"], rich["best"]) == ("ar", "mdm") and poor["share_of_draws"] == rich["share_of_draws"] == 1
    answer = in_words([predict_run(fit, label, flops=1e21, unique_tokens=1e8) for label, fit in fits.items()], rich)
    assert answer.startswith("With 1e+21 FLOPs and 1e+08 unique tokens: MDM with ") and "; against AR with " in answer
    assert answer.endswith("MDM leads in 100% of 200 paired draws.") and "epochs" in answer


def test_without_draws_there_is_a_prediction_without_interval():
    fit = dataclasses.replace(stated_fit(AR), draws=None, residual_rms=0.01)
    found = predict_run(fit, "ar", flops=1e20, unique_tokens=1e8)
    assert "loss_ci" not in found and found["run_ci"][0] < found["loss"] and "[" not in in_words([found], None)
    verdict = compare_at_budget({"ar": fit, "mdm": stated_fit(MDM)}, 1e17, 1e8)
    assert verdict == {"best": "ar", "share_of_draws": None, "num_draws": 0}


def test_fits_are_read_with_their_hashes(tmp_path):
    save_fit(stated_fit(AR, 0.01), tmp_path / "ar")
    fits, sources = read_fits([tmp_path / "ar", tmp_path / "ar" / "fit.json"])
    assert fits[0].law == fits[1].law == stated_fit(AR).law
    assert sources[0] == sources[1] and len(sources[0]["sha256"]) == 64
