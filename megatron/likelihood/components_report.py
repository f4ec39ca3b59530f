"""Losses by category and by seen tokens for the eye: a table and a figure."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron.scaling.show.figures.style import INK, depth_of, explain, frame, log_ticks, new_figure, style_of
from megatron.standard_errors import half_width


def describe(table: dict) -> str:
    """A line a run and category, then what K categories cost."""
    wide = max(len(run["run"]) for run in table["runs"])
    lines = [f"{'run':{wide}}  K category             nats/token           perplexity  windows of {table['set']}"]
    for run in table["runs"]:
        control = ", shuffled" if run["shuffled"] else ""
        for name, one in run["categories"].items():
            exact = "perplexity" in one
            perplexity = f"{one['perplexity']:.3f}" if exact else f"at most {one['perplexity_upper_bound']:.3f}"
            lines.append(
                f"{run['run']:{wide}} {run['num_categories']:2} {name:16} {one['nats_per_token']:.4f} +- {number(one['se'])} "
                f"{run['bound']:5} {perplexity:>16}  {one['windows']}{control}"
            )
    for one in table["delta"]:
        control = " shuffled" if one["shuffled"] else ""
        value = f"{one['nats_per_token']:+.4f} +- {one['half_width']:.4f}"
        lines.append(
            f"delta XE({one['num_categories']}) {one['objective']}{control}: {value} "
            f"(95 %, from {one['runs']} run{'s' * (one['runs'] > 1)}: the scatter of {one['error_from']})"
        )
    if not table["delta"]:
        lines.append("no delta XE: give runs of single categories too (--num-categories 1)")
    return "\n".join(lines)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def draw(table: dict) -> Figure:
    """Loss by seen tokens, what K categories cost by seen tokens, and in all; bars are 95 %."""
    figure, (left, middle, right) = new_figure(3)
    frame(left, "Loss, by what has been seen", "seen tokens of the window", "nats/token")
    frame(middle, "Minus the run of one category", "seen tokens of the window", "nats/token")
    frame(right, "Delta XE(K)", "categories K", "nats/token")
    handles = profiles(left, table["runs"])
    for one in table["delta"]:
        if not one["shuffled"]:
            curve(middle, one["profile"], look(one, [d for d in table["delta"] if not d["shuffled"]]))
    groups = dict.fromkeys((one["objective"], one["shuffled"]) for one in table["delta"])
    for objective, shuffled in groups:
        some = [one for one in table["delta"] if (one["objective"], one["shuffled"]) == (objective, shuffled)]
        style = style_of(objective) | ({"linestyle": ":", "alpha": 0.6} if shuffled else {})
        label = f"{objective}, shuffled (control)" if shuffled else objective
        x, y = [one["num_categories"] for one in some], [one["nats_per_token"] for one in some]
        handles.append(right.errorbar(x, y, [one["half_width"] for one in some], capsize=4, label=label, **style))
    for axes in (middle, right):
        axes.axhline(0.0, color=INK, linewidth=1, linestyle="--")
    for axes in (left, middle):
        axes.set_xscale("log")
        log_ticks(axes.xaxis)
    right.set_xticks(sorted({one["num_categories"] for one in table["delta"]}))
    explain(
        figure,
        handles,
        f"Windows of {table['set']}. Seen: what stands left of a token (AR), or is visible (masked diffusion, a bound). First "
        "panel: means over runs and categories.\nBars: 95 %; delta by the scatter of runs where there are several",
        6,
    )
    figure.subplots_adjust(bottom=0.24)
    return figure


def profiles(axes: Axes, runs: list[dict]) -> list:
    """A line for each objective and K, a mean over its runs; controls are left out."""
    shown, handles = [run for run in runs if not run["shuffled"]], []
    for key in dict.fromkeys((run["objective"], run["num_categories"]) for run in shown):
        some = [run for run in shown if (run["objective"], run["num_categories"]) == key]
        mean = [mean_at([run["profile"][place] for run in some]) for place in range(len(some[0]["profile"]))]
        label = f"Hugging Face, {key[1]} categories" if key[0] == "hf" else f"{key[0]}, K = {key[1]}"
        handles.append(curve(axes, mean, look(some[0], shown), label))
    return handles


def mean_at(some: list[dict]) -> dict:
    """Of several runs at one number of seen tokens, with the interval that their windows leave."""
    se = math.sqrt(math.fsum((at["se"] or 0.0) ** 2 for at in some)) / len(some)
    value = math.fsum(at["nats_per_token"] for at in some) / len(some)
    return {"seen": some[0]["seen"], "nats_per_token": value, "half_width": half_width(se, None)}


def look(one: dict, beside: list[dict]) -> dict:
    """The objective's, the deeper the more categories."""
    numbers = sorted({other["num_categories"] for other in beside if other["objective"] == one["objective"]})
    return style_of(one["objective"], depth_of(numbers.index(one["num_categories"]), len(numbers)))


def curve(axes: Axes, profile: list[dict], style: dict, label: str | None = None):
    x = [(at["seen"][0] * at["seen"][1]) ** 0.5 for at in profile]
    y, width = [at["nats_per_token"] for at in profile], [at["half_width"] for at in profile]
    return axes.errorbar(x, y, width, capsize=3, label=label, **{**style, "markersize": 5})
