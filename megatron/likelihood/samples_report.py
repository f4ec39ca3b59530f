"""Quality against cost for the eye: a table in words, and a figure."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron.scaling.show.figures.style import INK, explain, frame, log_ticks, new_figure
from megatron.standard_errors import half_width

COLUMNS = (  # key, head, format
    ("passes_per_sample", "passes", "8.1f"),
    ("places_per_token", "places/tok", "10.1f"),
    ("tokens_per_second", "tok/s", "7.0f"),
    ("entropy", "entropy", "7.3f"),
    ("distinct_3", "distinct-3", "10.3f"),
    ("self_bleu", "self-BLEU", "9.3f"),
    ("repeats", "repeats", "7.3f"),
    ("judge_nll", "judge NLL", "9.3f"),
)
PANELS = (
    ("judge_nll", "NLL under the judge", "nats/token"),
    ("entropy", "Entropy of a sample's ids", "nats"),
    ("self_bleu", "Likeness to each other", "self-BLEU"),
)
LOOKS = ("#0b2f55", "#d97a1f", "#2f8f6b", "#9b3d8f", "#8a6d1d", "#5b7fbf", "#c23b3b", "#4d4d4d")
MARKERS = "osv^DP*X"


def describe(found: dict) -> str:
    """A line for real text and for each sampler."""
    wide = max(len(entry["sampler"]) for entry in found["samplers"])
    judge = f", judged by {found['judge']}" if found["judge"] else ""
    lines = [
        f"{found['objective']} at step {found['step']}: {found['num_samples']} continuations of {found['prompt_tokens']} tokens "
        f"of {found['set']} by {found['new_tokens']}, seed {found['seed']}{judge}",
        " ".join(
            [f"{'sampler':{wide}}", *(f"{head:>{int(form.split('.')[0])}}" for _, head, form in COLUMNS), "own NLL of real text"]
        ),
    ]
    for entry in found["samplers"]:
        cells = [
            f"{entry[key]:{form}}" if entry.get(key) is not None else " " * (int(form.split(".")[0]) - 1) + "-"
            for key, _, form in COLUMNS
        ]
        lines.append(" ".join([f"{entry['sampler']:{wide}}", *cells, own(entry.get("likelihood"))]))
    return "\n".join(lines)


def own(likelihood: dict | None) -> str:
    if likelihood is None:
        return "-"
    error = "" if likelihood["se"] is None else f" +- {likelihood['se']:.3f}"
    return f"{likelihood['nats_per_token']:.3f}{error} ({likelihood['value']}, {likelihood['score']})"


def draw(found: dict) -> Figure:
    """Each measure against the places that the model read for a new token, a line for each sampler over its steps."""
    panels = [panel for panel in PANELS if panel[0] in found["samplers"][0]]
    figure, axes = new_figure(len(panels))
    real, lines = found["samplers"][0], by_sampler(found["samplers"][1:])
    handles = []
    for one, (key, title, unit) in zip(axes, panels):
        frame(one, title, "places read for a new token", unit)
        one.axhline(real[key], color=INK, linewidth=1.2, linestyle=":")
        handles = [
            curve(one, number, name, entries, key, found["num_samples"] - 1)
            for number, (name, entries) in enumerate(lines.items())
        ]
        one.set_xscale("log")
        log_ticks(one.xaxis)
    judge = f", judged by {found['judge']}" if found["judge"] else ""
    explain(
        figure,
        handles,
        f"{found['objective']} at step {found['step']}: {found['num_samples']} continuations of {found['prompt_tokens']} tokens "
        f"by {found['new_tokens']}{judge}; bars: 95 %.\nDotted: the same of real text. Nearer to it is better: text "
        "that repeats itself is likely, and poor",
        4,
    )
    figure.subplots_adjust(bottom=0.27)
    return figure


def by_sampler(entries: list[dict]) -> dict[str, list[dict]]:
    """Entries that differ in their steps alone, together."""
    found: dict[str, list[dict]] = {}
    for entry in entries:
        name = ":".join(word for word in entry["sampler"].split(":") if not word.startswith("steps="))
        found.setdefault(name, []).append(entry)
    return found


def curve(axes: Axes, number: int, name: str, entries: list[dict], key: str, df: int):
    entries = sorted(entries, key=lambda entry: entry["places_per_token"])
    x, y = [entry["places_per_token"] for entry in entries], [entry[key] for entry in entries]
    color, marker = LOOKS[number % len(LOOKS)], MARKERS[(number + number // len(LOOKS)) % len(MARKERS)]
    errors = [half_width(entry[f"{key}_se"], df) for entry in entries]
    return axes.errorbar(x, y, errors, capsize=3, linewidth=1.4, markersize=7, label=name, color=color, marker=marker)
