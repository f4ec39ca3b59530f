"""The fitted loss over parameters and tokens: contours, the runs, lines of equal compute and the frontier."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from megatron.scaling.show.figures.style import UNITS, explain, frame, log_ticks, new_figure, write_in

WIDER = 1.5  # than the data, on every side
NUM_PLACES, NUM_LEVELS, MOST_LINES = 80, 14, 6


def draw_contours(studies: list, unit: str = "nats") -> Figure:
    """A panel for each `Study` of one to three objectives; unit: of the losses (UNITS)."""
    shown = studies[:3]
    figure, panels = new_figure(len(shown), width=18 if len(shown) > 1 else 13)
    for axes, study in zip(panels, shown):
        frame(axes, f"L(N, D) of {study.label}", "parameters N", "training tokens D")
        if study.law is None:
            write_in(axes, "too few runs for a law L(N, D)")
        else:
            _draw_law(figure, axes, study, unit)
    most = max(study.stride for study in shown)
    runs = "the runs shown" if most == 1 else f"all runs, of which one in {most} is shown"
    explain(figure, _legend(shown), f"Contours: the law fitted to {runs}.  Frontier: its least loss at each compute C = 6 N D.")
    return figure


def _draw_law(figure: Figure, axes: Axes, study, unit: str) -> None:
    params, tokens = study.column("params"), study.column("tokens")
    sizes, seen = (np.geomspace(x.min() / WIDER, x.max() * WIDER, NUM_PLACES) for x in (params, tokens))
    law = study.law.law
    filled = axes.contourf(sizes, seen, law.loss(*np.meshgrid(sizes, seen)), levels=NUM_LEVELS, cmap="cividis_r")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.contour(filled, colors="white", linewidths=0.5)
    bar = figure.colorbar(filled, ax=axes, pad=0.02)
    bar.set_label(f"loss ({UNITS[unit]})", fontsize=11)
    for flops in [minimum.flops for minimum in study.isoflop.minima][:: max(1, len(study.isoflop.minima) // MOST_LINES)]:
        axes.plot(sizes, flops / 6 / sizes, color="white", linestyle="--", linewidth=1.0)
    best = law.optimum(np.geomspace(6 * sizes[0] * seen[0], 6 * sizes[-1] * seen[-1], NUM_PLACES))
    axes.plot(*best, color="black", linewidth=2.2)
    axes.plot(params, tokens, marker="o", color="white", markeredgecolor="black", markersize=5.5, linestyle="none")
    minima = study.isoflop.interior
    axes.plot(
        [m.params for m in minima],
        [m.tokens for m in minima],
        marker="D",
        color="#d97a1f",
        markeredgecolor="black",
        markersize=8,
        linestyle="none",
        zorder=4,
    )
    axes.set_xlim(sizes[0], sizes[-1])
    axes.set_ylim(seen[0], seen[-1])
    for axis in (axes.xaxis, axes.yaxis):
        log_ticks(axis)


def _legend(studies: list) -> list[Line2D]:
    minima = Line2D([], [], marker="D", color="#d97a1f", markeredgecolor="black", linestyle="none", label="isoFLOP minima")
    equal = Line2D([], [], color="#888888", linestyle="--", linewidth=1.0, label="equal compute (white, broken)")
    return [
        Line2D([], [], marker="o", color="white", markeredgecolor="black", linestyle="none", markersize=6, label="runs"),
        *[minima] * any(study.isoflop.interior for study in studies),
        Line2D([], [], color="black", linewidth=2.2, label="frontier of L(N, D)"),
        *[equal] * any(study.isoflop.minima for study in studies),
    ]
