import pytest

from megatron.standard_errors import combined, half_width


def test_errors_add_in_squares_and_the_freest_does_not_hide_the_other():
    assert combined((3.0, 1.0), (4.0, None)) == (5.0, pytest.approx(1 / 0.6**4))
    assert combined((0.0, None), (2.0, 7.0)) == (2.0, 7.0)
    assert combined((None, None), (None, 3.0)) == (None, None) and combined((0.0, 5.0)) == (0.0, None)


def test_few_degrees_of_freedom_widen_an_interval():
    assert half_width(2.0, None) == pytest.approx(3.919928) and half_width(1.0, 1.0) == pytest.approx(12.7062, rel=1e-4)
    assert half_width(1.0, None, 0.9973) == pytest.approx(3.0, abs=1e-3)
