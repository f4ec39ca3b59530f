from dataclasses import replace

import numpy as np
import pytest

from megatron.scaling.law.forms.chinchilla import Chinchilla
from megatron.scaling.law.forms.data_constrained import DataConstrained, DataConstrainedOverfit

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
