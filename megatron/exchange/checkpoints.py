"""This trainer's checkpoints as weights alone."""

from __future__ import annotations

from pathlib import Path

from megatron.core import checkpoint
from megatron.core.checkpoint import whole
from megatron.engine.average import root_of_weights
from megatron.errors import Mismatch
from megatron.exchange.weights import Weights


def read_checkpoint(path: Path) -> Weights:
    found = checkpoint.load(path)
    root = root_of_weights(found, weights_only=True)
    names = [name for name in found.names() if name.startswith(f"{root}/")]
    facts = found.facts
    if not names or "model" not in facts.get("config", {}):
        raise Mismatch(f"{found.path} holds no model of this trainer: give a folder of --save")
    known = {
        "model": facts["config"]["model"],
        "objective": facts["config"].get("objective", {}).get("objective"),
        "tokenizer": facts.get("fingerprints", {}).get("tokenizer"),
        "step": found.step,
        "samples": facts.get("samples"),
    }
    return Weights(
        tensors={name.removeprefix(f"{root}/"): t for name, t in found.tensors(names).items()}, known=known, source=found.path
    )


def write_checkpoint(out: Path, weights: Weights) -> None:
    """A checkpoint of weights alone, which --load takes with --finetune."""
    known = weights.known
    facts = {
        "imported_from": str(weights.source),
        "architecture": known.get("objective"),
        "model_config": known["model"],
        "config": {"model": known["model"], "objective": {"objective": known.get("objective")}},
        "fingerprints": {"tokenizer": known["tokenizer"]} if known.get("tokenizer") else {},
        "samples": known.get("samples"),
    }
    tensors = {f"model/{name}": t.float() for name, t in weights.tensors.items()}
    checkpoint.Saving(out, known.get("step") or 0, whole(tensors), facts).finish()
