from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from megatron.errors import BadData
from megatron.scaling.answers import valley
from megatron.scaling.answers.frontier import compute_ratio, equal_loss_ratios
from megatron.scaling.answers.isoflop import fit_isoflop, fit_optima, fit_table, group_budgets, params_ratio
from megatron.scaling.law.forms.chinchilla import Chinchilla
from megatron.scaling.table.table import Table

BUDGETS = (2e11, 6e11, 2e12)
STEEP = Chinchilla(E=1.8, A=120.0, B=20.0, alpha=0.465, beta=0.155)


def sweep(noise=0.0, seed=0, level=3.0, bend=0.25, place=1.0, sizes=5):
    """C, N, D, loss of exact parabolas with N* = 0.045 C^0.5 and loss ~ C^-0.06, plus noise."""
    flops = np.repeat(BUDGETS, sizes)
    best = 0.045 * flops**0.5
    params = place * best * np.tile(np.geomspace(0.2, 6, sizes), len(BUDGETS))
    loss = level * (flops / BUDGETS[0]) ** -0.06 + bend * np.log10(params / best) ** 2
    return flops, params, flops / 6 / params, loss + noise * np.random.default_rng(seed).standard_normal(len(flops))


def test_exact_parabolas_give_their_minima_and_exponents():
    found = fit_isoflop(*sweep(), num_resamples=20)
    for minimum, budget in zip(found.minima, BUDGETS):
        assert minimum.flops == budget and minimum.reason is None
        assert minimum.params == pytest.approx(0.045 * budget**0.5, rel=1e-6)
        assert minimum.loss == pytest.approx(3 * (budget / 2e11) ** -0.06, rel=1e-9)
        assert 6 * minimum.params * minimum.tokens == pytest.approx(budget, rel=1e-6)
    assert found.exponents == pytest.approx({"a": 0.5, "b": 0.5, "g": 0.06}, abs=1e-6)


def lawful(noise=0.0, seed=0, width=16.0, sizes=9, law=STEEP):
    """C, N, D, loss of a law at sizes up to `width` times larger and smaller than the best, plus noise."""
    flops = np.repeat(BUDGETS, sizes)
    params = law.optimum(flops)[0] * np.tile(np.geomspace(1 / width, width, sizes), len(BUDGETS))
    loss = law.loss(params, flops / 6 / params) + noise * np.random.default_rng(seed).standard_normal(len(flops))
    return flops, params, flops / 6 / params, loss


def test_wide_grids_of_an_asymmetric_law_have_its_minima_and_parabolas_say_that_they_miss():
    truth = STEEP.optimum(np.array(BUDGETS))[0]
    for x, size in (("params", truth), ("tokens", np.array(BUDGETS) / 6 / truth)):
        found = fit_isoflop(*lawful(), num_resamples=50, x=x)
        for minimum, place in zip(found.minima, size):
            at, ends = (minimum.params, minimum.params_ci) if x == "params" else (minimum.tokens, minimum.tokens_ci)
            assert at == pytest.approx(place, rel=1e-6) and ends == pytest.approx([place] * 2, rel=1e-3)
        assert found.misfit.rejected and "parabolas do not describe these curves" in found.warnings[0]
        assert found.exponents["a"] == pytest.approx(STEEP.exponents[0], abs=1e-6)
    assert "D^-0.155 + c2 D^0.465; parabolas would put them -25 %" in found.warnings[0]  # over tokens, the other way round
    old = fit_isoflop(*lawful(), num_resamples=50, curve="parabola")
    assert old.minima[1].params > 1.3 * truth[1] and "biased, by more than the intervals say" in old.warnings[0]


def test_too_few_runs_cannot_tell_a_parabola():
    found = fit_isoflop(*sweep(0.01, sizes=4), num_resamples=50)
    assert found.misfit is None and "12 runs in 3 budgets cannot tell a parabola" in found.warnings[0]
    with pytest.raises(BadData, match="--curve law has 3 coefficients a budget"):
        fit_isoflop(*sweep(0.01, sizes=3), curve="law")


@pytest.mark.parametrize("make", [sweep, lawful, partial(lawful, width=4.0, sizes=7)], ids=["parabolas", "wide", "narrow"])
@pytest.mark.parametrize("count, least", [(40, 0.84), pytest.param(150, 0.89, marks=pytest.mark.slow)])
def test_intervals_cover_the_truth_as_often_as_they_say(make, count, least):
    """`least`: 0.95 less 3.3 binomial standard deviations."""
    hits = np.zeros(3)
    truths = (0.045 * 6e11**0.5, 3 * 3**-0.06, 0.5)
    if make is not sweep:
        truths = STEEP.optimum(6e11)[0], STEEP.optimal_loss(6e11), STEEP.exponents[0]
    for seed in range(count):
        found = fit_isoflop(*make(0.01, seed), num_resamples=120, seed=seed)
        middle = found.minima[1]
        hits += [
            (low or 0) < truth < (high or np.inf)
            for (low, high), truth in zip((middle.params_ci, middle.loss_ci, found.ci["a"]), truths)
        ]
    assert np.all(hits / count >= least), hits


