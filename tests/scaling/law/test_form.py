import numpy as np
import pytest

from megatron.errors import BadData
from megatron.scaling.law.form import Rows
from megatron.scaling.law.forms import FORMS
from megatron.scaling.law.forms.chinchilla import Chinchilla, variable_projection


def rows_of(form=FORMS["chinchilla"]):
    random = np.random.default_rng(3)
    params, unique = np.exp(random.uniform(16, 22, 40)), np.exp(random.uniform(20, 24, 40))
    tokens = unique * np.exp(np.maximum(random.uniform(-2, 5, 40), 0))
    loss = Chinchilla(1.7, 300, 900, 0.34, 0.37).loss(params, tokens)
    covariates = {symbol: random.uniform(1, 9, 40) for symbol in form.columns}
    return Rows.of(params, tokens, unique, 6 * params * tokens, loss, covariates)


@pytest.mark.parametrize("name", FORMS)
def test_gradient_equals_central_differences(name):
    form = FORMS[name]
    rows = rows_of(form)
    theta = form.starts(rows)[3] + 0.01
    _, gradient = form.log_loss(theta, rows)
    for i, step in enumerate(np.eye(len(theta)) * 1e-6):
        difference = (form.log_loss(theta + step, rows)[0] - form.log_loss(theta - step, rows)[0]) / 2e-6
        np.testing.assert_allclose(gradient[i], difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", FORMS)
def test_the_solver_and_the_law_have_the_same_loss(name):
    form = FORMS[name]
    rows = rows_of(form)
    theta = form.starts(rows)[:5]
    law = form.given(rows.covariates).from_values(form.values(theta, rows)[:, None])
    params, tokens, unique = np.exp(rows.params), np.exp(rows.tokens), np.exp(rows.unique)
    np.testing.assert_allclose(np.exp(form.log_loss(theta, rows)[0]), law.loss(params, tokens, unique), rtol=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_published_parameters_and_back(name):
    form = FORMS[name]
    rows = rows_of(form)
    theta = form.starts(rows)[:5]
    params = dict(zip(form.names, form.values(theta, rows).T))
    np.testing.assert_allclose(form.theta(params, rows), theta, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_starts_lie_within_the_bounds(name):
    form = FORMS[name]
    rows = rows_of(form)
    low, high = form.bounds(rows).T
    assert np.all(form.starts(rows) >= low) and np.all(form.starts(rows) <= high)
    assert form.bounds(rows).shape == (len(form.solved), 2)


def test_variable_projection_finds_a_law_without_noise():
    rows = rows_of()
    law = FORMS["chinchilla"].law(variable_projection(rows), rows)
    assert (law.E, law.alpha, law.beta) == pytest.approx((1.7, 0.34, 0.37), rel=1e-2)


def test_published_grids():
    rows = rows_of()
    assert FORMS["chinchilla"].published_grid(rows).shape == (4500, 5)
    assert FORMS["chinchilla-tied"].published_grid(rows).shape == (900, 4)
    with pytest.raises(BadData, match="Chinchilla forms only"):
        FORMS["data-constrained"].published_grid(rows)


def test_unique_tokens_are_at_most_those_seen():
    rows = Rows.of([1e6, 1e6], [1e8, 1e9], [1e9, 1e8], [1.0, 1.0], [3.0, 2.0])
    assert list(rows.repeated) == [False, True] and rows.unique[0] == rows.tokens[0]
