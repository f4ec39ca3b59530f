import dataclasses

import numpy as np
import pytest

from megatron.errors import BadData
from megatron.scaling.answers.design import (
    candidate_runs,
    choose_runs,
    interval_around,
    parse_quantity,
    rank_runs,
    standard_error,
    weigh_evidence,
)
from megatron.scaling.law.fit import fit_law
from megatron.scaling.law.forms.chinchilla import Chinchilla
from tests.pace import within
from tests.scaling.answers.test_critical import AR

LAW = Chinchilla(1.8, 482.0, 2085.0, 0.348, 0.366)


def observations(law=LAW, epochs=(1,), noise=0.004, seed=0, extra=()):
    cases = [(N, C / 6 / N, e) for N in (1e7, 3e7, 9e7, 3e8, 9e8) for C in (1e18, 1e19, 1e20, 1e21) for e in epochs] + list(extra)
    params, tokens, repeats = np.array(cases).T
    scatter = np.exp(noise * np.random.default_rng(seed).standard_normal(len(cases)))
    return {
        "params": params,
        "tokens": tokens,
        "unique_tokens": tokens / repeats,
        "loss": law.loss(params, tokens, tokens / repeats) * scatter,
    }


@pytest.fixture(scope="module")
def chinchilla():
    """Rows with a Huber loss that is quadratic for all of them: least squares."""
    return fit_law(observations(), delta=1.0, num_resamples=0)


@pytest.fixture(scope="module")
def constrained():
    return fit_law(observations(AR, (1, 4, 32)), "data-constrained", delta=1.0, num_resamples=0)


@pytest.fixture(scope="module")
def refitted():
    return [fit_law(observations(seed=seed), delta=1.0, num_resamples=0, starts=4) for seed in range(80)]


def run_at(N, D, e=1.0):
    return [N], [D], [D / e]


@pytest.mark.parametrize("name", ["alpha", "beta", "E", "a"])
def test_the_standard_error_is_the_spread_over_new_noise(chinchilla, refitted, name):
    value, error = standard_error(weigh_evidence(chinchilla), parse_quantity(name))
    assert value == pytest.approx(chinchilla.params[name])
    assert error * value == pytest.approx(np.std([fit.params[name] for fit in refitted]), rel=0.35)


@pytest.mark.parametrize("quantity, place", [("alpha", (7e8, 3e12)), ("beta", (2e10, 3e8)), ("N*@1e22", (9e8, 3e12))])
def test_the_shrinkage_is_that_of_fitting_the_run_as_well(chinchilla, quantity, place):
    """Add the run on the law itself, where it moves nothing but the information."""
    known, wanted = weigh_evidence(chinchilla), parse_quantity(quantity)
    found = rank_runs(known, wanted, *run_at(*place), 1e18)[0]
    row = {
        "run": "new",
        "params": place[0],
        "tokens": place[1],
        "unique_tokens": place[1],
        "loss": float(chinchilla.law.loss(*place)),
        "held_out": False,
    }
    more = dataclasses.replace(chinchilla, residuals=[*chinchilla.residuals, row])
    now, after = standard_error(known, wanted)[1], standard_error(weigh_evidence(more), wanted)[1]
    scale = weigh_evidence(more).scatter / known.scatter  # one more degree of freedom
    assert found["shrinkage"] == pytest.approx(1 - after / scale / now, abs=2e-3) and found["shrinkage"] > 5e-3
    assert found["ci_after"] == pytest.approx(interval_around(standard_error(known, wanted)[0], after / scale), rel=1e-3)


def test_the_chosen_run_does_shrink_the_spread_of_refits(chinchilla, refitted):
    """Refit 80 noisy sweeps with and without the strongest run for E: the standard deviation falls by what was promised."""
    known, wanted = weigh_evidence(chinchilla), parse_quantity("E")
    runs = rank_runs(known, wanted, *candidate_runs(known, 1e22, 10, [1]), 1e18)
    best = max(runs, key=lambda run: run["shrinkage"])
    extra = [(best["params"], best["tokens"], 1)]
    with_run = [fit_law(observations(seed=seed, extra=extra), delta=1.0, num_resamples=0, starts=4) for seed in range(80)]
    spread = [np.std([fit.params["E"] for fit in fits]) for fits in (with_run, refitted)]
    assert best["shrinkage"] > 0.2
    assert spread[0] / spread[1] == pytest.approx(1 - best["shrinkage"], abs=0.15)