def test_the_noise_a_run_states_widens_the_intervals():
    columns = sweep(0.002)
    quiet, noisy = (fit_isoflop(*columns, np.full(15, sigma), num_resamples=300) for sigma in (0.0, 0.03))
    width = [found.ci["a"][1] - found.ci["a"][0] for found in (quiet, noisy)]
    assert width[1] > 3 * width[0]


def test_three_sizes_have_intervals_only_from_stated_noise():
    columns = sweep(sizes=3)
    silent, stated = fit_isoflop(*columns), fit_isoflop(*columns, np.full(9, 0.005))
    assert silent.degrees_of_freedom == 0 and silent.ci["a"] is None and "no intervals" in silent.warnings[-1]
    assert stated.ci["a"][0] < 0.5 < stated.ci["a"][1]


def test_a_minimum_outside_the_data_is_marked_and_left_out():
    flops, params, tokens, loss = sweep(0.001)
    keep = (flops != 2e12) | (params < 0.04 * 2e12**0.5)  # only the falling side of the largest budget
    flops, params, tokens, loss = (column[keep] for column in (flops, params, tokens, loss))
    flops, params, tokens, loss = (np.append(c, v) for c, v in zip((flops, params, tokens, loss), (2e12, 5e4, 2e12 / 3e5, 2.612)))
    found = fit_isoflop(flops, params, tokens, loss, num_resamples=50)
    assert found.minima[2].reason == "minimum outside the data" and len(found.interior) == 2
    assert found.minima[2].params == pytest.approx(5e4)
    assert found.exponents["a"] == pytest.approx(0.5, abs=0.05)
    assert any("outside the data" in warning for warning in found.warnings)


def test_a_concave_parabola_has_no_minimum():
    found = fit_isoflop(*sweep(bend=-0.25), num_resamples=20)
    assert {minimum.reason for minimum in found.minima} == {"concave parabola, no minimum"}
    assert found.exponents == {"a": None, "b": None, "g": None}


def test_a_flat_valley_has_an_open_interval():
    found = fit_isoflop(*sweep(0.03, bend=0.04), num_resamples=300)
    assert any(None in minimum.params_ci for minimum in found.interior)


def test_one_budget_has_a_minimum_but_no_exponent():
    found = fit_isoflop(*(column[:5] for column in sweep(0.001)), num_resamples=20)
    assert len(found.interior) == 1 and found.exponents == {"a": None, "b": None, "g": None}


def test_two_sizes_and_a_cloud_of_budgets_are_named_and_left_out():
    columns = [np.append(column, extra) for column, extra in zip(sweep(), ([1e14] * 2, [1e5, 2e5], [1e8, 5e7], [2.0, 2.1]))]
    assert "2 size(s)" in fit_isoflop(*columns, num_resamples=0).warnings[0]
    flops = np.geomspace(1e10, 2e10, 20)
    cloud = fit_isoflop(flops, np.geomspace(1e3, 1e4, 20), flops, np.linspace(3, 2, 20), num_resamples=0)
    assert not cloud.minima and "not one budget" in cloud.warnings[0]


def test_budgets_are_told_apart_by_gaps():
    groups = group_budgets([2.01e11, 6e11, 1.99e11, 2e11, 6.1e11])
    assert [sorted(rows.tolist()) for rows in groups] == [[0, 2, 3], [1, 4]]


def test_unfinished_runs_are_refused():
    flops, params, tokens, loss = sweep()
    loss[0] = 0
    with pytest.raises(BadData, match="unfinished"):
        fit_isoflop(flops, params, tokens, loss)


def test_equal_loss_ratio_of_power_laws_is_exact():
    ar = fit_isoflop(*sweep(0.0), num_resamples=0)
    mdm = fit_isoflop(*sweep(0.0, level=3.0 * 2**0.06), num_resamples=0)  # needs twice the compute, everywhere
    ratios = equal_loss_ratios(ar, mdm)
    assert [ratio["ratio"] for ratio in ratios] == pytest.approx([2, 2, 2], rel=1e-6)
    assert [ratio["extrapolated"] for ratio in ratios] == [True, False, False]
    ends, upper = (
        fit_isoflop(*(np.delete(column, gone) for column in sweep(0.0)), num_resamples=0) for gone in (range(5, 10), range(5))
    )
    between = equal_loss_ratios(ends, mdm)  # at a budget that the cheap one has not, where its minima reach what is asked
    assert [ratio["ratio"] for ratio in between] == pytest.approx([2, 2, 2], rel=1e-6)
    assert [ratio["flops"] for ratio in equal_loss_ratios(upper, mdm)] == [ratio["flops"] for ratio in ratios[1:]]


