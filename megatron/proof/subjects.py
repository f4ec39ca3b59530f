"""Objectives and trained runs as what an audit examines, each also with a network in place of a table.

A table answers for what a batch says is seen; only a network shows what its attention really lets through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron import config, engine, objectives
from megatron.batch import Batch, RowScores
from megatron.catalogue import OBJECTIVES, need_likelihood
from megatron.config import Config
from megatron.core.mesh import Mesh
from megatron.errors import BadData, Mismatch, MissingInput
from megatron.exchange.transformers_library import open_model
from megatron.files import read_json
from megatron.objectives import Objective
from megatron.objectives.autoregressive import NextToken
from megatron.objectives.masked import MaskedDiffusion
from megatron.objectives.uniform import UniformDiffusion
from megatron.objectives.vectors import TextGivenVector
from megatron.proof.audit import SIZES, Audit, audit, network_sum
from megatron.proof.scoring import LONGEST_DRAWN, Posed, Scorer
from megatron.proof.sources import Rows, packed
from megatron.training import device, floor
from megatron.training.trained import open_run

TINY = """--num-layers 1 --hidden-size 16 --num-attention-heads 2 --ffn-hidden-size 32 --seq-length 32 --hidden-dropout 0
    --attention-dropout 0 --init-method-std 0.5 --train-iters 1 --micro-batch-size 1 --global-batch-size 1 --lr 1e-3 --device cpu
    --train-data-path none --tokenizer-type ByteTokenizer"""
REDRAWN_SIZES = (3, 3)  # tokens and places, where a place may hold any id
LEAK = 1e-3  # of logits, in float32
MOST = 1 << 18  # rows as they are seen that a trained network is asked about
MOST_DRAWS = 1 << 21  # rows under the draws that these come from


def audit_objective(
    name: str, words: list[str], vocab: int | None = None, length: int | None = None, seed: int = 0, training: bool = False
) -> Audit:
    """What validation poses for an objective of the catalogue with the flags `words`, by tables and by a tiny random network.

    `training`: what training poses at its end instead.
    """
    cfg = config.parse([*TINY.split(), *words], name, environ={})
    posed, sizes = reference(cfg, f"{name}'s training" if training else name, vocab, length, training)
    found = audit(posed, *sizes, seed)
    small = with_vocab(cfg, sizes[0])
    network = engine.build(small, objectives.build(small, sizes[0]), device.for_scoring(small, torch.float32), Mesh())
    found.sums.append(network_sum(posed, packed(*sizes), network, "network"))
    return found


def audit_run(
    run: Path,
    checkpoint: str | None,
    vocab: int | None = None,
    length: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Audit:
    """A run's objective by tables, its weights by all short rows of its own ids, and its floor. Raises as open_run does."""
    trained = open_run(run, checkpoint, device="cpu", say=say, vectors=True)
    posed, sizes = reference(trained.cfg, str(run), vocab, length)
    found = audit(posed, *sizes, seed)
    own = posed_text(str(run), trained.reference)
    rows = longest(own, trained.cfg.model.vocab_size)
    add_own(found, own, rows, trained.engine, "trained", f"the run's {trained.cfg.model.vocab_size} tokens")
    try:
        found.floor = floor.measure(trained)
    except (BadData, MissingInput) as error:  # no oracle, or the corpus is elsewhere now
        found.notes.append(f"left out: the floor ({error})")
    return found


def audit_folder(folder: Path, vocab: int | None = None, length: int | None = None, seed: int = 0) -> Audit:
    """A Hugging Face folder: how its kind of model is scored, by tables, and its weights by all short rows of its own ids.

    Raises as megatron/exchange does where it cannot be opened.
    """
    config = read_json(folder / "config.json", "copy the folder again")
    masked, known = config.get("is_causal") is False, config["vocab_size"]
    network, place = Folder(open_model(folder, masked)), LONGEST_DRAWN + 1
    if masked:
        known = config["mask_token_id"]
    sizes = SIZES[masked][0] if vocab is None else vocab, SIZES[masked][1] if length is None else length
    found = audit(Posed(name=str(folder), objective=plain(masked, sizes[0])), *sizes, seed)
    own = Posed(name=str(folder), objective=plain(masked, known))
    rows = longest(own, known)
    add_own(found, own, rows, network, "folder", f"the folder's {known} tokens")
    if not masked and (moved := network.leak(known, place)) > LEAK:
        found.faults.append(f"later tokens move the logits of earlier places by up to {moved:.3g}: they are seen")
    return found


