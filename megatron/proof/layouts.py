"""Layouts by name, and the experiment that the user's flags describe, as argv of one process."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from megatron import config
from megatron.catalogue import OBJECTIVES
from megatron.config import BUDGETS, CORPORA, Config
from megatron.data.indexed import IndexedWriter
from megatron.data.synthetic.topics import Topics, write_pairs
from megatron.engine import deepspeed
from megatron.errors import Refusal
from megatron.flags import ConfigError, find, split_words

# A tiny model whose gradients are clipped at every step.
TINY = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 32,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "global_batch_size": 16,
    "micro_batch_size": 2,
    "lr": 3e-3,
    "clip_grad": 0.5,
    "device": "cpu",
}
# At that rate this one learns to copy so fast that a difference of rounding, 1e-7, grows tenfold a step, also in one process.
TINY_OF = {"sdd": {"lr": 1e-3}}
RANDOM_TOKENS = 40_000
EVAL_ITERS = 2

# What a + in a layout's name means. Only the second kind changes the experiment, and so the process to compare with.
MODIFIERS = {
    "sp": "--sequence-parallel",
    "zero-bubble": "--pipeline-schedule zero-bubble",
    "interleaved": "--pipeline-schedule interleaved --num-layers-per-virtual-pipeline-stage CHUNK",
    "zero1": "--zero-stage 1",
    "zero2": "--zero-stage 2",
    "zero3": "--zero-stage 3",
    "deepspeed-zero0": "--deepspeed --zero-stage 0",
    "deepspeed-zero1": "--deepspeed --zero-stage 1",
    "deepspeed-zero2": "--deepspeed --zero-stage 2",
    "deepspeed-zero3": "--deepspeed --zero-stage 3",
    "cpu-optimizer": "--cpu-optimizer",
    "cpu-params": "--cpu-params",
    "uneven": "--decoder-first-pipeline-num-layers 1",
    "micro1": "--micro-batch-size 1",
    "micro2": "--micro-batch-size 2",
    "micro3": "--micro-batch-size 3",
    "micro4": "--micro-batch-size 4",
    "recompute-full": "--recompute-granularity full",
    "recompute-selective": "--recompute-granularity selective",
}
EXPERIMENTS = {
    "dropout": "--hidden-dropout 0.1 --attention-dropout 0.1 --parameter-dropout 0.1",
    "untied": "--untie-embeddings-and-output-weights",
    "bf16": "--bf16",
    "atat": "--atat full",
    "completep": "--parametrization completep --mup-base-hidden-size 16 --mup-base-num-layers 2 --mup-base-kv-channels 8 "
    "--untie-embeddings-and-output-weights --weight-decay 0.1 --weight-decay-by embedding=0,head=1,matrix=3 "
    "--embedding-dropout 0.1",
    "muon": "--optimizer muon",
    "gqa": "--group-query-attention --num-query-groups 2",
}
LAYOUTS = """tp2 tp4 pp2 pp4 dp2 dp3 tp2xpp2 tp2xdp2 pp2xdp2 tp2xpp2xdp2
    tp2+sp tp4+sp tp2xpp2+sp tp2xpp2xdp2+sp pp2+uneven pp2+interleaved pp2xdp2+interleaved pp2+zero-bubble tp2xpp2xdp2+zero-bubble
    dp2+zero1 dp2+zero2 dp2+zero3 tp2xdp2+zero1 tp2xdp2+zero2 tp2xdp2+zero3 tp2xdp2+sp+zero3
    pp2xdp2+zero1 pp2xdp2+zero2 pp2xdp2+zero3 pp2xdp2+interleaved+zero3 pp2xdp2+zero-bubble+zero1 tp2xpp2xdp2+zero1
    tp1+micro1 tp1+micro3 dp2+micro1 dp3+micro4 pp2xdp3+micro4 tp2xdp3+zero2+micro4
    tp1+recompute-full tp1+recompute-selective tp2+recompute-selective tp2xpp2+recompute-full dp2+zero3+recompute-full
    tp1+cpu-optimizer tp2xdp2+zero1+cpu-optimizer dp2+zero3+cpu-params
    tp2xpp2xdp2+dropout tp2+sp+dropout dp2+zero3+dropout pp2+interleaved+dropout pp2+zero-bubble+dropout
    tp2xpp2+recompute-full+dropout tp1+recompute-selective+dropout pp2xdp3+micro4+dropout
    pp2+untied tp2xpp2xdp2+untied dp2+zero3+untied pp2+zero-bubble+untied
    tp2+sp+gqa tp2xpp2xdp2+gqa dp2+zero3+gqa
    tp2xpp2xdp2+completep tp2+sp+completep dp2+zero2+completep dp2+zero3+completep pp2+zero-bubble+completep
    dp2+deepspeed-zero1+completep dp2+deepspeed-zero3+completep
    tp2xpp2xdp2+bf16 tp2+sp+bf16 dp2+zero3+bf16 pp2+zero-bubble+bf16
    dp2+deepspeed-zero0 dp2+deepspeed-zero1 dp2+deepspeed-zero2 dp2+deepspeed-zero3 pp2xdp2+deepspeed-zero1
    tp2xdp2+deepspeed-zero1 tp2xdp2+deepspeed-zero3 dp2+deepspeed-zero1+cpu-optimizer dp2+deepspeed-zero3+dropout
    tp2xpp2xdp2+atat tp2+sp+atat dp2+zero3+atat pp2+interleaved+atat pp2xdp2+zero-bubble+zero1+atat dp2+deepspeed-zero1+atat
    dp2+deepspeed-zero2+untied dp2+deepspeed-zero2+bf16
    tp2+muon tp2xdp2+sp+zero1+muon tp2xdp3+zero2+micro4+muon dp2+zero3+muon tp2xpp2xdp2+zero1+gqa+muon pp2+zero-bubble+muon
    pp2+interleaved+muon tp2xdp2+zero1+cpu-optimizer+muon dp2+zero3+cpu-params+muon dp2+zero3+bf16+muon
    tp2xdp2+zero1+atat+muon""".split()


def place_of(rank: int, world_size: int) -> dict[str, str]:
    """What a launcher on one machine would say."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}