def test_equal_loss_ratio_has_an_interval_and_needs_two_minima():
    ar, mdm = fit_isoflop(*sweep(0.002, 1), seed=1), fit_isoflop(*sweep(0.002, 2, level=3.13), seed=2)
    assert all(ratio["ci"][0] < ratio["ratio"] < ratio["ci"][1] for ratio in equal_loss_ratios(ar, mdm))
    assert equal_loss_ratios(fit_isoflop(*(column[:5] for column in sweep())), mdm) == []
    unknown = {**mdm.draws, "loss": np.where(np.arange(len(mdm.draws["loss"]))[:, None] % 10 == 0, np.nan, mdm.draws["loss"])}
    for ratio, same in zip(equal_loss_ratios(ar, replace(mdm, draws=unknown)), equal_loss_ratios(ar, mdm)):
        assert ratio["ci"] == pytest.approx(same["ci"], rel=0.05)  # a draw without a minimum says nothing, and not infinity


def test_parabolas_over_tokens_are_those_over_params_where_compute_is_their_product():
    over_params, over_tokens = (fit_isoflop(*sweep(0.005), num_resamples=200, x=x) for x in ("params", "tokens"))
    assert over_tokens.exponents == pytest.approx(over_params.exponents, abs=1e-6)
    for one, other in zip(over_params.minima, over_tokens.minima):
        assert (other.params, other.tokens, other.axis) == (pytest.approx(one.params), pytest.approx(one.tokens), "tokens")
        assert other.params_ci == pytest.approx(one.params_ci, rel=1e-6)


def test_a_window_leaves_the_far_sizes_out():
    flops, params, tokens, loss = sweep(sizes=9)
    best = 0.045 * flops**0.5
    loss = loss + 0.3 * np.abs(np.log10(params / best)) ** 3  # no parabola, far from the minimum
    wide, near = (fit_isoflop(flops, params * 1.3, tokens, loss, num_resamples=0, window=window) for window in (None, 0.5))
    truth = 1.3 * 0.045 * 6e11**0.5
    assert abs(near.minima[1].params / truth - 1) < abs(wide.minima[1].params / truth - 1)
    assert near.left_out and "0.5 decades" in near.left_out[0][1] and not wide.left_out
    assert len(near.left_out) + sum(minimum.num_runs for minimum in near.minima) == 27


def test_budgets_can_be_named():
    flops, params, tokens, loss = sweep()
    spread = flops * np.tile([0.8, 0.9, 1, 1.1, 1.25], 3)  # too wide for one budget, by the gaps
    assert not fit_isoflop(spread, params, tokens, loss, num_resamples=0).minima
    named = fit_isoflop(spread, params, tokens, loss, num_resamples=0, budget=flops)
    assert len(named.interior) == 3 and named.exponents["a"] == pytest.approx(0.5, abs=1e-6)


def test_three_sizes_are_few():
    assert "3 sizes, the parabola passes through them" in fit_isoflop(*sweep(sizes=3), num_resamples=0).warnings[0]


def test_clusters_are_drawn_within_a_budget_or_over_all():
    columns = [np.tile(column, 3) for column in sweep(sizes=9)]
    columns[3] = columns[3] + 0.01 * np.random.default_rng(0).standard_normal(len(columns[3]))
    apart = fit_isoflop(*columns, num_resamples=300, ci="cluster")
    assert apart.ci["a"][0] < 0.5 < apart.ci["a"][1] and apart.ci_method == "bootstrap by cluster"
    seeds = fit_isoflop(*columns, num_resamples=300, ci="cluster", cluster=np.repeat(["a", "b", "c"], 27))
    assert seeds.ci["a"][0] < seeds.exponents["a"] < seeds.ci["a"][1] and seeds.failed_resamples == 0
    few = fit_isoflop(*sweep(0.01), num_resamples=300, ci="cluster")  # five runs a budget: some draws hold two sizes
    assert np.isnan(few.draws["params"]).any() and few.ci["a"][0] < few.exponents["a"] < few.ci["a"][1]


def test_optima_that_are_known_already():
    flops = np.geomspace(1e18, 1e20, 6)
    params = 0.05 * flops**0.6 * np.exp(0.02 * np.random.default_rng(0).standard_normal(6))
    found = fit_optima(flops[::-1], params[::-1], (flops / 6 / params)[::-1], 3 * (flops[::-1] / 1e18) ** -0.05)
    assert found.exponents["a"] == pytest.approx(0.6, abs=0.02) and found.exponents["g"] == pytest.approx(0.05)
    assert found.ci["a"][0] < 0.6 < found.ci["a"][1] and found.degrees_of_freedom == 4
    with pytest.raises(BadData, match="one row a budget"):
        fit_optima([1e18, 1e18], [1e8, 2e8], [1e9, 1e9], [3, 3])


