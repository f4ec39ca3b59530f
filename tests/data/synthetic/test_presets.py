import math

import numpy as np
import pytest

from megatron.data.synthetic.presets import build, uniforms
from megatron.data.synthetic.process import entropy_rate


def test_uniforms_are_addressed_and_even():
    u = uniforms(1, 2, np.arange(20000))
    assert (u == uniforms(1, 2, np.arange(30000))[:20000]).all() and (u != uniforms(2, 2, np.arange(20000))).any()
    assert 0 <= u.min() < 1e-3 and 0.999 < u.max() < 1 and u.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 20000))


def test_sharpness_zero_is_the_uniform_law_and_more_is_peaked():
    rates = [entropy_rate(build("markov", symbols=8, sharpness=s))[0] for s in (0, 1, 2, 4)]
    assert rates[0] == pytest.approx(math.log(8), rel=1e-12) and rates == sorted(rates, reverse=True)


def test_zipf_makes_the_first_symbols_frequent():
    often = (source := build("markov", symbols=32, sharpness=0, zipf=1.0)).start @ source.emissions
    assert often == pytest.approx(1 / np.arange(1, 33) / (1 / np.arange(1, 33)).sum(), rel=1e-9)


def test_a_source_is_a_function_of_its_shape_and_seed():
    first, again, other = (build("mixture", symbols=4, components=3, seed=s) for s in (1, 1, 2))
    assert (first.transitions == again.transitions).all() and (first.transitions != other.transitions).any()
    parts = [part.transitions for part in first.parts]
    assert len(first.start) == 12 and first.num_symbols == 5 and (parts[0] != parts[1]).any()


def test_orders_and_states():
    assert len(build("markov", symbols=4, order=3).start) == 64
    hidden = build("hidden", states=5, symbols=7)
    assert hidden.transitions.shape == (7, 5, 5) and not hidden.unifilar
