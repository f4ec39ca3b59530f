import json

import numpy as np
import pytest

from megatron.errors import BadData
from megatron.scaling.answers.frontier import NAMES, Frontier, frontier_of, gain, load_frontiers, warnings_of
from megatron.scaling.answers.isoflop import fit_isoflop
from megatron.scaling.law.forms.chinchilla import Chinchilla

LAW = Chinchilla(E=1.0, A=15, B=60, alpha=0.4, beta=0.3)


def isoflop(law=LAW, noise=0.004, budgets=6, resamples=200, seed=0):
    flops = np.repeat(np.geomspace(2e11, 2e13, budgets), 6)
    params = law.optimum(flops)[0] * np.tile(np.geomspace(1 / 6, 6, 6), budgets)
    loss = law.loss(params, flops / 6 / params) + noise * np.random.default_rng(seed).standard_normal(len(flops))
    return fit_isoflop(flops, params, flops / 6 / params, loss, num_resamples=resamples)


def test_prefactors_exponents_and_the_loss_with_its_floor_are_those_of_the_law():
    exact = frontier_of(isoflop(noise=0.0))
    a, b = LAW.exponents
    assert (exact["params"]["a"], exact["params"]["b"]) == pytest.approx((a, b), rel=1e-5)
    assert exact["params"]["k_N"] * 1e20**a == pytest.approx(LAW.optimum(1e20)[0], rel=1e-4)
    assert exact["irreducible"]["E"] == pytest.approx(1.0, abs=1e-3)  # g is searched for between the values of a grid
    assert exact["irreducible"]["g"] == pytest.approx(0.4 * 0.3 / 0.7, rel=1e-3)
    noisy = frontier_of(isoflop())
    assert all(low < truth < high for truth, (low, high) in ((a, noisy["ci"]["a"]), (1.0, noisy["ci"]["E"])))
    assert noisy["curvature"]["ci"][0] > 0 and noisy["params"]["E"] > 0 and "bends" in warnings_of(noisy)[0]
    assert noisy["power_law"]["g"] < 0.1 < noisy["params"]["g"]
    assert noisy["bands"]["flops"][-1] == pytest.approx(2e14) and len(noisy["bands"]["tokens"]["low"]) == 31


def test_bands_cover_the_loss_ten_times_beyond_the_data():
    hits, truth = 0, LAW.optimal_loss(2e14)
    for seed in range(16):
        band = frontier_of(isoflop(seed=seed, resamples=80))["bands"]["loss"]
        hits += band["low"][-1] < truth < band["high"][-1]
    assert hits >= 13, hits  # 15 of 16, less 2.5 binomial standard deviations


def test_a_straight_loss_stays_a_power_law():
    flops = np.repeat([1e18, 1e19, 1e20, 1e21], 6)
    params = 1e-1 * flops**0.5 * np.tile(np.geomspace(0.2, 5, 6), 4)
    loss = 3 * (flops / 1e18) ** -0.05 + 0.1 * np.log10(params / (0.1 * flops**0.5)) ** 2
    loss = loss + 0.003 * np.random.default_rng(1).standard_normal(len(loss))
    found = frontier_of(fit_isoflop(flops, params, flops / 6 / params, loss, num_resamples=200))
    assert found["params"]["E"] == 0 and found["params"]["g"] == pytest.approx(0.05, abs=0.002) and not warnings_of(found)
    assert frontier_of(isoflop(budgets=1)) is None
    rising = {1e18: 3.0, 1e19: 2.9, 1e20: 3.0, 1e21: 3.4, 1e22: 4.1}  # as of data that are short
    flops = np.repeat(list(rising), 6)
    size = np.tile(np.geomspace(0.2, 5, 6), 5)
    params = 0.1 * flops**0.5 * size
    loss = np.repeat(list(rising.values()), 6) + 0.1 * np.log10(size) ** 2
    found = frontier_of(fit_isoflop(flops, params, flops / 6 / params, loss, num_resamples=50))
    assert found["irreducible"] is None and np.isfinite(list(found["params"].values())).all()


def test_the_gain_of_one_law_on_another():
    twice = Frontier(**dict(zip(NAMES, (1, 0.5, 1, 0.5, 1.0, 80.0, 0.2))))
    one = {"params": vars(twice), "range": {"flops": [1e12, 1e14]}, "draws": []}
    dear = one | {"params": vars(twice) | {"k_L": 80.0 * 2**0.2}}
    found = gain(one, dear)
    assert found["value"] == pytest.approx([0.5] * len(found["value"])) and "low" not in found
    assert found["inside"][-1] and not found["inside"][0]
    assert gain(one | {"params": vars(twice) | {"E": 3.0}}, dear) is None
    part = gain(one | {"params": vars(twice) | {"E": 1.2}}, dear)
    assert np.isfinite(part["value"]).any() and not np.isfinite(part["value"]).all()


def test_an_isoflop_file_is_a_law_of_the_optimum(tmp_path):
    optimum = frontier_of(isoflop())
    record = {"objective": "ar", "bound": "exact", "optimum": optimum, "scatter": 0.004, "warnings": []}
    path = tmp_path / "isoflop.json"
    path.write_text(json.dumps(record))
    [fit] = load_frontiers(tmp_path)
    assert fit.law.optimum(1e12)[0] == pytest.approx(LAW.optimum(1e12)[0], rel=0.1) and len(fit.draws) == 200
    assert fit.law.flops_at(fit.law.optimal_loss(1e13)) == pytest.approx(1e13)
    with pytest.raises(BadData, match="fresh data"):
        fit.law.optimum(1e12, 1e6)
    for change, message in (({"optimum": None}, "fewer than two minima"), ({"optimum": {}}, "not what `isoflop --out` writes")):
        path.write_text(json.dumps(record | change))
        with pytest.raises(BadData, match=message):
            load_frontiers(path)
    path.write_text("{}")
    with pytest.raises(BadData, match="no optimum"):
        load_frontiers(path)
