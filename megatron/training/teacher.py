"""The runs that --distill names, opened as one network that a student learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron.budget import Shape
from megatron.config import Config
from megatron.core.mesh import Mesh
from megatron.engine.members import Members
from megatron.errors import Mismatch
from megatron.objectives import Objective
from megatron.objectives.distilled import Distilled
from megatron.training.trained import Trained, open_run


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """An objective with its teacher."""

    objective: Objective
    fingerprint: str | None  # of the teachers' weights
    shapes: tuple[Shape, ...] = ()  # of the teachers that are asked


def with_teacher(cfg: Config, objective: Objective, tokenizer: str, mesh: Mesh, say: Callable[[str], None]) -> Lesson:
    """What training poses, with the teachers that --distill names; without the flag, the same. Every process holds them whole.

    Raises MissingInput and what opening a run does, Mismatch for a teacher that the student cannot learn from.
    """
    if not cfg.objective.distill or cfg.train.skip_train:
        return Lesson(objective=objective, fingerprint=None)
    dtype = "bf16" if cfg.train.bf16 else "fp32"
    found = [open_run(Path(run), device=cfg.train.device, dtype=dtype, say=say) for run in cfg.objective.distill]
    for teacher in found:
        refuse_other(cfg, objective, tokenizer, teacher)
    hashes = [entry["sha256"] for one in found for entry in one.checkpoint.entries if not entry["name"].startswith("optimizer/")]
    shapes = tuple(one.cfg.model.shape() for one in found) if cfg.objective.distill_weight else ()
    whole = Distilled.around(
        objective, Members([one.engine for one in found], mesh), cfg.objective.distill_weight, cfg.objective.distill_temperature
    )
    return Lesson(objective=whole, fingerprint=hashlib.sha256("".join(hashes).encode()).hexdigest()[:16], shapes=shapes)


def refuse_other(cfg: Config, objective: Objective, tokenizer: str, teacher: Trained) -> None:
    """Raises Mismatch."""
    path, said = teacher.checkpoint.path, teacher.tokenizer.fingerprint()
    if said != tokenizer:
        raise Mismatch(f"--distill {path}: its tokenizer is {said}, the student's {tokenizer}: give a teacher of the same tokens")
    ours, theirs = cfg.model.predicted_ids, teacher.cfg.model.predicted_ids
    if ours != theirs:
        raise Mismatch(
            f"--distill {path} predicts {theirs} ids and the student {ours}: "
            "give a teacher of the same --predict-reserved and padding"
        )
    if teacher.cfg.objective.objective != cfg.objective.objective:
        raise Mismatch(
            f"--distill {path} is {teacher.cfg.objective.objective} and the student {cfg.objective.objective}: what they predict "
            "is not given the same; give a teacher of the same objective"
        )
    if objective.uses_mask and not teacher.objective.uses_mask:
        raise Mismatch(f"--distill {path} never read the mask, which the student's inputs have (--randmask-kind inputs)")
    if teacher.cfg.model.seq_length < cfg.model.seq_length:
        raise Mismatch(
            f"--distill {path} was trained on {teacher.cfg.model.seq_length} tokens a row, the student reads "
            f"{cfg.model.seq_length}: give a teacher of as many or more"
        )
