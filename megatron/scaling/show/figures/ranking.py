"""Forms of law by their error on runs that they were not fitted to."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from megatron.scaling.show.figures.style import INK, explain, frame, new_figure

BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # a name covers the line at 0
ACROSS = 44  # characters of a line of a form's name
TICKS = 5  # at the most


def draw_ranking(rankings: list[dict]) -> Figure:
    """A panel for each ranking (of `rank_forms`, with `objective`): how far each form is behind the first, with its interval."""
    figure, panels = new_figure(len(rankings))
    for axes, one in zip(panels, rankings):
        frame(axes, f"{one['objective']}: left out by {one['leave_out']}", "mean |error of ln L| behind the first", "")
        for place, form in enumerate(one["forms"]):
            axes.plot(form["behind"], -place, marker="o", color=INK)
            if form["ci"]:
                axes.plot(form["ci"], [-place, -place], color=INK, linewidth=1.6)
            said = textwrap.fill(f"{form['form']}: {form['error']:.2g}", ACROSS, break_long_words=False, max_lines=3)
            axes.text(
                0.02, 0.16 - place, said, va="bottom", transform=axes.get_yaxis_transform(), fontsize=10.5, color=INK, bbox=BEHIND
            )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(TICKS))
        axes.set_ylim(0.5 - len(one["forms"]), 0.5)
    explain(figure, [], "Beside each form its error. Bars: 95 % intervals of the difference from the first, on the same runs.")
    return figure
