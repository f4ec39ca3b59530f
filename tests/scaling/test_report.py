import io
import itertools
import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from rich.console import Console

from megatron.errors import CannotWrite
from megatron.scaling.laws import Chinchilla
from megatron.scaling.report import as_record, build_report, draw, print_report, write_report

LAWS = {"ar": Chinchilla(E=1.0, A=15, B=60, alpha=0.4, beta=0.3), "mdm": Chinchilla(E=2.1, A=8, B=35, alpha=0.38, beta=0.32)}
BOUND = {"ar": "exact", "mdm": "bound"}


def sweep(objectives=("ar", "mdm"), budgets=(2e11, 6e11, 2e12), largest=4e5, sizes=5):
    """Rows like those of a quickstart: tiny models, a little noise."""
    random = np.random.default_rng(0)
    runs = []
    for objective, flops, params in itertools.product(objectives, budgets, np.geomspace(4e3, largest, sizes)):
        tokens = flops / 6 / params
        loss = float(LAWS[objective].loss(params, tokens) + 0.005 * random.standard_normal())
        runs.append({"run": f"{objective}-{flops:.0e}-{params:.0f}", "path": "none", "objective": objective, "params": params,
                     "tokens": tokens, "flops": flops, "loss": loss, "loss_se_noise": 0.006, "bound": BOUND[objective],
                     "params_convention": "total"})
    return runs


def tick_labels(axis):
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def visible_texts(figure):
    """(text, box in pixels) of everything written; drawn first, so that places are final."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts, *tick_labels(axes.xaxis), *tick_labels(axes.yaxis)]
    # an annotation's own box would include its arrow
    return [(text.get_text(), Text.get_window_extent(text, renderer)) for text in texts if text.get_visible() and text.get_text()]


@pytest.mark.parametrize("shape", [{}, {"objectives": ("ar",)}, {"objectives": ("mdm",), "budgets": (6e11,)}, {"largest": 2.5e4},
                                   {"budgets": tuple(np.geomspace(1e11, 1e13, 9))}, {"sizes": 2}],
                         ids=["quickstart", "one objective", "one budget", "outside", "nine budgets", "no parabola"])
def test_no_text_overlaps_or_leaves_the_picture(shape):
    figure = draw(build_report(sweep(**shape), num_resamples=20))
    width, height = figure.get_size_inches() * figure.dpi
    texts = visible_texts(figure)
    assert width >= 1600
    for text, box in texts:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{text!r} leaves the picture"
    for (one, a), (other, b) in itertools.combinations(texts, 2):
        assert not a.overlaps(b), f"{one!r} overlaps {other!r}"


def test_the_picture_says_exact_and_bound_and_has_units():
    texts = " ".join(text for text, _ in visible_texts(draw(build_report(sweep(), num_resamples=20))))
    for expected in ("AR (exact NLL)", "MDM (upper bound)", "(nats/token)", "training compute (FLOPs)", "parameters",
                     "C = 2e11", "95 %"):
        assert expected in texts


def test_a_minimum_outside_the_data_is_marked():
    report = build_report(sweep(largest=1.2e4), num_resamples=20)
    assert any(minimum.reason for study in report.studies for minimum in study.isoflop.minima)
    assert any("minimum outside the data" in text for text, _ in visible_texts(draw(report)))


def test_the_record_holds_law_minima_exponents_and_their_intervals():
    record = json.loads(json.dumps(as_record(build_report(sweep(), num_resamples=30)), allow_nan=False, default=float))
    assert record["schema_version"] == 1 and len(record["runs"]) == 30
    for objective in ("ar", "mdm"):
        isoflop, law = (record["objectives"][objective][name] for name in ("isoflop", "chinchilla"))
        assert isoflop["budgets"] == pytest.approx([2e11, 6e11, 2e12])
        assert all(m["params_ci"][0] < m["params"] < m["params_ci"][1] for m in isoflop["minima"])
        assert isoflop["exponents"]["a"]["ci"][0] < isoflop["exponents"]["a"]["value"] < isoflop["exponents"]["a"]["ci"][1]
        assert law["rows_used"] == 15 and law["rows_dropped"] == [] and law["objective"] > 0
        assert law["ci"]["alpha"][0] < law["params"]["alpha"] < law["ci"]["alpha"][1]
    assert len(record["equal_loss_compute_ratio"]) == 3


def test_objectives_are_fitted_apart():
    apart = build_report(sweep(objectives=("ar",)), num_resamples=0).studies[0]
    assert build_report(sweep(), num_resamples=0).studies[0].law.params == pytest.approx(apart.law.params)


def test_too_few_runs_for_a_law_are_a_warning():
    report = build_report(sweep(objectives=("ar",), budgets=(6e11,), sizes=4), num_resamples=20)
    assert report.studies[0].law is None and as_record(report)["objectives"]["ar"]["chinchilla"]["params"] is None
    assert any("no L(N, D)" in warning for warning in report.warnings)


def test_the_tables_hold_what_was_found():
    out = io.StringIO()
    report = build_report(sweep(), [{"run": "lost", "path": "x", "reason": "no result.json"}], num_resamples=20)
    print_report(report, Console(file=out, width=160))
    for expected in ("AR (exact NLL)", "isoFLOP minima", "a: N* ~ C^a", "alpha of L(N, D)", "equal loss",
                     "not used: lost: no result.json"):
        assert expected in out.getvalue()


def test_written_whole_or_not_at_all(tmp_path):
    report = build_report(sweep(objectives=("ar",)), num_resamples=0)
    paths = write_report(report, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["fit.json", "isoflop.png"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(CannotWrite, match="taken"):
        write_report(report, tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "a file"
