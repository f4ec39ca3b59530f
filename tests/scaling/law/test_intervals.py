import numpy as np
import pytest

from megatron.scaling.law.intervals import percentiles, profiles, replicate_scatter, resample, rescale, sandwich
from megatron.scaling.law.solver import Problem, minimise


def line(num_rows=200, noise=0.05, seed=0, delta=1.0):
    """ln loss = 1 + 0.5 x + noise: with a large delta, least squares; its errors are known."""
    random = np.random.default_rng(seed)
    design = np.stack([np.ones(num_rows), random.standard_normal(num_rows)])
    ln_loss = np.array([1.0, 0.5]) @ design + noise * random.standard_normal(num_rows)
    problem = Problem(lambda theta: (theta @ design, np.broadcast_to(design, (*theta.shape[:-1], *design.shape))), ln_loss, delta)
    low, high = np.full(2, -10.0), np.full(2, 10.0)
    return problem, minimise(problem, np.zeros((1, 2)), low, high), low, high, design


def test_sandwich_of_a_line_is_that_of_least_squares():
    problem, ends, low, high, design = line()
    covariance, _ = sandwich(problem, ends.theta[0], low, high, np.arange(200))
    expected = np.linalg.inv(design @ design.T) * 0.05**2
    np.testing.assert_allclose(np.diag(covariance), np.diag(expected), rtol=0.25)


def test_rows_of_a_cluster_are_one():
    problem, ends, low, high, _ = line()
    doubled = Problem(
        lambda theta: tuple(np.repeat(part, 2, axis=-1) for part in problem.log_loss(theta)),
        np.repeat(problem.ln_loss, 2),
        problem.delta,
    )
    single, _ = sandwich(problem, ends.theta[0], low, high, np.arange(200))
    pairs, _ = sandwich(doubled, ends.theta[0], low, high, np.repeat(np.arange(200), 2))
    np.testing.assert_allclose(pairs, single, rtol=1e-9)


def test_profile_of_a_line_is_its_t_interval():
    problem, ends, low, high, _ = line()
    theta, objective = ends.theta[0], ends.objective[0]
    covariance, inverse = sandwich(problem, theta, low, high, np.arange(200))
    found = profiles(problem, theta, objective, [0, 1], low, high, covariance, inverse, 198)
    for index in (0, 1):
        half = 1.972 * np.sqrt(covariance[index, index])
        assert found[index] == pytest.approx([theta[index] - half, theta[index] + half], rel=1e-3)


def test_a_parameter_that_no_row_feels_has_no_ends():
    problem, *_ = line()

    def log_loss(theta):
        value, gradient = problem.log_loss(theta[..., :2])
        return value, np.concatenate([gradient, np.zeros((*theta.shape[:-1], 1, 200))], axis=-2)

    idle = Problem(log_loss, problem.ln_loss, 1.0)
    low, high = np.full(3, -10.0), np.full(3, 10.0)
    ends = minimise(idle, np.zeros((1, 3)), low, high)
    covariance, inverse = sandwich(idle, ends.theta[0], low, high, np.arange(200))
    found = profiles(idle, ends.theta[0], ends.objective[0], [0, 2], low, high, covariance, inverse, 197)
    assert None not in found[0] and found[1] == [None, None]


def test_resamples_draw_whole_clusters_and_repeat_with_the_seed():
    cluster = np.array([0, 0, 1, 2, 2, 2])
    weights = resample(cluster, 50, 1)
    assert np.all(weights[:, 0] == weights[:, 1]) and np.all(weights[:, 3] == weights[:, 5])
    assert np.all(weights[:, [0, 2, 3]].sum(axis=1) == 6)
    np.testing.assert_array_equal(weights, resample(cluster, 50, 1))
    assert np.all(resample(cluster, 50, 1, oversampling=1)[:, [0, 2, 3]].sum(axis=1) == 3)


def test_rescaled_draws_have_the_scatter_of_plain_ones():
    draws = 0.1 * np.random.default_rng(0).standard_normal((4000, 2)) / np.sqrt(2)
    scaled = rescale(draws, np.zeros(2), np.full(2, -1.0), np.full(2, 1.0))
    np.testing.assert_allclose(scaled.std(axis=0), 0.1, rtol=0.05)
    assert np.all(rescale(draws, np.zeros(2), np.array([0.0, -1.0]), np.full(2, 1.0))[:, 0] >= 0)  # E cannot be negative


def test_percentiles_are_open_where_a_bound_decides():
    draws, outside = np.arange(100.0)[:, None] * [1, 1], np.zeros((100, 2))
    outside[90:, 1] = 1
    (low, high), (open_low, open_high) = percentiles(draws, outside)
    assert (low, high) == (2, 97) and (open_low, open_high) == (2, np.inf)


def test_scatter_of_replicates():
    size, tokens = np.repeat([1.0, 2.0, 3.0], 3), np.repeat(5.0, 9)
    noise = 0.01 * np.tile([-1.0, 0.0, 1.0], 3)
    found = replicate_scatter(size + noise, np.arange(9), size, tokens)
    rms_loss = np.sqrt(np.mean(np.var(np.exp(size + noise).reshape(3, 3), axis=1, ddof=1)))
    assert found == pytest.approx({"rms": 0.01, "rms_loss": rms_loss, "groups": 3, "degrees_of_freedom": 6})
    assert replicate_scatter(size + noise, np.repeat([0, 1, 2], 3), size, tokens) is None  # checkpoints of one run
