"""The compute at which masked diffusion passes AR, over unique data."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from megatron.scaling.show.figures.style import INK, UNITS, brackets, explain, frame, log_ticks, new_figure, write_in

LOWER_HATCH = "//"


def draw_crossover(result: dict) -> Figure:
    """Contours of the loss difference over unique tokens and compute; the critical compute with intervals and its power law.

    result: {label?, unit?, unique_tokens [u], flops [c], difference [u][c] (loss of MDM - loss of AR at the best N; None
    outside), critical: [{unique_tokens, flops | None, low | None, high | None, reason?}], power_law?: {k, p, ci: {k: [low,
    high], p: [low, high]}} of ln C_crit = k + p ln U}.
    """
    figure, (left, right) = new_figure(2)
    frame(left, "Loss of MDM minus loss of AR", "unique tokens U", "training compute C (FLOPs)")
    _draw_contours(figure, left, result)
    frame(right, "Critical compute: MDM passes AR", "unique tokens U", "critical compute (FLOPs)")
    _draw_critical(right, result)
    for axis in (axis for axes in (left, right) for axis in (axes.xaxis, axes.yaxis) if axis.get_scale() == "log"):
        log_ticks(axis)
    explain(figure, _legend(result), result.get("label") or "Both losses at the best size N for each C and U.", columns=5)
    return figure


def _draw_contours(figure: Figure, axes: Axes, result: dict) -> None:
    """Filled contours in a map whose luminance only rises; hatched where MDM is lower; the line of equal loss."""
    unique, flops = (np.asarray(result[name], np.float64) for name in ("unique_tokens", "flops"))
    difference = np.ma.masked_invalid(np.array(result["difference"], np.float64).T)
    if difference.count() and len(unique) == 1 < len(flops):
        figure.subplots_adjust(left=0.065, wspace=0.18)  # numbers with a sign and three decimals
        _draw_difference(axes, flops, difference[:, 0], f"loss difference ({UNITS[result.get('unit') or 'nats']})", unique[0])
        return
    if min(difference.shape) < 2 or difference.count() == 0:
        write_in(axes, "contours need two budgets and two amounts of unique tokens")
        return
    filled = axes.contourf(unique, flops, difference, levels=12, cmap="cividis")
    axes.set_xscale("log")
    axes.set_yscale("log")
    if difference.min() < 0 < difference.max():
        axes.contour(unique, flops, difference, levels=[0], colors="white", linewidths=3.5)
        axes.contour(unique, flops, difference, levels=[0], colors="black", linewidths=1.8)
    if difference.min() < 0:
        axes.contourf(unique, flops, difference, levels=[difference.min() - 1, 0], colors="none", hatches=[LOWER_HATCH])
    bar = figure.colorbar(filled, ax=axes, pad=0.02)
    bar.set_label(f"loss difference ({UNITS[result.get('unit') or 'nats']})", fontsize=11)
    bar.ax.tick_params(labelsize=10)
    _draw_points(axes, result)


def _draw_difference(axes: Axes, flops, difference, words: str, unique: float) -> None:
    """Of one U there are no contours: its difference [c] over compute, the line of equal loss at 0."""
    frame(axes, f"Loss of MDM minus loss of AR, U = {unique:.3g}", "training compute C (FLOPs)", words)
    axes.set_xscale("log")
    axes.axhline(0, color=INK, linewidth=1.0)
    axes.plot(flops, difference, color=INK, marker="o", linewidth=1.6)


def _draw_critical(axes: Axes, result: dict) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    _draw_points(axes, result)
    axes.set_xlim(min(result["unique_tokens"]) / 1.3, max(result["unique_tokens"]) * 1.3)
    axes.set_ylim(min(result["flops"]), max(result["flops"]))
    law = result.get("power_law")
    if law:
        unique = np.geomspace(*axes.get_xlim(), 50)
        axes.plot(unique, np.exp(law["k"] + law["p"] * np.log(unique)), color=INK, linestyle="--", linewidth=1.6)


def _draw_points(axes: Axes, result: dict) -> None:
    """Critical compute with its interval; an end that is open, or beyond the grid, is an arrow at its edge.

    A cross at the lower or upper edge: MDM leads from the start, or AR throughout.
    """
    low, high = min(result["flops"]), max(result["flops"])
    for point in (point for point in result["critical"] if not point.get("flops")):
        axes.plot(
            point["unique_tokens"],
            low if "MDM leads" in (point.get("reason") or "") else high,
            marker="x",
            color="black",
            markersize=10,
            markeredgewidth=2,
            clip_on=False,
            zorder=5,
        )
    for point in (point for point in result["critical"] if point.get("flops")):
        ends = [max(low, point.get("low") or low), min(high, point.get("high") or high)]
        axes.plot([point["unique_tokens"]] * 2, ends, color="white", linewidth=3.5, zorder=3, clip_on=False)
        axes.plot([point["unique_tokens"]] * 2, ends, color="black", linewidth=1.4, zorder=4, clip_on=False)
        for end, edge, arrow in zip(ends, (low, high), "v^"):
            axes.plot(
                point["unique_tokens"],
                end,
                marker=arrow if end == edge else "_",
                color="black",
                markersize=8,
                zorder=4,
                clip_on=False,
            )
        axes.plot(
            point["unique_tokens"],
            point["flops"],
            marker="D",
            color="white",
            markeredgecolor="black",
            markeredgewidth=1.4,
            markersize=7,
            zorder=5,
            clip_on=False,
        )


def _legend(result: dict) -> list:
    hatched = [Patch(facecolor="white", edgecolor="black", hatch=LOWER_HATCH, label="MDM lower")]
    handles = [
        Line2D([], [], color="black", linewidth=1.8, label="equal loss"),
        *(hatched if len(result["unique_tokens"]) > 1 else []),
        Line2D(
            [],
            [],
            color="black",
            marker="D",
            markerfacecolor="white",
            markeredgewidth=1.4,
            linewidth=1.4,
            label="critical compute, 95 % interval (arrow: open, or beyond)",
        ),
    ]
    if any(not point.get("flops") for point in result["critical"]):
        handles.append(
            Line2D(
                [],
                [],
                color="black",
                marker="x",
                markersize=10,
                markeredgewidth=2,
                linestyle="none",
                label="no crossing in range: MDM leads (below), AR leads (above)",
            )
        )
    law = result.get("power_law")
    if law:
        ci = law.get("ci") or {}
        handles.append(
            Line2D(
                [],
                [],
                color=INK,
                linestyle="--",
                linewidth=1.6,
                label=f"C = e^k U^p: p = {law['p']:.3g} {brackets(ci.get('p'))}, k = {law['k']:.3g} {brackets(ci.get('k'))}",
            )
        )
    return handles
