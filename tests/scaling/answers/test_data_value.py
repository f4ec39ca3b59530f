import dataclasses

import numpy as np
import pytest

from megatron.errors import BadData
from megatron.scaling.answers.data_value import as_record, curve_from_fit, curve_from_runs, value_of_repeated
from megatron.scaling.law.fit import Fit
from megatron.scaling.law.forms import FORMS
from megatron.scaling.law.forms.data_constrained import DataConstrained
from megatron.scaling.table.table import Table

LAW = DataConstrained(E=1.87, A=520.8, B=1487.7, alpha=0.3527, beta=0.3527, R_D=15.387756, R_N=5.309743)
NAMES = FORMS["data-constrained"].names
PARAMS = vars(LAW) | dict(zip("ab", LAW.exponents))


def fitted(ci=(10.0, 25.0), spread=0.01):
    values = np.array([PARAMS[name] for name in NAMES])
    draws = values * np.exp(spread * np.random.default_rng(0).standard_normal((200, len(NAMES))))
    return Fit(form="data-constrained", params=PARAMS, draws=draws, ci={"R_D": list(ci)}, residual_rms=0.002)


def runs(epochs, params=(1e8,), tokens=2e9, noise=0.0, fresh_tokens=()):
    """A table of runs of LAW: each size at each number of epochs of the same D, and fresh runs of other D."""
    random, rows = np.random.default_rng(1), []
    cases = [(N, tokens, e) for N in params for e in epochs] + [(N, D, 1) for N in params for D in fresh_tokens]
    for number, (N, D, e) in enumerate(cases):
        loss = LAW.loss(N, D, D / e) * np.exp(noise * random.standard_normal())
        rows.append({"run": f"r{number}", "params": N, "tokens": D, "unique_tokens": D / e, "loss": float(loss)})
    return Table(rows)


@pytest.mark.parametrize("epochs, value", [(2, 0.984), (4, 0.931), (8, 0.828), (16, 0.661), (40, 0.379), (100, 0.1636)])
def test_published_values_of_repeated_tokens(epochs, value):
    assert value_of_repeated(epochs, 15.387756) == pytest.approx(value, abs=6e-4)


def test_published_values_of_masked_diffusion():
    assert value_of_repeated(100, 500) == pytest.approx(0.908, abs=5e-4)
    assert value_of_repeated([2, 4, 10, 100, 500], 493.89) == pytest.approx([0.9995, 0.998, 0.992, 0.907, 0.630], abs=1.2e-3)
    ar = [0.992, 0.965, 0.882, 0.514, 0.309, 0.064]
    assert value_of_repeated([2, 4, 10, 50, 100, 500], 31.19) == pytest.approx(ar, abs=1e-3)


def test_limits():
    expected = np.array([[1, 1, 1 / 4], [1, 1, 1], [1, 1, 1 / 4]])
    assert value_of_repeated([0.5, 1, 4], [[0.0], [np.inf], [1e-300]]) == pytest.approx(expected)


def test_the_band_is_the_interval_of_the_scale():
    curve = curve_from_fit(fitted(), [1, 4, 100], "AR")
    assert curve.low == pytest.approx(value_of_repeated([1, 4, 100], 10)) and curve.high[1] > curve.value[1] > curve.low[1]
    open_end = curve_from_fit(fitted((None, None)), [4, 100], "AR")
    assert open_end.low == pytest.approx([1 / 4, 1 / 100]) and open_end.high == pytest.approx([1, 1])
    assert as_record(open_end)["R_D_ci"] == [None, None] and as_record(open_end)["high"] == [1, 1]


def test_runs_that_scatter_widen_the_band_and_say_so():
    calm = runs([1, 4, 4, 4, 8, 8, 8, 16], fresh_tokens=(1e9, 4e9, 8e9))
    repeats = calm.column("tokens") > calm.column("unique_tokens")
    signs = 0.03 * repeats * (-1.0) ** np.arange(len(repeats))
    shaken = [row | {"loss": row["loss"] * (1 + sign)} for row, sign in zip(calm.rows, signs.tolist())]
    steady, shaky = (curve_from_fit(fitted(spread=1e-4), [1, 4, 16], "MDM", of) for of in (calm, Table(shaken)))
    assert steady.R_D_ci == [10.0, 25.0] and not steady.warnings
    assert shaky.R_D_ci[0] < 5 and shaky.R_D_ci[1] > 40 and "Birge" in shaky.warnings[0]
    elsewhere = curve_from_fit(dataclasses.replace(fitted(ci=(14.9, 15.1)), draws=None), [1, 4, 16], "MDM", Table(shaken))
    assert "7 of 7 runs and their intervals lie outside of the band" in elsewhere.warnings[-1]


