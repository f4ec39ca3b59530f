"""How far a few steps move activations, at several widths or depths: as far at all where hyperparameters carry over.

The coordinate check of Yang et al., arXiv:2203.03466, appendix D.1. Each size trains on the same samples from the flags' own
initial weights, at a constant rate, without decay, clip or dropout; then one batch is read with the weights of before and after.

The samples must have something in common, as texts have. Of tokens that are all as likely, the first gradients are noise, which
moves a wider network less, as width^-1/2, whatever the parametrization.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from megatron import config
from megatron.batch import Batch, Progress
from megatron.catalogue import OBJECTIVES
from megatron.config import CORPORA, Model, declared, spelling
from megatron.data.indexed import IndexedWriter
from megatron.engine.native import NativeEngine
from megatron.flags import ConfigError, find, split_words
from megatron.proof.layouts import named_in, read_experiment
from megatron.proof.trial import Record, Trial, set_up
from megatron.training.loop import Interval, one_step, pose

Axis = Literal["width", "depth"]
SITES = {"embedding": "what the first block reads", "hidden": "what follows the last block", "logits": "what the softmax is of"}
OWN = ("parametrization", "mup_base_hidden_size", "mup_base_num_layers", "mup_base_kv_channels")
LIMIT = 0.3  # the largest |slope| that counts as flat
KINDS, TOKENS = 128, 40_000  # of the corpus that is made where none is named
STEADY = """--lr-decay-style constant --lr-warmup-samples 0 --clip-grad 0 --weight-decay 0 --weight-decay-by embedding=0,matrix=0
    --hidden-dropout 0 --attention-dropout 0 --embedding-dropout 0 --parameter-dropout 0 --ema 0 --compile off""".split()


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Of ln(mean |change|) against ln(size), by least squares over sizes and seeds."""

    value: float
    low: float | None  # 95 %, Student's t; of two measurements none
    high: float | None
    limit: float

    @property
    def passed(self) -> bool:
        return abs(self.value) < self.limit

    @property
    def decided(self) -> bool:
        """Whether the whole interval is on one side of the limit."""
        if self.low is None or self.high is None:
            return False
        nearest = 0.0 if self.low < 0 < self.high else min(abs(self.low), abs(self.high))
        return max(abs(self.low), abs(self.high)) < self.limit or nearest > self.limit


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
    if freedom < 1:
        return Slope(value=value, low=None, high=None, limit=limit)
    wide = float(stdtrit(freedom, 0.975) * np.sqrt(left @ left / freedom / (x @ x)))
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


def parametrized(given: Mapping[str, str], name: str, model: Model, axis: Axis, sizes: Sequence[int]) -> list[str]:
    """The flags of this parametrization; its base is the smallest of the sizes where `given` (field -> value) names none."""
    base: dict[str, str] = {}
    if name != "standard":
        base["mup_base_hidden_size"] = str(min(sizes) if axis == "width" else model.hidden_size)
    if name == "completep":
        base["mup_base_num_layers"] = str(min(sizes) if axis == "depth" else model.num_layers)
    if base:
        base |= {field_: given[field_] for field_ in (*base, "mup_base_kv_channels") if field_ in given}
    return ["--parametrization", name, *(word for field_, value in base.items() for word in (spelling(field_), value))]


def refuse_idle(given: Mapping[str, str], name: str) -> None:
    used = {"standard": (), "mup": ("mup_base_hidden_size", "mup_base_kv_channels"), "completep": OWN[1:]}[name]
    if idle := [spelling(field_) for field_ in given if field_ not in used]:
        raise ConfigError(
            [f"{', '.join(idle)} behind -- would do nothing here: this tool's own --parametrization, before it, is {name}"]
        )


def apart(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Flags without those of a parametrization, and these, field -> value."""
    rest: list[str] = []
    found: dict[str, str] = {}
    for spelled, values in split_words(words, []):
        name = find(spelled, declared())[0] or ""
        if name in OWN:
            found[name] = values[0] if values else ""
        else:
            rest += [spelled, *values]
    return rest, found


def corpus(folder: Path) -> list[str]:
    """Flags of documents of bytes as unlike in frequency as words are (1 / rank), the same on every machine."""
    shares = 1 / np.arange(1, KINDS + 1)
    tokens = np.random.default_rng(0).choice(KINDS, TOKENS, p=shares / shares.sum())
    with IndexedWriter(str(folder / "skewed")) as writer:
        for document in np.split(tokens, range(500, TOKENS, 500)):
            writer.add_document(document)
    return ["--data-path", str(folder / "skewed"), "--split", "80,20,0", "--tokenizer-type", "ByteTokenizer"]


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


def check(
    words: list[str],
    objective: str,
    parametrizations: Sequence[str],
    axis: Axis,
    sizes: Sequence[int],
    seeds: int = 1,
    steps: int = 4,
    limit: float = LIMIT,
    say: Callable[[str], None] = print,
) -> Iterator[Check]:
    """One for each parametrization. `words`: flags of training that the user named. Raises ConfigError."""
    with tempfile.TemporaryDirectory() as folder:
        words, given = apart(words)
        refuse_idle(given, parametrizations[-1])
        named = named_in(words)
        fixed = [spelling(name) for name in named if name and name in named_in(STEADY)]
        if fixed:
            raise ConfigError([f"{', '.join(fixed)} behind -- would do nothing: all sizes train at a constant --lr, without it"])
        texts = not (OBJECTIVES[objective].vectors or named.get("data_kind") == ("pairs",))
        if texts and not {name for group in CORPORA for name in group} & set(named):
            words = [*words, *corpus(Path(folder))]
        single = read_experiment(words, objective, Path(folder)).single
        cfg = config.parse(single)
        at_size = {size: sized(cfg.model, axis, size) for size in sizes}
        for name in parametrizations:
            found = Check(objective=objective, parametrization=name, axis=axis, limit=limit)
            argv = [*single, *STEADY, *parametrized(given, name, cfg.model, axis, sizes)]
            for size in sizes:
                for seed in range(cfg.train.seed, cfg.train.seed + seeds):
                    change = measure([*argv, *at_size[size], "--seed", str(seed)], steps)
                    found.add(size, seed, change)
                said = ", ".join(f"{site} {found.change[site][-1]:.3g}" for site in SITES)
                say(f"{objective} {name}, {axis} {size}: {said}")
            yield found
