"""The figures of a report: `draw_*` gives a matplotlib Figure of 1600 pixels or more at its dpi, `save` writes PNG and PDF."""

from megatron.scaling.show.figures.contours import draw_contours
from megatron.scaling.show.figures.crossings import draw_crossings
from megatron.scaling.show.figures.crossover import draw_crossover
from megatron.scaling.show.figures.curves import draw_curves
from megatron.scaling.show.figures.data_value import draw_data_value
from megatron.scaling.show.figures.frontier import draw_frontier
from megatron.scaling.show.figures.isoflop import draw_isoflop
from megatron.scaling.show.figures.residuals import draw_residuals
from megatron.scaling.show.figures.style import save

__all__ = [
    "draw_contours",
    "draw_crossings",
    "draw_crossover",
    "draw_curves",
    "draw_data_value",
    "draw_frontier",
    "draw_isoflop",
    "draw_residuals",
    "save",
]
