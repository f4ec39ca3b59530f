"""What members are worth together, for the eye and for fits: words, a figure, and a table of losses by their number."""

from __future__ import annotations

import csv
import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from megatron.likelihood.report import heading, line_of, number, signed
from megatron.scaling.show.figures.style import explain, frame, new_figure, style_of
from megatron.standard_errors import half_width

COLUMNS = ("run", "objective", "step", "params", "tokens", "flops", "loss", "loss_se", "members")


def describe(found: dict) -> str:
    """The members, a line for each number of them, and the law."""
    names = ", ".join(one["run"] for one in found["members"])
    lines = [f"{len(found['members'])} members: {names}", heading(found)]
    for one in found["distributions"]:
        lines.append(f"mean over {one['of']}: {one['what']}; {one['value']}")
        lines.append(f"{'K':>3} {'subsets':>7} {'nats/token':>10} {'+-':>7} {'of rows':>8} {'members':>8}  minus one member")
        for point in one["curve"]:
            gain = signed(point["minus_one_member"]) if "minus_one_member" in point else ""
            errors = f"{number(point['se_rows']):>8} {number(point['se_members']):>8}"
            value = f"{point['nats_per_token']:10.4f} {number(point['se']):>7}"
            lines.append(f"{point['members']:3} {point['subsets']:7} {value} {errors}  {gain}")
        if one["law"]:
            lines.append(law_line(one["law"]))
    if "of_all" in found:
        lines += ["all members as one network:", *map(line_of, found["of_all"]["scores"])]
    return "\n".join(lines)


def law_line(law: dict) -> str:
    parts = [
        f"L(K) = L_inf + a / K: L_inf {said(law['L_inf'])}, a {said(law['a'])}, largest residual {law['largest_residual']:.5f}"
    ]
    if "exponent_if_free" in law:
        parts.append(f"a free exponent of K is {said(law['exponent_if_free'], '.2f')}")
    return "; ".join(parts)


def said(one: dict, form: str = ".4f") -> str:
    limits = one["interval"]
    return format(one["value"], form) + (f" [{limits[0]:{form}}, {limits[1]:{form}}]" if limits else "")


def as_table(found: dict) -> str:
    """The first distribution's losses as CSV: N, D and C are of the first member."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    one = found["members"][0]
    for point in found["distributions"][0]["curve"]:
        writer.writerow(
            {
                "run": f"{point['members']}-members",
                "objective": found["objective"],
                "step": one["step"],
                "params": one["params"],
                "tokens": one["training_tokens"],
                "flops": 6 * one["params"] * one["training_tokens"],
                "loss": point["nats_per_token"],
                "loss_se": point["se"],
                "members": point["members"],
            }
        )
    return text.getvalue()


def draw(found: dict) -> Figure:
    """The curve with its law over the number of members, and what it is below one member; bars are 95 %."""
    figure, (left, right) = new_figure(2)
    frame(left, "Loss by the number of members", "members K", "nats/token")
    frame(right, "Minus one member, paired by row", "members K", "nats/token")
    handles, style = [], style_of(found["objective"]) | {"linestyle": "none"}
    for depth, one in enumerate(found["distributions"]):
        looks = style | ({} if depth == 0 else {"marker": "D", "alpha": 0.6})
        bars(left, one["curve"], one["curve"], looks, 0.08 * depth)
        more = [point for point in one["curve"] if "minus_one_member" in point]
        bars(right, more, [point["minus_one_member"] for point in more], looks, 0.08 * depth)
        handles.append(Line2D([], [], label=f"mean over {one['of']} ({one['value']})", **looks))
    law, count = found["distributions"][0]["law"], len(found["members"])
    if law:
        sizes = np.linspace(1, count, 200)
        left.plot(sizes, law["L_inf"]["value"] + law["a"]["value"] / sizes, color=style["color"], linewidth=1.2)
        left.axhline(law["L_inf"]["value"], color=style["color"], linewidth=1, linestyle=":")
        if limits := law["L_inf"]["interval"]:
            left.axhspan(*limits, color=style["color"], alpha=0.1, linewidth=0)
        handles.append(Line2D([], [], color=style["color"], linewidth=1.2, label="L_inf + a / K"))
        handles.append(Line2D([], [], color=style["color"], linestyle=":", label="L_inf, 95 %"))
    for axes in (left, right):
        axes.set_xticks(range(1, count + 1))
        axes.set_xlim(0.6, count + 0.6)
    of_members = " and members; of all members rows and noise alone" if count > 2 else ""
    explain(figure, handles, f"{heading(found)}; bars: 95 %, of rows{',' if of_members else ' and'} noise{of_members}")
    return figure


def bars(axes: Axes, points: list[dict], values: list[dict], looks: dict, aside: float) -> None:
    x = [point["members"] + aside for point in points]
    wide = [0.0 if value["se"] is None else half_width(value["se"], value["se_df"]) for value in values]
    axes.errorbar(x, [value["nats_per_token"] for value in values], wide, capsize=4, **looks)
