"""What a model loses on one kind of text by having learnt K of them: loss by category, and by how much of a window it has seen.

All runs, and a Hugging Face model beside them, score the same windows of each category. Seen tokens are those to the left for an
autoregressive model, and a random set of as many for masked diffusion, whose bound is the mean over all numbers of them.
A run's difference is to a run of the same objective that was trained on the category alone, paired by window.
K categories, w windows, s places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron.batch import Batch, Noise, Purpose
from megatron.core.mesh import Mesh
from megatron.data.datasets import build_datasets, of_category, windows
from megatron.data.random_window import RandomWindow
from megatron.data.tokenizer import Tokenizer
from megatron.errors import BadData, Mismatch
from megatron.exchange.transformers_library import open_model, open_tokenizer
from megatron.flags import ConfigError
from megatron.likelihood.measure import errors
from megatron.likelihood.orders import draw_order
from megatron.likelihood.rows import Rows, log_probabilities, of_targets, over_rows, read_rows
from megatron.likelihood.scores import Estimators
from megatron.objectives.autoregressive import NextToken
from megatron.objectives.block import BlockDiffusion
from megatron.objectives.masked import MaskedDiffusion
from megatron.standard_errors import half_width
from megatron.training.evaluate import Slice, data_error
from megatron.training.trained import Trained, cut_slice, sample_spec

SHARED = "runs, too narrow: they share runs of one category"
Bin = tuple[int, int]  # first and last number of seen tokens


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One model on the windows of one category, in nats."""

    windows: str  # names them
    nll: np.ndarray  # [draws, w] of each window
    tokens: np.ndarray  # [w] scored
    profile: dict[Bin, tuple[np.ndarray, np.ndarray]]  # nll [w] and tokens [w] where so many were seen


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model on all categories that it is asked about."""

    name: str
    objective: str
    exact: bool
    scored: dict[str, Scored]  # by category
    seed: int | None = None
    shuffled: bool = False


# What a model says of windows


def score_run(name: str, trained: Trained, which: str, num_windows: int, num_mc: int | None) -> Subject:
    """A run on windows of each category that it was trained on. Raises Mismatch, ConfigError, BadData."""
    cfg, objective = trained.cfg, trained.reference
    if cfg.data.data_kind != "random-window":
        raise Mismatch(f"{name} was trained on --data-kind {cfg.data.data_kind}: expected a run of --data-kind random-window")
    if isinstance(objective, BlockDiffusion) or not (objective.exact or isinstance(objective, MaskedDiffusion)):
        raise Mismatch(f"{name} has no loss by seen tokens: expected an autoregressive or a masked-diffusion run of whole rows")
    known = build_datasets(cfg.data, sample_spec(cfg, trained.tokenizer))["train"]
    assert isinstance(known, RandomWindow)  # by its kind
    scored = {one: score_windows(trained, window_slice(trained, one, which, num_windows, num_mc)) for one in known.categories}
    return Subject(
        name=name,
        objective=cfg.objective.objective,
        exact=objective.exact,
        scored=scored,
        seed=cfg.train.seed,
        shuffled=cfg.data.shuffle_categories,
    )


def window_slice(trained: Trained, category: str, which: str, num_windows: int, num_mc: int | None = None) -> Slice:
    """The first windows of a category, in validation's own order. Raises ConfigError."""
    found = windows(of_category(trained.cfg.data, category), which, sample_spec(trained.cfg, trained.tokenizer))
    if found is None:
        raise ConfigError([f"--set {which}: the folder {(trained.cfg.data.data_path or [''])[0]} has no such split"])
    whole = cut_slice(trained.cfg, found, trained.reference, trained.tokenizer)
    return replace(whole, rows=min(num_windows, found.rows_in_first_epoch), num_mc=num_mc or whole.num_mc)


def score_windows(trained: Trained, data: Slice) -> Scored:
    objective = trained.reference
    rows = read_rows(data, objective.causal)
    model = Estimators(trained.engine, objective, rows, data.seed, trained.cfg.model.padded_vocab_size, by_place=True)
    if objective.exact:
        return exactly(model, data)
    assert isinstance(objective, MaskedDiffusion)  # score_run
    draws = [model.posed(objective, number).nll for number in range(data.num_mc)]
    profile = by_visible(model, objective.mask_id)
    return Scored(windows=data.fingerprint(), nll=np.stack(draws), tokens=rows.scored.sum(1).numpy(), profile=profile)


def exactly(model: Estimators, data: Slice) -> Scored:
    """One pass tells both."""
    draw, scored = model.posed(model.objective, 0), model.rows.clean.scored[:, 1:].numpy()  # place i predicts token i + 1
    assert draw.places is not None  # by_place
    profile = by_prefix(draw.places, scored)
    return Scored(windows=data.fingerprint(), nll=draw.nll[None], tokens=scored.sum(1), profile=profile)


