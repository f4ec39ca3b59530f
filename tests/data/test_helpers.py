import numpy as np
import pytest

from megatron.data import gpt_dataset

helpers = pytest.importorskip("megatron.data._helpers", reason="megatron.data._helpers is not built: no compiler at install time")


def brute_force(weights, num_samples):
    """Megatron's rule, sample by sample, in plain Python."""
    counts, ids, positions = [0] * len(weights), [], []
    for i in range(num_samples):
        errors = [w * max(i, 1) - c for w, c in zip(weights, counts, strict=True)]
        best = errors.index(max(errors))
        ids.append(best)
        positions.append(counts[best])
        counts[best] += 1
    return counts, ids, positions


def fill(function, weights, num_samples, first=0, counts=None):
    counts = np.zeros(len(weights), np.int64) if counts is None else counts.copy()
    ids, positions = np.empty(num_samples, np.int32), np.empty(num_samples, np.int64)
    function(np.array(weights), counts, first, ids, positions)
    return counts, ids, positions


WEIGHTS = [[1.0], [0.5, 0.5], [0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3], [0.999, 0.001],
           (np.arange(1, 40) / np.arange(1, 40).sum()).tolist()]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_compiled_python_and_brute_force_agree(weights):
    expected = brute_force(weights, 3000)
    for function in (helpers.fill_blend, gpt_dataset.fill_blend):
        for found, right in zip(fill(function, weights, 3000), expected, strict=True):
            assert found.tolist() == right


@pytest.mark.parametrize("function", [helpers.fill_blend, gpt_dataset.fill_blend])
def test_blocks_carry_on(function):
    weights = [0.15, 0.6, 0.25]
    whole = fill(function, weights, 1000)
    counts, ids, positions = fill(function, weights, 377)
    counts, more_ids, more_positions = fill(function, weights, 623, 377, counts)
    assert np.array_equal(whole[0], counts)
    assert np.array_equal(whole[1], np.concatenate([ids, more_ids]))
    assert np.array_equal(whole[2], np.concatenate([positions, more_positions]))


GOOD = {"weights": np.array([0.5, 0.5]), "counts": np.zeros(2, np.int64), "first": 0,
        "dataset_ids": np.empty(4, np.int32), "positions": np.empty(4, np.int64)}


@pytest.mark.parametrize("bad", [
    {"weights": np.array([])}, {"weights": np.array([1.0])}, {"weights": np.array([0.5, np.nan])},
    {"weights": np.array([1.5, -0.5])}, {"weights": np.eye(2)}, {"counts": np.array([0, -1])},
    {"counts": np.array([0, 2**63 - 1])}, {"first": -1}, {"first": 2**63 - 1},
    {"dataset_ids": np.empty(3, np.int32)}, {"positions": np.empty((2, 2), np.int64)},
])
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match="fill_blend"):
        helpers.fill_blend(**(GOOD | bad))


@pytest.mark.parametrize("bad", [
    {"weights": np.array([0.5, 0.5], np.float32)}, {"counts": np.zeros(2, np.int32)}, {"positions": np.empty(8, np.int64)[::2]},
    {"dataset_ids": np.empty(4, np.int64)},
])
def test_arrays_are_never_converted(bad):
    with pytest.raises(TypeError):
        helpers.fill_blend(**(GOOD | bad))


def test_read_only_arrays_are_refused():
    frozen = np.zeros(2, np.int64)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        helpers.fill_blend(**(GOOD | {"counts": frozen}))