def add_own(found: Audit, own: Posed, rows: Rows | None, network: Scorer, name: str, tokens: str) -> None:
    """The sum over rows that the weights themselves are asked about; where pairs of tokens are too many, that there is none."""
    if rows and rows.tokens.shape[1] > 1:
        found.sums.append(network_sum(own, rows, network, name))
        found.notes.append(f"{name}: all {len(rows.tokens):,} rows of {rows.tokens.shape[1]} of {tokens}")
    else:
        found.notes.append(f"left out: all rows of {tokens}, of which even pairs are too many")
        found.unscored = f"of how it is scored: no row was scored with the {name} weights themselves"


def plain(masked: bool, mask_id: int) -> Objective:
    return MaskedDiffusion(mask_id=mask_id).reference() if masked else NextToken()


@dataclass(frozen=True)
class Folder:
    """A model of another library, asked as an engine is."""

    model: Callable[..., Any]

    def logits(self, ids: Tensor) -> Tensor:
        """[b, s] -> float32 [b, s, v]"""
        with torch.no_grad():
            return self.model(input_ids=ids).logits.float()

    def score(self, batches: list[Batch]) -> list[RowScores]:
        return [self.row_scores(batch) for batch in batches]

    def row_scores(self, batch: Batch) -> RowScores:
        log_p = self.logits(batch.inputs).log_softmax(-1)
        nll = -log_p.gather(2, batch.targets[..., None])[..., 0].double() * batch.weights
        asked, scored = (x.sum(1).numpy() for x in (batch.weights > 0, batch.scored))
        return RowScores(loss=nll.sum(1).numpy(), hits=np.zeros(len(nll)), asked=asked, scored=scored)

    def leak(self, vocab: int, places: int) -> float:
        """How far the logits of a row's first half move when its second half is another one."""
        row = torch.arange(2 * places)[None] * 7919 % vocab
        other = torch.cat([row[:, :places], (row[:, places:] + 1) % vocab], 1)
        return float((self.logits(row)[:, :places] - self.logits(other)[:, :places]).abs().max())


def reference(
    cfg: Config, name: str, vocab: int | None, length: int | None, training: bool = False
) -> tuple[Posed, tuple[int, int]]:
    """What validation (or training) poses over a tiny vocabulary, and how many tokens and places rows have. Raises Mismatch."""
    need_likelihood(cfg.objective.objective, "an audit")
    if training and OBJECTIVES[cfg.objective.objective].vectors:
        raise Mismatch(
            f"--training: steps of --objective {cfg.objective.objective} predict vectors too, of which there is no likelihood"
        )
    if cfg.objective.block_size:
        raise Mismatch("--block-size: an audit reads whole rows, and this objective reads them twice: leave it out")
    if training and cfg.objective.atat not in (None, "none"):
        raise Mismatch(
            f"--training: --atat {cfg.objective.atat} hides by what it learned of the training data, which an audit has not: "
            "leave --training out"
        )
    known = objectives.build(cfg, cfg.model.vocab_size).reference()
    sizes = REDRAWN_SIZES if isinstance(known, UniformDiffusion) else SIZES[not known.exact]
    tokens, places = vocab or sizes[0], length or sizes[1]
    found = objectives.build(with_vocab(cfg, tokens), tokens)
    return posed_text(name, found if training else found.reference()), (tokens, places)


def posed_text(name: str, objective: Objective) -> Posed:
    """An objective as it poses text; a network that is told vectors is told one, the same for all rows."""
    if not isinstance(objective, TextGivenVector):
        return Posed(name=name, objective=objective)
    vector = torch.randn(objective.size, generator=torch.Generator().manual_seed(1))
    return Posed(name=f"{name}, given a vector", objective=objective.text, vector=vector)


def with_vocab(cfg: Config, vocab: int) -> Config:
    return replace(cfg, model=replace(cfg.model, vocab_size=vocab, padded_vocab_size=-(-(vocab + 1) // 16) * 16))


def longest(posed: Posed, vocab: int) -> Rows | None:
    """All rows of as many places as MOST allows; None where one place is too many."""
    found = None
    for n in range(1, LONGEST_DRAWN + 1):
        if vocab**n * posed.num_problems(vocab, n) > MOST or vocab**n * posed.num_draws(vocab, n) > MOST_DRAWS:
            break
        found = packed(vocab, n)
    return found
