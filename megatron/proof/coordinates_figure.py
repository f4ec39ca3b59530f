"""A coordinate check as a figure: how far a few steps move activations, against width or depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from megatron.catalogue import OBJECTIVES
from megatron.proof.coordinates import SITES, Check
from megatron.scaling.show.figures.style import INK, brackets, explain, frame, log_ticks, new_figure

COLOURS = dict(zip(SITES, ("#86b8a4", "#d97a1f", "#0b2f55")))
LINES: dict[str, tuple[Literal["-", ":"], str]] = {"standard": (":", "x"), "mup": ("-", "o"), "completep": ("-", "s")}


def draw_coordinates(checks: Sequence[Check], steps: int) -> Figure:
    """A panel for each objective; every parametrization with its own line."""
    objectives = list(dict.fromkeys(check.objective for check in checks))
    figure, panels = new_figure(len(objectives), width=8 * len(objectives), height=7.5)
    for panel, objective in zip(panels, objectives):
        own = [check for check in checks if check.objective == objective]
        what = "hidden size" if own[0].axis == "width" else "layers"
        frame(panel, OBJECTIVES[objective].label, what, f"mean |change| of an activation over {steps} steps")
        panel.set_xscale("log")
        panel.set_yscale("log")
        labels = [label for check in own for label in draw_check(panel, check)]
        log_ticks(panel.yaxis)
        sizes = sorted(set(own[0].size))
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.set_xticks([], minor=True)
        panel.set_xlim(sizes[0] / 1.15, sizes[-1] * 2.4)  # room for what is written at the lines' ends
        write_labels(panel, sizes[-1], labels)
    names = list(dict.fromkeys(check.parametrization for check in checks))
    handles = [Line2D([], [], color=COLOURS[site], linewidth=3, label=f"{site}: {what}") for site, what in SITES.items()]
    handles += [Line2D([], [], color=INK, linestyle=LINES[n][0], marker=LINES[n][1], label=n) for n in names]
    explain(
        figure,
        handles,
        f"written: log-log slope and its 95 % interval; hyperparameters carry over where it is within {checks[0].limit:g} of 0",
        columns=3,
    )
    figure.subplots_adjust(bottom=0.22)
    return figure


def draw_check(panel: Axes, check: Check) -> list[tuple[float, str, str]]:
    """-> (height, text, colour) of what is to be written at each line's end"""
    line, marker = LINES[check.parametrization]
    sizes, labels = sorted(set(check.size)), []
    for site, found in check.slopes().items():
        colour, values = COLOURS[site], np.array(check.change[site])
        means = [float(np.exp(np.log(values[np.array(check.size) == size]).mean())) for size in sizes]
        panel.plot(check.size, values, linestyle="none", marker=marker, color=colour, markersize=5, alpha=0.6)
        panel.plot(sizes, means, linestyle=line, color=colour, linewidth=2)
        said = f"{found.value:+.2f} {brackets(None if found.low is None else (found.low, found.high), '+.2f')}"
        labels.append((means[-1], said, colour))
    return labels


def write_labels(panel: Axes, right: float, labels: list[tuple[float, str, str]]) -> None:
    """At the right ends of lines, from below, each at least a line's height above the one before."""
    low, high = np.log(panel.get_ylim())
    least = -np.inf
    for height, said, colour in sorted(labels):
        least = max(np.log(height), least + 0.028 * (high - low))
        place = (right, float(np.exp(least)))
        panel.annotate(said, place, (8, 0), textcoords="offset points", va="center", fontsize=9.5, color=colour)
