"""Megatron-DeepSpeed's files: only tensors are taken, whatever the layout they were trained at, and nothing is executed."""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.core import checkpoint
from megatron.errors import BadData, Mismatch, MissingInput, Untrusted
from megatron.exchange.weights import Weights, check_shapes

PART = re.compile(r"mp_rank_(\d+)_model_states\.pt")
LAYER_FILE = re.compile(r"layer_(\d+)(?:-model_(\d+))?-model_states\.pt")
LAYER = re.compile(r"language_model\.(?:encoder|transformer)\.layers\.(\d+)\.(?:self_)?(.+)")
BLOCK_NAMES = {
    "input_layernorm.weight": "norm1.weight",
    "post_attention_layernorm.weight": "norm2.weight",
    "attention.query_key_value.weight": "attention.qkv.weight",
    "attention.dense.weight": "attention.out.weight",
    "mlp.dense_h_to_4h.weight": "mlp.up.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down.weight",
}
NAMES = {
    "language_model.embedding.word_embeddings.weight": "embed.weight",
    "language_model.output_layer.weight": "head.weight",
    "language_model.encoder.final_layernorm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    "language_model.transformer.final_layernorm.weight": "norm.weight",
}
COLUMNS_CUT = ("attention.out.weight", "mlp.down.weight")  # row-parallel layers: parts lie side by side
# What Megatron-DeepSpeed stores beside its weights. It is never imported: an empty shell takes each one's place.
SHELLS = (
    "argparse.Namespace",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "megatron.core.enums.ModelType",
    "megatron.model.enums.PositionEmbeddingType",
    "megatron.enums.PositionEmbeddingType",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
)
# Settings of a Megatron model that this one cannot have, unless they are so.
REQUIRED = {
    "swiglu": True,
    "normalization": "rmsnorm",
    "use_rotary_position_embeddings": True,
    "rotary_percent": 1.0,
    "num_experts": [1],
    "apply_layernorm_1p": False,
}


class Shell:
    """Stands for an object whose class is not wanted; keeps its state, which is plain data, and does nothing."""

    state: object = None

    def __init__(self, *_):
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


def named_by_latest(path: Path) -> Path:
    """DeepSpeed's top folder names its newest step in `latest`."""
    name = checkpoint.read_latest(path)
    return path / name if re.fullmatch(r"global_step\d+", name) else path


def holds_megatron(folder: Path) -> bool:
    return folder.is_dir() and any(PART.fullmatch(p.name) or LAYER_FILE.fullmatch(p.name) for p in folder.iterdir())


def read_megatron(folder: Path, num_heads: int | None) -> Weights:
    """The tensor-parallel parts of one step, put together. Raises Untrusted, Mismatch, MissingInput, BadData."""
    parts = {int(match[1]): p for p in sorted(folder.iterdir()) if (match := PART.fullmatch(p.name))}
    layers = {(int(match[1]), int(match[2] or 0)): p for p in folder.iterdir() if (match := LAYER_FILE.fullmatch(p.name))}
    states = [load_state(parts[rank]) for rank in sorted(parts)]
    settings = check_settings(folder, states[0] if states else {})
    if layers:
        size = 1 + max(rank for _, rank in layers)
        refuse_missing(
            folder,
            [
                f"layer_{layer:02d}-model_{rank:02d}-model_states.pt"
                for layer in {layer for layer, _ in layers}
                for rank in range(size)
                if (layer, rank) not in layers
            ],
        )
        modules = [name_layers([load_state(p) for (_, at), p in sorted(layers.items()) if at == rank]) for rank in range(size)]
    else:
        size = max(states[0].get("mp_world_size") or 1, 1 + max(parts))
        refuse_missing(folder, [f"mp_rank_{rank:02d}_model_states.pt" for rank in range(size) if rank not in parts])
        modules = [dict(flatten(state.get("module"), "")) for state in states]
    tensors = merge(folder, [rename(folder, module) for module in modules])
    known = {"model": describe(folder, tensors, settings, num_heads), "step": number(settings, "iteration")}
    check_shapes(folder, tensors, known)
    return Weights(tensors=tensors, known=known, source=folder)


def load_state(path: Path) -> dict:
    """One file of torch.save, memory-mapped where its format can be; shells in place of objects. Raises Untrusted, BadData."""
    try:
        with torch.serialization.safe_globals([(Shell, name) for name in SHELLS]):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise BadData(f"{path} cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}") from error
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks for {asked[1]}" if asked else "holds more than tensors and plain containers"
        raise Untrusted(
            f"{path} {what}, which weights do not need: nothing of it was run; get the weights from a source "
            "that you trust, or as safetensors"
        ) from None
    if not isinstance(state, dict):
        raise BadData(f"{path} holds a {type(state).__name__}, expected the dictionary of a model's state")
    return state


def refuse_missing(folder: Path, names: list[str]) -> None:
    if names:
        raise MissingInput(f"{folder} lacks {', '.join(sorted(names)[:10])}: every tensor-parallel rank's file is needed")


