"""What a repeated token is still worth: D'/D by epoch."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from megatron.scaling.show.figures.style import brackets, explain, frame, log_ticks, new_figure, styles_of

HIGHEST = 1.3  # of the axis: a value above 1 is noise
FEW_POINTS = 40  # that can be told apart


def draw_data_value(curves: list[dict]) -> Figure:
    """Value of data over epochs, a curve with its 95 % band for each fit, and measured points with their intervals.

    Each curve: {label, R_D?, R_D_ci?, epochs [n], value [n] (D'/D: effective over seen tokens), low? [n], high? [n] (None: not
    known), points?: [(epochs, value, low, high)] (None: open; both: no interval), objective?}. The label says exact or bound.
    """
    figure, [axes] = new_figure(1, width=13)
    frame(
        axes,
        "Value of repeated data",
        "epochs (tokens seen / unique tokens)",
        "value of data D'/D (effective unique tokens per token seen)",
    )
    axes.set_xscale("log")
    points = [point for curve in curves for point in curve.get("points") or []]
    top = min(max([1.0, *(end for _, *ends in points for end in ends if end is not None)]), HIGHEST)
    axes.set_ylim(0, 1.05 * top)
    for curve, style in zip(curves, styles_of(curves)):
        _draw_curve(axes, curve, style)
        few = len(points) <= FEW_POINTS
        for point in curve.get("points") or []:
            _draw_point(axes, point, style | ({} if few else {"markersize": 4, "alpha": 0.5}), 1.3 if few else 0.6)
    log_ticks(axes.xaxis)
    handles: list = [
        Line2D([], [], **style, linewidth=1.8, label=_label(curve)) for curve, style in zip(curves, styles_of(curves))
    ]
    handles.append(Patch(facecolor="#999999", alpha=0.4, label="95 % interval (arrow: open, or beyond the axis)"))
    explain(
        figure,
        handles,
        "D' = U + U R_D* (1 - exp(-(e - 1)/R_D*)), D = U e, e epochs of U unique tokens.  "
        "A band from 1/e or up to 1 is open on that side: the data do not bound it.",
        columns=3,
    )
    return figure


def _label(curve: dict) -> str:
    """The label with R_D* and its interval where they are known."""
    repeats = curve.get("R_D")
    return curve["label"] if repeats is None else f"{curve['label']}: R_D* = {repeats:.3g} {brackets(curve.get('R_D_ci'))}"


def _draw_curve(axes: Axes, curve: dict, style: dict) -> None:
    epochs = np.asarray(curve["epochs"], np.float64)
    axes.plot(epochs, np.asarray(curve["value"], np.float64), linewidth=1.8, **{**style, "marker": "none"})
    if curve.get("low") is not None:
        low, high = (np.array(curve[name], np.float64) for name in ("low", "high"))  # None becomes NaN
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.18, linewidth=0)
        for edge in (low, high):
            axes.plot(epochs, edge, color=style["color"], linestyle=style["linestyle"], linewidth=0.7)


def _draw_point(axes: Axes, point: tuple, style: dict, width: float) -> None:
    """A measured value with its interval; ends that are open or beyond the axis are arrows at its edges."""
    at, value, low, high = point
    bottom, top = axes.get_ylim()
    ends = np.clip([bottom if low is None else low, top if high is None else high], bottom, top)
    if (low, high) != (None, None):
        axes.plot([at, at], ends, color=style["color"], alpha=style.get("alpha"), linewidth=width, zorder=3)
        for end, edge, arrow in zip(ends, (bottom, top), "v^"):
            axes.plot(
                at,
                end,
                marker=arrow if end == edge else "_",
                color=style["color"],
                alpha=style.get("alpha"),
                markersize=style["markersize"],
                clip_on=False,
                zorder=3,
            )
    if value <= top:
        axes.plot(at, value, **{**style, "linestyle": "none"}, zorder=4)
