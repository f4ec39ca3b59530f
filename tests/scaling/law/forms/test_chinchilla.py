import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from megatron.scaling.law.forms.chinchilla import Chinchilla, log_chinchilla

HOFFMANN = Chinchilla(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


def test_loss_is_the_published_formula():
    expected = 1.69 + 406.4 / 70e9**0.34 + 410.7 / 1.4e12**0.28
    assert HOFFMANN.loss(70e9, 1.4e12) == pytest.approx(expected, rel=1e-12)


def test_optimum_has_the_least_loss_of_its_budget_and_spends_it():
    flops = 5.76e23
    params, tokens = HOFFMANN.optimum(flops)
    best = minimize_scalar(
        lambda x: HOFFMANN.loss(np.exp(x), flops / 6 / np.exp(x)), bounds=(20, 30), method="bounded", options={"xatol": 1e-9}
    )
    assert 6 * params * tokens == pytest.approx(flops, rel=1e-12)
    assert np.log(params) == pytest.approx(best.x, abs=1e-5)
    assert HOFFMANN.optimal_loss(flops) == pytest.approx(best.fun, rel=1e-12)


def test_exponents_are_the_slopes_of_the_optimum():
    a, b = HOFFMANN.exponents
    (n1, d1), (n2, d2) = HOFFMANN.optimum(1e20), HOFFMANN.optimum(1e22)
    assert np.log(n2 / n1) / np.log(100) == pytest.approx(a, rel=1e-9)
    assert np.log(d2 / d1) / np.log(100) == pytest.approx(b, rel=1e-9)
    assert a + b == pytest.approx(1)


def test_gradient_equals_central_differences():
    theta, x, y = np.array([1.0, 2.0, 0.5, 0.3, 0.4]), np.array([-1.0, 0.0, 2.0]), np.array([1.0, -3.0, 0.5])
    _, gradient = log_chinchilla(theta, x, y)
    for i, step in enumerate(np.eye(5) * 1e-6):
        difference = log_chinchilla(theta + step, x, y)[0] - log_chinchilla(theta - step, x, y)[0]
        np.testing.assert_allclose(gradient[i], difference / 2e-6, rtol=1e-6, atol=1e-9)


def test_no_overflow_from_far_away():
    value, gradient = log_chinchilla(np.array([2000.0, 25.0, -1.0, 0.0, 0.0]), np.log([1e9]), np.log([1e10]))
    assert value == pytest.approx(2000.0) and np.all(np.isfinite(gradient))


def test_counts_whose_product_overflows_an_integer():
    params, tokens = np.array([10**11]), np.array([10**12])
    assert HOFFMANN.loss(params, tokens) == pytest.approx(HOFFMANN.loss(1e11, 1e12))
