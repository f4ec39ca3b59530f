"""The likelihoods that a run leaves when it ends (--final-scores)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron.config import Config
from megatron.core.mesh import agreed
from megatron.likelihood.measure import measure
from megatron.likelihood.records import write
from megatron.training.trained import open_run

LAYOUT = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "sequence_parallel", "zero_stage")


def score(cfg: Config, say: Callable[[str], None]) -> None:
    """Score a run that just finished, in float64 at its own layout, and add to its likelihood.jsonl. Every rank calls it."""
    layout = {name: getattr(cfg.parallel, name) for name in LAYOUT}
    trained = open_run(cfg.log.run_dir, device=cfg.train.device, dtype="fp64", say=say, **layout)
    names = ["exact"] if trained.reference.exact else cfg.train.final_scores
    have = trained.slice().dataset.rows_in_first_epoch
    found = measure(trained, names, rows=min(cfg.train.final_score_rows or have, have))  # a run that is finished is not refused
    with agreed(trained.engine.mesh.control):
        if trained.engine.mesh.chief:
            write(Path(cfg.log.run_dir), [found])
    for entry in found["scores"]:
        say(f"{entry['score']}: {entry['nats_per_token']:.4f} nats a token ({entry['value']}, {entry['of']})")
