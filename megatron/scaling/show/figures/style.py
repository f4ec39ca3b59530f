"""What all figures share: the look of an objective, axes, ticks at round numbers, and files with the same bytes every time.

Objectives differ in luminance, line and marker at once, so that they stay apart in greyscale and for any eye.
"""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron.files import staged

DPI = 130
ACROSS = 36  # characters of a sentence in a panel
UNITS = {"nats": "nats/token", "bits-per-byte": "bits/byte", "accuracy": "-ln of accuracy above chance"}  # of a loss, by choice
# base colour, line, marker, filled
STYLES = {"ar": ("#0b2f55", "-", "o", True), "mdm": ("#d97a1f", "--", "s", False)}
OTHER_STYLES = (("#4d4d4d", "-.", "^", True), ("#86b8a4", (0, (5, 1, 1, 1, 1, 1)), "v", False))
INK = "#333333"
LEGEND = {"columnspacing": 1.6, "handlelength": 3, "frameon": False, "fontsize": 10.5}


def style_of(objective: str, depth: float = 1.0, number: int = 0) -> dict:
    """Line and marker of an objective; `depth` 0..1 from its light to its full colour (small to large budgets or sizes).

    `number` tells apart objectives that have no look of their own.
    """
    base, line, marker, filled = STYLES.get(objective, OTHER_STYLES[number % len(OTHER_STYLES)])
    rgb = np.array(matplotlib.colors.to_rgb(base))
    colour = tuple(1 - (1 - rgb) * (0.5 + 0.5 * depth))
    return {
        "color": colour,
        "linestyle": line,
        "marker": marker,
        "markerfacecolor": colour if filled else "white",
        "markeredgecolor": colour,
        "markersize": 7,
        "markeredgewidth": 1.6,
    }


def styles_of(curves: list[dict]) -> list[dict]:
    """A look for each of the curves ({objective?, ...}): that of its objective once, then those that are left."""
    free = [*STYLES, *(f"other {number}" for number in range(len(curves)))]
    found = []
    for curve in curves:
        name = next((one for one in free if one == curve.get("objective")), free[0])
        free.remove(name)
        found.append(style_of(name, number=int(name[6:]) if name.startswith("other ") else 0))
    return found


def depth_of(number: int, count: int) -> float:
    """Place 0..1 of the number-th of `count`."""
    return number / (count - 1) if count > 1 else 1.0


def new_figure(columns: int, width: float = 18, height: float = 7.8) -> tuple[Figure, list[Axes]]:
    """A figure with `columns` panels side by side and room for a legend and a caption below."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    figure.subplots_adjust(
        left=0.82 / width, right=1 - 0.25 / width, top=0.935, bottom=0.185, wspace=0.16 if columns > 2 else 0.13
    )
    return figure, list(axes)


def explain(figure: Figure, handles: list, caption: str, columns: int = 6) -> None:
    """Legend and caption, of one line or two, below the panels."""
    more = 0.02 * caption.count("\n")
    if handles:
        figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.045 + more), ncols=columns, **LEGEND)
    figure.text(0.5, 0.012, caption, ha="center", va="bottom", fontsize=10, color=INK)


def frame(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Title, labels with units, and a light grid."""
    axes.set_title(title, fontsize=13)
    axes.set_xlabel(x_label, fontsize=12)
    axes.set_ylabel(y_label, fontsize=12)
    axes.tick_params(labelsize=10.5)
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def write_in(axes: Axes, sentence: str) -> None:
    """A sentence where there is nothing to draw."""
    axes.text(
        0.5, 0.5, textwrap.fill(sentence, ACROSS), transform=axes.transAxes, ha="center", va="center", fontsize=12, color=INK
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([])
        axis.set_ticks([], minor=True)


def log_ticks(axis) -> None:
    """Ticks at round numbers on a logarithmic axis, as many a decade as stand apart; an axis of one value is widened."""
    low, high = sorted(axis.get_view_interval())
    if high < 1.5 * low:
        low, high = low / 2, high * 2
        (axis.axes.set_xlim if axis is axis.axes.xaxis else axis.axes.set_ylim)(low, high)

    def within(steps) -> list[float]:
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        return [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]

    for steps in ((1, 2, 3, 4, 6), (1, 2, 5), (1, 3), (1,)):
        ticks = within(steps)
        if len(ticks) <= (6 if len(steps) == 5 else 8):
            break
    if len(ticks) < 2:
        ticks = within((1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9))  # at least one of them between any x and 1.5 x
    ticks = ticks[:: -(-len(ticks) // 8)]  # more than 8 decades
    axis.set_ticks(ticks, [power(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def power(value: float) -> str:
    """2e11, 1.5e5: short, and the way budgets are typed; 0.3 and 100 as they are."""
    if 0.01 <= value < 1000:
        return f"{value:.2g}" if value < 100 else f"{value:.0f}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def brackets(ends, spec: str = ".3g") -> str:
    """'[1.2, open]'; nothing without an interval."""
    if ends is None:
        return ""
    low, high = ("open" if end is None else format(end, spec) for end in ends)
    return f"[{low}, {high}]"


def encode(figure: Figure, suffix: str) -> bytes:
    """The picture as `png` or `pdf`, without a date: equal figures have equal bytes."""
    picture = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # letters stay letters, for search and for editors
        figure.savefig(picture, format=suffix, metadata={"CreationDate": None} if suffix == "pdf" else None)
    return picture.getvalue()


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write `path`.png and `path`.pdf, both or neither. Raises CannotWrite."""
    path = Path(path)
    pictures = {f"{path.name}.{suffix}": encode(figure, suffix) for suffix in ("png", "pdf")}
    with staged(path.parent) as stage:
        for name, content in pictures.items():
            (stage / name).write_bytes(content)
    return [path.parent / name for name in pictures]