def seen_bins(width: int) -> list[Bin]:
    """Numbers of seen tokens in a window of `width`: 1, 2-3, 4-7, ..."""
    edges = [*(1 << n for n in range((width - 1).bit_length())), width]
    return [(low, high - 1) for low, high in pairwise(edges)]


def by_prefix(places: np.ndarray, scored: np.ndarray) -> dict[Bin, tuple[np.ndarray, np.ndarray]]:
    """What place i predicts has i + 1 tokens before it.  [w, s] each"""
    bins = seen_bins(places.shape[1])
    return {(low, high): (places[:, low - 1 : high].sum(1), scored[:, low - 1 : high].sum(1)) for low, high in bins}


def by_visible(model: Estimators, mask_id: int) -> dict[Bin, tuple[np.ndarray, np.ndarray]]:
    """The NLL of a hidden token: of each window one number of visible ones from each bin, and one set of them."""
    found, width = {}, model.rows.tokens.shape[1]
    for number, (low, high) in enumerate(seen_bins(width)):

        def of_hidden(part: Rows, low: int = low, high: int = high, seed: int = model.seed + 1 + number) -> Tensor:
            uniform = Noise(seed, part.clean.index).uniform(Purpose.RATE, 1)[:, 0]
            visible = low + (uniform * (high - low + 1)).long()  # [b]
            order = draw_order(part, seed)  # what is given comes last
            first = torch.arange(width) < width - visible[:, None]
            hidden = torch.zeros_like(part.open).scatter_(1, order, first) & part.open
            log_p = log_probabilities(model.model, part, hidden, hidden, mask_id)
            return -of_targets(log_p, part, hidden).sum(1) / hidden.sum(1)

        nll = over_rows(model.model.mesh, model.rows, model.vocab_size, of_hidden).numpy()
        found[low, high] = nll, np.ones(len(nll), np.int64)
    return found


# A Hugging Face model


class Foreign:
    """A causal model of transformers as what an estimator asks."""

    mesh = Mesh()

    def __init__(self, network: Any):
        self.network = network

    @torch.no_grad()
    def logits(self, batches: list[Batch]) -> list[Tensor]:
        return [self.network(input_ids=batch.inputs).logits.flatten(0, 1)[batch.asked] for batch in batches]


def score_folder(folder: Path, like: dict[str, Slice], tokenizer: Tokenizer) -> Subject:
    """A causal model of a local folder on the windows of each category. Raises MissingInput, BadData, Mismatch."""
    if not (folder / "config.json").is_file():
        raise BadData(f"--baseline {folder}: expected the folder of a Hugging Face model, with its config.json")
    network, theirs = open_model(folder, masked=False), open_tokenizer(folder)
    scored = {}
    for category, data in like.items():
        rows = read_rows(data, causal=True)
        refuse_other_ids(folder, rows.tokens, theirs, tokenizer, network.config.vocab_size)
        model = Estimators(Foreign(network), NextToken(), rows, data.seed, network.config.vocab_size, by_place=True)
        scored[category] = exactly(model, data)
    return Subject(name=str(folder), objective="hf", exact=True, scored=scored)


def refuse_other_ids(folder: Path, tokens: Tensor, theirs: Any, ours: Tokenizer, vocab_size: int) -> None:
    """Raises Mismatch where an id of the windows stands for another text there."""
    for number in tokens.unique().tolist():
        if number >= vocab_size or theirs.decode([number]) != ours.decode([number]):
            raise Mismatch(
                f"--baseline {folder}: id {number} is {ours.decode([number])!r} in the windows and another there: give a model "
                "with the tokenizer of the corpus"
            )


# Side by side


def table_of(subjects: Sequence[Subject], which: str) -> dict:
    """Every model's loss by category and by seen tokens, and what learning K categories costs, by K."""
    runs = [described(one) for one in subjects]
    gaps = [gap for one in subjects if one.objective != "hf" and (gap := gap_of(one, subjects))]
    return {"set": which, "runs": runs, "delta": by_number(gaps), "delta_by_run": gaps}


def described(one: Subject) -> dict:
    categories = {}
    for name, scored in one.scored.items():
        value = float(scored.nll.mean(0).sum() / scored.tokens.sum())
        found = {
            "nats_per_token": value,
            **errors(scored.nll, scored.tokens, random=not one.exact),
            "windows": len(scored.tokens),
        }
        perplexity = math.exp(min(700.0, value))
        categories[name] = found | {"perplexity" if one.exact else "perplexity_upper_bound": perplexity}
    mean, se = mean_of([(c["nats_per_token"], c["se"]) for c in categories.values()])
    return {
        "run": one.name,
        "objective": one.objective,
        "bound": "exact" if one.exact else "bound",
        "seed": one.seed,
        "shuffled": one.shuffled,
        "num_categories": len(categories),
        "nats_per_token": mean,
        "se": se,
        "categories": categories,
        "profile": profile_of(list(one.scored.values())),
    }


