import csv
import time
from pathlib import Path

import numpy as np
import pytest

from megatron.errors import BadData, Refusal
from megatron.scaling import fit as solver
from megatron.scaling.fit import fit_chinchilla
from megatron.scaling.laws import Chinchilla

TRUTH = Chinchilla(E=1.7, A=300.0, B=900.0, alpha=0.34, beta=0.37)
PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "scaling"


def sweep(noise=0.0, seed=0, law=TRUTH):
    """Six budgets, six sizes: N, D, loss."""
    flops, params = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e18, 1e21, 6), np.geomspace(5e7, 5e9, 6)))
    tokens = flops / 6 / params
    return params, tokens, law.loss(params, tokens) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(flops)))


def published(name):
    if not (PUBLISHED / name).is_file():
        pytest.skip(f"published data {name} is not beside this repository (shared/data/scaling)")
    with open(PUBLISHED / name, newline="") as file:
        return list(csv.DictReader(file))


def chinchilla_points():
    """The 240 points of Hoffmann et al. that Besiroglu et al. (arXiv:2404.10102) fitted."""
    rows = [row for row in published("chinchilla_epoch_svg.csv") if row["excluded_in_besiroglu_fit"] != "True"]
    return [np.array([float(row[name]) for row in rows]) for name in ("params", "tokens", "loss")]


def test_recovers_a_known_law_without_noise():
    fit = fit_chinchilla(*sweep(), num_resamples=0)
    for name in ("E", "A", "B", "alpha", "beta"):
        assert fit.params[name] == pytest.approx(getattr(TRUTH, name), rel=1e-4)
    assert fit.share_at_optimum > 0.8 and fit.rows_used == 36 and not fit.ci and not fit.warnings


def test_intervals_contain_the_truth_and_repeat_with_the_seed():
    columns = sweep(noise=0.004)
    fit, again = (fit_chinchilla(*columns, seed=3, num_resamples=60) for _ in range(2))
    assert fit.ci == again.ci and fit.failed_resamples == 0
    assert all(fit.ci[name][0] < getattr(TRUTH, name) < fit.ci[name][1] for name in ("E", "alpha", "beta"))
    assert fit.ci["a"][0] < TRUTH.exponents[0] < fit.ci["a"][1]


def test_the_objective_is_the_sum_of_huber_on_log_residuals():
    columns = sweep(noise=0.02)
    fit = fit_chinchilla(*columns, delta=1e-3, num_resamples=0)
    residual = np.abs(np.log(fit.law.loss(*columns[:2])) - np.log(columns[2]))
    expected = np.where(residual <= 1e-3, residual**2 / 2, 1e-3 * (residual - 1e-3 / 2)).sum()
    assert fit.objective == pytest.approx(expected, rel=1e-9)


def test_an_outlier_hardly_moves_the_fit():
    params, tokens, loss = sweep(noise=0.002)
    loss[7] *= 1.5
    assert fit_chinchilla(params, tokens, loss, num_resamples=0).params["alpha"] == pytest.approx(0.34, abs=0.02)


def test_checkpoints_of_a_run_are_one_cluster():
    params, tokens, loss = (np.repeat(column, 4) for column in sweep(noise=0.004))
    run = np.repeat(np.arange(36), 4)
    rows = fit_chinchilla(params, tokens, loss, num_resamples=60)
    runs = fit_chinchilla(params, tokens, loss, run=run, num_resamples=60)
    assert runs.num_runs == 36 and rows.num_runs == 144
    assert runs.se["alpha"] > 1.5 * rows.se["alpha"]


def test_given_starts_replace_the_default_even_absurd_ones():
    fit = fit_chinchilla(*sweep(noise=0.002), starts=[[25, 25, 1, 0, 0], [5, 5, 0.5, 0.5, 0.5]], num_resamples=0)
    assert fit.num_starts == 2 and fit.params["alpha"] == pytest.approx(0.34, abs=0.03)


def test_a_vanishing_floor_is_a_warning_and_an_open_interval():
    fit = fit_chinchilla(*sweep(noise=0.004, law=Chinchilla(E=1e-9, A=30.0, B=90.0, alpha=0.1, beta=0.15)), num_resamples=40)
    assert fit.ci["E"][0] is None
    assert any("E" in warning and "unbounded below" in warning for warning in fit.warnings)


