import numpy as np
import pytest

from megatron.scaling.law.form import Rows
from megatron.scaling.law.forms import FORMS
from megatron.scaling.law.forms.chinchilla import Chinchilla
from megatron.scaling.law.solver import Problem, minimise

LAW, TRUTH = FORMS["chinchilla"], Chinchilla(E=1.7, A=300.0, B=900.0, alpha=0.34, beta=0.37)


@pytest.fixture
def problem():
    random = np.random.default_rng(0)
    params, tokens = np.exp(random.uniform(18, 23, 60)), np.exp(random.uniform(21, 26, 60))
    rows = Rows.of(params, tokens, tokens, params, TRUTH.loss(params, tokens) * np.exp(0.004 * random.standard_normal(60)))
    made = Problem(lambda theta: LAW.log_loss(theta, rows), rows.loss, 1e-3)
    return made, LAW.starts(rows), *LAW.bounds(rows).T


def test_starts_agree_and_no_neighbour_is_lower(problem):
    made, starts, low, high = problem
    ends = minimise(made, starts, low, high)
    best = ends.theta[ends.objective.argmin()]
    assert ends.converged.mean() > 0.8
    assert np.mean(np.max(np.abs(ends.theta - best), axis=1) < 1e-4) > 0.8
    around = best + 1e-3 * np.random.default_rng(1).standard_normal((200, 5))
    assert np.all(made.objective(around) > ends.objective.min())


def test_a_place_nearby_is_not_converged(problem):
    made, starts, low, high = problem
    assert minimise(made, starts[:1], low, high).converged[0]
    assert not minimise(made, starts[:1] + 0.01, low, high, num_steps=1).converged[0]


def test_members_do_not_depend_on_their_company(problem):
    made, starts, low, high = problem
    many = minimise(made, np.repeat(starts, 8, axis=0), low, high)
    np.testing.assert_allclose(many.theta[::8][:3], minimise(made, starts[:3], low, high).theta, rtol=1e-7)


def test_a_weight_is_a_row_repeated(problem):
    made, starts, low, high = problem
    weights = np.ones(60)
    weights[:7] = 3
    rows = np.repeat(np.arange(60), weights.astype(int))
    again = Problem(lambda theta: tuple(part[..., rows] for part in made.log_loss(theta)), made.ln_loss[rows], 1e-3)
    np.testing.assert_allclose(
        minimise(made, starts[:1], low, high, weights).theta, minimise(again, starts[:1], low, high).theta, rtol=1e-6
    )


def test_equal_bounds_hold_a_parameter_and_others_stop_at_theirs(problem):
    made, starts, low, high = problem
    low, high = low.copy(), high.copy()
    low[3] = high[3] = 0.5
    high[4] = 0.2
    ends = minimise(made, starts, low, high)
    assert np.all(ends.theta[:, 3] == 0.5) and np.all(ends.theta[ends.converged, 4] == 0.2) and ends.converged.any()


def test_absurd_starts_do_not_break_their_neighbours(problem):
    made, starts, low, high = problem
    ends = minimise(made, np.stack([np.full(5, np.nan), starts[0], np.full(5, 1e6)]), low, high)
    assert ends.converged[1] and not ends.converged[0]


def test_the_best_end_of_each_group(problem):
    made, starts, low, high = problem
    ends = minimise(made, starts[:6], low, high)
    best = ends.best_of(2)
    assert list(best.objective) == [ends.objective[:3].min(), ends.objective[3:].min()]
