"""Loss over compute, isoFLOP parabolas with their minima, and the compute-optimal loss of objectives side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from megatron.scaling.answers.frontier import Frontier
from megatron.scaling.answers.isoflop import WIDEST_BUDGET, Minimum
from megatron.scaling.answers.predict import NORMAL_975
from megatron.scaling.show.figures.curves import SMOOTHED_SHARE, loss_ticks, smooth_curve
from megatron.scaling.show.figures.style import UNITS, depth_of, explain, frame, log_ticks, new_figure, power, style_of, write_in
from megatron.scaling.table.labels import NAMES


def draw_isoflop(studies: list, ratios: Sequence[dict] = (), unit: str = "nats") -> Figure:
    """Three panels, 2340 x 1014 pixels.

    studies: a `Study` for each objective; ratios: of `equal_loss_ratios`; unit: of the losses (UNITS).
    """
    figure, (left, middle, right) = new_figure(3)
    _draw_curves(left, studies, unit)
    _draw_parabolas(middle, studies, unit)
    _draw_frontier(right, studies, ratios, unit)
    explain(figure, _legend(studies, ratios), _caption(studies, ratios, unit))
    return figure


def _draw_curves(axes: Axes, studies: list, unit: str) -> None:
    thin = "; thin: training loss" if _have_curves(studies, unit) else ""
    frame(axes, "Loss against training compute", "training compute (FLOPs)", f"validation loss ({UNITS[unit]}){thin}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    lowest, highest = [], []
    for number, study in enumerate(studies):
        style, light = style_of(study.objective, number=number), style_of(study.objective, 0.4, number)
        for run in study.runs:
            flops, loss = smooth_curve(run, unit)
            axes.plot(flops, loss, color=light["color"], linestyle=style["linestyle"], linewidth=0.8, alpha=0.8)
            lowest.append(min([*loss, run["loss"]]))
            highest.append(max([*loss, run["loss"]]))
        axes.plot(study.column("flops"), study.column("loss"), **{**style, "linestyle": "none"}, zorder=3)
    axes.set_ylim(min(lowest) * 0.96, max(highest) * 1.04)
    loss_ticks(axes)
    log_ticks(axes.xaxis)


def _have_curves(studies: list, unit: str) -> bool:
    """Whether any run came with the loss of its training; rows of a table do not."""
    return any(len(smooth_curve(run, unit)[0]) for study in studies for run in study.runs)


def _draw_parabolas(axes: Axes, studies: list, unit: str) -> None:
    of_tokens = any(minimum.axis == "tokens" for study in studies for minimum in study.isoflop.minima)
    what, words = ("tokens", "training tokens") if of_tokens else ("size", "parameters")
    frame(axes, f"isoFLOP: loss against {what} at equal compute C", words, f"validation loss ({UNITS[unit]})")
    axes.set_xscale("log")
    labels = []
    for number, study in enumerate(studies):
        minima = study.isoflop.minima
        for place, minimum in enumerate(minima):
            style = style_of(study.objective, depth_of(place, len(minima)), number)
            _draw_parabola(axes, _runs_of(study, minimum), minimum, style)
            labels.append((float(minimum.curve(minimum.params_range[1])), minimum, style["color"]))
    if labels:
        _label_budgets(axes, labels)
        log_ticks(axes.xaxis)
    else:
        write_in(axes, "no compute budget with 3 sizes")


def _runs_of(study, minimum: Minimum) -> list[dict]:
    return [run for run, flops in zip(study.runs, study.budgets) if abs(np.log(flops / minimum.flops)) <= WIDEST_BUDGET]


def _draw_parabola(axes: Axes, runs: list[dict], minimum: Minimum, style: dict) -> None:
    """Points with their noise, the fitted curve, and the minimum with its interval (arrow heads where it is open).

    Over parameters or tokens, as the curve is.
    """
    place, interval = getattr(minimum, minimum.axis), getattr(minimum, f"{minimum.axis}_ci")
    grid = np.geomspace(*minimum.params_range, 100)
    axes.plot(grid, minimum.curve(grid), color=style["color"], linestyle=style["linestyle"], linewidth=1.6)
    noise = [NORMAL_975 * (run.get("loss_se_noise") or 0.0) for run in runs]
    axes.errorbar(
        [run[minimum.axis] for run in runs],
        [run["loss"] for run in runs],
        yerr=noise if any(noise) else None,
        capsize=3,
        elinewidth=1.2,
        **{**style, "linestyle": "none"},
    )
    ends = [edge if end is None else end for end, edge in zip(interval, minimum.params_range)]
    caps = [arrow if end is None else "|" for end, arrow in zip(interval, "<>")]
    if minimum.reason is None:
        axes.plot(ends, [minimum.loss] * 2, color="black", linewidth=1.4, zorder=4)
        for end, cap in zip(ends, caps):
            axes.plot(end, minimum.loss, marker=cap, color="black", markersize=7, zorder=4)
        axes.plot(
            place, minimum.loss, marker="D", color="white", markeredgecolor="black", markeredgewidth=1.4, markersize=6.5, zorder=5
        )
    else:
        axes.plot(place, minimum.loss, marker="x", color="black", markersize=11, markeredgewidth=2, zorder=5)


def _label_budgets(axes: Axes, labels: list[tuple]) -> None:
    """'C = 2e11' beside the right end of every curve, moved apart where ends lie close together."""
    low, high = (function(minimum.params_range[i] for _, minimum, _ in labels) for i, function in ((0, min), (1, max)))
    axes.set_xlim(low / (high / low) ** 0.06, high * (high / low) ** 0.34)
    bottom, top = axes.get_ylim()
    gap = max((top - bottom) * 0.04, 1e-6)
    labels = sorted(labels, key=lambda label: label[0])
    places = _apart([label[0] for label in labels], gap)
    axes.set_ylim(min(bottom, places[0] - gap), max(top, places[-1] + gap))
    for (end, minimum, colour), place in zip(labels, places):
        axes.annotate(
            f"C = {power(minimum.flops)}",
            xy=(minimum.params_range[1], end),
            xytext=(high * (high / low) ** 0.10, place),
            fontsize=10,
            va="center",
            color="black",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1.0, "shrinkA": 1, "shrinkB": 6},
        )


def _apart(values: list[float], gap: float) -> list[float]:
    """Rising values moved as little as needed to stand `gap` apart (pooled like an isotonic regression)."""
    pools: list[tuple[float, int]] = []  # [sum of (value - rank gap), count]
    for rank, value in enumerate(values):
        pools.append((value - rank * gap, 1))
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] >= pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1] = pools[-1][0] + total, pools[-1][1] + count
    levels = [total / count for total, count in pools for _ in range(count)]
    return [level + rank * gap for rank, level in enumerate(levels)]


def _draw_frontier(axes: Axes, studies: list, ratios: Sequence[dict], unit: str) -> None:
    names = " and ".join(NAMES.get(study.objective, study.objective) for study in studies)
    frame(axes, f"Compute-optimal loss: {names}", "training compute (FLOPs)", f"loss at the isoFLOP minimum ({UNITS[unit]})")
    axes.set_xscale("log")
    every = [minimum for study in studies for minimum in study.isoflop.interior]
    if not every:
        write_in(axes, "no minimum inside its data")
        return
    low, high = min(m.flops for m in every), max(m.flops for m in every)
    low = max(low / 100, min([low, *(ratio["equal_flops"] for ratio in ratios)]))
    axes.set_xlim(low / 1.7, high * 1.7)
    for number, study in enumerate(studies):
        _draw_minima(axes, study, np.geomspace(low / 1.3, high * 1.3, 50), style_of(study.objective, number=number))
    bottom, top = axes.get_ylim()
    drawn: list[float] = []
    for ratio in ratios if len(ratios) <= 4 else (ratios[0], ratios[-1]):
        if all(abs(ratio["loss"] - other) > 0.05 * (top - bottom) for other in drawn):  # else their words would meet
            _draw_ratio(axes, ratio, low)
            drawn.append(ratio["loss"])
    axes.set_ylim(bottom, top + 0.06 * (top - bottom))
    log_ticks(axes.xaxis)


def _draw_minima(axes: Axes, study, flops: np.ndarray, style: dict) -> None:
    """Minima with the interval of their loss, the law of the optimum through them, and the optimum of L(N, D) as dots."""
    minima = study.isoflop.interior
    x, y = np.array([m.flops for m in minima]), np.array([m.loss for m in minima])
    errors = [
        [m.loss - (m.loss if m.loss_ci[0] is None else m.loss_ci[0]) for m in minima],
        [(m.loss if m.loss_ci[1] is None else m.loss_ci[1]) - m.loss for m in minima],
    ]
    axes.errorbar(x, y, yerr=np.maximum(errors, 0), capsize=4, elinewidth=1.4, zorder=3, **{**style, "linestyle": "none"})
    if study.frontier:
        law = Frontier(**study.frontier["params"])
        axes.plot(flops, law.optimal_loss(flops), color=style["color"], linestyle=style["linestyle"], linewidth=1.6)
    if study.law and study.law.ci and minima:  # a law without intervals says too little
        axes.plot(flops, study.law.law.optimal_loss(flops), color=style["color"], linestyle=":", linewidth=1.6)


def _draw_ratio(axes: Axes, ratio: dict, lowest: float) -> None:
    """An arrow from MDM's budget to AR's compute of equal loss, with the factor between them."""
    start, end = ratio["flops"], max(ratio["equal_flops"], lowest)
    axes.annotate(
        "",
        xy=(end, ratio["loss"]),
        xytext=(start, ratio["loss"]),
        arrowprops={"arrowstyle": "->", "color": "#444444", "linewidth": 1.1, "shrinkA": 7, "shrinkB": 0},
    )
    mark = "*" if ratio["extrapolated"] else ""
    ends = "" if None in ratio["ci"] else f" [{ratio['ci'][0]:.3g}, {ratio['ci'][1]:.3g}]"
    left, right = axes.get_xlim()
    place = np.log(np.sqrt(start * end) / left) / np.log(right / left)
    middle = left * (right / left) ** np.clip(place, 0.18, 0.82)  # the words stay inside the panel
    axes.annotate(
        f"{ratio['ratio']:.3g}x{ends}{mark}",
        xy=(middle, ratio["loss"]),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=10.5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
    )


def _legend(studies: list, ratios: Sequence[dict]) -> list[Line2D]:
    minima = [minimum for study in studies for minimum in study.isoflop.minima]
    interior = any(minimum.reason is None for minimum in minima)
    handles = [
        Line2D([], [], **style_of(study.objective, number=number), linewidth=1.6, label=study.label)
        for number, study in enumerate(studies)
    ]
    if interior:
        handles.append(
            Line2D(
                [],
                [],
                color="black",
                marker="D",
                markerfacecolor="white",
                markeredgewidth=1.4,
                linewidth=1.4,
                label="isoFLOP minimum, 95 % interval (arrow: open)",
            )
        )
    if any(minimum.reason for minimum in minima):
        handles.append(
            Line2D(
                [],
                [],
                color="black",
                marker="x",
                markersize=10,
                markeredgewidth=2,
                linestyle="none",
                label="minimum outside the data, not used",
            )
        )
    if interior and any(study.law and study.law.ci for study in studies):
        handles.append(Line2D([], [], color="#444444", linestyle=":", linewidth=1.6, label="optimum of L(N, D)"))
    if ratios:
        handles.append(
            Line2D([], [], color="#444444", marker="<", markersize=6, linewidth=1.1, label="compute ratio at equal loss")
        )
    return handles


def _caption(studies: list, ratios: Sequence[dict], unit: str) -> str:
    first = studies[0].runs[0]
    thin = f"Thin lines: training loss, mean over {100 * SMOOTHED_SHARE:.0f} % of a run's records."
    parts = [
        *[thin] * _have_curves(studies, unit),
        *[f"One of {study.stride} {study.label} runs is drawn." for study in studies if study.stride > 1],
        "Bars: 95 % intervals, on runs of the noise they state.",
        "Darker: larger C.",
        f"C: {first.get('flops_convention') or 'as given'}.  N: {first.get('params_convention') or 'as given'}.",
    ]
    if any(ratio["extrapolated"] for ratio in ratios):
        parts.append("*: extrapolated beyond AR's budgets.")
    return "  ".join(parts)
