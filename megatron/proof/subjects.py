"""Objectives and trained runs as what an audit examines, each also with a network in place of a table.

A table answers for what a batch says is seen; only a network shows what its attention really lets through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from megatron import config, engine, objectives
from megatron.config import Config
from megatron.core.mesh import Mesh
from megatron.errors import BadData, Mismatch, MissingInput
from megatron.objectives import Objective
from megatron.proof.audit import SIZES, Audit, audit, network_sum
from megatron.proof.scoring import LONGEST_DRAWN, Posed, draws
from megatron.proof.sources import Rows, packed
from megatron.training import device, floor
from megatron.training.trained import open_run

TINY = """--num-layers 1 --hidden-size 16 --num-attention-heads 2 --ffn-hidden-size 32 --seq-length 32 --hidden-dropout 0
    --attention-dropout 0 --init-method-std 0.5 --train-iters 1 --micro-batch-size 1 --global-batch-size 1 --lr 1e-3 --device cpu
    --data-path none --tokenizer-type ByteTokenizer"""
MOST = 1 << 17  # rows under draws that a trained network is asked about


def audit_objective(name: str, words: list[str], vocab: int | None = None, length: int | None = None, seed: int = 0) -> Audit:
    """What validation poses for an objective of the catalogue with the flags `words`, by tables and by a tiny random network."""
    cfg = config.parse([*TINY.split(), *words], name, environ={})
    posed, sizes = reference(cfg, name, vocab, length)
    found = audit(posed, *sizes, seed)
    small = with_vocab(cfg, sizes[0])
    network = engine.build(small, posed.objective, device.for_scoring(small, torch.float32), Mesh())
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
    trained = open_run(run, checkpoint, device="cpu", say=say)
    posed, sizes = reference(trained.cfg, str(run), vocab, length)
    found = audit(posed, *sizes, seed)
    own = Posed(name=posed.name, objective=trained.reference)
    rows = longest(own, trained.cfg.model.vocab_size)
    if rows:
        found.sums.append(network_sum(own, rows, trained.engine, "trained"))
    else:
        found.notes.append(f"left out: all rows of the run's {trained.cfg.model.vocab_size} tokens, which are too many")
    try:
        found.floor = floor.measure(trained)
    except (BadData, MissingInput) as error:  # no oracle, or the corpus is elsewhere now
        found.notes.append(f"left out: the floor ({error})")
    return found


def reference(cfg: Config, name: str, vocab: int | None, length: int | None) -> tuple[Posed, tuple[int, int]]:
    """What validation poses over a tiny vocabulary, and how many tokens and places the rows have. Raises Mismatch."""
    if cfg.objective.block_size:
        raise Mismatch("--block-size: an audit reads whole rows, and this objective reads them twice: leave it out")
    exact = objectives.build(cfg, cfg.model.vocab_size).reference().exact
    sizes = SIZES[not exact]
    tokens, places = vocab or sizes[0], length or sizes[1]
    return Posed(name=name, objective=tiny(cfg, tokens)), (tokens, places)


def tiny(cfg: Config, vocab: int) -> Objective:
    return objectives.build(with_vocab(cfg, vocab), vocab).reference()


def with_vocab(cfg: Config, vocab: int) -> Config:
    return replace(cfg, model=replace(cfg.model, vocab_size=vocab, padded_vocab_size=-(-(vocab + 1) // 16) * 16))


def longest(posed: Posed, vocab: int) -> Rows | None:
    """All rows of as many places as MOST allows; None where one place is too many."""
    found = None
    for n in range(1, LONGEST_DRAWN + 1):
        if vocab**n * (len(draws(n)[0]) if posed.noisy else 1) > MOST:
            break
        found = packed(vocab, n)
    return found
