import numpy as np
import pytest

from megatron.scaling.show.figures import draw_crossover

UNIQUE, FLOPS = np.geomspace(2.5e7, 1e9, 9), np.geomspace(1e18, 1e21, 20)
CRITICAL = 4e19 * (UNIQUE / 1e8) ** 2.17
POINTS = [
    {
        "unique_tokens": U,
        "flops": C if C < 1e21 else None,
        "low": C / 2,
        "high": None if C > 3e20 else 2 * C,
        "reason": None if C < 1e21 else "none in range: AR leads up to 1e21 FLOPs",
    }
    for U, C in zip(UNIQUE, CRITICAL)
]
RESULT = {
    "label": "AR: exact NLL, MDM: upper bound.",
    "unique_tokens": UNIQUE.tolist(),
    "flops": FLOPS.tolist(),
    "difference": (0.1 * np.tanh(np.log(CRITICAL[:, None] / FLOPS))).tolist(),
    "num_draws": 100,
    "critical": POINTS,
    "power_law": {"k": 5.1, "p": 2.17, "ci": {"k": [2.0, 8.0], "p": [1.9, None]}},
}
NONE = [point | {"flops": None, "low": None, "high": None, "reason": "none in range: MDM leads already"} for point in POINTS]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"power_law": None},
        {"critical": NONE, "power_law": None},
        {"label": None},
        {"difference": np.full((9, 20), 0.1).tolist()},
        {"difference": np.full((9, 20), -0.1).tolist()},
        {"unique_tokens": [1e8], "difference": [[0.1] * 20]},
    ],
    ids=["whole", "no law", "no crossing", "no label", "never", "always", "one U"],
)
def test_legible(change, legible):
    texts = legible(draw_crossover(RESULT | change))
    assert "unique tokens U" in texts and "(FLOPs)" in texts and "95 % interval" in texts


def test_it_says_the_power_law_with_its_interval_and_exact_or_bound(legible):
    texts = legible(draw_crossover(RESULT))
    assert "p = 2.17 [1.9, open]" in texts and "MDM: upper bound" in texts and "nats/token" in texts


def test_of_one_amount_of_unique_tokens_the_difference_is_drawn_over_compute(legible):
    figure = draw_crossover(RESULT | {"unique_tokens": [1e8], "difference": RESULT["difference"][4:5]})
    drawn = figure.axes[0].lines[1]
    assert np.array_equal(drawn.get_xdata(), FLOPS) and np.allclose(drawn.get_ydata(), RESULT["difference"][4])
    assert "contours need" not in legible(figure)


def test_the_line_of_equal_loss_passes_through_the_critical_compute():
    figure = draw_crossover(RESULT)
    lines = [
        path
        for collection in figure.axes[0].collections
        for path in collection.get_paths()
        if list(np.atleast_1d(collection.get_linewidth())) == [1.8]
    ]
    vertices = np.concatenate([path.vertices for path in lines])
    found = np.interp(np.log(1e8), *np.log(vertices[np.argsort(vertices[:, 0])]).T)
    assert found == pytest.approx(np.log(4e19), abs=0.1)


def test_a_difference_that_is_not_known_is_left_white():
    difference = [[None if column > 15 else value for column, value in enumerate(row)] for row in RESULT["difference"]]
    draw_crossover(RESULT | {"difference": difference})
