import dataclasses

import numpy as np
import pytest

from megatron.errors import BadData, Mismatch
from megatron.scaling.answers.critical import find_crossover, one_epoch_flops
from megatron.scaling.law.fit import Fit
from megatron.scaling.law.forms import FORMS
from megatron.scaling.law.forms.chinchilla import Chinchilla
from megatron.scaling.law.forms.coupled import Coupled
from megatron.scaling.law.forms.data_constrained import DataConstrained
from megatron.scaling.law.forms.kaplan import PowerLaw
from tests.pace import within

AR = DataConstrained(E=1.87, A=520.8, B=1487.7, alpha=0.3527, beta=0.3527, R_D=15.39, R_N=5.31)
MDM = DataConstrained(E=1.87, A=600.0, B=3500.0, alpha=0.3527, beta=0.3527, R_D=494.0, R_N=1266.0)


def stated_fit(law, spread=0.0, bound="exact", seed=0, num_draws=200, unit="nats"):
    """A fit with a known law, and draws of a stated relative spread around it."""
    form = {Chinchilla: "chinchilla", DataConstrained: "data-constrained"}[type(law)]
    noise = np.random.default_rng(seed).standard_normal((num_draws, len(FORMS[form].names)))
    names = vars(law) | dict(zip("ab", law.exponents))
    values = np.array([names[name] for name in FORMS[form].names])
    return Fit(
        form=form,
        params=dict(zip(FORMS[form].names, values)),
        draws=values * np.exp(spread * noise),
        choices={"unit": unit},
        conventions={"bound": bound, "tokenizer": "gpt2"},
        range={"flops": [1e17, 1e21], "unique_tokens": [2.5e7, 1e9]},
    )


def crossover(ar=AR, mdm=MDM, unique=(1e8,), spread=0.0, num_draws=50, **more):
    fits = stated_fit(ar, spread, num_draws=num_draws), stated_fit(mdm, spread, "bound", seed=1, num_draws=num_draws)
    return find_crossover(*fits, unique, **more)


def brute_force(U, flops):
    """The first budget of a fine grid at which the least loss over a fine grid of sizes is lower for MDM."""
    params = np.geomspace(1e5, 1e13, 4001)
    for C in flops:
        if np.min(MDM.loss(params, C / 6 / params, U)) <= np.min(AR.loss(params, C / 6 / params, U)):
            return C
    return None


def test_two_laws_without_repetition_cross_where_their_power_laws_do():
    ar, mdm = Chinchilla(1.8, 400.0, 900.0, 0.34, 0.34), Chinchilla(1.8, 900.0, 2400.0, 0.36, 0.36)
    level = [law.optimal_loss(6.0) - 1.8 for law in (ar, mdm)]  # L* = E + level (C / 6)^-(alpha beta / sum)
    closed_form = 6 * (level[1] / level[0]) ** (1 / (0.18 - 0.17))
    found = crossover(ar, mdm, flops=(closed_form / 1e4, closed_form * 1e4))["critical"][0]
    assert found["flops"] == pytest.approx(closed_form, rel=1e-6)


@pytest.mark.parametrize("U", [2.5e7, 1e9])
def test_critical_compute_is_that_of_brute_force(U):
    found = crossover(unique=[U])["critical"][0]
    grid = found["flops"] * np.geomspace(0.97, 1.03, 301)
    assert brute_force(U, grid) == pytest.approx(found["flops"], rel=1e-3)
    assert brute_force(U, found["flops"] * np.geomspace(1e-6, 0.97, 200)) is None
    ar, mdm = found["ar"], found["mdm"]
    assert ar["loss"] == pytest.approx(mdm["loss"], abs=1e-6)
    assert mdm["epochs"] == pytest.approx(found["flops"] / 6 / mdm["params"] / U)


def test_draws_without_spread_repeat_the_estimate():
    found = crossover(unique=[1e8, 1e9])
    for point in found["critical"]:
        assert [point["low"], point["high"]] == pytest.approx([point["flops"]] * 2, rel=2e-3)
        assert point["mdm"]["epochs_ci"] == pytest.approx([point["mdm"]["epochs"]] * 2, rel=0.05)
    assert found["power_law"]["ci"]["p"] == pytest.approx([found["power_law"]["p"]] * 2, abs=2e-3)


def test_equal_exponents_make_critical_compute_grow_as_the_square_of_the_data():
    """alpha = beta, one E: in units of the one-epoch compute, which is of order U^2, both laws look the same at every U."""
    found = crossover(unique=np.geomspace(1e7, 1e11, 9))
    law = found["power_law"]
    assert law["p"] == pytest.approx(2, abs=1e-4)
    assert np.exp(law["k"] + law["p"] * np.log(1e9)) == pytest.approx(found["critical"][4]["flops"], rel=1e-3)


