from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from megatron.errors import BadData
from megatron.scaling.law.laws import Chinchilla, DataConstrained, DataConstrainedOverfit, Kaplan, PowerLaw, log_chinchilla

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


# ---- repeated data, Kaplan's laws

C4 = DataConstrained(np.exp(0.6254804), np.exp(6.255414), np.exp(7.3049974), 0.3526596, 0.3526596, R_D=15.387756, R_N=5.309743)


def test_published_values_of_the_data_constrained_law():
    assert C4.loss(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440890, rel=1e-9)
    assert C4.loss(8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075, rel=1e-9)
    epochs = np.array([2, 4, 8, 16, 40, 100])
    known = pytest.approx([0.984, 0.931, 0.828, 0.661, 0.379, 0.1636], abs=6e-4)
    assert C4.effective_tokens(epochs * 1e9, 1e9) / (epochs * 1e9) == known
    params, tokens = C4.optimum(1e22, 25e9)
    assert (params, tokens / 25e9) == (pytest.approx(7.02e9, rel=2e-3), pytest.approx(9.49, rel=2e-3))


@pytest.mark.parametrize("scale, tokens", [(np.inf, 8e9), (1e200, 8e9), (0.0, 1e9), (1e-200, 1e9)])
def test_limits_of_repetition_are_exact(scale, tokens):
    assert replace(C4, R_D=scale).effective_tokens(8e9, 1e9) == pytest.approx(tokens, rel=1e-15)
    assert replace(C4, R_D=scale).effective_tokens(1e9, 1e9) == 1e9


def test_one_epoch_is_chinchilla_and_unique_tokens_beyond_those_seen_do_not_count():
    law = replace(C4, R_N=np.inf)
    plain = Chinchilla(*(getattr(C4, name) for name in ("E", "A", "B", "alpha", "beta")))
    assert law.loss(1e9, 2e10) == law.loss(1e9, 2e10, 9e10) == pytest.approx(plain.loss(1e9, 2e10), rel=1e-14)
    assert law.optimum(1e21) == plain.optimum(1e21)


def test_constrained_optimum_has_the_least_loss_of_its_budget_for_every_draw():
    law = replace(C4, R_D=np.array([5.0, 50.0]))
    params, tokens = law.optimum(1e22, 1e10)
    for i in (0, 1):
        one = replace(C4, R_D=law.R_D[i])
        nearby = np.exp(np.log(params[i]) + np.linspace(-0.5, 0.5, 101))
        assert np.all(one.loss(nearby, 1e22 / 6 / nearby, 1e10) >= one.loss(params[i], tokens[i], 1e10) - 1e-12)


def test_overfitting_rises_with_epochs():
    law = DataConstrainedOverfit(**vars(C4), P=0.05, phi=0.7, psi=0.2)
    epochs = np.array([1, 4, 100, 10000])
    loss = law.loss(1e9, epochs * 1e9, 1e9)
    assert loss[0] == C4.loss(1e9, 1e9, 1e9) and loss[1] < loss[0] and loss[3] > loss[2] > loss[1]


def test_kaplan_optimum_and_limits():
    law = Kaplan(N_c=8.8e13, D_c=5.4e13, alpha_N=0.076, alpha_D=0.095)
    assert law.loss(1e9, 1e30) == pytest.approx((8.8e13 / 1e9) ** 0.076, rel=1e-6)
    params, tokens = law.optimum(1e22)
    nearby = params * np.exp(np.linspace(-1, 1, 101))
    assert 6 * params * tokens == pytest.approx(1e22) and np.all(law.loss(nearby, 1e22 / 6 / nearby) >= law.optimal_loss(1e22))
    assert law.optimum(1e23)[0] / params == pytest.approx(10 ** law.exponents[0])


def test_one_axis_has_no_optimum():
    law = PowerLaw(E=1.5, X_c=1e20, alpha=0.1, axis="flops")
    assert law.loss(1e8, 1e10) == pytest.approx(1.5 + (1e20 / 6e18) ** 0.1) == law.at(6e18)
    with pytest.raises(BadData, match="no optimal split"):
        law.optimum(1e20)
