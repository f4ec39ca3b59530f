"""The names, shapes and settings of Hugging Face's Llama, of which ours is one: both ways, without any library.

Both turn channel pairs (i, i + d/2), so that no row of a projection changes its place inside a head. Ours fuse queries, keys and
values by group (q..q|k|v, d) and gate with up (f, gate|up). h width, n heads, g groups, d head width, f SwiGLU width.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from megatron.config import Model
from megatron.errors import Mismatch

BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
NAMES = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "head.weight": "lm_head.weight"}
BLOCK_NAMES = {
    "norm1.weight": "input_layernorm.weight",
    "norm2.weight": "post_attention_layernorm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
QKV, QKV_PARTS = "attention.qkv.weight", [f"self_attn.{which}_proj.weight" for which in "qkv"]
UP, UP_PARTS = "mlp.up.weight", ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
TABLES = ("embed.weight", "head.weight")
# What a config.json of these types may say, and this model cannot be unless it says just this or nothing.
REQUIRED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "rope_scaling": None,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
TYPES = ("llama", "mistral")


def rows_of(model: Model, uses_mask: bool) -> int:
    """Rows of the tables that mean something: ids of the tokenizer and the mask; all, where the softmax runs over all."""
    return model.padded_vocab_size if model.predict_reserved else model.vocab_size + uses_mask


def folded(tensors: dict[str, Tensor], model: Model) -> tuple[dict[str, Tensor], Model]:
    """The same function without what --parametrization scales in the forward pass: its factors become part of the weights."""
    if model.parametrization == "standard":
        return tensors, model
    factors = {"attention.out.weight": 1 / model.depth_factor, "mlp.down.weight": 1 / model.depth_factor}
    found = {}
    for name, tensor in tensors.items():
        block = BLOCK.fullmatch(name)
        if name == "norm.weight":
            tensor = tensor / model.width_factor
        elif block and block[2] == QKV:
            heads = tensor.unflatten(0, (groups_of(model), -1, model.kv_channels)).clone()
            heads[:, :-2] *= model.query_factor
            tensor = heads.flatten(0, 2)
        elif block:
            tensor = tensor * factors.get(block[2], 1.0)
        found[name] = tensor
    return found, replace(
        model, parametrization="standard", mup_base_hidden_size=None, mup_base_num_layers=None, mup_base_kv_channels=None
    )


def to_llama(tensors: dict[str, Tensor], model: Model, rows: int) -> dict[str, Tensor]:
    """Our tensors under their names, tables cut to `rows`."""
    found = {}
    for name, tensor in tensors.items():
        block = BLOCK.fullmatch(name)
        if not block:
            found[NAMES[name]] = tensor[:rows] if name in TABLES else tensor
            continue
        prefix = f"model.layers.{block[1]}."
        if block[2] == QKV:
            heads = tensor.unflatten(0, (groups_of(model), -1, model.kv_channels))  # [g, n/g + 2, d, h]
            parts = (heads[:, :-2].flatten(0, 2), heads[:, -2].flatten(0, 1), heads[:, -1].flatten(0, 1))
            found |= {prefix + part: rows_ for part, rows_ in zip(QKV_PARTS, parts)}
        elif block[2] == UP:
            found |= {prefix + part: half for part, half in zip(UP_PARTS, tensor.unflatten(0, (-1, 2)).unbind(1))}
        else:
            found[prefix + BLOCK_NAMES[block[2]]] = tensor
    return {name: tensor.contiguous() for name, tensor in found.items()}


def from_llama(folder: Path, tensors: dict[str, Tensor], model: dict) -> dict[str, Tensor]:
    """Their tensors under our names, in fp32, tables as they are. Raises Mismatch naming what this model does not have."""
    plain = {theirs: ours for ours, theirs in NAMES.items()} | {theirs: ours for ours, theirs in BLOCK_NAMES.items()}
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        layer = LAYER.fullmatch(name)
        inside = layer[2] if layer else name
        prefix = f"blocks.{layer[1]}." if layer else ""
        if inside in plain:
            found[prefix + plain[inside]] = tensor.float()
        elif inside in QKV_PARTS or inside in UP_PARTS:
            parts.setdefault(prefix, {})[inside] = tensor.float()
        elif not inside.endswith("rotary_emb.inv_freq"):
            unknown.append(name)
    if unknown:
        raise Mismatch(f"{folder} holds another architecture, with tensors that this model has not: {', '.join(unknown[:5])}")
    for prefix, some in parts.items():
        found |= {prefix + name: tensor for name, tensor in fused(folder, some, model).items()}
    return found


def fused(folder: Path, parts: dict[str, Tensor], model: dict) -> dict[str, Tensor]:
    """The two fused projections of one layer."""
    if missing := [name for name in (*QKV_PARTS, *UP_PARTS) if name not in parts]:
        raise Mismatch(f"{folder} lacks {', '.join(missing)} of a layer: copy the weights again")
    groups, d = model.get("num_query_groups") or model["num_attention_heads"], model["kv_channels"]
    try:
        qkv = torch.cat([parts[name].unflatten(0, (groups, -1, d)) for name in QKV_PARTS], 1).flatten(0, 2)
        up = torch.stack([parts[name] for name in UP_PARTS], 1).flatten(0, 1)
    except RuntimeError as error:
        raise Mismatch(f"{folder}: projections do not have the shapes that config.json describes: {error}") from None
    return {QKV: qkv, UP: up}


def groups_of(model: Model) -> int:
    return model.num_query_groups or model.num_attention_heads


def llama_config(model: Model, rows: int, dtype: str, eod: int) -> dict:
    """config.json of the causal model. Mistral's code is Llama's, and takes a width that the heads do not divide."""
    kind = "mistral" if model.hidden_size % model.num_attention_heads else "llama"
    rope = {"rope_type": "default", "rope_theta": model.rotary_base}
    return {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        "vocab_size": rows,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": groups_of(model),
        "head_dim": model.kv_channels,
        "rms_norm_eps": model.norm_epsilon,
        "hidden_act": "silu",
        "max_position_embeddings": max(model.seq_length, model.max_position_embeddings or 0),
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": model.initial_std,
        "rope_parameters": rope,  # transformers 5
        "rope_theta": model.rotary_base,  # transformers 4
        "bos_token_id": eod,
        "eos_token_id": eod,
        "pad_token_id": eod,
        "dtype": dtype,
        "torch_dtype": dtype,
    } | ({"sliding_window": None} if kind == "mistral" else {})


def model_flags(folder: Path, config: dict, vocab_size: int, padded: int) -> dict:
    """Our flags of a config.json. Raises Mismatch for what this model cannot be."""
    rope = config.get("rope_parameters") or {}
    wrong = [
        f"{name} is {config[name]!r}, expected {value!r}"
        for name, value in REQUIRED.items()
        if name in config and config[name] != value
    ]
    if config.get("model_type") not in TYPES:
        wrong.append(f"model_type is {config.get('model_type')!r}, expected {' or '.join(TYPES)}")
    if rope.get("rope_type", "default") != "default":
        wrong.append(f"rope_type is {rope['rope_type']!r}, expected 'default'")
    if wrong:
        raise Mismatch(f"{folder} holds another architecture: {'; '.join(wrong)}")
    try:
        heads, width = config["num_attention_heads"], config["hidden_size"]
        groups = config.get("num_key_value_heads") or heads
        return {
            "num_layers": config["num_hidden_layers"],
            "hidden_size": width,
            "num_attention_heads": heads,
            "kv_channels": config.get("head_dim") or width // heads,
            "ffn_hidden_size": config["intermediate_size"],
            "vocab_size": vocab_size,
            "padded_vocab_size": padded,
            "untie_embeddings_and_output_weights": not config.get("tie_word_embeddings", False),
            "norm_epsilon": config.get("rms_norm_eps", 1e-6),
            "rotary_base": float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        } | ({"group_query_attention": True, "num_query_groups": groups} if groups != heads else {})
    except (KeyError, TypeError) as error:
        raise Mismatch(f"{folder / 'config.json'} does not describe a model: {type(error).__name__} {error}") from None
