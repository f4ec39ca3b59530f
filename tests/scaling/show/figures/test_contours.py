from megatron.scaling.show.figures import draw_contours
from megatron.scaling.show.report.study import study_runs


def test_runs_minima_and_frontier_stand_on_the_contours(sweep, legible):
    study = study_runs("ar", sweep(objectives=("ar",)).rows, num_resamples=0)
    texts = legible(draw_contours([study]))
    for expected in ("L(N, D) of AR (exact NLL)", "isoFLOP minima", "frontier of L(N, D)", "loss (nats/token)"):
        assert expected in texts
    assert all(axes.get_visible() for axes in draw_contours([study]).axes)  # no blank half beside one objective