def check_settings(folder: Path, state: dict) -> dict:
    """The training's arguments, as far as stored. Raises Mismatch for a model that this one cannot be."""
    version = number(state, "checkpoint_version")
    if version is None:
        print(f"{folder} does not say its checkpoint_version: taken as 3", file=sys.stderr)
    elif version != 3:
        raise Mismatch(
            f"{folder} has checkpoint_version {version}, whose rows are in another order: expected 3; "
            "load and save it with a newer Megatron-DeepSpeed"
        )
    given = state.get("args")
    settings = given.state if isinstance(given, Shell) and isinstance(given.state, dict) else {}
    wrong = [
        f"{name} is {settings[name]}, expected {value}"
        for name, value in REQUIRED.items()
        if name in settings and settings[name] != value
    ]
    if wrong:
        raise Mismatch(f"{folder} holds another architecture: {'; '.join(wrong)}")
    return settings | {"iteration": state.get("iteration")}


def number(settings: dict, name: str) -> Any:
    value = settings.get(name)
    return value if isinstance(value, int | float) else None


def name_layers(states: list[dict]) -> dict[str, Tensor]:
    """A pipeline's layer files, in order, under the names that they have without a pipeline."""
    found: dict[str, Tensor] = {}
    num_blocks = 0
    for state in states:
        if "input_layernorm.weight" in state:
            prefix, num_blocks = f"language_model.encoder.layers.{num_blocks}.", num_blocks + 1
        elif "word_embeddings.weight" in state:  # with tied tables, the last stage stores its copy too
            prefix = "language_model.embedding."
        elif "weight" in state:
            prefix = "language_model.encoder.final_layernorm."
        else:
            prefix = ""
        found |= dict(flatten(state, prefix))
    return found


def flatten(state: object, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of nested dictionaries. Raises Untrusted for anything else that they hold."""
    if isinstance(state, Tensor):
        yield prefix.removesuffix(".").removeprefix("module."), state
    elif isinstance(state, dict):
        for name, value in state.items():
            yield from flatten(value, f"{prefix}{name}.")
    elif state is not None:
        raise Untrusted(f"{prefix.removesuffix('.')} is a {type(state).__name__}: a model's state holds tensors")


def rename(folder: Path, module: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logical names for Megatron's. Raises Mismatch naming what this model does not have."""
    found, unknown = {}, []
    for name, tensor in module.items():
        block = LAYER.fullmatch(name)
        if block and block[2] in BLOCK_NAMES:
            found[f"blocks.{block[1]}.{BLOCK_NAMES[block[2]]}"] = tensor
        elif name in NAMES:
            found[NAMES[name]] = tensor
        elif not name.endswith("rotary_pos_emb.inv_freq"):
            unknown.append(name)
    biases = [name for name in unknown if name.endswith(".bias")]
    if unknown:
        what = "biases, which this model has not" if biases else "tensors that this model has not"
        raise Mismatch(f"{folder} holds another architecture, with {what}: {', '.join((biases or unknown)[:5])}")
    return found


def merge(folder: Path, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Whole fp32 tensors from tensor-parallel parts, which must hold the same names."""
    if any(part.keys() != parts[0].keys() for part in parts):
        raise BadData(f"{folder}: the tensor-parallel parts hold different tensors")
    try:
        return {name: merge_tensor(folder, name, [part[name].float() for part in parts]) for name in parts[0]}
    except RuntimeError as error:  # parts whose shapes do not go together
        raise BadData(f"{folder}: the tensor-parallel parts do not fit together: {error}") from error


def merge_tensor(folder: Path, name: str, parts: list[Tensor]) -> Tensor:
    if name.endswith("mlp.up.weight"):  # of each part (gate|up, f) -> (f, gate|up), the order of the cut
        return torch.cat([part.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1) for part in parts])
    if parts[0].dim() > 1:
        return torch.cat(parts, dim=int(name.endswith(COLUMNS_CUT)))
    if not all(torch.equal(part, parts[0]) for part in parts):
        raise BadData(f"{folder}: {name} differs between tensor-parallel ranks, which should hold copies")
    return parts[0]


def describe(folder: Path, tensors: dict[str, Tensor], settings: dict, num_heads: int | None) -> dict:
    """The model's flags, from shapes and from what the training's arguments add. Raises Mismatch."""
    stored = number(settings, "num_attention_heads")
    if None not in (stored, num_heads) and stored != num_heads:
        raise Mismatch(f"{folder} was trained with {stored} attention heads: leave out --num-attention-heads {num_heads}")
    num_heads = num_heads or stored
    if not num_heads:
        raise Mismatch(f"{folder} does not say how many attention heads its model has: give --num-attention-heads")
    try:
        rows, h = tensors["embed.weight"].shape
        width, ffn = tensors["blocks.0.attention.out.weight"].shape[1], tensors["blocks.0.mlp.down.weight"].shape[1]
    except (KeyError, ValueError) as error:
        raise Mismatch(f"{folder} holds no transformer of this architecture: {error}") from None
    if width % num_heads:
        raise Mismatch(f"{folder}: {num_heads} heads do not divide an attention width of {width}: give --num-attention-heads")
    found: dict[str, Any] = {
        "num_layers": len([name for name in tensors if name.endswith("mlp.down.weight")]),
        "hidden_size": h,
        "num_attention_heads": num_heads,
        "kv_channels": width // num_heads,
        "ffn_hidden_size": ffn,
        "padded_vocab_size": rows,
        "untie_embeddings_and_output_weights": "head.weight" in tensors,
    }
    groups = number(settings, "num_key_value_heads")
    if groups not in (None, num_heads):
        found |= {"group_query_attention": True, "num_query_groups": groups}
    epsilon = number(settings, "layernorm_epsilon")
    return found if epsilon is None else found | {"norm_epsilon": epsilon}
