import numpy as np
import pytest

from megatron.errors import Mismatch
from megatron.scaling.answers.compare import Side, compare, findings
from megatron.scaling.answers.isoflop import fit_optima
from megatron.scaling.law.fit import Fit

FLOPS = np.geomspace(1e18, 1e20, 5)
ROW = {"run": "r", "objective": "ar", "bound": "exact", "tokenizer": "t"}


def runs(name, cost=1.0, shrink=1.0, noise=0.0, **changes):
    """Optima with L* ~ (C / cost)^-0.06 and N* ~ C^0.5 / shrink."""
    random = np.random.default_rng(len(name))
    params = 0.05 * FLOPS**0.5 / shrink
    loss = 3 * (FLOPS / cost / 1e18) ** -0.06 * np.exp(noise * random.standard_normal(5))
    return Side(name, [ROW | changes], isoflop=fit_optima(FLOPS, params, FLOPS / 6 / params, loss, seed=[len(name)]))


def fit(name, scale=1.0, **changes):
    """A law whose whole loss is that of 1 / scale the compute: A N^-a + B D^-a, E = 0 to all intents."""
    grow = scale**0.15  # half of alpha: C^-(alpha beta / (alpha + beta))
    params = {"E": 1e-9, "A": 400 * grow, "B": 400 * grow, "alpha": 0.3, "beta": 0.3, "a": 0.5, "b": 0.5}
    draws = np.array([list(params.values())] * 50) * np.exp([[0, x, x, 0, 0, 0, 0] for x in np.linspace(-0.01, 0.01, 50)])
    law = Fit(form="chinchilla", params=params, draws=draws, range={"flops": [1e18, 1e20]})
    return Side(name, [ROW | changes], fit=law)


def test_runs_that_need_twice_the_compute():
    found = compare(runs("ar"), runs("mdm", 2.0, 3.0))
    assert [row["ratio"] for row in found["compute"]] == pytest.approx([2] * 5)
    assert [row["ratio"] for row in found["params"]] == pytest.approx([3] * 5)
    assert found["compute"][0]["extrapolated"] and not found["compute"][-1]["extrapolated"]


def test_intervals_hold_the_truth():
    found = compare(runs("ar", noise=0.002), runs("mdm", 2.0, noise=0.002), at_loss=[2.7], at_flops=[1e19])
    low, high = found["compute"][0]["ci"]
    assert low < 2 < high and found["compute"][0]["loss"] == 2.7 and found["params"][0]["flops"] == 1e19


def test_fits_at_equal_loss_and_equal_compute():
    found = compare(fit("ar"), fit("mdm", 2.0), at_flops=[1e19])
    assert found["compute"][0]["ratio"] == pytest.approx(2, rel=1e-3)
    assert found["params"][0]["ratio"] == pytest.approx(1) and found["params"][0]["params"][0] > 1e8
    low, high = found["compute"][0]["ci"]
    assert low == pytest.approx(2, rel=1e-3) == high  # the same draws on both sides cancel
    assert len(compare(fit("ar"), fit("mdm", 2.0))["compute"]) == 5
    nowhere = compare(fit("ar"), fit("mdm"), at_loss=[1e-12])
    assert (nowhere["compute"], nowhere["unreached"]) == ([], [1e-12])


def test_a_fit_and_runs_are_not_compared():
    with pytest.raises(Mismatch, match="fit the runs first"):
        compare(fit("ar"), runs("mdm"))


def test_labels_say_exact_or_bound():
    assert runs("a").label == "a (exact NLL)" and runs("a", bound="bound").label == "a (upper bound)"
    assert "not stated" in runs("a", bound=None).label


def test_findings():
    both = [runs("ar"), runs("mdm", objective="mdm", bound="bound")]
    assert ["overstate" in line for line in findings(both)] == [True]
    other = [runs("ar"), runs("two", tokenizer="other")]
    with pytest.raises(Mismatch, match="tokenizer.*--allow tokenizer"):
        findings(other)
    assert findings(other, ["tokenizer"])[0].startswith("allowed: runs differ in tokenizer")
    with pytest.raises(Mismatch, match="bits-per-byte and in nats"):
        findings([runs("ar"), runs("two", unit="bits-per-byte")], ["tokenizer"])
    assert "no side says" in findings([runs("ar", bound=None), runs("two", bound=None)])[0]
