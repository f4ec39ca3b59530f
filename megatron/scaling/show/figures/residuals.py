"""What a law leaves unexplained."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from megatron.layout import split_evenly
from megatron.scaling.law.fitted import Fit
from megatron.scaling.show.figures.style import INK, UNITS, brackets, explain, frame, log_ticks, new_figure, style_of, write_in

A_LINE = 8  # parameters of a caption
WIDEST = 3.0  # times the largest residual, beyond which bars are cut


def draw_residuals(fit: Fit, label: str = "", unit: str | None = None) -> Figure:
    """Measured over predicted loss, and the residuals over N and over D; held-out rows are open markers.

    label: the objective, with exact or bound; unit: of the losses (UNITS; None: as the fit states it). The rows are
    `fit.residuals`, the bars the 95 % interval of their prediction.
    """
    figure, panels = new_figure(3)
    rows = {
        name: np.array([row[name] for row in fit.residuals], np.float64)
        for name in ("params", "tokens", "unique_tokens", "loss", "predicted")
    }
    rows |= dict(zip(("low", "high"), _intervals(fit, rows)))
    held = np.array([row["held_out"] for row in fit.residuals], bool)
    unit = UNITS[unit or fit.choices.get("unit") or "nats"]
    frame(panels[0], label or fit.form, f"predicted loss ({unit})", f"measured loss ({unit})")
    for axes, words in ((panels[1], "parameters N"), (panels[2], "training tokens D")):
        frame(axes, f"Residuals over {words[-1]}", words, "measured / predicted loss - 1 (%)")
    if len(held):
        _draw_against(panels[0], rows, held)
        delta = fit.delta if fit.residual_kind == "huber-log" else 0.0
        _draw_residuals(panels[1], "params", rows, held, delta)
        _draw_residuals(panels[2], "tokens", rows, held, delta)
        explain(figure, _legend(rows, held, label), _caption(fit))
    else:
        write_in(panels[0], "the fit came without its rows (residuals.csv)")
    return figure


def _intervals(fit: Fit, rows: dict) -> np.ndarray:
    """95 % of the predictions of the resamples, [2, n]; NaN without any."""
    if fit.draws is None or not len(fit.draws):
        return np.full((2, len(rows["loss"])), np.nan)
    return np.quantile(fit.predict_draws(rows["params"], rows["tokens"], rows["unique_tokens"]), [0.025, 0.975], axis=0)


def _points(axes: Axes, x, y, held, **more) -> None:
    for chosen, style in ((~held, _style(False)), (held, _style(True))):
        if chosen.any():
            axes.plot(x[chosen], y[chosen], **{**style, "linestyle": "none"}, **more)


def _style(held_out: bool) -> dict:
    return {**style_of("mdm" if held_out else "ar"), "markersize": 5, "markeredgewidth": 1.2}


def _draw_against(axes: Axes, rows: dict, held) -> None:
    """Points about the diagonal."""
    _points(axes, rows["predicted"], rows["loss"], held, zorder=3)
    ends = [min(np.min(rows["loss"]), np.min(rows["predicted"])), max(np.max(rows["loss"]), np.max(rows["predicted"]))]
    axes.plot(ends, ends, color=INK, linewidth=1.2, linestyle="--")


def _draw_residuals(axes: Axes, name: str, rows: dict, held, delta: float) -> None:
    """Residuals in percent, bars for the interval of the prediction; the band is where the Huber loss is quadratic."""
    percent, low, high = (100 * (rows["loss"] / rows[column] - 1) for column in ("predicted", "high", "low"))
    axes.set_xscale("log")
    axes.axhspan(-100 * delta, 100 * delta, color="#bbbbbb", alpha=0.5, linewidth=0)
    axes.axhline(0, color=INK, linewidth=1.2, linestyle="--")
    axes.vlines(rows[name], low, high, color="#888888", linewidth=1.2)
    _points(axes, rows[name], percent, held, zorder=3)
    reach = max(float(np.max(np.abs(percent), initial=0.0)), 100 * delta)
    if np.nanmax(np.abs([low, high]), initial=0.0) > WIDEST * reach > 0:  # else the residuals are one line
        axes.set_ylim(-WIDEST * reach, WIDEST * reach)
    log_ticks(axes.xaxis)


def _legend(rows: dict, held, label: str) -> list:
    handles = [Line2D([], [], **{**_style(False), "linestyle": "none"}, label=label or "rows of the fit")]
    if held.any():
        handles.append(Line2D([], [], **{**_style(True), "linestyle": "none"}, label="held out"))
    if np.isfinite(rows["low"]).any():
        handles.append(Line2D([], [], color="#888888", linewidth=1.2, label="95 % interval of the prediction"))
    return [
        *handles,
        Line2D([], [], color=INK, linewidth=1.2, linestyle="--", label="measured = predicted"),
        Patch(color="#bbbbbb", alpha=0.5, label="|residual of ln L| < delta"),
    ]


def _caption(fit: Fit) -> str:
    """Every parameter with its interval, in lines that fit below three panels."""
    words = [f"{name} {value:.4g} {brackets(fit.ci.get(name), '.4g')}" for name, value in fit.params.items()]
    lines = -(-len(words) // A_LINE)
    return "\n".join("   ".join(words[part.start : part.stop]) for part in split_evenly(len(words), lines))
