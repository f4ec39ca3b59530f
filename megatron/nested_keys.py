"""Nested keys of MDLM's and ATAT's YAML files, as flags. Standard library only.

A key that says what is done anyway, or that acts elsewhere, is left out, and a sentence says so; one that asks for something
else than what is here is a mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

OURS = ("data",)  # sections that Config has too
SECTIONS = ("noise", "sampling", "loader", "training", "data")
# Of a key: what it is called here.
RENAMED = {
    "loader.batch_size": "micro-batch-size",
    "loader.global_batch_size": "global-batch-size",
    "training.max_steps": "train-iters",
    "training.val_check_interval": "eval-interval",
    "noise.eps": "mdm-eps",
}
SCHEDULES = {
    "loglinear": "log-linear",
    "linear": "linear-sigma",
    "cosine": "cosine",
    "cosine2": "cosine-squared",
    "geometric": "geometric",
}
# What there is no other of.
ONLY = {
    "diffusion": ("absorbing_state", "tokens are hidden behind a mask, which is what --objective mdm does"),
    "parameterization": ("subs", "what is visible is kept and the mask is never predicted, which is always so"),
}
# What acts elsewhere, or nowhere.
ELSEWHERE = {
    "sampling.predictor": "training draws no samples; `tools/generate.py --sampler ancestral` is ddpm_cache",
    "sampling.steps": "training draws no samples; `tools/generate.py --steps {value}` spends as many",
    "loader.num_workers": "batches are read from the memory map; no worker is needed",
    "loader.eval_batch_size": "validation reads as many rows at once as fit a pass",
    "importance_loss_weight": "the estimator learns apart, by an Adam that a factor of its loss does not move",
    "data.train": "it names a corpus, and training reads files: --train-data-path PREFIX (tools/prepare_corpus.py makes them)",
    "data.valid": "it names a corpus, and validation reads files: --valid-data-path PREFIX",
}


def as_flags(tree: dict[Any, Any], where: str, mistakes: list[str], said: list[str]) -> dict[Any, Any]:
    """The tree with these keys spelled as flags; all else is left as it is. Appends to `mistakes` and `said`."""
    found = {key: value for key, value in tree.items() if key not in SECTIONS or not isinstance(value, dict)}
    kind = dict(leaves(tree)).get("noise.type")
    for key, value in leaves(tree):
        name = key.partition(".")[2]
        if key in RENAMED:
            found[RENAMED[key]] = value
        elif key == "noise.type":
            if str(value) not in SCHEDULES:
                mistakes.append(f"{where}noise.type {value} must be one of {', '.join(SCHEDULES)}")
            found["noise-schedule"] = SCHEDULES.get(str(value), "linear")
        elif key in ("noise.sigma_min", "noise.sigma_max"):
            if kind == "geometric" or (kind == "linear" and name == "sigma_max"):
                found[f"noise-{name.replace('_', '-')}"] = value
            else:
                said.append(f"{where}{key} {value} does not act: the schedule {kind} has no {name}")
        elif key in ONLY:
            found.pop(key)
            only, why = ONLY[key]
            if value != only:
                mistakes.append(f"{where}{key} {value} cannot be: {only} is all that there is")
            else:
                said.append(f"{where}{key} {value} needs no flag: {why}")
        elif key in ELSEWHERE:
            found.pop(key, None)
            said.append(f"{where}{key} {value} does not act: {ELSEWHERE[key].format(value=value)}")
        elif key.partition(".")[0] in OURS:
            found.setdefault(key.partition(".")[0], {})[name] = value
        elif "." in key:
            mistakes.append(f"{where}{key}: no such key is known; leave it out, or give the flag that does it")
    return found


def leaves(tree: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys of what stands in SECTIONS, and the plain ones of the rest; null is not given."""
    for key, value in tree.items():
        if key in SECTIONS and isinstance(value, dict):
            yield from ((f"{key}.{name}", one) for name, one in value.items() if one is not None)
        elif value is not None:
            yield str(key), value
