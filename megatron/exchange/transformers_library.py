"""All that this project asks of the transformers library, which is an extra: models and tokenizers of a folder."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from megatron.errors import BadData, MissingInput

LEAST = 5  # major version that reads is_causal


def library() -> Any:
    """The package, quiet. Raises MissingInput where it is not installed, or too old."""
    try:
        found = version("transformers")
    except PackageNotFoundError:
        raise MissingInput("this needs the Python package transformers: pip install -e '.[hf]'") from None
    if int(found.split(".")[0]) < LEAST:
        raise MissingInput(
            f"transformers {found} is installed, expected {LEAST} or later: pip install -U 'transformers>={LEAST}'"
        )
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def open_model(folder: Path, masked: bool) -> Any:
    """The model of a folder in fp32, to score with; a masked one opens with our code, never with the folder's. Raises BadData."""
    auto = library().AutoModelForCausalLM
    if masked:
        shipped = import_module("megatron.exchange.modeling_masked_diffusion")
        kind = library().AutoConfig.from_pretrained(folder).model_type
        auto = getattr(shipped, f"{kind.capitalize()}ForMaskedDiffusion")
    try:
        return auto.from_pretrained(folder, dtype=torch.float32).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise BadData(f"{folder} cannot be opened with transformers: {type(error).__name__}: {error}") from error


def open_tokenizer(folder: Path) -> Any:
    """Raises BadData."""
    auto = library().AutoTokenizer
    try:
        return auto.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise BadData(f"the tokenizer of {folder} cannot be opened with transformers: {error}") from error


def random_llama(**settings) -> torch.nn.Module:
    """A Llama with initial weights, to compare speeds with."""
    return library().LlamaForCausalLM(library().LlamaConfig(**settings))
