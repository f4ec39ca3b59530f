from dataclasses import replace

import numpy as np
import pytest

from megatron.scaling.answers.frontier import equal_loss_ratios
from megatron.scaling.show.figures import draw_isoflop
from megatron.scaling.show.report.study import study_runs


def draw(table):
    studies = [study_runs(name, table.only(name).rows, num_resamples=20) for name in table.objectives]
    ratios = equal_loss_ratios(studies[0].isoflop, studies[1].isoflop) if len(studies) == 2 else []
    return studies, draw_isoflop(studies, ratios)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"objectives": ("ar",)},
        {"objectives": ("mdm",), "budgets": (6e11,)},
        {"largest": 2.5e4},
        {"budgets": tuple(np.geomspace(1e11, 1e13, 9))},
        {"sizes": 2},
    ],
    ids=["quickstart", "one objective", "one budget", "outside", "nine budgets", "no parabola"],
)
def test_no_text_overlaps_or_leaves_the_picture(shape, sweep, legible):
    legible(draw(sweep(**shape))[1])


@pytest.mark.parametrize("shift", [1.0, 1.001, 0.9])
def test_objectives_that_are_alike_stay_legible(shift, sweep, legible):
    table = sweep(objectives=("ar",))
    twins = [row | {"objective": "mdm", "bound": "bound", "loss": row["loss"] * shift} for row in table.rows]
    legible(draw(replace(table, rows=[*table.rows, *twins]))[1])


def test_a_table_without_training_curves_claims_none(sweep, legible):
    assert "training loss" not in legible(draw(sweep(objectives=("ar",)))[1])


def test_it_says_exact_and_bound_and_has_units(sweep, legible):
    texts = legible(draw(sweep())[1])
    for expected in (
        "AR (exact NLL)",
        "MDM (upper bound)",
        "(nats/token)",
        "training compute (FLOPs)",
        "parameters",
        "C = 2e11",
        "95 %",
    ):
        assert expected in texts


def test_a_minimum_outside_the_data_is_marked(sweep, legible):
    studies, figure = draw(sweep(largest=1.2e4))
    assert any(minimum.reason for study in studies for minimum in study.isoflop.minima)
    assert "minimum outside the data" in legible(figure)
