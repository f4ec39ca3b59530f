import pytest

from megatron.scaling.show.figures import draw_contours, draw_frontier
from megatron.scaling.show.report.study import study_runs


@pytest.mark.parametrize("shape", [{}, {"objectives": ("ar",)}, {"objectives": ("mdm",), "budgets": (6e11,)}, {"sizes": 2}])
def test_every_panel_is_legible_and_says_what_its_bars_are(shape, sweep, legible):
    table = sweep(**shape)
    studies = [study_runs(name, table.only(name).rows, num_resamples=20) for name in table.objectives]
    texts = legible(draw_frontier(studies))
    legible(draw_contours(studies))
    if not shape:
        for expected in ("N* = ", "D* = ", "95 % interval, as are bars", "gain of MDM on AR", "beyond the data"):
            assert expected in texts
