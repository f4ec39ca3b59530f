"""An audit as a figure: what all rows sum to, and the weights of the closed form against those of the bound."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from megatron.proof.audit import Audit
from megatron.scaling.show.figures.style import INK, explain, frame, new_figure, style_of, write_in

RIGHT, WRONG = "#0b2f55", "#c0392b"


def draw_audit(found: Audit) -> Figure:
    """Left, the sum of exp(-loss) by kind of rows and model; right, the cumulative weights by the number of hidden tokens."""
    figure, (sums, weights) = new_figure(2, width=15, height=7)
    of = f"\n{found.unscored}" if found.unscored else ""
    frame(sums, f"{found.subject}: {found.verdict}{of}", "sum of exp(-loss) over all rows", "")
    places = range(len(found.sums))
    sums.axvspan(1, 1e6, color=WRONG, alpha=0.07)
    sums.axvline(1, color=INK, linewidth=1.2)
    for place, one in zip(places, reversed(found.sums)):
        colour = RIGHT if one.passed else WRONG
        sums.plot(one.total, place, marker="o" if one.passed else "X", color=colour, markersize=9)
        sums.annotate(f"{one.total:.4g}", (one.total, place), (-11, -4), textcoords="offset points", ha="right", color=colour)
    sums.set_yticks(places, [f"{one.rows}, {one.source}" for one in reversed(found.sums)])
    sums.set_xscale("log")
    totals = [one.total for one in found.sums]
    sums.set_xlim(min(0.5, min(totals) / 4), max(2.0, max(totals) * 2))
    sums.set_ylim(-0.6, len(found.sums) - 0.3)
    figure.subplots_adjust(left=0.13, wspace=0.17)
    frame(weights, "Closed form", "hidden tokens k of a row", "weight of 1..k together")
    draw_weights(weights, found)
    explain(
        figure,
        [
            Line2D([], [], marker="o", linestyle="none", color=RIGHT, label="at most 1"),
            Line2D([], [], marker="X", linestyle="none", color=WRONG, label="more than 1: not a bound"),
        ],
        "copy, parity and markov answer with the exact posterior of their law, where a tight loss sums to 1; "
        "random answers anything",
    )
    return figure


def draw_weights(axes, found: Audit) -> None:
    if not found.closed_form:
        write_in(axes, "not of the form sum_k w_k n CE_k:\nthe places or the text decide what is hidden")
        return
    weights = found.closed_form.weights
    n, k = len(weights), range(len(weights) + 1)
    axes.fill_between(k, [j / n for j in k], 1.15, color=WRONG, alpha=0.07)
    axes.plot(k, [j / n for j in k], color=INK, linestyle="--", label="NELBO, k/n: the most that a bound may have")
    cumulative = [sum(weights[:j]) for j in k]
    axes.plot(k, cumulative, **style_of("mdm" if found.closed_form.trouble else "ar"), label="this loss")
    axes.set_xticks(list(k))
    axes.set_ylim(0, 1.15 * max(1.0, *cumulative))
    axes.legend(loc="upper left", frameon=False, fontsize=11)
