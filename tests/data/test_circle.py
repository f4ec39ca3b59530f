import numpy as np
import pytest

from megatron.data.gpt_dataset import place_on_circle

helpers = pytest.importorskip("megatron.data._helpers", reason="megatron.data._helpers is not built: no compiler at install time")
CIRCLES = [(96, 8), (97, 8), (9, 8), (17, 8), (1000, 33), (50, 49), (7, 1), (10**10 + 7, 2048), (2**40 + 3, 1)]  # T, s


@pytest.mark.parametrize(("size", "s"), CIRCLES)
@pytest.mark.parametrize("key", [5, 2**63 + 11])
def test_compiled_and_python_agree(size, s, key):
    rng = np.random.default_rng(0)
    numbers = np.concatenate([np.arange(300), rng.integers(0, 10**6, 300), [10**12 // s]])
    assert np.array_equal(helpers.place_on_circle(numbers, size, s, key), place_on_circle(numbers, size, s, key))


@pytest.mark.parametrize(
    "bad",
    [
        {"numbers": np.array([-1])},
        {"numbers": np.array([2**62])},
        {"numbers": np.zeros((2, 2), np.int64)},
        {"seq_length": 0},
        {"size": 8},
        {"size": 2**62},
    ],
)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match="place_on_circle"):
        helpers.place_on_circle(**({"numbers": np.arange(3), "size": 1000, "seq_length": 8, "key": 1} | bad))
