from megatron.scaling.show.figures.crossings import draw_crossings
from tests.scaling.show.figures.test_crossover import NONE, POINTS, RESULT


def test_cases_stand_apart_with_their_intervals(legible):
    later = [point | {"reason": "none in range: AR leads"} for point in NONE]
    figure = draw_crossings({"both regularised": RESULT | {"critical": later}, "usual recipe": RESULT})
    texts = legible(figure)
    assert "both regularised" in texts and "usual recipe" in texts and "95 % intervals" in texts and "nats/token" in texts
    left, right = figure.axes
    crosses = [line for line in left.lines if line.get_marker() == "x"]
    assert (
        len(crosses) == len(NONE) + sum(not point["flops"] for point in POINTS)
        and len({line.get_color() for line in left.lines}) == 2
    )
    assert len([line for line in right.lines if len(line.get_xdata()) == len(RESULT["flops"])]) == 4
