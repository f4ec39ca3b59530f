"""Critical compute over unique tokens of several cases side by side, as with and without regularisation."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from megatron.scaling.show.figures.style import UNITS, explain, frame, log_ticks, new_figure

LOOKS = (  # base colour, line, marker, filled: none of them an objective's
    ("#4d2c6b", "-", "o", True),
    ("#4f9d69", "--", "s", False),
    ("#b5523b", "-.", "D", True),
    ("#8a8a8a", ":", "P", False),
)
APART = 1.03  # factor of U between cases, so that their intervals do not hide each other


def draw_crossings(cases: dict[str, dict]) -> Figure:
    """Left: critical compute of each case with its intervals; right: loss of MDM minus loss of AR over compute, at the least and
    the most unique tokens that all cases have.

    cases: {name: result of find_crossover, with `unit`}.
    """
    figure, (left, right) = new_figure(2)
    frame(left, "Critical compute: MDM passes AR", "unique tokens U", "critical compute (FLOPs)")
    results = list(cases.values())
    low, high = min(min(one["flops"]) for one in results), max(max(one["flops"]) for one in results)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_ylim(low, high)
    for number, result in enumerate(results):
        _draw_points(left, result, _look(number), APART ** (number - (len(results) - 1) / 2), low, high)
    unit = UNITS[results[0].get("unit") or "nats"]
    ends = max(min(one["unique_tokens"]) for one in results), min(max(one["unique_tokens"]) for one in results)
    frame(right, "Loss of MDM minus loss of AR", "training compute C (FLOPs)", f"loss difference ({unit})")
    for number, result in enumerate(results):
        for U, width in zip(ends, (1.2, 2.6)):
            at = int(np.argmin(np.abs(np.log(np.array(result["unique_tokens"]) / U))))
            look = {name: _look(number)[name] for name in ("color", "linestyle")}
            few = {"marker": _look(number)["marker"]} if len(result["flops"]) < 10 else {}  # measured
            values = np.array(result["difference"][at], np.float64)
            known = ~np.isnan(values)
            right.plot(np.array(result["flops"])[known], values[known], linewidth=width, **look, **few)
    right.axhline(0, color="black", linewidth=0.8)
    right.set_xscale("log")
    for axis in (left.xaxis, left.yaxis, right.xaxis):
        log_ticks(axis)
    handles = [Line2D([], [], label=name, **_look(number)) for number, name in enumerate(cases)]
    caption = (
        "Bars: 95 % intervals, none where nothing says how far equal runs differ; an arrow at an edge: open, or beyond; "
        "a cross: AR leads (above) or MDM leads (below) throughout."
    )
    explain(
        figure, handles, f"{caption}\nThin lines: U = {ends[0]:.3g}; thick: U = {ends[1]:.3g}. {results[0].get('label') or ''}"
    )
    return figure


def _look(number: int) -> dict:
    color, line, marker, filled = LOOKS[number % len(LOOKS)]
    return {"color": color, "linestyle": line, "marker": marker, "markerfacecolor": color if filled else "white", "markersize": 8}


def _draw_points(axes: Axes, result: dict, look: dict, shift: float, low: float, high: float) -> None:
    found = [point for point in result["critical"] if point.get("flops")]
    axes.plot([point["unique_tokens"] * shift for point in found], [point["flops"] for point in found], linewidth=1.4, **look)
    for point in result["critical"]:
        at, color = point["unique_tokens"] * shift, look["color"]
        if not point.get("flops"):
            edge = low if "MDM leads" in (point.get("reason") or "") else high
            axes.plot(at, edge, marker="x", color=color, markersize=10, markeredgewidth=2, clip_on=False, zorder=5)
        if not result["num_draws"]:
            continue
        ends = np.clip([point.get("low") or low, point.get("high") or high], low, high)
        axes.plot([at, at], ends, color=color, linewidth=1.6, clip_on=False)
        for end, edge, arrow in zip(ends, (low, high), "v^"):
            axes.plot(at, end, marker=arrow if end == edge else "_", color=color, markersize=8, clip_on=False)
