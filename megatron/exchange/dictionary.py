"""One file of torch.save with the dictionary that other trainers share: tensors, numbers, text and plain containers only.

global_step, architecture (ar, diffusion or sdd), model_state_dict, model_config, optimizer_state_dict, scaler_state_dict,
train_config, best_val_loss; and `facts`, by which this trainer opens the file as the checkpoint that it was.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from megatron.core.checkpoint import Checkpoint
from megatron.errors import BadData, Mismatch, MissingInput, Untrusted
from megatron.exchange.weights import Weights
from megatron.files import staged

FILE = "checkpoint.pt"
ENDS = (".pt", ".pth")  # of the name of such a file
ARCHITECTURES = {"ar": "ar", "mdm": "diffusion", "sdd": "sdd"}  # our objectives by their names there
KEYS = ("global_step", "model_state_dict", "model_config", "train_config", "architecture")


def write_dictionary(out: Path, found: Checkpoint) -> None:
    """All of a checkpoint's tensors in `out`, a .pt file, in fp32."""
    facts, tensors = found.facts, found.tensors()
    state = {
        "global_step": found.step,
        "model_state_dict": under("model/", tensors),
        "model_config": facts["model_config"],
        "optimizer_state_dict": under("optimizer/", tensors),
        "scaler_state_dict": {},
        "train_config": facts["train_config"],
        "best_val_loss": facts.get("best_val_loss"),
        "architecture": ARCHITECTURES.get(facts["architecture"], facts["architecture"]),
        "facts": facts,
        "others": {name: t for name, t in tensors.items() if not name.startswith(("model/", "optimizer/"))},
    }
    with staged(out.parent) as stage:
        torch.save(state, stage / out.name)


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def is_dictionary(path: Path) -> bool:
    return path.suffix in ENDS or (path / FILE).is_file()


def load_dictionary(path: Path) -> dict:
    """Raises Untrusted for a file that asks for more than tensors and plain containers, BadData, Mismatch."""
    file = path / FILE if path.is_dir() else path
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file) or None)
    except FileNotFoundError as error:
        raise MissingInput(f"{file}: {error.strerror}") from None
    except Exception as error:
        if type(error).__name__ == "UnpicklingError":
            raise Untrusted(f"{file} holds more than tensors and plain containers: nothing of it was run") from None
        raise BadData(f"{file} cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    missing = [name for name in KEYS if not isinstance(state, dict) or name not in state]
    if missing:
        raise Mismatch(f"{file} lacks {', '.join(missing)}: expected the dictionary that --to dict writes")
    return state


def facts_of(path: Path, state: dict) -> dict:
    """Raises Mismatch for the dictionary of another trainer, whose network this one does not know."""
    facts = state.get("facts")
    if not isinstance(facts, dict) or "config" not in facts:
        raise Mismatch(f"{path} was not written by --to dict of this trainer: its network is another one")
    return facts


def read_dictionary(path: Path) -> Weights:
    """The model's tensors."""
    state = load_dictionary(path)
    facts = facts_of(path, state)
    known = {
        "model": facts["config"]["model"],
        "objective": facts["config"]["objective"]["objective"],
        "tokenizer": facts.get("fingerprints", {}).get("tokenizer"),
        "step": state["global_step"],
        "samples": facts.get("samples"),
    }
    return Weights(tensors=state["model_state_dict"], known=known, source=path)
