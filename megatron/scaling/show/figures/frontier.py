"""The compute-optimal frontier: N*, D* and L* over compute, each with its band, and what one objective gains on another."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from megatron.scaling.answers.frontier import gain
from megatron.scaling.show.figures.style import INK, UNITS, explain, frame, log_ticks, new_figure, style_of, write_in
from megatron.scaling.table.labels import NAMES

WORDS = {"params": ("N*", "k_N", "a"), "tokens": ("D*", "k_D", "b")}


def draw_frontier(studies: list, unit: str = "nats") -> Figure:
    """Three panels, 2340 x 1014 pixels: N*(C), D*(C), and the gain of the second objective on the first or, of one, L*(C).

    studies: a `Study` for each objective; unit: of the losses (UNITS).
    """
    figure, (left, middle, right) = new_figure(3)
    frame(left, "Compute-optimal parameters N*(C)", "training compute (FLOPs)", "parameters N*")
    frame(middle, "Compute-optimal tokens D*(C)", "training compute (FLOPs)", "training tokens D*")
    drawn = [(study, style_of(study.objective, number=number)) for number, study in enumerate(studies) if study.frontier]
    for axes, column in ((left, "params"), (middle, "tokens")):
        _draw_growth(axes, drawn, column)
    if len(drawn) > 1:
        _draw_gain(right, drawn)
    else:
        _draw_loss(right, drawn, unit)
    explain(figure, _legend(drawn, len(drawn) == 1), _caption(drawn), columns=3)
    return figure


def _draw_growth(axes: Axes, drawn: list, column: str) -> None:
    """Minima with their intervals, and the power law with its band, which is lighter beyond the data."""
    if not drawn:
        write_in(axes, "two budgets with their minimum inside the data are needed")
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    for study, style in drawn:
        _draw_band(axes, study.frontier["bands"], study.frontier["range"]["flops"], column, style)
        minima = study.isoflop.interior
        _draw_places(axes, minima, [getattr(m, column) for m in minima], [getattr(m, f"{column}_ci") for m in minima], style)
    for axis in (axes.xaxis, axes.yaxis):
        log_ticks(axis)


def _draw_band(axes: Axes, bands: dict, reach: list, column: str, style: dict) -> None:
    flops, band = np.array(bands["flops"]), {name: np.array(values) for name, values in bands[column].items()}
    inside = flops <= reach[1] * 1.001
    for part, line, alpha in ((inside, style["linestyle"], 0.22), (flops >= flops[inside][-1], ":", 0.10)):
        axes.plot(flops[part], band["value"][part], color=style["color"], linestyle=line, linewidth=1.7)
        if "low" in band:
            axes.fill_between(flops[part], band["low"][part], band["high"][part], color=style["color"], alpha=alpha, linewidth=0)


def _draw_places(axes: Axes, minima: list, values: list, intervals: list, style: dict) -> None:
    """Points with 95 % bars; an open end is an arrow as far as a third of the value."""
    for minimum, value, (low, high) in zip(minima, values, intervals):
        ends = [value / 1.5 if low is None else low, value * 1.5 if high is None else high]
        axes.plot([minimum.flops] * 2, ends, color=style["color"], linewidth=1.4, zorder=3)
        for end, known, arrow in zip(ends, (low, high), "v^"):
            axes.plot(minimum.flops, end, marker=arrow if known is None else "_", color=style["color"], markersize=7, zorder=3)
        axes.plot(minimum.flops, value, **{**style, "linestyle": "none"}, zorder=4)


def _draw_loss(axes: Axes, drawn: list, unit: str) -> None:
    """Minima of the loss, its power law and the law with an irreducible loss, that with the band first."""
    frame(axes, "Compute-optimal loss L*(C)", "training compute (FLOPs)", f"loss L* ({UNITS[unit]})")
    if not drawn:
        write_in(axes, "two budgets with their minimum inside the data are needed")
        return
    axes.set_xscale("log")
    [(study, style)] = drawn
    bands, flops = study.frontier["bands"], np.array(study.frontier["bands"]["flops"])
    _draw_band(axes, bands, study.frontier["range"]["flops"], "loss", style)
    if study.frontier["irreducible"]:
        other = study.frontier["power_law" if study.frontier["params"]["E"] else "irreducible"]
        axes.plot(flops, other["E"] + other["k_L"] * flops ** -other["g"], color=INK, linestyle="-.", linewidth=1.2)
    minima = study.isoflop.interior
    _draw_places(axes, minima, [m.loss for m in minima], [m.loss_ci for m in minima], style)
    log_ticks(axes.xaxis)


def _draw_gain(axes: Axes, drawn: list) -> None:
    """Compute of the first objective over that of each other one at equal loss."""
    (first, _), *others = drawn
    name = NAMES.get(first.objective, first.objective)
    against = " and ".join(NAMES.get(study.objective, study.objective) for study, _ in others)
    frame(
        axes,
        f"Compute-equivalent gain of {against} on {name}",
        f"training compute of {against} (FLOPs)",
        f"compute of {name} at the same loss / that compute",
    )
    found = [(style, gain(first.frontier, study.frontier)) for study, style in others]
    if not any(one for _, one in found):
        write_in(axes, f"{name} does not reach these losses")
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.axhline(1, color=INK, linewidth=1.0, linestyle="--")
    for style, one in found:
        if one is None:
            continue
        flops, value, inside = (np.array(one[part]) for part in ("flops", "value", "inside"))
        axes.plot(flops, value, color=style["color"], linestyle=":", linewidth=1.7)
        axes.plot(flops, np.where(inside, value, np.nan), color=style["color"], linestyle=style["linestyle"], linewidth=2.2)
        if "low" in one:
            axes.fill_between(flops, one["low"], one["high"], color=style["color"], alpha=0.22, linewidth=0)
    for axis in (axes.xaxis, axes.yaxis):
        log_ticks(axis)


def _legend(drawn: list, alone: bool) -> list:
    handles: list = [
        Line2D([], [], **style, linewidth=1.7, label=f"{study.label}: " + _equation(study.frontier, "params"))
        for study, style in drawn
    ]
    if drawn:
        handles.append(Patch(facecolor="#999999", alpha=0.4, label="95 % interval, as are bars (arrow: open)"))
        handles.append(Line2D([], [], color="#444444", linestyle=":", linewidth=1.7, label="beyond the data"))
    if alone and drawn and drawn[0][0].frontier["irreducible"]:
        bent = drawn[0][0].frontier["params"]["E"] > 0
        text = "L* = k C^-g, straight" if bent else "L* = E + k C^-g"
        handles.append(Line2D([], [], color=INK, linestyle="-.", linewidth=1.2, label=text))
    return handles


def _equation(frontier: dict, column: str) -> str:
    symbol, scale, exponent = WORDS[column]
    ends = frontier["ci"].get(exponent) or [None, None]
    shown = "" if ends[0] is ends[1] is None else " [" + ", ".join("open" if e is None else f"{e:.3f}" for e in ends) + "]"
    return f"{symbol} = {frontier['params'][scale]:.3g} C^{frontier['params'][exponent]:.3f}{shown}"


def _caption(drawn: list) -> str:
    return "   ".join(f"{study.label}: {_equation(study.frontier, 'tokens')}" for study, _ in drawn) or "No frontier."
