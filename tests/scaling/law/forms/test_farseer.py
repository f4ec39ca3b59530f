import numpy as np
import pytest

from megatron.scaling.law.fit import fit_law
from megatron.scaling.law.forms import FORMS

TRUTH = {"a1": -0.9, "b1": -0.65, "alpha": -0.03, "a2": 60.0, "b2": 5.5, "beta": -0.2, "a3": 30.0, "b3": 0.2, "gamma": -0.22}


def test_a_known_law_is_followed_beyond_the_data():
    """Nine parameters trade against each other: what comes back is the loss, which Chinchilla's law does not follow."""
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(2e8, 3e9, 7), np.geomspace(2e9, 1e11, 7)))
    law = FORMS["farseer"].law_of(TRUTH)
    columns = {"params": N, "tokens": D, "loss": law.loss(N, D)}
    true = law.loss(1e10, 4e11)
    fits = {name: fit_law(columns, name, num_resamples=0) for name in ("farseer", "chinchilla")}
    assert fits["farseer"].residual_rms < 1e-4 < 1e-3 < fits["chinchilla"].residual_rms
    assert fits["farseer"].predict(1e10, 4e11) == pytest.approx(true, rel=3e-3)
