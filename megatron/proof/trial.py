"""One rank's part of an experiment: some steps with an evaluation half way, and a record of what was asked and answered."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from megatron import config, engine
from megatron.batch import Batch, Progress, Step
from megatron.config import Config
from megatron.core import checkpoint
from megatron.core.checkpoint import Piece
from megatron.data.datasets import build_datasets
from megatron.data.samples import Samples, hash64
from megatron.engine import Engine
from megatron.engine import learner as learners
from megatron.engine.learner import Learner
from megatron.objectives import Objective
from megatron.training import device
from megatron.training.evaluate import Slice, evaluate
from megatron.training.loop import Interval, one_step, pose
from megatron.training.teacher import with_teacher
from megatron.training.trained import build_objective, cut_slice, meet, open_tokenizer, sample_spec

NUM_PROBES = 16  # of a tensor; the norm of a difference is known to about a fifth


@dataclass(kw_only=True)
class Record:
    """What a layout did: on one rank, then on all together."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    validation: float = math.nan
    samples: dict[int, str] = field(default_factory=dict)  # number -> hash of what was asked: inputs, targets, 1 / t, masks
    begun: dict[str, int] = field(default_factory=dict)  # tensor -> fingerprint, before the first step
    ended: dict[str, int] = field(default_factory=dict)  # the same after the last, as saved
    moved: dict[str, list[float]] = field(default_factory=dict)  # weight -> what all steps did to its probes

    def log_train(self, at: Progress, done: Step, interval: Interval, lr: float) -> None:
        """What the training loop tells a run."""
        self.losses.append(done.loss)
        self.norms.append(done.grad_norm)

    def dump(self, at: Progress, done: Step, batches: list[Batch]) -> None:
        """A skipped step is on record as a loss that is not finite."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """All that a run has on one rank."""

    cfg: Config
    engine: Engine
    learner: Learner | None
    objective: Objective
    train: Samples
    valid: Slice

    @property
    def learning(self) -> list[Engine | Learner]:
        return [self.engine, *([self.learner] if self.learner else [])]

    def pieces(self) -> list[Piece]:
        return [piece for learning in self.learning for piece in learning.pieces()]


def set_up(argv: list[str]) -> Trial:
    cfg = config.parse(argv)
    tokenizer = open_tokenizer(cfg)
    cfg = cfg.with_vocabulary(tokenizer.vocab_size)
    data = build_datasets(cfg.data, sample_spec(cfg, tokenizer))
    train = data["train"]
    assert train is not None  # a run that trains is refused without training data
    where, mesh = device.setup(cfg), meet(cfg)
    posed = build_objective(cfg).studied(train)
    objective = with_teacher(cfg, posed, tokenizer.fingerprint(), mesh, lambda line: None).objective
    return Trial(
        cfg=cfg,
        engine=engine.build(cfg, objective, where, mesh, lambda line: None),
        learner=learners.build(cfg, objective, mesh, where.device),
        objective=objective,
        train=train,
        valid=cut_slice(cfg, data["valid"] or train, objective.reference(), tokenizer),
    )


def train(argv: list[str], steps: int, save: str | None = None, load: str | None = None) -> Record:
    """Some steps of a run with an evaluation half way, from its beginning or a checkpoint in `load`; then one in `save`."""
    trial, record, at, interval = set_up(argv), Record(), Progress(), Interval()
    if load:
        found = checkpoint.load(Path(load), group=trial.engine.mesh.control)
        for learning in trial.learning:
            learning.load(found)
        at = Progress(step=found.step, samples=found.step * trial.cfg.train.global_batch_size)
    record.begun, before = fingerprints(trial.pieces()), probes(trial.pieces())
    for step in range(1, steps + 1):
        record.samples |= hashes(pose(trial.objective, trial.train, trial.cfg, at, trial.engine.mesh.dp))
        at, interval = one_step(trial.cfg, trial.engine, trial.objective, trial.train, record, at, interval, trial.learner)
        if step == (steps + 1) // 2:
            record.validation = evaluate(trial.engine, trial.objective.reference(), trial.valid)["loss"]
    record.moved = {name: (after - before[name]).tolist() for name, after in probes(trial.pieces()).items()}
    if save:
        checkpoint.Saving(Path(save), at.step, trial.pieces(), {}, group=trial.engine.mesh.control).finish()
        record.ended = fingerprints(trial.pieces())
    return record


# What a teacher says is of asked positions, and is compared through losses and updates.
NOT_OF_A_ROW = ("index", "asked", "attend", "taught", "teaching")


def hashes(batches: list[Batch]) -> dict[int, str]:
    """Sample number -> what its row asks of the model; rows that only fill up a batch are none."""
    found = {}
    for batch in batches:
        for row in batch.scored.any(1).nonzero()[:, 0].tolist():
            asked = [x[row] for name, x in batch.tensors().items() if name not in NOT_OF_A_ROW]
            found[int(batch.index[row])] = hashlib.sha256(b"".join(x.numpy().tobytes() for x in asked)).hexdigest()
    return found


def fingerprints(pieces: list[Piece]) -> dict[str, int]:
    """A number for each tensor. Over the ranks they add up to the same however the tensor is cut, if every entry is the same."""
    found: dict[str, int] = {}
    for piece in pieces:
        found[piece.name] = (found.get(piece.name, 0) + fingerprint(piece)) % 2**64
    return found


def fingerprint(piece: Piece) -> int:
    """The sum of a hash of each entry's bits and its place in the whole tensor, modulo 2**64."""
    tensor = piece.tensor.detach().cpu().contiguous()
    bits = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]).numpy()
    return int(hash64(places(piece), bits).sum())


def probes(pieces: list[Piece]) -> dict[str, np.ndarray]:
    """Sums of each weight's entries under NUM_PROBES sets of random signs, as far as these pieces have it.

    Over the ranks they add up however the tensor is cut, and the mean square of those of a difference is its squared norm.
    """
    found: dict[str, np.ndarray] = {}
    for piece in pieces:
        if piece.name.startswith("model/"):
            bits = hash64(places(piece), 0)[..., None] >> np.arange(NUM_PROBES, dtype=np.uint64) & np.uint64(1)
            signed = np.where(bits.astype(bool), 1.0, -1.0).reshape(-1, NUM_PROBES)
            own = piece.tensor.detach().cpu().double().numpy().ravel() @ signed
            found[piece.name] = found.get(piece.name, 0.0) + own
    return found


def places(piece: Piece) -> np.ndarray:
    """The number of each entry in the whole tensor, in the order of memory."""
    place = np.zeros((), np.int64)
    for start, size, extent in zip(piece.start, piece.shape, piece.tensor.shape):
        place = place[..., None] * size + start + np.arange(extent)  # one dimension more
    return place
