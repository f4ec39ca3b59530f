import numpy as np
import pytest

from megatron.errors import BadData
from megatron.scaling.law.forms.kaplan import Kaplan, PowerLaw


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
