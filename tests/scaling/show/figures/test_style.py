import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from megatron.errors import CannotWrite
from megatron.scaling.show.figures.style import brackets, log_ticks, new_figure, power, save, style_of, styles_of


def lightness(colour):
    """CIE L*, 0 black to 100 white."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)])
    return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16


def test_objectives_differ_in_lightness_line_and_marker():
    looks = styles_of([{"objective": "ar"}, {"objective": "mdm"}, {}, {}])
    for one, other in itertools.combinations(looks, 2):
        assert abs(lightness(one["color"]) - lightness(other["color"])) > 10
        assert one["linestyle"] != other["linestyle"] and one["marker"] != other["marker"]


@pytest.mark.parametrize("objective", ["ar", "mdm", "other"])
def test_budgets_darken_and_stay_apart_from_white(objective):
    shades = [lightness(style_of(objective, depth)["color"]) for depth in (0, 0.5, 1)]
    assert shades[0] > shades[1] + 8 > shades[2] + 16 and shades[0] < 85


def test_an_objective_keeps_its_look_whatever_its_place():
    assert styles_of([{}, {"objective": "mdm"}])[1] == style_of("mdm") and styles_of([{}, {}])[1] == style_of("mdm")


def test_words():
    assert (power(2e11), power(1.5e5), power(100), power(3), power(0.3)) == ("2e11", "1.5e5", "100", "3", "0.3")
    assert (brackets([1.25, None]), brackets(None)) == ("[1.25, open]", "")


@pytest.mark.parametrize("ends", [(1, 2), (3e3, 4e5), (1e9, 3e9), (1, 1e30), (6.2, 9.4), (1.1, 1.66)])
def test_logarithmic_ticks_are_few_round_and_inside(ends):
    _, [axes] = new_figure(1)
    axes.set_xscale("log")
    axes.set_xlim(*ends)
    log_ticks(axes.xaxis)
    ticks = axes.get_xticks()
    assert 1 <= len(ticks) <= 8 and ticks[0] >= ends[0] and ticks[-1] <= ends[1] * 1.0001


def test_files_have_the_same_bytes_every_time(tmp_path):
    for name in ("a", "b"):
        figure, [axes] = new_figure(1)
        axes.plot([1, 2], [3, 4])
        assert save(figure, tmp_path / name) == [tmp_path / f"{name}.png", tmp_path / f"{name}.pdf"]
    for suffix, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        one, other = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
        assert one == other and one.startswith(start)


def test_a_folder_that_takes_no_files_is_a_refusal(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(CannotWrite, match="taken"):
        save(Figure(), tmp_path / "taken" / "a")