def test_few_runs_are_warned_of_and_fewer_refused():
    params, tokens, loss = (column[::7] for column in sweep(noise=0.004))
    assert len(loss) == 6
    few = fit_chinchilla(params[:5], tokens[:5], loss[:5], num_resamples=10)
    assert any("5 runs for 5 parameters" in warning for warning in few.warnings) and not few.ci
    with pytest.raises(BadData, match="4 runs"):
        fit_chinchilla(params[:4], tokens[:4], loss[:4])


def test_one_size_cannot_show_its_exponent():
    tokens = np.geomspace(1e9, 1e12, 12)
    fit = fit_chinchilla(np.full(12, 1e9), tokens, TRUTH.loss(1e9, tokens), num_resamples=0)
    assert any("only 1 values of N" in warning for warning in fit.warnings)


@pytest.mark.parametrize("bad", [0.0, np.nan, -1.0, np.inf])
def test_an_unfinished_run_is_refused_by_row(bad):
    params, tokens, loss = sweep()
    loss[2] = bad
    with pytest.raises(BadData, match="column loss, row 3"):
        fit_chinchilla(params, tokens, loss)


def test_no_convergence_is_a_refusal(monkeypatch):
    monkeypatch.setattr(solver, "_is_stationary", lambda *_: False)
    with pytest.raises(Refusal, match="did not converge from any"):
        fit_chinchilla(*sweep(), num_resamples=0)


def test_stationary_tells_an_optimum_from_a_place_nearby():
    columns = [np.log(column) for column in sweep(noise=0.004)]
    centre = columns[0].mean(), columns[1].mean()
    data, bounds = (columns[0] - centre[0], columns[1] - centre[1], columns[2]), solver._bounds(columns[2])
    theta, _, converged = solver._descend(solver._default_starts(data)[0], data, 1e-3, bounds)
    assert converged and not solver._is_stationary(theta + 0.01, data, 1e-3, bounds)


def test_published_chinchilla_points():
    start = time.process_time()
    fit = fit_chinchilla(*chinchilla_points(), delta=1e-3, num_resamples=0)
    assert time.process_time() - start < 30
    assert fit.objective <= 1.018275e-3 * (1 + 1e-5)
    assert fit.params["A"] == pytest.approx(477.83, rel=3e-3) and fit.params["B"] == pytest.approx(2143.4, rel=6e-3)
    for name, value in (("E", 1.81722), ("alpha", 0.34731), ("beta", 0.36717)):
        assert fit.params[name] == pytest.approx(value, abs=3e-4)


def test_published_chinchilla_points_at_a_small_delta():
    fit = fit_chinchilla(*chinchilla_points(), delta=1e-5, num_resamples=0)
    assert fit.params["A"] == pytest.approx(481.39, rel=5e-3) and fit.params["B"] == pytest.approx(2081.4, rel=1e-2)
    assert fit.params["alpha"] == pytest.approx(0.34774, abs=4e-4) and fit.params["beta"] == pytest.approx(0.36576, abs=4e-4)


@pytest.mark.slow
def test_published_chinchilla_bootstrap():
    fit = fit_chinchilla(*chinchilla_points(), num_resamples=400)
    for name, error in (("A", 127.6), ("B", 1321), ("E", 0.0260), ("alpha", 0.01555), ("beta", 0.02125)):
        assert fit.se[name] == pytest.approx(error, rel=0.25)
    assert fit.ci["a"] == pytest.approx([0.478, 0.556], abs=0.012)


def test_published_gemstones():
    rows = published("gemstones_hot.csv")
    columns = [np.array([float(row[name]) for row in rows]) for name in ("params", "tokens", "loss")]
    fit = fit_chinchilla(*columns, num_resamples=0)
    assert fit.objective <= 1.981613e-3 * (1 + 1e-5)
    assert [fit.params["alpha"], fit.params["beta"]] == pytest.approx([0.29289, 0.71298], abs=3e-3)
