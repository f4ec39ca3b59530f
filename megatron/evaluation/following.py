"""Whether a model follows instructions: the loss on held-out responses, and its own answers beside them.

The pairs are those that the run validates on, or of another corpus of prompts and responses; a prompt that stands there several
times is asked once, and each of its responses is a reference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megatron.data.instruct import Instruct
from megatron.errors import Mismatch
from megatron.evaluation.overlap import Measure, exact_match, rouge_l, token_f1
from megatron.flags import ConfigError
from megatron.sampling.draws import How
from megatron.sampling.generate import Sample, Source, Template, generate
from megatron.sampling.table import SAMPLERS, default_of, sampler_for
from megatron.standard_errors import combined
from megatron.tasks.measure import spread
from megatron.training.evaluate import Slice, evaluate
from megatron.training.trained import Trained

SUREST = ("autoregressive", "confidence")  # at temperature 0 the likeliest token; the surest place first
HEADING = re.compile(r"^### (Instruction|Input|Response):", re.MULTILINE)
MEASURES = ("rouge_l", "token_f1", "exact_match", "format")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked once."""

    text: str
    ids: list[int]
    references: list[str]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How answers are drawn and judged."""

    sampler: str | None = None  # where it serves the objective; else the likeliest token at the surest place
    temperature: float = 0.0
    steps: int | None = None
    block_length: int | None = None
    max_new_tokens: int | None = None
    shape: re.Pattern | None = None  # what a whole answer must match
    seed: int = 0
    batch_size: int = 32


def on_pairs(trained: Trained, prefix: str | None) -> Trained:
    """The run, scored on the pairs of another corpus; as it is without one. Raises Mismatch where it validates on no pairs."""
    if prefix is None:
        if trained.cfg.data.data_kind != "instruct":
            raise Mismatch(
                f"{trained.checkpoint.path} was trained on --data-kind {trained.cfg.data.data_kind}: give --data PREFIX, "
                "pairs that tools/prepare_instruct.py made with the run's tokenizer"
            )
        return trained
    others = [name for name in vars(trained.cfg.data) if name.endswith(("data_path", "data_path_file"))]
    nothing: dict[str, Any] = dict.fromkeys([*others, "unique_tokens"])
    data = replace(trained.cfg.data, **nothing | {"data_kind": "instruct", "valid_data_path": [prefix]})
    return replace(trained, cfg=replace(trained.cfg, data=data))


def follow(trained: Trained, asking: Asking, pairs: int | None) -> tuple[list[Prompt], dict]:
    """The prompts, and what a run says of them: loss on the responses, its answers, and their measures with errors.

    `pairs`: so many of the validation's own order. Raises ConfigError, BadData, Mismatch.
    """
    data = trained.slice("valid", pairs, flag="--pairs")
    prompts = prompts_of(trained, data)
    source = Source.of(trained.cfg, trained.tokenizer)
    sampler, how = sampler_of(source.objective, asking)
    templates = [Template(ids=[*one.ids, *[None] * room(source, one, asking)]) for one in prompts]
    rouge = rouge_l()
    made = generate(trained.engine, source, templates, sampler, how, seed=asking.seed, batch_size=asking.batch_size)
    judged = [judge(one, sample, rouge, asking.shape) for one, sample in zip(prompts, made.samples)]
    settings = {name: getattr(how, name) for name in ("temperature", *SAMPLERS[sampler].reads)}
    return prompts, {
        "objective": source.objective,
        "checkpoint": str(trained.checkpoint.path),
        "step": trained.checkpoint.step,
        "pairs": data.rows,
        **loss_of(trained, data),
        "sampler": {"name": sampler} | {name: value for name, value in settings.items() if value is not None},
        "new_tokens": mean_of([float(sample.new_tokens) for sample in made.samples]),
        "passes": made.passes / len(made.samples),
        "seconds": made.seconds,
        **{name: mean_of([float(one[name]) for one in judged]) for name in judged[0] if name != "answer"},
        "answers": judged,
    }


def prompts_of(trained: Trained, data: Slice) -> list[Prompt]:
    """Of the pairs that validation scores, in its order."""
    pairs = data.dataset
    assert isinstance(pairs, Instruct)  # on_pairs
    found: dict[tuple[int, ...], list[str]] = {}
    for document in pairs.documents(np.arange(data.rows)).tolist():
        prompt, response = pairs.corpus.sequences(document)
        ends = np.flatnonzero(response == pairs.end)
        reference = trained.tokenizer.decode(response[: ends[0] if len(ends) else None].tolist())
        found.setdefault(tuple(prompt.tolist()), []).append(reference)
    decode = trained.tokenizer.decode
    return [Prompt(text=decode(list(ids)), ids=list(ids), references=refs) for ids, refs in found.items()]


def room(source: Source, prompt: Prompt, asking: Asking) -> int:
    """Places of an answer: the rest of the row, as in training, or fewer."""
    rest = source.window - len(prompt.ids)
    return min(rest, asking.max_new_tokens or rest)


def sampler_of(objective: str, asking: Asking) -> tuple[str, How]:
    """What of the settings the objective's sampler reads; the others are for runs of another objective."""
    wanted = [asking.sampler] if asking.sampler else SUREST
    name = next((one for one in wanted if objective in SAMPLERS[one].serves), default_of(objective))
    reads = sampler_for(name, objective).reads
    settings: dict[str, Any] = {one: getattr(asking, one) for one in ("steps", "block_length") if one in reads}
    return name, How(temperature=asking.temperature, **settings)