def test_intervals_cover_the_spread_of_paired_draws():
    ar, mdm = stated_fit(AR, 0.002), stated_fit(MDM, 0.002, "bound", seed=1)
    found = find_crossover(ar, mdm, [1e8])["critical"][0]
    roots = [
        crossover(*(FORMS["data-constrained"].from_values(values) for values in pair), num_draws=2)["critical"][0]["flops"]
        for pair in zip(ar.draws[:30], mdm.draws[:30])
    ]
    inside = [found["low"] <= root <= found["high"] for root in roots if root]
    assert len(inside) > 25 and np.mean(inside) >= 0.85


def test_an_interval_ends_within_the_range_that_was_searched():
    """Draws in which MDM leads from the start cross somewhere below, which is not 0 FLOPs."""
    found = find_crossover(stated_fit(AR, 0.002), stated_fit(dataclasses.replace(AR, E=1.0), 0.002, "bound", seed=1), [1e8])
    (point,) = found["critical"]
    assert (point["low"], point["high"]) == (None, point["searched"][0])


def test_none_in_range_says_who_leads():
    assert "AR leads up to" in crossover(mdm=dataclasses.replace(MDM, E=3.0))["critical"][0]["reason"]
    found = crossover(mdm=dataclasses.replace(AR, E=1.0))
    assert "MDM leads already at" in found["critical"][0]["reason"] and found["power_law"] is None
    assert found["critical"][0]["flops"] is None and any("none in range" in warning for warning in found["warnings"])


def test_an_end_is_open_where_draws_never_cross():
    point = crossover(mdm=dataclasses.replace(MDM, E=2.85), spread=0.01)["critical"][0]
    assert point["high"] is None and 0 < point["share_of_draws"] < 1


def test_losses_that_may_not_be_compared_are_refused():
    ar = stated_fit(AR)
    with pytest.raises(Mismatch, match="bound"):
        find_crossover(ar, stated_fit(MDM, bound=None), [1e8])
    assert find_crossover(ar, stated_fit(MDM, bound=None), [1e8], allow=["bound"])["critical"][0]["flops"]
    with pytest.raises(Mismatch, match="--unit"):
        find_crossover(ar, stated_fit(MDM, unit="bits-per-byte"), [1e8])


def test_a_law_of_one_axis_is_refused():
    with pytest.raises(BadData, match="L\\(N, D\\)"):
        one_epoch_flops(PowerLaw(0.0, 1e13, 0.07, "params"), 1e8)
    with pytest.raises(BadData, match="found a law Coupled"):
        one_epoch_flops(Coupled(1.0, 15.0, 60.0, 0.4, 0.3, 2.0), 1e8)


def test_one_epoch_compute_spends_the_unique_tokens():
    assert Chinchilla.optimum(AR, one_epoch_flops(AR, 3e9))[1] == pytest.approx(3e9)


def test_contours_are_zero_at_the_crossing():
    found = crossover(unique=np.geomspace(1e8, 1e10, 5))
    difference = np.array(found["difference"])
    assert difference.shape == (len(found["unique_tokens"]), len(found["flops"]))
    for U, row in zip(found["unique_tokens"][::20], difference[::20]):
        critical = np.exp(found["power_law"]["k"] + found["power_law"]["p"] * np.log(U))
        assert np.interp(np.log(critical), np.log(found["flops"]), row) == pytest.approx(0, abs=2e-3)


def test_extrapolation_and_bounds_are_said():
    said = crossover(unique=[1e8, 1e12])["warnings"]
    assert any(warning.startswith("AR fit: flops lies") for warning in said)
    assert any("unique_tokens lies" in warning for warning in said) and any("upper bound" in warning for warning in said)
    assert not any("lies" in warning for warning in crossover()["warnings"])


def test_without_draws_there_are_no_intervals():
    ar, mdm = (dataclasses.replace(stated_fit(law), draws=None) for law in (AR, MDM))
    found = find_crossover(ar, mdm, [1e8, 1e9])
    assert [found["critical"][0][name] for name in ("low", "high")] == [None, None] and found["num_draws"] == 0
    assert found["power_law"]["p"] == pytest.approx(2, abs=1e-4) and any("no intervals" in said for said in found["warnings"])


def test_budgets_of_data_take_seconds():
    with within(100):
        find_crossover(stated_fit(AR, num_draws=400), stated_fit(MDM, bound="bound", num_draws=400), np.geomspace(1e8, 1e12, 4))
