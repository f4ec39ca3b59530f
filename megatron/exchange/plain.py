"""Plain weights: model.safetensors, or several such files with an index, under logical names, and a config.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron.core import checkpoint
from megatron.core.checkpoint import whole
from megatron.errors import BadData, Untrusted
from megatron.exchange.weights import Weights, check_shapes
from megatron.files import read_json, staged

INDEX = "model.safetensors.index.json"
PLAIN_FILE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.safetensors")


def read_plain(folder: Path) -> Weights:
    """model.safetensors, or the files of an index, with the config.json beside them."""
    known = read_json(folder / "config.json", "plain weights need the config.json that this tool writes beside them")
    tensors = load_tensors(folder)
    check_shapes(folder, tensors, known)
    return Weights(tensors=tensors, known=known, source=folder)


def holds_tensors(folder: Path) -> bool:
    return (folder / "model.safetensors").exists() or (folder / INDEX).exists()


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """Those of model.safetensors, or of the files of an index. Raises BadData, Untrusted."""
    tensors: dict[str, Tensor] = {}
    for name in plain_files(folder):
        try:
            tensors |= load_file(folder / name)
        except (SafetensorError, OSError) as error:
            raise BadData(f"{folder / name} cannot be read: {error}") from error
    return tensors


def plain_files(folder: Path) -> list[str]:
    if not (folder / INDEX).exists():
        return ["model.safetensors"]
    files = read_json(folder / INDEX, "copy the weights again").get("weight_map")
    if not isinstance(files, dict):
        raise BadData(f"{folder / INDEX} has no weight_map")
    for name in files.values():
        if not isinstance(name, str) or not PLAIN_FILE.fullmatch(name):
            raise Untrusted(f"{folder / INDEX} names {name!r}: weights lie beside their index and end in .safetensors")
    return sorted(set(files.values()))


def write_plain(out: Path, weights: Weights, dtype: torch.dtype) -> None:
    """model.safetensors, or several files with an index, and config.json."""
    with staged(out) as stage:
        save_tensors(stage, {name: t.to(dtype) for name, t in weights.tensors.items()})
        (stage / "config.json").write_text(json.dumps(weights.known | {"dtype": str(dtype).removeprefix("torch.")}, indent=1))


def save_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """model.safetensors, or several files with an index."""
    shards = checkpoint.cut_shards(whole({name: t.contiguous() for name, t in tensors.items()}))
    files = (
        {"model.safetensors": shards[0]}
        if len(shards) == 1
        else {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}
    )
    for name, shard in files.items():
        save_file({piece.name: piece.tensor for piece in shard}, folder / name, metadata={"format": "pt"})
    if len(files) > 1:
        places = {piece.name: name for name, shard in files.items() for piece in shard}
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=1))
