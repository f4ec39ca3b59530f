"""Likelihoods for the eye: tables in words, and figures."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from megatron.scaling.show.figures.style import STYLES, explain, frame, new_figure
from megatron.standard_errors import half_width

MARKERS = {"upper bound": "v", "exact": "o", "lower bound": "^"}  # they point at what they bound
SANDWICH, SAMPLER = STYLES["ar"][0], STYLES["mdm"][0]


def describe(found: dict) -> str:
    """The scores, each as what it is and of which distribution, their differences, and the sandwich."""
    first = found["scores"][0]["score"]
    lines = [
        heading(found),
        f"{'score':24} {'nats/token':>10} {'+-':>7} {'bits/byte':>9} {'forwards':>8} {'CPU s':>7}  what it is",
        *(line_of(entry) for entry in found["scores"]),
        *(f"{entry['score']} minus {first}: {signed(entry[f'minus_{first}'])}" for entry in found["scores"][1:]),
    ]
    for entry in found["scores"]:
        lines += remarks(entry)
        for name, groups in (entry.get("by") or {}).items():
            lines += by_lines(entry["score"], name, groups)
        if entry.get("by", {}) is None:
            lines.append(f"{entry['score']} is no sum over places: it is not split")
    lines += [
        f"OUT OF ORDER: {pair['above']} minus {pair['below']} is {signed(pair)}, expected {pair['expected']}"
        for pair in found["sandwich"]
        if not pair["in_order"]
    ]
    return "\n".join(lines)


def heading(found: dict) -> str:
    said = found["convention"]
    given = f"given {said['conditioned_on']}" + (" and what is before them" if found["last"] else "")
    return (
        f"{found['objective']} at step {found['step']}{mean_of(found)}, {found['rows']} rows of {found['set']}: "
        f"{found['tokens']} tokens "
        f"({said['scored_tokens']}), {given}"
    )


def mean_of(found: dict) -> str:
    """Of which steps the weights are the mean, where tools/average_checkpoints.py made them."""
    steps = found.get("averaged", {}).get("steps")
    return f" (the mean of {', '.join(map(str, steps))})" if steps else ""


def line_of(entry: dict) -> str:
    numbers = f"{entry['nats_per_token']:10.4f} {number(entry['se']):>7} {number(entry['bits_per_byte']):>9}"
    costs = f"{entry['forwards_per_row']:8.5g} {entry['cpu_seconds']:7.1f}"
    return f"{entry['score']:24} {numbers} {costs}  {entry['value']}, {entry['of']}"


def remarks(entry: dict) -> list[str]:
    """What a pilot found, what several orders take off, and how far their scatter says that the mixture is."""
    lines = []
    if pilot := entry.get("pilot"):
        costs = ", ".join(f"{name} {cost['sd_times_root_forwards']:.3g}" for name, cost in pilot["candidates"].items())
        lines.append(f"{entry['score']} draws by {pilot['chosen']}: sd x sqrt(forwards) on {pilot['rows']} rows is {costs}")
    if "minus_mean_of_its_orders" in entry:
        lines.append(f"{entry['score']} is {signed(entry['minus_mean_of_its_orders'])} from the mean of its orders")
    if entry.get("predicted_gap_to_mixture") is not None:
        lines.append(
            f"{entry['score']}: half the variance over {entry['num_orders']} orders predicts that the mixture is "
            f"{entry['predicted_gap_to_mixture']:.4f} below the NELBO"
        )
    return lines


def by_lines(score: str, name: str, groups: list[dict] | None) -> list[str]:
    if groups is None:
        return [f"{score} has no {name} of its own: it is not split by it"]
    return [f"{score} by {name}"] + [
        f"  {group['group']:22} {group['nats_per_token']:10.4f} {number(group['se']):>7}   {group['share']:6.1%} of the tokens"
        for group in groups
    ]


def number(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)


def signed(difference: dict) -> str:
    return f"{round(difference['nats_per_token'], 4) + 0.0:+.4f} +- {number(difference['se'])}"  # no -0.0000


def describe_pair(found: dict) -> str:
    """Two models on the same rows and draws."""
    lines = [
        f"A {found['a']['run']}: {heading(found['a'])}",
        f"B {found['b']['run']}: {heading(found['b'])}",
        f"{'score':24} {'A':>9} {'B':>9} {'B minus A':>10} {'+-':>7} {'bits/byte':>10} {'draws':>6}",
    ]
    for pair in found["scores"]:
        a, b, gap = pair["a"], pair["b"], pair["b_minus_a"]
        name = a["score"] if a["score"] == b["score"] else f"{a['score']} | {b['score']}"
        bits = number(gap["bits_per_byte"], "+.4f")
        lines.append(
            f"{name:24} {a['nats_per_token']:9.4f} {b['nats_per_token']:9.4f} {gap['nats_per_token']:+10.4f} "
            f"{number(gap['se']):>7} {bits:>10} {b['draws']:>6}"
        )
        if (a["value"], a["of"]) != (b["value"], b["of"]):
            lines.append(f"  A: {a['value']}, {a['of']}; B: {b['value']}, {b['of']}")
    return "\n".join(lines)


def draw(found: dict) -> Figure:
    """The scores, and their paired differences from the first; bars are 95 % intervals."""
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
    gap = next((e["predicted_gap_to_mixture"] for e in scores if e.get("predicted_gap_to_mixture") is not None), None)
    handles = [handle(value, sampler) for value, sampler in dict.fromkeys((e["value"], is_sampler(e)) for e in scores)]
    if gap is not None and first in ("nelbo", "chain"):
        right.axvline(-gap, color="#999999", linewidth=1.4, linestyle=":")
        handles.append(
            Line2D([], [], color="#999999", linewidth=1.4, linestyle=":", label="the mixture, predicted by the orders' variance")
        )
    for axes in (left, right):
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
    figure.subplots_adjust(left=0.14, wspace=0.35)
    explain(
        figure,
        handles,
        f"{found['objective']} at step {found['step']}{mean_of(found)}, {found['rows']} rows of {found['set']}, "
        f"{found['tokens']} tokens; "
        "bars: 95 %",
    )
    return figure


def is_sampler(entry: dict) -> bool:
    return entry["of"].startswith("sampler")


def style(value: str, sampler: bool) -> dict:
    colour = SAMPLER if sampler else SANDWICH
    return {"marker": "s" if sampler else MARKERS[value], "color": colour, "markerfacecolor": "white" if sampler else colour}


def handle(value: str, sampler: bool) -> Line2D:
    what = "exact, of a sampler: another distribution" if sampler else f"{value}, of the model's NLL"
    return Line2D([], [], linestyle="none", markersize=9, label=what, **style(value, sampler))


def point(axes: Axes, place: int, entry: dict, at: dict) -> None:
    width = half_width(at["se"], at["se_df"]) if at["se"] is not None else 0.0
    looks = style(entry["value"], is_sampler(entry))
    axes.errorbar([at["nats_per_token"]], [place], xerr=[width], capsize=4, linestyle="none", markersize=9, **looks)
