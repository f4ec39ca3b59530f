"""Runs as Hugging Face folders, and Llama-shaped folders as checkpoints that training goes on from."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from megatron.budget import padded_vocab
from megatron.catalogue import need_likelihood, need_mask
from megatron.config import Model
from megatron.core.parameters import table
from megatron.data.tokenizer import build_tokenizer
from megatron.engine.average import root_of_weights
from megatron.errors import BadData, Mismatch
from megatron.exchange.agreement import Agreement, check_vector, compare, our_model, questions, their_model
from megatron.exchange.card import card
from megatron.exchange.llama import TABLES, folded, from_llama, llama_config, model_flags, rows_of, to_llama
from megatron.exchange.plain import load_tensors, save_tensors
from megatron.exchange.tokenizer_files import check_tokenizer, tokenizer_files
from megatron.exchange.transformers_library import library, open_model
from megatron.exchange.weights import Weights, check_shapes
from megatron.files import read_json, staged
from megatron.rundir.names import CHECKPOINT
from megatron.training.trained import Trained

MODELING = "modeling_masked_diffusion"
INITIAL_SEED, INITIAL_STD = 1234, 0.02  # of the rows that an imported table has not


def is_hugging_face(folder: Path) -> bool:
    """Whether its config.json is one of theirs."""
    return (folder / "config.json").is_file() and "model_type" in read_json(folder / "config.json", "copy the folder again")


# Out


def write_hugging_face(out: Path, trained: Trained, run: Path, dtype: torch.dtype, with_tokenizer: bool = True) -> Agreement:
    """A folder that AutoModelForCausalLM (AR) or AutoModelForMaskedLM with its own code (MDM) opens, compared before it is there.

    Raises Mismatch for a network that Llama is not, and where logits or the NLL would differ.
    """
    cfg, objective, said = trained.cfg, trained.objective, str(dtype).removeprefix("torch.")
    if cfg.model.time_conditioning:
        raise Mismatch(f"{run} was trained with --time-conditioning, and Llama's norms are told nothing: export a run without it")
    need_likelihood(cfg.objective.objective, "an export, which is compared by the NLL,")
    need_mask(cfg.objective.objective, "an export")
    library()
    root = root_of_weights(trained.checkpoint, weights_only=True)
    names = [name for name in trained.checkpoint.names() if name.startswith(f"{root}/")]
    tensors = {name.removeprefix(f"{root}/"): t for name, t in trained.checkpoint.tensors(names).items()}
    tensors, model = folded(tensors, cfg.model)
    tensors = {name: t.to(dtype).float() for name, t in tensors.items()}  # what is compared is the copy and not the rounding
    check_shapes(trained.checkpoint.path, tensors, {"model": cfg.as_dict()["model"]})
    rows = rows_of(model, objective.uses_mask)
    mask = model.vocab_size if objective.uses_mask else None
    ours, ids = our_model(tensors, model, objective.causal), questions(model, mask)
    with staged(out) as stage:
        save_tensors(stage, {name: t.to(dtype) for name, t in to_llama(tensors, model, rows).items()})
        config = llama_config(model, rows, said, trained.tokenizer.eod)
        if not objective.causal:
            config = masked_config(config, rows, mask)
            (stage / f"{MODELING}.py").write_bytes(Path(__file__).with_name(f"{MODELING}.py").read_bytes())
            (stage / "check.json").write_text(json.dumps(check_vector(ours, ids)))
        write_json(stage / "config.json", config)
        generation = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(stage / "generation_config.json", generation)
        if with_tokenizer:
            window, file = cfg.model.seq_length, cfg.data.tokenizer_model
            for name, data in tokenizer_files(trained.tokenizer, file, mask, window).items():
                (stage / name).write_bytes(data)
            check_tokenizer(stage, trained.tokenizer)
        agreed = compare(out, ours, their_model(open_model(stage, masked=not objective.causal)), ids)
        folder = run.parent if CHECKPOINT.fullmatch(run.name) else run
        (stage / "README.md").write_text(card(cfg, trained.checkpoint, folder, said, agreed), encoding="utf-8")
    return agreed


def masked_config(config: dict, rows: int, mask: int | None) -> dict:
    """config.json of the bidirectional model: transformers 5 obeys is_causal, and the class of the folder needs no such word."""
    name = f"{config['model_type'].capitalize()}ForMaskedDiffusion"
    return config | {
        "architectures": [name],
        "auto_map": {kind: f"{MODELING}.{name}" for kind in ("AutoModelForMaskedLM", "AutoModelForCausalLM")},
        "is_causal": False,
        "use_cache": False,
        "mask_token_id": mask,
    }


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1))


# In


def read_hugging_face(folder: Path) -> Weights:
    """A Llama-shaped folder as weights of this trainer, compared with what transformers says of it.

    Where the folder has a tokenizer.json, tables hold its ids, the mask's row and zeros, as they do here; what is left out must
    be padding. A row for the mask that is not there begins as in a new model. Raises Mismatch for another architecture.
    """
    config = read_json(folder / "config.json", "copy the folder again")
    if not (folder / "model.safetensors").exists() and not (folder / "model.safetensors.index.json").exists():
        raise BadData(f"{folder} has no model.safetensors: weights of other kinds are not read; save them as safetensors")
    masked = config.get("is_causal") is False
    known_rows = vocabulary(folder, config, masked)
    flags = model_flags(folder, config, known_rows, padded_vocab(known_rows))
    read = load_tensors(folder)
    tensors = from_llama(folder, read, flags)
    if not flags["untie_embeddings_and_output_weights"]:
        tensors.pop("head.weight", None)
    tensors |= {name: padded(name, tensors[name], known_rows, masked) for name in TABLES if name in tensors}
    known = {"model": flags, "objective": "mdm" if masked else "ar", "step": 0}
    check_shapes(folder, tensors, known)
    model = Model(**flags)
    ids = questions(model, known_rows if masked else None)
    compare(folder, our_model(tensors, model, not masked), their_model(open_model(folder, masked)), ids)
    return Weights(tensors=tensors, known=known, source=folder)


def vocabulary(folder: Path, config: dict, masked: bool) -> int:
    """Ids of the tokenizer: by its file, else all rows but the mask's.  Raises Mismatch."""
    rows, mask = config.get("vocab_size"), config.get("mask_token_id")
    if not isinstance(rows, int):
        raise Mismatch(f"{folder / 'config.json'} has no vocab_size: copy the folder again")
    if masked:
        if mask is None or mask >= rows:
            raise Mismatch(f"{folder / 'config.json'}: mask_token_id is {mask}, expected an id below vocab_size {rows}")
        return mask
    if not (folder / "tokenizer.json").is_file():
        return rows
    size = build_tokenizer("HFTokenizer", tokenizer_model=str(folder)).vocab_size
    if size > rows:
        raise Mismatch(f"{folder}: the tokenizer has {size} ids and the table {rows} rows: give the model's own tokenizer.json")
    return size


def padded(name: str, rows: Tensor, known_rows: int, masked: bool) -> Tensor:
    """A table as this trainer lays it out: known ids, the mask, zeros.  [r, h] -> [padded, h]"""
    found = table(INITIAL_SEED, name, (padded_vocab(known_rows), rows.shape[1]), known_rows) * INITIAL_STD
    kept = known_rows + masked
    found[:kept] = rows[:kept]
    return found


def training_flags(model: dict) -> str:
    """What --load --finetune needs beside data and schedule."""
    words = []
    for name, value in model.items():
        if name not in ("vocab_size", "padded_vocab_size") and value is not False:
            words.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}"))
    return " ".join(words)
