"""Prompts and responses as the tensors of other trainers: NAME_tokens.pt and NAME_masks.pt [N, L], read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron.data.prepare.instruct_pairs import Encoded
from megatron.data.tokenizer import Tokenizer
from megatron.errors import BadData, MissingInput

if TYPE_CHECKING:
    from torch import Tensor

NAMES = {"train": "train", "valid": "val"}  # a split's name there


def read_tensor(path: Path) -> np.ndarray:
    """One tensor, read without running anything.  -> int64 [N, L].  Raises MissingInput or BadData."""
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror or error}, expected a tensor [N, L]") from None
    except Exception as error:  # whatever a damaged archive makes the library raise
        raise BadData(f"{path}: is not a tensor that can be read safely ({type(error).__name__}); write it again") from None
    whole = isinstance(found, torch.Tensor) and found.ndim == 2 and found.layout == torch.strided
    if not whole or found.is_complex() or (found.is_floating_point() and not torch.equal(found, found.round())):
        kind = f"{found.dtype} {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise BadData(f"{path}: holds {kind}, expected whole numbers [N, L]")
    return found.to(torch.int64).numpy()


def read_rows(folder: Path, name: str, vocab_size: int) -> list[Encoded]:
    """The pairs of NAME_tokens.pt and NAME_masks.pt: the prompt is what stands before the response.  Raises BadData."""
    where = folder / f"{name}_masks.pt"
    tokens, masks = (read_tensor(folder / f"{name}_{what}.pt") for what in ("tokens", "masks"))
    if tokens.shape != masks.shape or not np.isin(masks, (0, 1)).all():
        raise BadData(
            f"{where}: is {list(masks.shape)} with values {masks.min(initial=0)} to {masks.max(initial=0)}, expected "
            f"{list(tokens.shape)} as the tokens, with 0 and 1"
        )
    pairs = []
    for number, (row, places) in enumerate(zip(tokens, map(np.flatnonzero, masks), strict=True)):
        if not len(places) or places[0] == 0 or places[-1] - places[0] + 1 != len(places):
            first = f" from {places[0]} on" if len(places) else ""
            raise BadData(f"{where}: row {number} marks {len(places)} places{first}, expected one response behind a prompt")
        ids = row[: places[-1] + 1]
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise BadData(
                f"{folder / name}_tokens.pt: row {number} has ids {ids.min()} to {ids.max()}, expected 0 or more and "
                f"below {vocab_size}; give the tokenizer that made them"
            )
        pairs.append((ids[: places[0]], ids[places[0] :]))
    return pairs


def as_tensors(pairs: Sequence[Encoded], length: int, padding: int) -> tuple[Tensor, Tensor]:
    """Pairs whose prompt leaves room for a response, cut to `length`.  -> int64 [N, length] ids and masks, 1 on the response"""
    import torch

    fitting = [(prompt, response[: length - len(prompt)]) for prompt, response in pairs if len(prompt) < length]
    tokens = torch.full((len(fitting), length), padding, dtype=torch.int64)
    masks = torch.zeros_like(tokens)
    for row, mask, (prompt, response) in zip(tokens, masks, fitting, strict=True):
        end = len(prompt) + len(response)
        row[:end] = torch.from_numpy(np.concatenate([prompt, response]))
        mask[len(prompt) : end] = 1
    return tokens, masks


def write_tensors(
    stage: Path, parts: Mapping[str, Sequence[Encoded]], length: int, tokenizer: Tokenizer, tokenizer_file: bytes | None = None
) -> dict[str, int]:
    """The files other trainers read, with a config.json and, if given, a tokenizer.json.  -> rows by split"""
    import torch

    rows = {}
    for split, pairs in parts.items():
        tokens, masks = as_tensors(pairs, length, tokenizer.eod)
        torch.save(tokens, stage / f"{split}_tokens.pt")
        torch.save(masks, stage / f"{split}_masks.pt")
        rows[split] = len(tokens)
    config = {
        "vocab_size": tokenizer.vocab_size,
        "max_seq_len": length,
        "eos_token_id": tokenizer.eod,
        "pad_token_id": tokenizer.eod,
        "tokenizer_type": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint(),
        **{f"{split}_rows": count for split, count in rows.items()},
    }
    (stage / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="ascii")
    if tokenizer_file:
        (stage / "tokenizer.json").write_bytes(tokenizer_file)
    return rows