def refuse_idle(asking: Asking, objectives: Sequence[str]) -> None:
    """Raises ConfigError for a setting that no run's sampler reads."""
    used = [sampler_of(objective, asking)[0] for objective in objectives]
    mistakes = []
    if asking.sampler and asking.sampler not in used:
        mistakes.append(f"--sampler {asking.sampler} serves none of {', '.join(sorted(set(objectives)))}: leave it out")
    for name in ("steps", "block_length"):
        value = getattr(asking, name)
        if value is not None and not any(name in SAMPLERS[one].reads for one in used):
            mistakes.append(f"--{name.replace('_', '-')} {value} is read by none of {', '.join(sorted(set(used)))}: leave it out")
    if mistakes:
        raise ConfigError(mistakes)


def judge(prompt: Prompt, sample: Sample, rouge: Measure, shape: re.Pattern | None) -> dict[str, Any]:
    """One answer. `format`: it ends by itself, says something, begins no other turn and, where asked, is of that shape."""
    answer = sample.text
    parts = {"ended": sample.ended_by == "end", "says_something": bool(answer.strip()), "one_turn": not HEADING.search(answer)}
    if shape:
        parts["shaped"] = bool(shape.fullmatch(answer))
    return {
        "answer": answer,
        "rouge_l": rouge(answer, prompt.references),
        "token_f1": token_f1(answer, prompt.references),
        "exact_match": exact_match(answer, prompt.references),
        "format": all(parts.values()),
        **parts,
    }


def loss_of(trained: Trained, data: Slice) -> dict:
    """Of the responses given their prompts, with the error that rows and noise leave together."""
    found = evaluate(trained.engine, trained.reference, data)
    noise, rows = (found["loss_se_noise"], found["loss_se_noise_df"]), (found["loss_se_data"], data.rows - 1.0)
    error, df = combined(noise, rows)
    bits = found.get("bits_per_byte")  # none where there is no likelihood
    per = bits / found["loss"] if bits is not None and found["loss"] else math.nan
    return {
        "loss": {"mean": found["loss"], "se": error, "se_df": df},
        "bits_per_byte": {"mean": bits, "se": None if error is None or bits is None else error * per, "se_df": df},
        "bound": found["bound"],
        "convention": found["convention"],
    }


def mean_of(values: Sequence[float]) -> dict[str, float | None]:
    """Over prompts, with the standard error from their choice."""
    return {"mean": float(np.mean(values)), "se": spread(np.asarray(values)), "se_df": len(values) - 1.0}


def differences(runs: Sequence[dict]) -> None:
    """Add to each run its measures minus the first run's, paired by prompt."""
    for run in runs[1:]:
        pairs = list(zip(run["answers"], runs[0]["answers"]))
        run["minus_first"] = {name: mean_of([float(a[name]) - float(b[name]) for a, b in pairs]) for name in MEASURES}
