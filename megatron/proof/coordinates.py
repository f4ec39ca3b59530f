"""How far a few steps move activations, at several widths or depths: as far at all where hyperparameters carry over.

The coordinate check of Yang et al., arXiv:2203.03466, appendix D.1. Each size trains on the same samples from the flags' own
initial weights, at a constant rate, without decay, clip or dropout; then one batch is read with the weights of before and after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from megatron import config
from megatron.batch import Batch, Progress
from megatron.config import Model, declared
from megatron.engine.native import NativeEngine
from megatron.flags import ConfigError, find, split_words
from megatron.proof.trial import Record, Trial, set_up
from megatron.training.loop import Interval, one_step, pose

Axis = Literal["width", "depth"]
SITES = {"embedding": "what the first block reads", "hidden": "what follows the last block", "logits": "what the softmax is of"}
STEADY = """--lr-decay-style constant --lr-warmup-samples 0 --weight-decay 0 --clip-grad 0 --hidden-dropout 0
    --attention-dropout 0 --embedding-dropout 0 --ema 0 --compile off""".split()


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Of ln(mean |change|) against ln(size), by least squares over sizes and seeds."""

    value: float
    low: float  # 95 %, Student's t
    high: float
    limit: float

    @property
    def passed(self) -> bool:
        return abs(self.value) < self.limit


@dataclass(kw_only=True)
class Check:
    """One objective under one parametrization."""

    objective: str
    parametrization: str
    axis: Axis
    limit: float
    size: list[int] = field(default_factory=list)  # of each measurement
    seed: list[int] = field(default_factory=list)
    change: dict[str, list[float]] = field(default_factory=dict)  # by site

    def add(self, size: int, seed: int, change: dict[str, float]) -> None:
        self.size.append(size)
        self.seed.append(seed)
        for site, value in change.items():
            self.change.setdefault(site, []).append(value)

    def slopes(self) -> dict[str, Slope]:
        return {site: slope(self.size, values, self.limit) for site, values in self.change.items()}

    @property
    def passed(self) -> bool:
        return all(found.passed for found in self.slopes().values())

    def record(self) -> dict:
        slopes = {site: asdict(found) | {"passed": found.passed} for site, found in self.slopes().items()}
        return asdict(self) | {"slopes": slopes, "passed": self.passed}


def slope(sizes: Sequence[float], values: Sequence[float], limit: float) -> Slope:
    """sizes [n], of two kinds at least, values [n] above 0."""
    x, y = np.log(sizes), np.log(values)
    x = x - x.mean()
    value = float(x @ y / (x @ x))
    left = y - y.mean() - value * x
    freedom = len(y) - 2
    wide = math.inf
    if freedom > 0:
        wide = float(student.ppf(0.975, freedom) * np.sqrt(left @ left / freedom / (x @ x)))
    return Slope(value=value, low=value - wide, high=value + wide, limit=limit)


def sized(model: Model, axis: Axis, size: int) -> list[str]:
    """Flags of the model at another width, with heads as wide and a SwiGLU in proportion, or at another depth.

    Raises ConfigError.
    """
    if axis == "depth":
        return ["--num-layers", str(size)]
    if size % model.kv_channels or (model.ffn_hidden_size * size) % model.hidden_size:
        raise ConfigError(
            [
                f"--widths {size}: expected a multiple of the heads' width {model.kv_channels}, at which "
                f"--ffn-hidden-size {model.ffn_hidden_size} of {model.hidden_size} is whole too; give --num-attention-heads"
            ]
        )
    heads = size // model.kv_channels
    words = {"--hidden-size": size, "--num-attention-heads": heads, "--kv-channels": model.kv_channels}
    words["--ffn-hidden-size"] = model.ffn_hidden_size * size // model.hidden_size
    if model.num_query_groups:
        words["--num-query-groups"] = max(1, model.num_query_groups * heads // model.num_attention_heads)
    return [str(word) for pair in words.items() for word in pair]


def parametrized(words: Sequence[str], name: str, model: Model, axis: Axis, sizes: Sequence[int]) -> list[str]:
    """The words with this parametrization; the base model is the smallest of the sizes where they name none."""
    table = declared()
    own = {"parametrization", "mup_base_hidden_size", "mup_base_num_layers", "mup_base_kv_channels"}
    given = {find(spelled, table)[0]: (spelled, *values) for spelled, values in split_words(list(words), [])}
    kept = [word for found, said in given.items() if found not in own for word in said]
    if name == "standard":
        return [*kept, "--parametrization", name]
    smallest = str(min(sizes))
    base = {"mup_base_hidden_size": smallest if axis == "width" else str(model.hidden_size)}
    if name == "completep":
        base["mup_base_num_layers"] = smallest if axis == "depth" else str(model.num_layers)
    found = [word for field_ in base for word in given.get(field_, (f"--{field_.replace('_', '-')}", base[field_]))]
    return [*kept, "--parametrization", name, *found, *given.get("mup_base_kv_channels", ())]


def measure(argv: list[str], steps: int) -> dict[str, float]:
    """Site -> mean |change| of its activations over so many steps from the beginning."""
    trial = set_up(argv)
    batch = pose(trial.objective, trial.train, trial.cfg, Progress())[0]
    if trial.learner:
        batch = trial.learner.refine([batch])[0]
    before = activations(trial, batch)
    at, interval, record = Progress(), Interval(), Record()
    for _ in range(steps):
        at, interval = one_step(trial.cfg, trial.engine, trial.objective, trial.train, record, at, interval, trial.learner)
    after = activations(trial, batch)
    return {site: float((after[site] - before[site]).abs().mean(dtype=torch.float64)) for site in SITES}


@torch.no_grad()
def activations(trial: Trial, batch: Batch) -> dict[str, Tensor]:
    assert isinstance(trial.engine, NativeEngine)  # of one process, whose one stage is the whole model
    model = trial.engine.stages[0].eval()
    batch = batch.to(trial.engine.device)
    found = dict(zip(SITES, (model.read(batch), model.hidden(batch), model(batch, loss=False))))
    return {site: x.float() for site, x in found.items()}


def run(
    single: list[str],
    words: list[str],
    parametrizations: Sequence[str],
    axis: Axis,
    sizes: Sequence[int],
    seeds: int,
    steps: int,
    limit: float,
    say: Callable[[str], None],
) -> Iterator[Check]:
    """`single`: argv of one process at any size; `words`: what of it the user named. Raises ConfigError."""
    cfg = config.parse(single)
    for name in parametrizations:
        check = Check(objective=cfg.objective.objective, parametrization=name, axis=axis, limit=limit)
        argv = [*single, *STEADY, *parametrized(words, name, cfg.model, axis, sizes)]
        for size in sizes:
            for seed in range(cfg.train.seed, cfg.train.seed + seeds):
                change = measure([*argv, *sized(cfg.model, axis, size), "--seed", str(seed)], steps)
                check.add(size, seed, change)
            said = ", ".join(f"{site} {check.change[site][-1]:.3g}" for site in SITES)
            say(f"{check.objective} {name} {axis} {size}: {said}")
        yield check
