import numpy as np
import pytest

from megatron.scaling.show.figures import draw_curves
from megatron.scaling.show.figures.curves import smooth
from megatron.scaling.table.table import read_table


@pytest.mark.parametrize("shape", [{}, {"objectives": ("mdm",)}, {"sizes": 1, "budgets": (6e11,)}, {"sizes": 12}])
def test_legible_without_curves(shape, sweep, legible):
    texts = legible(draw_curves(sweep(**shape).rows))
    assert "MDM (upper bound)" in texts and "loss (nats/token)" in texts and "training compute (FLOPs)" in texts


def test_curves_of_run_directories_are_drawn_and_every_size_has_its_shade(run_folders, legible):
    figure = draw_curves(read_table([run_folders]).rows)
    assert "N = 4e3" in legible(figure)
    lines = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) > 10]
    assert len(lines) == 8 and len({line.get_color() for line in lines}) == 4


def test_records_in_nats_are_not_drawn_beside_bits_per_byte(run_folders, legible):
    figure = draw_curves(read_table([run_folders]).rows, "bits-per-byte")
    assert "loss (bits/byte)" in legible(figure)
    assert not any(len(line.get_xdata()) > 1 for axes in figure.axes for line in axes.get_lines())


def test_the_bar_is_two_standard_errors_of_noise_and_rows_together(sweep):
    figure = draw_curves(sweep(objectives=("ar",), budgets=(6e11,), sizes=1).rows)
    segment = figure.axes[0].collections[0].get_segments()[0]
    assert np.ptp(segment[:, 1]) == pytest.approx(4 * np.hypot(0.006, 0.01))


def test_a_mean_stands_at_its_own_compute():
    flops, loss = smooth(np.arange(100.0), 3 * np.arange(100.0))
    assert len(flops) == 96 and np.allclose(loss, 3 * flops)


def test_no_runs_is_said(legible):
    assert "no runs" in legible(draw_curves([]))
