"""Runs of different architectures side by side: what their losses are, what they write, and how fast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron.catalogue import OBJECTIVES
from megatron.errors import Mismatch
from megatron.flags import ConfigError
from megatron.likelihood.samples import Asked, compare_samplers
from megatron.likelihood.samples_report import LOOKS, MARKERS
from megatron.rundir import records
from megatron.rundir.names import METRICS
from megatron.sampling.draws import How
from megatron.sampling.table import SAMPLERS, default_of
from megatron.scaling.show.figures.style import INK, explain, frame, log_ticks, new_figure
from megatron.standard_errors import half_width
from megatron.training.evaluate import evaluate
from megatron.training.trained import Trained

KINDS = {"exact": "exact NLL", "bound": "upper bound", "denoising": "denoising, no NLL"}
COLUMNS = (  # key, head, format
    ("loss", "loss", "7.4f"),
    ("accuracy", "accuracy", "8.3f"),
    ("judge_nll", "judge NLL", "9.3f"),
    ("self_bleu", "self-BLEU", "9.3f"),
    ("distinct_3", "distinct-3", "10.3f"),
    ("passes_per_sample", "passes", "6.1f"),
    ("tokens_per_second", "tokens/s", "8.0f"),
)


def side_by_side(
    runs: Sequence[Trained],
    judge: Trained | None = None,
    which: str = "valid",
    num_samples: int | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> dict:
    """Each run's own loss and what it writes behind the first token of the same validation rows, by its default sampler.

    `steps`: of samplers that read them [their own]. Raises Mismatch for runs of other tokens or rows, ConfigError.
    """
    first = runs[0]
    if steps and not any("steps" in SAMPLERS[default_of(run.cfg.objective.objective)].reads for run in runs):
        raise ConfigError([f"--steps {steps}: no sampler of these runs reads steps; leave it out"])
    for run in runs[1:]:
        for what, of in (("tokenizer", lambda t: t.tokenizer.fingerprint()), ("rows", lambda t: t.slice(which).fingerprint())):
            if of(run) != of(first):
                raise Mismatch(
                    f"{run.checkpoint.path} and {first.checkpoint.path} differ in their {what}: compare runs that do not"
                )
    found, real = [], {}
    for run in runs:
        known = run.cfg.objective.objective
        sampler = default_of(known)
        how = How(steps=steps if "steps" in SAMPLERS[sampler].reads else None)
        scores = evaluate(run.engine, run.reference, run.slice(which))
        made = compare_samplers(run, [Asked(text=sampler, sampler=sampler, how=how)], judge, which, num_samples, seed=seed)
        (real, written), num_samples = made["samplers"], made["num_samples"]
        found.append(
            {
                "run": run.checkpoint.path.parent.name,
                "objective": known,
                "label": OBJECTIVES[known].label,
                "params": run.cfg.model.shape().total(),
                "step": run.checkpoint.step,
                **perplexity(scores),
                **{name: scores.get(name) for name in ("loss", "bound", "loss_se_noise", "loss_se_data", "accuracy")},
                **written,
            }
        )
    said = None if judge is None else str(judge.checkpoint.path)
    return {"set": which, "num_samples": num_samples, "seed": seed, "judge": said, "real": real, "runs": found}


def perplexity(scores: dict) -> dict[str, float | None]:
    """exp(loss) where that is one, or bounds one; an objective without a likelihood has neither."""
    value = math.exp(min(700.0, scores["loss"])) if scores["bound"] in ("exact", "bound") else None
    return {
        "perplexity": value if scores["bound"] == "exact" else None,
        "perplexity_upper_bound": value if scores["bound"] == "bound" else None,
    }


def describe(found: dict) -> str:
    """A line for real text and for each run; losses of different kinds are no more comparable here than elsewhere."""
    wide = max(len(one["run"]) for one in (*found["runs"], {"run": "real text"}))
    heads = [f"{head:>{width(form)}}" for _, head, form in COLUMNS]
    lines = [
        f"{found['num_samples']} continuations of a token of {found['set']}, seed {found['seed']}"
        + (f", judged by {found['judge']}" if found["judge"] else ""),
        " ".join([f"{'run':{wide}}", *heads[:1], f"{'perplexity':>15}", *heads[1:], "what the loss is"]),
    ]
    for one in (*found["runs"], {"run": "real text", **found["real"]}):
        cells = [f"{one[key]:{form}}" if one.get(key) is not None else f"{'-':>{width(form)}}" for key, _, form in COLUMNS]
        kind = KINDS.get(one.get("bound", ""), "")
        lines.append(" ".join([f"{one['run']:{wide}}", *cells[:1], f"{spelled(one):>15}", *cells[1:], kind]).rstrip())
    return "\n".join(lines)


def width(form: str) -> int:
    return int(form.split(".")[0])


def spelled(one: dict) -> str:
    if one.get("perplexity") is not None:
        return f"{one['perplexity']:.3f}"
    bound = one.get("perplexity_upper_bound")
    return "-" if bound is None else f"at most {bound:.3f}"


def draw(found: dict, folders: Sequence[Path]) -> Figure:
    """Training losses, each by its own name, and what the samples are worth against the speed that they are written at."""
    figure, (left, right) = new_figure(2)
    looks: list[dict[str, Any]] = [
        {"color": LOOKS[i % len(LOOKS)], "marker": MARKERS[i % len(MARKERS)]} for i in range(len(found["runs"]))
    ]
    frame(left, "Training loss; its kind is that of validation", "tokens trained on", "nats/token")
    handles = [curve(left, one, look, folder) for one, look, folder in zip(found["runs"], looks, folders)]
    key, title, unit = (
        ("judge_nll", "NLL of samples under a judge", "nats/token") if found["judge"] else ("self_bleu", "Likeness", "self-BLEU")
    )
    frame(right, title, "tokens written a second", unit)
    right.axhline(found["real"][key], color=INK, linewidth=1.2, linestyle=":")
    for one, look in zip(found["runs"], looks):
        right.errorbar(
            one["tokens_per_second"],
            one[key],
            half_width(one[f"{key}_se"], found["num_samples"] - 1),
            capsize=4,
            **look,
            markersize=10,
        )
    right.set_xscale("log")
    log_ticks(right.xaxis)
    explain(
        figure,
        [handle for handle in handles if handle],
        f"{found['num_samples']} continuations of a token of {found['set']}; bars: 95 %. Dotted: real text. Nearer "
        "to it is better: text that repeats itself is likely, and poor",
        3,
    )
    return figure


def curve(axes: Axes, one: dict, look: dict, folder: Path):
    """A run's training loss, as its record has it."""
    rows = [record for _, record in records.read(folder / METRICS) if record["kind"] == "train"]
    (line,) = axes.plot(
        [row["tokens"] for row in rows],
        [row["loss"] for row in rows],
        label=f"{one['run']}: {KINDS[one['bound']]}",
        markevery=[-1],
        **look,
    )
    return line
