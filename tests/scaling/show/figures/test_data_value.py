import numpy as np
import pytest

from megatron.scaling.show.figures import draw_data_value

EPOCHS = np.geomspace(1, 500, 40)


def curve(objective, repeats, low, high, points=()):
    def value(scale):
        return (1 + scale * (1 - np.exp(-(EPOCHS - 1) / scale))) / EPOCHS

    return {
        "label": f"{objective} (exact NLL)",
        "R_D": repeats,
        "R_D_ci": [low, high],
        "objective": objective,
        "epochs": EPOCHS,
        "value": value(repeats),
        "low": value(low),
        "high": value(high),
        "points": points,
    }


CURVES = [
    curve("ar", 15.4, 8, 31, [(4, 0.9, 0.85, 0.97), (64, 0.3, None, 0.4), (16, 0.6, None, None)]),
    curve("mdm", 494, 210, 1e9, [(100, 0.9, 0.8, 1.2)]),
]


@pytest.mark.parametrize(
    "curves",
    [CURVES, CURVES[:1], [CURVES[0] | {"low": None, "high": None, "points": []}], [*CURVES, *CURVES]],
    ids=["both", "one", "no interval", "four"],
)
def test_legible(curves, legible):
    texts = legible(draw_data_value(curves))
    assert "epochs (tokens seen / unique tokens)" in texts and "R_D* = 15.4 [8, 31]" in texts and "95 % interval" in texts


def test_open_ends_are_arrows_and_no_interval_is_no_bar():
    axes = draw_data_value(CURVES[:1]).axes[0]
    ends = [line for line in axes.get_lines() if line.get_marker() in ("v", "^", "_")]
    assert [line.get_marker() for line in ends] == ["_", "_", "v", "_"]


def test_a_point_above_one_stays_in_the_picture():
    assert draw_data_value(CURVES).axes[0].get_ylim()[1] > 1.2


def test_json_has_none_where_there_is_no_interval():
    without = CURVES[0] | {"low": [None] * 40, "high": [None] * 40}
    draw_data_value([without])
