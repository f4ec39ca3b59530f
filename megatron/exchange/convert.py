"""From any form of weights to any other that it can take."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron.core import checkpoint
from megatron.errors import Mismatch, MissingInput
from megatron.exchange.checkpoints import read_checkpoint, write_checkpoint
from megatron.exchange.dictionary import ENDS, FILE, is_dictionary, read_dictionary, write_dictionary
from megatron.exchange.hugging_face import is_hugging_face, read_hugging_face, training_flags, write_hugging_face
from megatron.exchange.megatron_deepspeed import holds_megatron, named_by_latest, read_megatron
from megatron.exchange.plain import holds_tensors, read_plain, write_plain
from megatron.exchange.weights import Weights, check_shapes
from megatron.flags import ConfigError
from megatron.training.trained import find_finished, open_run

WRITES = {"dict": "a folder or a .pt file"} | dict.fromkeys(("plain", "checkpoint", "hf"), "a folder")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def convert(
    source: Path,
    out: Path,
    *,
    form: str | None = None,
    to: str | None = None,
    which: str | None = None,
    dtype: str | None = None,
    num_heads: int | None = None,
    with_tokenizer: bool = True,
) -> dict:
    """Read `source` and write the new folder, or a dictionary's file, `out`; what was done, with a `sentence` for people.

    Raises the classes of errors.
    """
    if not source.exists():
        raise MissingInput(f"{source} is not there: give a run, one of its checkpoints, or what --from names")
    place = folder_of(source)
    looks = form_of(place)
    if form not in (None, looks):
        raise Mismatch(f"{source} looks like {looks}, and --from says {form}: leave it out, or give the folder that you mean")
    to = to or ("plain" if looks == "checkpoint" else "checkpoint")
    refuse_idle(looks, to, which, dtype, num_heads, with_tokenizer)
    if out.suffix in (*ENDS, ".safetensors", ".bin") and not (to == "dict" and out.suffix in ENDS):
        raise ConfigError([f"{out} is named like a file, and --to {to} writes {WRITES[to]}: give a name without {out.suffix}"])
    if to in ("hf", "dict"):
        if looks != "checkpoint":
            raise Mismatch(
                f"--to {to} takes a run or one of its checkpoints, and {source} looks like {looks}: train from it first"
            )
        return of_run(source, out, to, which, DTYPES[dtype or "fp32"], with_tokenizer)
    weights = read(place, looks, num_heads)
    if to == "plain":
        write_plain(out, weights, DTYPES[dtype or "fp32"])
    else:
        write_checkpoint(out, weights)
    size, rows = sum(t.numel() for t in weights.tensors.values()), weights.known["model"]["padded_vocab_size"]
    sentence = f"{weights.source}: {size:,} parameters, a table of {rows} rows; written to {out} as {to}"
    sentence += f": train with --load {out} --finetune" if to == "checkpoint" else ""
    if looks == "hf":
        sentence += f" {training_flags(weights.known['model'])}"
    said = {"source": str(weights.source), "out": str(out), "to": to, "parameters": size, "known": weights.known}
    return said | {"sentence": sentence}


def of_run(source: Path, out: Path, to: str, which: str | None, dtype: torch.dtype, with_tokenizer: bool) -> dict:
    if to == "dict":
        path = find_finished(source, which)
        found = checkpoint.load(path)
        if "model_config" not in found.facts or "train_config" not in found.facts:
            raise Mismatch(f"{path} holds no run: --to dict takes a checkpoint of training")
        file = out if out.suffix in ENDS else out / FILE
        write_dictionary(file, found)
        said = {"source": str(path), "out": str(file), "to": to, "step": found.step}
        return said | {"sentence": f"{path}: written to {file}, a dictionary for torch.load(..., weights_only=True)"}
    trained = open_run(source, which, device="cpu", dtype="fp32", say=lambda line: None)
    agreed = write_hugging_face(out, trained, source, dtype, with_tokenizer)
    said = {"source": str(trained.checkpoint.path), "out": str(out), "to": to, "step": trained.checkpoint.step} | vars(agreed)
    return said | {
        "sentence": f"{trained.checkpoint.path}: written to {out} for transformers; logits differ by at most "
        f"{agreed.logits:.1e}, the NLL by {agreed.nll:.1e} nats"
    }


def refuse_idle(looks: str, to: str, which: str | None, dtype: str | None, num_heads: int | None, with_tokenizer: bool) -> None:
    """No flag is ever ignored. Raises ConfigError."""
    idle = [
        (
            which is not None and to not in ("hf", "dict"),
            f"--checkpoint {which} acts on --to hf and dict: name the checkpoint's folder",
        ),
        (dtype is not None and to not in ("plain", "hf"), f"--dtype {dtype}: --to {to} is fp32: leave it out"),
        (
            num_heads is not None and looks != "megatron",
            f"--num-attention-heads {num_heads} acts on Megatron's files: leave it out",
        ),
        (not with_tokenizer and to != "hf", "--no-tokenizer acts on --to hf: leave it out"),
    ]
    if mistakes := [sentence for wrong, sentence in idle if wrong]:
        raise ConfigError(mistakes)


def folder_of(path: Path) -> Path:
    return path.parent if path.is_file() and not is_dictionary(path) else named_by_latest(path)


def form_of(place: Path) -> str:
    """What a path holds, by its files; a checkpoint where there is no sign of anything else."""
    if is_dictionary(place):
        return "dict"
    if place.is_dir() and is_hugging_face(place):
        return "hf"
    if holds_tensors(place):
        return "plain"
    return "megatron" if holds_megatron(place) else "checkpoint"


def read(place: Path, form: str, num_heads: int | None) -> Weights:
    """Raises MissingInput, BadData, Mismatch, Untrusted."""
    match form:
        case "dict":
            weights = read_dictionary(place)
            check_shapes(place, weights.tensors, weights.known)
            return weights
        case "hf":
            return read_hugging_face(place)
        case "plain":
            return read_plain(place)
        case "megatron":
            return read_megatron(place, num_heads)
    return read_checkpoint(place)