def test_runs_of_the_law_lie_on_its_curve_at_any_level():
    """Also where N is beyond what U calls for, and where every loss of one size is 1 % off (an anchor sets the level)."""
    table = runs([1, 2, 4, 16, 64], params=(2e7, 1e8, 1e9))
    for row in table.rows:
        row["loss"] *= 1.01 if row["params"] == 1e8 else 1.0
    points = curve_from_fit(fitted(spread=0.001), [1, 2], "AR", table).points
    assert len(points) == 12
    for point in points:
        assert point["value"] == pytest.approx(value_of_repeated(point["epochs"], LAW.R_D), rel=2e-2)
        assert point["ci"][0] < point["value"] < point["ci"][1]


def test_a_loss_below_what_any_data_gives_has_no_value():
    table = runs([1, 16])
    table.rows[1]["loss"] = 1.5
    point = curve_from_fit(fitted(), [1, 2], "AR", table).points[0]
    assert point["value"] is None and point["ci"][1] is None


def test_one_size_is_read_from_its_fresh_runs():
    """N small enough that the law of N' does not enter: then D'/D is that of the loss alone."""
    table = runs([1, 2, 4, 8, 16], params=(1e6,), tokens=2e9, fresh_tokens=np.geomspace(2e8, 2e9, 12))
    curve = curve_from_runs(table, [1, 4], "AR")
    assert curve.R_D == pytest.approx(LAW.R_D, rel=0.05)
    for point in curve.points:
        assert point["value"] == pytest.approx(value_of_repeated(point["epochs"], LAW.R_D), rel=0.02)
    assert curve.R_D_ci[0] <= curve.R_D <= curve.R_D_ci[1]


def test_one_size_without_fresh_runs_is_refused():
    with pytest.raises(BadData, match="add fresh runs of that size"):
        curve_from_runs(runs([1, 4, 16]), [1, 4], "AR")


def test_runs_outside_their_fresh_runs_are_said():
    table = runs([4, 64], params=(1e6,), tokens=2e9, fresh_tokens=np.geomspace(1e9, 2e9, 5))
    curve = curve_from_runs(table, [1, 4], "AR")
    assert [point["value"] is None for point in curve.points] == [False, True] and "1 of 2" in curve.warnings[-1]


def test_a_law_without_repetition_is_refused():
    fit = dataclasses.replace(fitted(), form="chinchilla", params={name: PARAMS[name] for name in FORMS["chinchilla"].names})
    with pytest.raises(BadData, match="data-constrained"):
        curve_from_fit(fit, [1, 2], "AR")


@pytest.mark.parametrize("noise", [0.01, 0.03])  # of ln loss, between runs: an exponent's worth of data at the larger
def test_the_interval_of_runs_holds_the_scatter_of_the_fresh_ones_too(noise):
    law = DataConstrained(E=1.2, A=60.0, B=200.0, alpha=0.34, beta=0.36, R_D=15.0, R_N=1e9)
    places = [(N, D, D) for N in (2e5, 1e6) for D in np.geomspace(5e6, 6.4e8, 6)]
    places += [(N, 2e7 * e, 2e7) for N in (2e5, 1e6) for e in (2, 4, 8, 16)]
    N, D, U = np.array(places).T
    inside = 0
    for seed in range(60):
        loss = law.loss(N, D, U) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))
        columns = {"run": range(len(N)), "params": N, "tokens": D, "unique_tokens": U, "loss": loss}
        rows = [dict(zip(columns, map(float, row))) for row in zip(*columns.values())]
        found = curve_from_runs(Table(rows), np.array([1.0, 16.0]), "runs", num_resamples=100)
        low, high = found.R_D_ci
        inside += (low or 0.0) < 15 < (high or np.inf)
        assert all(point["ci"][0] is None or point["ci"][0] <= point["value"] for point in found.points if point["value"])
    assert inside >= 54, inside  # of 60: 95 % less two standard deviations
