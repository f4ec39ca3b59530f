import numpy as np
import pytest

from megatron.scaling.law.fit import fit_law
from megatron.scaling.law.form import Rows
from megatron.scaling.law.forms import FORMS
from megatron.scaling.law.forms.coupled import Coupled

TRUTH = {"E": 1.7, "A": 400.0, "B": 1800.0, "alpha": 0.34, "beta": 0.37, "s": 3.0}


@pytest.mark.parametrize("name", ["coupled", "coupled-unique"])
def test_its_gradient_its_limits_and_a_known_law(name):
    form = FORMS[name]
    N, U, epochs = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 4e9, 6), np.geomspace(1e8, 1e11, 6), [1, 3]))
    law = form.law_of(TRUTH)
    columns = {"params": N, "tokens": U * epochs, "unique_tokens": U, "loss": law.loss(N, U * epochs, U)}
    rows = Rows.of(*(columns[one] for one in ("params", "tokens", "unique_tokens")), columns["tokens"], columns["loss"])
    theta = form.theta(TRUTH, rows)
    value, gradient = form.log_loss(theta[None], rows)
    np.testing.assert_allclose(value[0], rows.loss, rtol=1e-12)
    step = 1e-6 * np.eye(6)
    slopes = (form.log_loss(theta + step, rows)[0] - form.log_loss(theta - step, rows)[0]) / 2e-6
    np.testing.assert_allclose(gradient[0], slopes, atol=1e-7)
    assert fit_law(columns, name, num_resamples=0).params == pytest.approx(TRUTH, rel=1e-3)
    same = {one: TRUTH[one] for one in ("E", "A", "B", "alpha", "beta")}
    plain = FORMS["chinchilla"].law_of(same)
    np.testing.assert_allclose(form.law_of(same | {"s": 1.0}).loss(N, U, U), plain.loss(N, U), rtol=1e-12)
    params, _ = law.optimum(1e21)
    grid = params * np.exp(np.linspace(-1, 1, 201))
    assert law.optimal_loss(1e21) <= law.loss(grid, 1e21 / 6 / grid).min() + 1e-9


def test_it_is_kaplans_law_of_both_with_an_irreducible_loss():
    kaplan = FORMS["kaplan"].law_of({"N_c": 9e13, "D_c": 5e13, "alpha_N": 0.08, "alpha_D": 0.1})
    coupled = Coupled(0.0, 9e13**0.08, 5e13**0.1, 0.08, 0.1, 10.0)
    assert coupled.loss(1e9, 3e10) == pytest.approx(kaplan.loss(1e9, 3e10), rel=1e-12)