def test_intervals_of_optima_cover():
    flops, hits = np.geomspace(1e18, 1e20, 5), 0
    for seed in range(200):
        params = flops**0.6 * np.exp(0.05 * np.random.default_rng(seed).standard_normal(5))
        ci = fit_optima(flops, params, flops / 6 / params, flops**-0.05, num_resamples=300, seed=seed).ci["a"]
        hits += ci[0] < 0.6 < ci[1]
    assert 0.89 <= hits / 200 <= 0.99, hits


def test_ratios_at_a_loss_and_at_a_budget():
    ar = fit_isoflop(*sweep(0.0), num_resamples=0)
    mdm = fit_isoflop(*sweep(0.0, level=3.0 * 2**0.06), num_resamples=0)
    found = compute_ratio(ar, mdm, 2.8)
    assert found["ratio"] == pytest.approx(2, rel=1e-6) and not found["extrapolated"]
    assert params_ratio(ar, mdm, 1e13)["ratio"] == pytest.approx(1) and params_ratio(ar, mdm, 1e13)["extrapolated"]
    assert compute_ratio(fit_isoflop(*(column[:5] for column in sweep())), mdm, 2.8) is None


def rows(**changes):
    columns = dict(zip(("flops", "params", "tokens", "loss"), sweep(0.002)))
    return [
        {
            "run": f"r{i}",
            "line": i,
            "objective": "ar",
            "epochs": 1.0,
            "cluster": f"r{i}",
            "where": "t",
            **{name: column[i] for name, column in columns.items()},
            **changes,
        }
        for i in range(15)
    ]


def test_tables_by_objective_and_budget():
    table = Table(rows() + rows(objective="mdm"))
    found = fit_table(table, num_resamples=50)
    assert set(found) == {"ar", "mdm"} and found["ar"].exponents == found["mdm"].exponents
    assert not np.array_equal(found["ar"].draws["params"], found["mdm"].draws["params"])  # independent draws
    nominal = [row | {"budget": 2 * row["flops"]} for row in rows()]
    assert fit_table(Table(nominal), num_resamples=0)["ar"].minima[0].flops == 2 * BUDGETS[0]
    by_column = fit_table(Table(nominal), num_resamples=0, budgets="column")["ar"]
    assert len(by_column.minima) == 3
    with pytest.raises(BadData, match="column budget is None"):
        fit_table(Table(rows()), budgets="column")
    assert "epochs" in fit_table(Table(rows(epochs=4.0)), num_resamples=0)["ar"].warnings[-1]


def test_every_budget_has_the_scatter_of_its_own_residuals():
    flops, params, tokens, loss = (np.tile(column, 2) for column in sweep(0.002, sizes=8))
    rough = flops == BUDGETS[0]
    loss = loss + np.where(rough, 0.05 * np.random.default_rng(3).standard_normal(len(loss)), 0.0)
    found = fit_isoflop(flops, params, tokens, loss, num_resamples=300)
    widths = [np.log(minimum.params_ci[1] / minimum.params_ci[0]) for minimum in found.minima]
    assert widths[0] > 5 * max(widths[1:])
    assert len(found.warnings) == 1 and "budget 2e+11: residuals of" in found.warnings[0] and "--window" in found.warnings[0]


@pytest.mark.parametrize("sizes", [250, 20])  # as many distinct ones, or fewer than there are nodes
def test_nodes_stand_for_the_rows_of_a_large_budget(monkeypatch, sizes):
    flops, params, tokens, loss = (np.tile(column, 250 // sizes) for column in sweep(sizes=sizes))
    loss = STEEP.loss(params, tokens) + 0.01 * np.random.default_rng(1).standard_normal(len(loss))
    noise = np.full(len(loss), 0.02)
    by_nodes = fit_isoflop(flops, params, tokens, loss, noise, num_resamples=400)
    monkeypatch.setattr(valley, "MANY_ROWS", 10_000)
    by_rows = fit_isoflop(flops, params, tokens, loss, noise, num_resamples=400)
    assert by_nodes.misfit.F == pytest.approx(by_rows.misfit.F, rel=1e-4)
    assert by_nodes.scatter == pytest.approx(by_rows.scatter, rel=1e-6)
    for one, other in zip(by_nodes.minima, by_rows.minima):
        assert one.params == pytest.approx(other.params, rel=1e-4) and one.loss == pytest.approx(other.loss, rel=1e-6)
    width = [np.diff(found.ci["g"])[0] for found in (by_nodes, by_rows)]
    assert 0.75 < width[0] / width[1] < 1.33
