import numpy as np
import pytest

from megatron.scaling.answers.valley import Valleys, fit_law_shape, fit_parabolas, lack_of_fit, vertex

SIZES = (7, 9, 5)  # of three budgets: rows side by side are padded


def curves(alpha=0.4, beta=0.2, noise=0.0, resamples=1, seed=0):
    """x and losses [resamples, n] of c0 + c1 N^-alpha + c2 N^beta, with minima at 0, 0.1 and 0.2."""
    random = np.random.default_rng(seed)
    xs = [np.linspace(-1, 1, number) for number in SIZES]
    exact = [
        2 + np.exp(-alpha * np.log(10) * (x - place)) / alpha + np.exp(beta * np.log(10) * (x - place)) / beta
        for place, x in zip((0, 0.1, 0.2), xs)
    ]
    return xs, [loss + noise * random.standard_normal((resamples, len(loss))) for loss in exact]


def valleys(*args, **more):
    xs, losses = curves(*args, **more)
    return Valleys.of(xs, losses, [np.ones_like(loss) for loss in losses])


def test_curves_of_the_law_have_its_exponents_and_minima():
    found = fit_law_shape(valleys())
    assert found.shape[0] == pytest.approx([0.4, 0.2], rel=1e-5) and found.squares[0] < 1e-20
    assert vertex(found.coefficients, found.shape[:, None])[0] == pytest.approx([0, 0.1, 0.2], abs=1e-8)
    assert found.at(1, np.array([0.1]))[0, 0] == pytest.approx(2 + 1 / 0.4 + 1 / 0.2)


def test_many_fits_at_once_are_each_its_own():
    together = valleys(noise=0.02, resamples=20)
    found = fit_law_shape(together, start=(0.4, 0.2))
    for number in (3, 17):
        alone = fit_law_shape(together.only([number]))
        assert vertex(alone.coefficients, alone.shape[:, None])[0] == pytest.approx(
            vertex(found.coefficients, found.shape[:, None])[number], abs=2e-3
        )


def test_the_test_of_parabolas_has_its_level_and_its_power():
    xs, _ = curves()
    rejected = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        losses = [3 + 0.3 * x[None] ** 2 + 0.02 * random.standard_normal((1, len(x))) for x in xs]
        of = Valleys.of(xs, losses, [np.ones_like(loss) for loss in losses])
        rejected.append(lack_of_fit(fit_parabolas(of), fit_law_shape(of), sum(SIZES)).rejected)
    assert sum(rejected) <= 8  # 3 of 60, and 3 binomial standard deviations
    skew = valleys(alpha=0.6, beta=0.1, noise=0.02)
    assert lack_of_fit(fit_parabolas(skew), fit_law_shape(skew), sum(SIZES)).p < 1e-3
    assert lack_of_fit(fit_parabolas(skew), fit_law_shape(skew), 13) is None