@dataclass(frozen=True, kw_only=True)
class Layout:
    name: str
    world_size: int
    flags: tuple[str, ...]  # of the layout
    experiment: tuple[str, ...]  # of what it computes, which one process must do too
    deepspeed: bool = False  # which keeps state in its process


def read_layout(name: str, num_layers: int) -> Layout:
    """`tp2xpp2+sp` -> what to run. Raises ConfigError."""
    sizes, *modifiers = name.split("+")
    axes = dict(re.findall(r"(tp|pp|dp)([1-9]\d*)", sizes))
    unknown = [m for m in modifiers if m not in MODIFIERS and m not in EXPERIMENTS]
    if unknown or "x".join(axis + size for axis, size in axes.items()) != sizes or not axes:
        raise ConfigError(
            [
                f"--layouts {name}: expected sizes such as tp2xpp2xdp2, and behind a + any of "
                f"{', '.join([*MODIFIERS, *EXPERIMENTS])}"
            ]
        )
    tp, pp, dp = (int(axes.get(axis, 1)) for axis in ("tp", "pp", "dp"))
    words = " ".join(
        [
            "--tensor-model-parallel-size",
            str(tp),
            "--pipeline-model-parallel-size",
            str(pp),
            *(MODIFIERS[m] for m in modifiers if m in MODIFIERS),
        ]
    )
    return Layout(
        name=name,
        world_size=tp * pp * dp,
        flags=tuple(words.replace("CHUNK", str(num_layers // (2 * pp))).split()),
        experiment=tuple(" ".join(EXPERIMENTS[m] for m in modifiers if m in EXPERIMENTS).split()),
        deepspeed="--deepspeed" in words,
    )


# The user's flags


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What the flags describe, as argv of one process, and the layout that they name."""

    cfg: Config
    single: list[str]
    given: Layout | None


def served(words: list[str]) -> list[str]:
    """The objectives of the catalogue, but those of vectors where the words name corpora without."""
    named = named_in(words)
    without = {name for group in CORPORA for name in group} & named.keys() and named.get("data_kind") != ("pairs",)
    return [name for name, known in OBJECTIVES.items() if not (known.vectors and without)]


def named_in(words: list[str]) -> dict[str | None, tuple[str, ...]]:
    """Field name -> values, of the flags among words."""
    return {find(spelled, config.declared())[0]: values for spelled, values in split_words(words, [])}


def read_experiment(words: list[str], objective: str, folder: Path) -> Experiment:
    """The flags of pretrain_*.py, completed where they leave open what a tiny run can be. Raises ConfigError."""
    named = named_in(words)
    open_yet = {} if "--config" in words else completion(named, objective, folder)
    missing = write_json(folder / "missing.json", open_yet)
    world_size = world_asked(named)
    cfg = config.parse(["--config", missing, *words], objective, place_of(0, world_size))
    whole = cfg.as_dict()
    whole["log"]["log_interval"], whole["train"]["eval_iters"] = 1, EVAL_ITERS
    whole["parallel"]["world_size"] = None
    alone = ["--config", write_json(folder / f"{objective}.json", whole | {"parallel": {}})]
    given = None
    if named.keys() & {f.name for f in fields(config.Parallel)}:
        flags = ("--config", write_json(folder / f"{objective}-given.json", {"parallel": whole["parallel"]}))
        given = Layout(name="as given", world_size=world_size, flags=flags, experiment=(), deepspeed=cfg.parallel.deepspeed)
    return Experiment(cfg=cfg, single=alone, given=given)


def completion(named: Mapping[str | None, tuple[str, ...]], objective: str, folder: Path) -> dict[str, Any]:
    """What a run needs and nobody named."""
    found: dict[str, Any] = {}
    if not {"num_layers", "model_config"} & set(named):
        found |= TINY | TINY_OF.get(objective, {})
    if not set(BUDGETS) & set(named):
        found |= {"train_iters": 100}
    if not {name for group in CORPORA for name in group} & set(named):
        if OBJECTIVES[objective].vectors or named.get("data_kind") == ("pairs",):
            pairs = {"data_kind": "pairs", "latent_size": Topics().size, "tokenizer_type": "ByteTokenizer"}
            return found | random_pairs(folder) | {name: value for name, value in pairs.items() if name not in named}
        found |= {"data_path": [random_corpus(folder)], "split": "80,20,0", "tokenizer_type": "ByteTokenizer"}
    return found


def world_asked(named: dict[str | None, tuple[str, ...]]) -> int:
    """Processes that the flags of a layout need; two replicas where they shard something over replicas."""
    sizes = [named.get(f"{axis}_model_parallel_size", ("1",)) for axis in ("tensor", "pipeline")]
    count = math.prod(int(size[0]) for size in sizes if size and size[0].isdigit())
    return count * 2 if {"zero_stage", "use_distributed_optimizer"} & named.keys() else count


def random_corpus(folder: Path) -> str:
    """Prefix of documents of random bytes, the same on every machine."""
    rng, prefix = np.random.default_rng(0), str(folder / "corpus")
    with IndexedWriter(prefix) as writer:
        for document in np.split(rng.integers(0, 256, RANDOM_TOKENS), range(500, RANDOM_TOKENS, 500)):
            writer.add_document(document)
    return prefix


def random_pairs(folder: Path) -> dict[str, list[str]]:
    """Texts with vectors to train and to validate on, of which the vectors say the topic, the same on every machine."""
    for number, split in enumerate(("train", "valid")):
        if not (folder / f"{split}.idx").exists():  # for another objective
            write_pairs(Topics(length=24), folder / split, 1000, number)
    return {f"{split}_data_path": [str(folder / split)] for split in ("train", "valid")}


def write_json(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


# What can run here


def why_not(layout: Layout, experiment: Experiment, size: int) -> str:
    """Why a layout cannot run here, in words; empty when it can."""
    if layout.world_size > size:
        return f"it needs {layout.world_size} processes, and there is room for {size}"
    try:
        cfg = config.parse([*experiment.single, *layout.flags, *layout.experiment], environ=place_of(0, layout.world_size))
        if cfg.parallel.deepspeed:
            deepspeed.check(cfg, lambda line: None)
    except Refusal as error:
        return "; ".join(str(error).splitlines())
    return ""


def choose(names: list[str], experiment: Experiment, size: int) -> tuple[list[Layout], list[str]]:
    """The layouts to verify, and those of the usual list that are left out and why. Raises ConfigError for one that was named."""
    if names and experiment.given:
        raise ConfigError([f"--layouts {','.join(names)}: the other flags name a layout too; give it in one way"])
    asked = (
        [experiment.given]
        if experiment.given
        else [read_layout(name, experiment.cfg.model.num_layers) for name in names or LAYOUTS]
    )
    reasons = {layout.name: why_not(layout, experiment, size) for layout in asked}
    refused = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    if refused and (names or experiment.given):
        raise ConfigError(refused)
    return [layout for layout in asked if not reasons[layout.name]], refused