def mean_of(parts: Sequence[tuple[float, float | None]]) -> tuple[float, float]:
    """Of independent values, each with its error; an error that is not known counts as none."""
    values, variance = [value for value, _ in parts], math.fsum((se or 0.0) ** 2 for _, se in parts)
    return math.fsum(values) / len(parts), math.sqrt(variance) / len(parts)


def profile_of(scored: Sequence[Scored], other: Sequence[Scored] | None = None) -> list[dict]:
    """Nats a token by seen tokens, a mean over categories; minus `other` of the same windows where there is one."""
    found = []
    for seen in scored[0].profile:
        parts = []
        for number, one in enumerate(scored):
            nll, tokens = one.profile[seen]
            nll = nll - other[number].profile[seen][0] if other else nll
            parts.append((float(nll.sum() / tokens.sum()), data_error(nll[None], tokens)))
        value, se = mean_of(parts)
        found.append({"seen": list(seen), "nats_per_token": value, "se": se})
    return found


def gap_of(one: Subject, subjects: Sequence[Subject]) -> dict | None:
    """A run minus runs of single categories, on these categories' windows; None where there is no such run."""
    pairs = [(name, alone) for name in one.scored if (alone := single(one, name, subjects))]
    if not pairs or len(one.scored) == 1:
        return None
    parts = []
    for name, alone in pairs:
        mine, theirs = one.scored[name], alone.scored[name]
        nll = mine.nll.mean(0) - theirs.nll.mean(0)  # runs may have other numbers of draws
        parts.append((float(nll.sum() / mine.tokens.sum()), data_error(nll[None], mine.tokens)))
    value, se = mean_of(parts)
    return {
        "run": one.name,
        "objective": one.objective,
        "shuffled": one.shuffled,
        "num_categories": len(one.scored),
        "categories": [name for name, _ in pairs],
        "alone": [alone.name for _, alone in pairs],
        "nats_per_token": value,
        "se": se,
        "profile": profile_of([one.scored[name] for name, _ in pairs], [alone.scored[name] for name, alone in pairs]),
    }


def single(one: Subject, category: str, subjects: Sequence[Subject]) -> Subject | None:
    """The run of this category alone, of the same seed where there is one."""
    fitting = [
        other
        for other in subjects
        if (other.objective, other.shuffled, list(other.scored)) == (one.objective, one.shuffled, [category])
        and other.scored[category].windows == one.scored[category].windows
    ]
    return next((other for other in fitting if other.seed == one.seed), fitting[0] if fitting else None)


def by_number(gaps: Sequence[dict]) -> list[dict]:
    """The differences of all runs of one objective and K: over seeds, by their scatter where there are several."""
    found = []
    for key in dict.fromkeys((gap["objective"], gap["shuffled"], gap["num_categories"]) for gap in gaps):
        some = [gap for gap in gaps if (gap["objective"], gap["shuffled"], gap["num_categories"]) == key]
        value, se, df = over_seeds([(gap["nats_per_token"], gap["se"]) for gap in some])
        profile = []
        for place, at in enumerate(some[0]["profile"]):
            there, error, dof = over_seeds([(g["profile"][place]["nats_per_token"], g["profile"][place]["se"]) for g in some])
            profile.append({"seen": at["seen"], "nats_per_token": there, "se": error, "half_width": half_width(error, dof)})
        said = dict(zip(("objective", "shuffled", "num_categories"), key))
        alone = [name for gap in some for name in set(gap["alone"])]
        shared = len(set(alone)) < len(alone)  # what they have in common does not scatter
        found.append(
            said
            | {"runs": len(some), "nats_per_token": value, "se": se, "se_df": df, "half_width": half_width(se, df)}
            | {"error_from": "windows" if len(some) == 1 else "runs" if not shared else SHARED, "profile": profile}
        )
    return sorted(found, key=lambda one: (one["objective"], one["shuffled"], one["num_categories"]))


def over_seeds(parts: Sequence[tuple[float, float]]) -> tuple[float, float, float | None]:
    """Mean, error and its degrees of freedom: from the scatter of several runs, else the one's own."""
    values = np.array([value for value, _ in parts])
    if len(values) == 1:
        return float(values[0]), parts[0][1], None
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))), len(values) - 1.0
