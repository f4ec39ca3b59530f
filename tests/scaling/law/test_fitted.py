import json

import numpy as np
import pytest

from megatron.errors import BadData, MissingInput
from megatron.scaling.law.fit import fit_law
from megatron.scaling.law.fitted import Fit, as_text, load_fit, save_fit
from megatron.scaling.law.forms.data_constrained import DataConstrained

LAW = DataConstrained(E=1.7, A=300.0, B=900.0, alpha=0.34, beta=0.37, R_D=15.0, R_N=8.0)


@pytest.fixture(scope="module")
def fit():
    params, unique, epochs = (grid.ravel() for grid in np.meshgrid([5e7, 3e8, 1e9, 4e9], [1e9, 1e10], [1, 2, 8, 30]))
    loss = LAW.loss(params, unique * epochs, unique) * np.exp(0.003 * np.random.default_rng(0).standard_normal(32))
    return fit_law(
        {"params": params, "tokens": unique * epochs, "unique_tokens": unique, "loss": loss}, "data-constrained", num_resamples=50
    )


def test_saved_and_loaded_is_the_same(fit, tmp_path):
    save_fit(fit, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.json", "residuals.csv", "table.txt"]
    record = json.loads((tmp_path / "fit.json").read_text())
    assert record["schema_version"] == 2 and record["num_parameters"] == 7 and record["rows_dropped"] == []
    assert {"params", "objective", "ci", "warnings", "rows_used", "versions"} <= set(record)
    for again in (load_fit(tmp_path), load_fit(tmp_path / "fit.json")):
        np.testing.assert_array_equal(again.draws, fit.draws)
        assert {**vars(again), "draws": 0} == {**vars(fit), "draws": 0}
    assert "R_D" in (tmp_path / "table.txt").read_text() == as_text(fit)


def test_predictions_and_their_draws(fit):
    params, tokens = np.array([1e8, 1e9]), np.array([2e10, 4e10])
    assert fit.predict(params, tokens, 1e9) == pytest.approx(LAW.loss(params, tokens, 1e9), rel=0.02)
    assert fit.predict_draws(params, tokens, 1e9).shape == (50, 2) and fit.predict_draws(1e8, 2e10, 1e9).shape == (50,)
    assert fit.predict_draws(1e8, 2e10, 1e9)[3] == pytest.approx(
        DataConstrained(*(fit.draws[3][fit.names.index(name)] for name in vars(LAW))).loss(1e8, 2e10, 1e9)
    )
    size, seen = fit.optimum_draws(1e20, 1e9)
    assert size.shape == (50,) and size * seen == pytest.approx(1e20 / 6)
    assert fit.optimum(1e20, 1e9)[0] == pytest.approx(np.median(size), rel=0.3)


def test_far_predictions_say_so(fit):
    assert fit.extrapolation(params=1e9, tokens=1e10, unique=1e9) == []
    (said,) = fit.extrapolation(params=np.array([1e9, 1e12]))
    assert "250x" in said and "extrapolated" in said


def test_params_alone_are_a_fit(tmp_path):
    path = tmp_path / "fit.json"
    path.write_text(json.dumps({"params": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}}))
    fit = load_fit(path)
    assert fit.form == "chinchilla" and fit.params["a"] == pytest.approx(0.28 / 0.62)
    with pytest.raises(BadData, match="no resamples"):
        fit.predict_draws(1e9, 1e10)


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "not JSON"),
        ("[]", "found a list"),
        ('{"objectives": {}}', "the verb report wrote"),
        ('{"params": {"E": 1}}', "no form"),
        ('{"params": {"E": "x"}}', "expected a number"),
        ('{"form": "kaplan", "params": {"E": 1}}', "lack N_c"),
    ],
)
def test_other_files_are_refused(tmp_path, text, said):
    path = tmp_path / "fit.json"
    path.write_text(text)
    with pytest.raises(BadData, match=said):
        load_fit(path)
    with pytest.raises(MissingInput, match="give a fit.json"):
        load_fit(tmp_path / "none.json")


def test_what_is_not_a_number_is_null(tmp_path):
    save_fit(Fit("kaplan-params", {"N_c": 1e13, "alpha": 0.1}), tmp_path)
    assert json.loads((tmp_path / "fit.json").read_text())["objective"] is None
    assert np.isnan(load_fit(tmp_path).objective)
