import numpy as np
import pytest

from megatron.scaling.law.fit import fit_chinchilla, fit_law
from megatron.scaling.law.fitted import Fit
from megatron.scaling.law.forms.data_constrained import DataConstrainedOverfit
from megatron.scaling.show.figures import draw_residuals


@pytest.fixture
def fit(sweep):
    table = sweep(objectives=("ar",))
    return fit_chinchilla(*(table.column(name) for name in ("params", "tokens", "loss")), num_resamples=20)


def test_legible_with_every_parameter_and_its_interval(fit, legible):
    texts = legible(draw_residuals(fit, "AR (exact NLL)"))
    for expected in ("AR (exact NLL)", "parameters N", "training tokens D", "(%)", "95 % interval", f"E {fit.params['E']:.4g} ["):
        assert expected in texts


def test_points_are_the_residuals_and_held_out_rows_stand_apart(fit, legible):
    fit.residuals[0]["held_out"] = True
    figure = draw_residuals(fit)
    drawn = np.concatenate([line.get_ydata() for line in figure.axes[1].get_lines() if line.get_marker() in ("o", "s")])
    expected = [100 * (row["loss"] / row["predicted"] - 1) for row in fit.residuals]
    assert np.allclose(drawn, expected[1:] + expected[:1]) and "held out" in legible(figure)


def test_wide_intervals_do_not_press_the_residuals_into_a_line(fit):
    low, high = draw_residuals(fit).axes[1].get_ylim()
    wide = Fit(**{**vars(fit), "draws": fit.draws * np.geomspace(0.3, 3, len(fit.draws))[:, None]})
    largest = max(abs(100 * (row["loss"] / row["predicted"] - 1)) for row in fit.residuals)
    assert draw_residuals(wide).axes[1].get_ylim() == pytest.approx((-3 * largest, 3 * largest)) and high - low < 12 * largest


def test_a_fit_without_rows_says_so(legible):
    bare = Fit("chinchilla", {"E": 1.0, "A": 2.0, "B": 3.0, "alpha": 0.4, "beta": 0.3})
    assert "without its rows" in legible(draw_residuals(bare))


def test_ten_parameters_stand_in_two_lines(legible):
    rng = np.random.default_rng(0)
    params, epochs = rng.permutation(np.geomspace(1e6, 1e9, 40)), np.resize([1.0, 4.0, 30.0], 40)
    law = DataConstrainedOverfit(1.8, 480.0, 2100.0, 0.35, 0.37, 12.0, 5.0, 0.003, 0.9, 0.3)
    table = {"params": params, "tokens": 20 * params, "unique_tokens": 20 * params / epochs}
    loss = law.loss(*table.values()) * np.exp(rng.normal(0, 0.003, 40))
    fit = fit_law(table | {"loss": loss}, "data-constrained-overfit", num_resamples=20)
    texts = legible(draw_residuals(fit, "AR (exact NLL)"))
    assert all(f"\n{name} " in texts or f"   {name} " in texts for name in ("R_D", "R_N", "P", "phi", "psi"))
