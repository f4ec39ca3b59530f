"""A model's tensors outside of any run, and whether they are the model that they say they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from megatron.budget import CANDIDATE_FEATURES, LEVEL_FEATURES, Shape
from megatron.errors import Mismatch


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model's tensors by logical name, and what is known of it."""

    tensors: dict[str, Tensor]
    known: dict  # model (flags of the section), and where known objective, tokenizer, step, samples
    source: Path


def check_shapes(path: Path, tensors: dict[str, Tensor], known: dict) -> None:
    """Raises Mismatch when the tensors are not exactly those of the described model."""
    try:
        expected = shapes(known["model"])
    except (KeyError, TypeError) as error:
        raise Mismatch(f"{path}: config.json does not describe a model of this trainer: {type(error).__name__} {error}") from None
    wrong = [f"{name} is {'missing' if name in expected else 'unknown'}" for name in sorted(expected.keys() ^ tensors.keys())]
    wrong += [
        f"{name} has shape {list(t.shape)}, expected {list(expected[name])}"
        for name, t in tensors.items()
        if name in expected and tuple(t.shape) != expected[name]
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise Mismatch(f"{path} does not hold the model that it describes: {'; '.join(wrong[:5])}{more}")


def shapes(model: dict) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a model, from the flags of its section. Raises KeyError, TypeError."""
    names = ("num_layers", "hidden_size", "num_attention_heads", "kv_channels", "ffn_hidden_size", "padded_vocab_size")
    latent = model["latent_size"] + LEVEL_FEATURES if model.get("latent_size") else 0
    told = LEVEL_FEATURES * model.get("time_conditioning", False) + latent * model.get("latent_adaln", False)
    shape = Shape(
        **{name: model[name] for name in names},
        tied=not model["untie_embeddings_and_output_weights"],
        condition_features=told,
        candidate_features=CANDIDATE_FEATURES * (model.get("sdd_denoiser") == "bilateral"),
        latent_features=latent,
        latent_readout=(model.get("latent_size") or 0) * model.get("latent_head", False),
        num_query_groups=model.get("num_query_groups"),
    )
    return {name: parameter.shape for name, parameter in shape.tensors().items()}
