"""Likelihoods for the eye: a table in words, and a figure."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron.scaling.show.figures.style import explain, frame, new_figure, style_of
from megatron.standard_errors import half_width


def describe(found: dict) -> str:
    """The scores, each as what it is and of which distribution, their differences, and the sandwich."""
    said = found["convention"]
    lines = [
        f"{found['objective']} at step {found['step']}, {found['rows']} rows of {found['set']}: {found['tokens']} tokens "
        f"({said['scored_tokens']}), given {said['conditioned_on']}" + (" and what is before them" if found["last"] else ""),
        f"{'score':24} {'nats/token':>10} {'+-':>7} {'bits/byte':>9} {'forwards':>8} {'CPU s':>7}  what it is",
    ]
    for entry in found["scores"]:
        bits = f"{entry['bits_per_byte']:.4f}" if entry["bits_per_byte"] is not None else "-"
        lines.append(
            f"{entry['score']:24} {entry['nats_per_token']:10.4f} {number(entry['se']):>7} {bits:>9} "
            f"{entry['forwards_per_row']:8} {entry['cpu_seconds']:7.1f}  {entry['value']}, {entry['of']}"
        )
    first = found["scores"][0]["score"]
    for entry in found["scores"][1:]:
        lines.append(f"{entry['score']} minus {first}: {signed(entry[f'minus_{first}'])}")
    lines += [
        f"{entry['score']} takes {signed(entry['minus_mean_of_its_orders'])} off the mean of its orders"
        for entry in found["scores"]
        if "minus_mean_of_its_orders" in entry
    ]
    if found["predicted_gap_to_mixture"] is not None:
        lines.append(
            f"half the variance over {found['num_orders']} orders predicts that the mixture is "
            f"{found['predicted_gap_to_mixture']:.4f} below the NELBO"
        )
    lines += [
        f"OUT OF ORDER: {pair['above']} minus {pair['below']} is {signed(pair)}, expected {pair['expected']}"
        for pair in found["sandwich"]
        if not pair["in_order"]
    ]
    return "\n".join(lines)


def number(error: float | None) -> str:
    return "-" if error is None else f"{error:.4f}"


def signed(difference: dict) -> str:
    return f"{difference['nats_per_token']:+.4f} +- {number(difference['se'])}"


def draw(found: dict) -> Figure:
    """The scores, and their paired differences from the first; bars are 95 % intervals. Samplers' are open markers."""
    figure, (left, right) = new_figure(2)
    scores = found["scores"]
    first, names = scores[0]["score"], [entry["score"] for entry in scores]
    frame(left, "Negative log-likelihood", "nats/token", "")
    frame(right, f"Minus {first}, on the same rows", "nats/token", "")
    for place, entry in enumerate(scores):
        point(left, place, entry, entry)
        if place:
            point(right, place, entry, entry[f"minus_{first}"])
    right.axvline(0.0, color="#999999", linewidth=1)
    if found["predicted_gap_to_mixture"] is not None and first in ("nelbo", "chain"):
        right.axvline(-found["predicted_gap_to_mixture"], color="#999999", linewidth=1, linestyle=":")
    for axes in (left, right):
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
    figure.subplots_adjust(left=0.14, wspace=0.35)
    explain(
        figure,
        [],
        f"{found['objective']} at step {found['step']}, {found['rows']} rows, {found['tokens']} tokens; bars: 95 %. Filled: the "
        "mixture over orders, exact or bounded; open: a sampler, exactly.\nDotted: where half the variance over orders "
        "predicts the mixture",
    )
    return figure


def point(axes: Axes, place: int, entry: dict, at: dict) -> None:
    sampler = entry["of"].startswith("sampler")
    style = style_of("mdm" if sampler else "ar") | {"linestyle": "none", "marker": "s" if sampler else "o"}
    width = half_width(at["se"], at["se_df"]) if at["se"] is not None else 0.0
    axes.errorbar([at["nats_per_token"]], [place], xerr=[width], capsize=4, **style)