def test_repetition_is_offered_where_it_can_tell_something(chinchilla, constrained):
    fresh, repeated = (weigh_evidence(fit) for fit in (chinchilla, constrained))
    assert {*np.unique(candidate_runs(fresh, 1e21, 2, [1, 16])[1] / candidate_runs(fresh, 1e21, 2, [1, 16])[2])} == {1.0}
    ranked = rank_runs(repeated, parse_quantity("R_D"), *candidate_runs(repeated, 1e20, 2, [1, 4, 16, 64]), 1e18)
    assert max(ranked, key=lambda run: run["shrinkage"])["epochs"] >= 16
    unseen = rank_runs(repeated, parse_quantity("R_D"), *run_at(7e7, 3e10), 1e18)[0]
    assert unseen["shrinkage"] < 0.02


def test_runs_are_ranked_by_what_a_gpu_hour_buys(chinchilla):
    known = weigh_evidence(chinchilla)
    ranked = rank_runs(known, parse_quantity("alpha"), *candidate_runs(known, 1e20, 2, [1]), 1e18)
    rates = [run["shrinkage"] / run["gpu_hours"] for run in ranked]
    assert rates == sorted(rates, reverse=True) and all(run["flops"] <= 1e20 for run in ranked)
    assert ranked[0]["gpu_hours"] == pytest.approx(ranked[0]["flops"] / 1e18)
    chosen = choose_runs(ranked, 0.05, 3)
    assert len({run["params"] for run in chosen}) == len(chosen) <= 3 and all(run["shrinkage"] >= 0.05 for run in chosen)
    strongest = choose_runs(ranked, 0.999, 1)[0]
    assert strongest["shrinkage"] == max(run["shrinkage"] for run in ranked)


def test_rows_of_one_run_that_agree_count_as_fewer(chinchilla):
    apart = weigh_evidence(chinchilla)
    doubled = [row | {"cluster": str(number % 20)} for number, row in enumerate(chinchilla.residuals * 3)]
    together = weigh_evidence(dataclasses.replace(chinchilla, residuals=doubled))
    each_apart = [row | {"cluster": str(number)} for number, row in enumerate(doubled)]
    thrice = weigh_evidence(dataclasses.replace(chinchilla, residuals=each_apart))
    errors = [standard_error(known, parse_quantity("alpha"))[1] / known.scatter for known in (apart, together, thrice)]
    assert errors[1] == pytest.approx(errors[0], rel=0.02) and errors[2] == pytest.approx(errors[0] / np.sqrt(3), rel=0.02)


def test_a_robust_loss_is_less_certain_than_least_squares():
    rows = observations()
    errors = [
        standard_error(weigh_evidence(fit_law(rows, delta=delta, num_resamples=0)), parse_quantity("alpha"))[1]
        for delta in (1e-5, 1.0)
    ]
    assert errors[0] / errors[1] == pytest.approx(np.sqrt(np.pi / 2), rel=0.15)


def test_quantities_at_a_budget_or_a_run(constrained):
    known = weigh_evidence(constrained)
    law = constrained.law
    N, D = law.optimum(1e21, 1e9)
    for text, value in (
        ("N*@1e21,U=1e9", N),
        ("D*@C=1e21,U=1e9", D),
        ("epochs@1e21,U=1e9", D / 1e9),
        ("loss@1e21,U=1e9", law.loss(N, D, 1e9)),
        ("loss@N=1e9,D=1e11,U=1e10", law.loss(1e9, 1e11, 1e10)),
    ):
        found, error = standard_error(known, parse_quantity(text))
        assert found == pytest.approx(value, rel=1e-4) and 0 < error < 1


@pytest.mark.parametrize("text", ["N*@", "foo@1e21", "N*@1e21,V=3", "loss@N=1e9", "N*@N=1e9,D=1e10", "loss@x"])
def test_a_quantity_that_is_none_is_refused(text):
    with pytest.raises(BadData, match="expected N"):
        parse_quantity(text)


def test_what_the_form_does_not_have_and_what_nobody_can_pay_is_refused(chinchilla):
    known = weigh_evidence(chinchilla)
    with pytest.raises(BadData, match="R_D: the form chinchilla has E, A"):
        standard_error(known, parse_quantity("R_D"))
    with pytest.raises(BadData, match="raise --max-flops"):
        candidate_runs(known, 1e10, 2, [1])
    with pytest.raises(BadData, match="residuals.csv"):
        weigh_evidence(dataclasses.replace(chinchilla, residuals=[]))


def test_thousands_of_candidates_take_a_moment(constrained):
    known = weigh_evidence(constrained)
    with within(8):
        candidates = candidate_runs(known, 1e22, 3, np.geomspace(1, 500, 20))
        assert len(rank_runs(known, parse_quantity("N*@1e21,U=1e9"), *candidates, 1e18)) > 3000
