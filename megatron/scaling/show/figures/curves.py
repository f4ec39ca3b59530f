"""Loss curves: training loss on the way, validation loss with its errors at the end."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from megatron.scaling.show.figures.style import (
    LEGEND,
    UNITS,
    depth_of,
    explain,
    frame,
    log_ticks,
    new_figure,
    power,
    style_of,
    write_in,
)
from megatron.scaling.table.labels import NAMES, label_of
from megatron.scaling.table.runs import training_curve

SMOOTHED_SHARE = 0.05  # of a run's records, for the thin training curves
MOST_LABELS = 5


def draw_curves(runs: list[dict], unit: str = "nats") -> Figure:
    """Loss over training compute, a panel for each objective, darker for larger models.

    Each run: {run, objective, bound?, params, flops, loss, loss_se_noise?, loss_se_data?, path?}; the records on the way come
    from `path`/metrics.jsonl where there is one. unit: of the losses (UNITS); records are in nats, and drawn with these only.
    """
    objectives = list(dict.fromkeys(run["objective"] for run in runs))
    figure, panels = new_figure(max(1, len(objectives)), width=18 if len(objectives) > 1 else 13)
    ends = []
    for number, (axes, objective) in enumerate(zip(panels, objectives)):
        own = sorted((run for run in runs if run["objective"] == objective), key=lambda run: run["params"])
        frame(axes, f"Loss curves: {NAMES.get(objective, objective)}", "training compute (FLOPs)", f"loss ({UNITS[unit]})")
        ends += _draw_runs(axes, own, number, unit)
        axes.legend(
            handles=_legend(own, number),
            title=f"final loss: {label_of(objective, own[0])}",
            loc="upper center",
            bbox_to_anchor=(0.5, -0.085),
            ncols=MOST_LABELS,
            **LEGEND,
        )
    for axes in panels[: len(objectives)]:
        axes.set_ylim(min(ends) * 0.96, max(ends) * 1.04)
        loss_ticks(axes)
        log_ticks(axes.xaxis)
    if not runs:
        write_in(panels[0], "no runs")
    explain(
        figure,
        [],
        f"Lines: training loss, mean over {100 * SMOOTHED_SHARE:.0f} % of a run's records.  Markers: final "
        "validation loss with two standard errors of noise and evaluation rows together.",
    )
    return figure


def _draw_runs(axes: Axes, runs: list[dict], number: int, unit: str) -> list[float]:
    """The curves and final losses of one objective's runs; gives the lowest and highest loss drawn."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = sorted({run["params"] for run in runs})
    drawn = [run["loss"] for run in runs]
    for run in runs:
        style = style_of(run["objective"], depth_of(sizes.index(run["params"]), len(sizes)), number)
        flops, loss = smooth_curve(run, unit)
        axes.plot(flops, loss, color=style["color"], linestyle=style["linestyle"], linewidth=0.9)
        error = 2 * np.hypot(run.get("loss_se_noise") or 0.0, run.get("loss_se_data") or 0.0)
        axes.errorbar(
            [run["flops"]], [run["loss"]], yerr=[error] if error else None, capsize=3, zorder=3, **{**style, "linestyle": "none"}
        )
        drawn += loss.tolist()
    return [min(drawn), max(drawn)]


def _legend(runs: list[dict], number: int) -> list[Line2D]:
    """Some of the sizes, from the smallest to the largest, in their colours."""
    sizes = sorted({run["params"] for run in runs})
    shown = sorted({round(place) for place in np.linspace(0, len(sizes) - 1, min(len(sizes), MOST_LABELS))})
    return [
        Line2D(
            [],
            [],
            **style_of(runs[0]["objective"], depth_of(place, len(sizes)), number),
            linewidth=1.6,
            label=f"N = {power(sizes[place])}",
        )
        for place in shown
    ]


def smooth_curve(run: dict, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """(FLOPs, training loss) of a run directory, as `smooth`; empty for the row of a table, and in other units than nats."""
    file = Path(run.get("path") or "none") / "metrics.jsonl"
    if unit != "nats" or not file.is_file():
        return np.empty(0), np.empty(0)
    flops, loss = _read_smooth(file.parent, file.stat().st_mtime_ns)
    keep = flops > run["flops"] * 1e-3  # the first thousandth would take half of the axis
    return flops[keep], loss[keep]


@lru_cache(maxsize=1000)
def _read_smooth(folder: Path, changed: int) -> tuple[np.ndarray, np.ndarray]:
    """The curve of a folder, read once for all figures unless it `changed`."""
    return smooth(*training_curve(folder))


def smooth(flops: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moving means over SMOOTHED_SHARE of the records, of both columns, so that a mean stands at its own compute."""
    window = max(1, round(SMOOTHED_SHARE * len(loss)))
    if not len(loss):
        return flops, loss
    flops, loss = (np.convolve(column, np.full(window, 1 / window), mode="valid") for column in (flops, loss))
    return flops, loss


def loss_ticks(axes: Axes) -> None:
    """Round losses on a logarithmic axis."""
    low, high = axes.get_ylim()
    round_losses = (*np.arange(0.2, 2, 0.2), *np.arange(2, 4, 0.5), 4, 5, 6, 8, 10, 12)
    ticks = [tick for tick in round_losses if low < tick < high]
    axes.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
