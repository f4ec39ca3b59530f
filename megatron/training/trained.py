"""A run opened again: its tokenizer, its objective, and an engine that holds its weights, at any layout and precision.

    from megatron.training import open_run

    trained = open_run("runs/ar")
    ids = torch.from_numpy(trained.tokenizer.encode("a text"))[None]
    trained.logits(ids).log_softmax(-1)             # [1, s, v]

Whoever needs a run's parts gets them here: training, evaluation, tools and notebooks compose them in the same way.
b rows, s positions, v ids that can be predicted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron import engine as engines
from megatron import objectives
from megatron.batch import Batch, Progress, RowScores, reading
from megatron.config import Config, ConfigError, Parallel, check_parallel, declared, resolve_parallel
from megatron.core import checkpoint as checkpoints
from megatron.core.checkpoint import Checkpoint
from megatron.core.mesh import Mesh, all_reduce, build_mesh
from megatron.data.datasets import SampleSpec, build_datasets, read_vectors_as
from megatron.data.pairs import Standard
from megatron.data.samples import Samples
from megatron.data.tokenizer import Tokenizer, Vocabulary, build_tokenizer
from megatron.engine import Engine
from megatron.errors import BadData, Mismatch, MissingInput
from megatron.objectives import Objective
from megatron.rundir.folders import read_file
from megatron.rundir.names import CONFIG, MANIFEST, step_and_attempt, step_of
from megatron.training import device as devices
from megatron.training import launch
from megatron.training.branch import known_of, on_branch, starts_of
from megatron.training.device import Where
from megatron.training.evaluate import Slice, bytes_per_token
from megatron.training.loop import left

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model that was trained, and what its run knew. Every process of the layout calls the same methods."""

    cfg: Config  # the run's, at the layout and device that it was opened with
    tokenizer: Tokenizer
    objective: Objective  # what it was trained on
    engine: Engine
    checkpoint: Checkpoint

    @property
    def standard(self) -> Standard:
        """By which the run reads vectors. Raises Mismatch where it reads none."""
        if "standard" not in self.checkpoint.facts.get("noted", {}):
            raise Mismatch(f"{self.checkpoint.path} reads no vectors: give a run of --data-kind pairs with --latent-size")
        return Standard.read(self.checkpoint.facts["noted"]["standard"])

    @property
    def averaged(self) -> dict:
        """For records: what the weights are the mean of, under the key `averaged`; {} of a checkpoint as a run saved it."""
        return {"averaged": self.checkpoint.facts["averaged"]} if "averaged" in self.checkpoint.facts else {}

    @property
    def reference(self) -> Objective:
        """What the run's validation poses."""
        return self.objective.reference()

    def logits(self, batch: Batch | Tensor) -> Tensor:
        """Of every position, on every rank: over the ids that can be predicted, in fp32 (float64 when opened so).

        `batch`, or the ids alone [b, s], is the same on all ranks; where --sequence-parallel cuts the sequence, s is a
        multiple of the tensor-parallel size.  -> [b, s, v]  Raises BadData for an id that the model does not know.
        """
        batch = reading(batch) if isinstance(batch, Tensor) else batch
        known = self.cfg.model.vocab_size + self.objective.uses_mask
        if batch.inputs.numel() and not 0 <= int(batch.inputs.min()) <= int(batch.inputs.max()) < known:
            mask = f" and the mask is {known - 1}" if self.objective.uses_mask else ""
            raise BadData(
                f"ids {int(batch.inputs.min())}..{int(batch.inputs.max())} are read, but the tokenizer has "
                f"{self.cfg.model.vocab_size}{mask}: encode with the run's tokenizer"
            )
        (found,) = self.engine.logits([replace(batch, asked=torch.arange(batch.inputs.numel()))])
        return found.unflatten(0, batch.inputs.shape)

    def score(self, batches: list[Batch]) -> list[RowScores]:
        """Each row's weighted NLL in nats, on every rank; `batches` are the same on all."""
        found, rows = self.engine.score(batches), [len(batch.index) for batch in batches]
        names = [f.name for f in fields(RowScores)]
        table = torch.zeros(len(names), sum(rows), dtype=torch.float64, device=self.engine.device)
        if found:
            whole = np.concatenate([np.stack([getattr(part, name) for name in names]) for part in found], 1)
            table.copy_(torch.from_numpy(whole))
        parts = all_reduce(table, self.engine.mesh.pp).cpu().split(rows, 1)  # the last stage's; zeros elsewhere
        return [RowScores(**{n: x.numpy() if n == "loss" else x.long().numpy() for n, x in zip(names, part)}) for part in parts]

    def slice(self, which: str = "valid", rows: int | None = None, num_mc: int | None = None, flag: str = "--rows") -> Slice:
        """One of the run's sets as it was scored by, or with other numbers of rows and draws. Raises ConfigError.

        `flag`: what gave `rows`.
        """
        data = build_datasets(self.cfg.data, sample_spec(self.cfg, self.tokenizer))
        if "standard" in (self.checkpoint.facts.get("noted") or {}):
            read_vectors_as(data, self.standard)
        chosen = None if which == "train" else data.get(which)
        if chosen is None:
            scored = ", ".join(name for name in data if name != "train" and data[name])
            raise ConfigError([f"--set {which}: expected a set that the run scores: {scored}"])
        if rows and rows > chosen.rows_in_first_epoch:
            raise ConfigError(
                [f"{flag} {rows}: the set {which} has {chosen.rows_in_first_epoch} rows; give fewer, or leave it out"]
            )
        found = cut_slice(self.cfg, chosen, self.reference, self.tokenizer)
        return replace(found, rows=min(rows or found.rows, chosen.rows_in_first_epoch), num_mc=num_mc or found.num_mc)


def open_run(
    run: str | Path,
    checkpoint: str | int | Path | None = None,
    *,
    device: str = "auto",
    dtype: str | None = None,
    say: Callable[[str], None] = print,
    vectors: bool = False,
    blocks: bool = False,
    **layout,
) -> Trained:
    """The trained model of a run's folder, or of one of its checkpoints, which `run` may name itself.

    `checkpoint`: a step, `best` by validation, `newest`, or a path; left out, the last one of a run that is finished.
    `vectors`: the caller reads rows that begin with a vector (--latent-size). `blocks`: it says who sees whom (--block-size).
    `device`: auto, cpu or cuda. `dtype`: what the model computes in, fp64, fp32 or bf16 [the run's]. `layout`: flags of
    --tensor-model-parallel-size and its like by name, for the processes that the launcher started, whatever the run had.

    Raises MissingInput where there is no such run or checkpoint, or it is not finished, Mismatch for one of a version with
    other flags or another tokenizer, BadData for damage, ConfigError for a layout that cannot be.
    """
    path = find_checkpoint(Path(run), checkpoint)
    facts = checkpoints.read_manifest(path)["facts"]
    refuse_untrained(path, facts)
    cfg = at_layout(read_config(facts, path), device, dtype, layout)
    if not blocks:
        refuse_blocks(path, cfg)
    if not vectors:
        refuse_vectors(path, cfg)
    if checkpoint is None and path != Path(run):
        refuse_unfinished(Path(run), cfg, facts)
    tokenizer = open_tokenizer(cfg)
    refuse_other_tokenizer(path, tokenizer, facts)
    mesh = meet(cfg)
    loaded = checkpoints.load(path, group=mesh.control, say=say)
    where = devices.for_scoring(cfg, DTYPES[dtype or ("bf16" if cfg.train.bf16 else "fp32")])
    objective = build_objective(cfg)
    engine = restore(cfg, objective, loaded, where, mesh, say)
    return Trained(cfg=cfg, tokenizer=tokenizer, objective=objective, engine=engine, checkpoint=loaded)


# The parts of a run, each made in one place


def open_tokenizer(cfg: Config) -> Tokenizer:
    d = cfg.data
    return build_tokenizer(d.tokenizer_type, d.vocab_file, d.merge_file, d.tokenizer_model)


def build_objective(cfg: Config) -> Objective:
    """What training poses, once the vocabulary is known; `reference()` is what validation does."""
    return objectives.build(cfg, Vocabulary(cfg.model.vocab_size, cfg.model.padded_vocab_size).mask)


def restore(
    cfg: Config, objective: Objective, loaded: Checkpoint, where: Where, mesh: Mesh, say: Callable[[str], None] = print
) -> Engine:
    """An engine with a checkpoint's weights."""
    engine = engines.build(cfg, objective, where, mesh, say, fresh=False)
    engine.load(loaded, weights_only=True)
    return engine


def sample_spec(cfg: Config, tokenizer: Tokenizer) -> SampleSpec:
    """What the datasets depend on; in Megatron's order that is also how many samples it would ask each split for."""
    t = cfg.train
    rows = t.eval_iters * t.global_batch_size
    evaluations = 1 if t.skip_train else t.num_samples // t.global_batch_size // t.eval_interval + 1
    return SampleSpec(
        seq_length=cfg.model.text_length,
        seed=t.seed,
        eval_seed=t.eval_seed,
        tokenizer=tokenizer,
        lengths={"train": t.num_samples or 1, "valid": max(1, evaluations * rows), "test": max(1, rows)},
        latent_size=cfg.model.latent_size,
    )


def cut_slice(cfg: Config, dataset: Samples, reference: Objective, tokenizer: Tokenizer) -> Slice:
    """The first rows of the validation data's own order; never a row twice."""
    rows = min(cfg.train.eval_iters * cfg.train.global_batch_size, dataset.rows_in_first_epoch)
    found = Slice(
        dataset=dataset,
        rows=rows,
        seq_length=cfg.model.text_length,
        num_mc=cfg.objective.num_mc,
        seed=cfg.train.eval_seed,
        score_first_token=cfg.objective.score_first_token,
    )
    return replace(found, bytes_per_token=bytes_per_token(found, reference, tokenizer.token_bytes()))


def meet(cfg: Config) -> Mesh:
    """The processes of a layout, over the process group that there is, or a new one where the launcher started several."""
    if not dist.is_initialized():
        return launch.start(cfg)
    p = cfg.parallel
    return build_mesh(p.tensor_model_parallel_size, p.pipeline_model_parallel_size, p.sequence_parallel)


# Finding what was asked for


def find_checkpoint(run: Path, which: str | int | Path | None) -> Path:
    """Raises MissingInput, BadData, and what the newest manifest is refused for where no checkpoint is whole."""
    if which is None and step_of(run.name) is not None and (run / MANIFEST).exists():
        return run
    if not run.is_dir():
        state = "is no folder" if run.exists() else "is not there"
        raise MissingInput(f"{run} {state}: give the folder of a run, or one of its checkpoints")
    folder = run if which is None or not Path(str(which)).is_dir() else Path(str(which))
    if step_of(folder.name) is not None:  # also one that was set aside
        return folder
    found = checkpoints.find(folder) or checkpoints.find(saved_elsewhere(folder))
    complete = intact(found, folder)
    if not found:
        raise MissingInput(f"{run} holds no checkpoint: train with --save, or wait until the run has saved one")
    if not complete:
        checkpoints.read_manifest(found[0])
        raise BadData(
            f"none of the {len(found)} checkpoints of {run} is intact and of the run's last start: restore one, or name it"
        )
    if which in (None, "newest") or folder != run:
        return complete[0]
    step = best_step(complete[0]) if which == "best" else int(str(which)) if str(which).isdecimal() else None
    named = [path for path in complete if step_and_attempt(path.name)[0] == step]
    if not named:
        steps = ", ".join(str(step_and_attempt(path.name)[0]) for path in reversed(complete))
        what = f"best (step {step})" if which == "best" else which
        raise MissingInput(f"{run} has no checkpoint {what}: expected newest, best, a path, or a step of {steps}")
    return named[0]


def intact(found: list[Path], run: Path) -> list[Path]:
    """Of a run's checkpoints those that are whole, without what its last start left behind."""
    starts = starts_of(known_of(run))
    facts = {path: known for path in found if (known := checkpoints.facts_of_complete(path)) is not None}
    if not starts:
        return list(facts)
    return [path for path in facts if on_branch(starts, facts[path].get("branch"), step_and_attempt(path.name)[0])]


def saved_elsewhere(run: Path) -> Path:
    """The folder of checkpoints that a run's own records name; the run's, where they name none."""
    try:
        return Path(read_file(run, CONFIG).get("train", {}).get("save") or run)
    except (BadData, TypeError):
        return run


def best_step(newest: Path) -> int | None:
    """The step with the least validation loss, as the newest checkpoint remembers it."""
    return checkpoints.read_manifest(newest)["facts"].get("progress", {}).get("best_step")


def read_config(facts: dict, path: Path) -> Config:
    """The config of a checkpoint's run. Raises Mismatch for one of a version with other flags."""
    try:
        return Config.from_dict(facts["config"])
    except (KeyError, TypeError) as error:
        saved = [name for section in facts.get("config", {}).values() if isinstance(section, dict) for name in section]
        other = ", ".join(f"--{name.replace('_', '-')}" for name in saved if name not in declared()) or str(error)
        raise Mismatch(f"{path} was written by a version with other flags ({other}): open it with that version") from None


def at_layout(cfg: Config, device: str, dtype: str | None = None, layout: dict | None = None) -> Config:
    """The run's config for scoring alone, at another layout. Raises ConfigError."""
    layout = layout or {}
    mistakes = [f"{name} is no flag of the layout" for name in layout.keys() - {f.name for f in fields(Parallel)}]
    if dtype not in (None, *DTYPES):
        mistakes.append(f"dtype {dtype}: expected one of {', '.join(DTYPES)}")
    if device not in ("auto", "cpu", "cuda"):
        mistakes.append(f"device {device}: expected auto, cpu or cuda")
    if mistakes:
        raise ConfigError(mistakes)
    there = {"WORLD_SIZE": str(dist.get_world_size()), "RANK": str(dist.get_rank())} if dist.is_initialized() else os.environ
    bf16 = cfg.train.bf16 if dtype is None else dtype == "bf16"
    where: Any = device
    train = replace(cfg.train, device=where, bf16=bf16, skip_train=True, recompute_granularity=None, cpp_step=False)
    parallel = resolve_parallel(Parallel(**layout), cfg.model, False, dict(there), mistakes)
    check_parallel(parallel, train, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    return replace(cfg, parallel=parallel, train=train)


def refuse_untrained(path: Path, facts: dict) -> None:
    if "imported_from" in facts:
        raise Mismatch(f"{path} holds imported weights and no run: train from it with --load {path} --finetune")
    if "progress" not in facts:
        raise Mismatch(f"{path} is no training checkpoint (a dumped batch is for tools/replay.py): give a folder of --save")


def refuse_blocks(path: Path, cfg: Config) -> None:
    if cfg.objective.block_size:
        raise Mismatch(
            f"{path} was trained with --block-size {cfg.objective.block_size}, whose network reads blocks from left to right, "
            "as what reads whole rows does not: score it with --skip-train --load, or write with tools/generate.py"
        )


def refuse_vectors(path: Path, cfg: Config) -> None:
    if cfg.model.latent_size:
        raise Mismatch(
            f"{path} was trained with --latent-size {cfg.model.latent_size}: its rows begin with a vector, which those "
            "who read texts alone do not give; use tools/evaluate.py vectors, tools/generate.py --vectors, or --skip-train --load"
        )


def find_finished(run: Path, which: str | int | Path | None) -> Path:
    """As find_checkpoint; where `which` leaves it open, of a run that is finished.  Raises MissingInput, BadData, Mismatch."""
    path = find_checkpoint(run, which)
    if which is None and path != run:
        facts = checkpoints.read_manifest(path)["facts"]
        refuse_untrained(path, facts)
        refuse_unfinished(run, read_config(facts, path), facts)
    return path


def refuse_unfinished(run: Path, cfg: Config, facts: dict) -> None:
    if of := unfinished(cfg, facts):
        raise MissingInput(
            f"{run} is not finished: its newest checkpoint is at {of}; wait for it, or name the "
            "checkpoint: newest, best or a step"
        )


def unfinished(cfg: Config, facts: dict) -> str:
    """`step 800 of 1000` of a checkpoint after which its run has steps left; empty of its last one."""
    at, total = Progress(**facts["progress"]), cfg.train.num_samples // cfg.train.global_batch_size
    return f"step {at.step} of {total}" if left(cfg, at) else ""


def refuse_other_tokenizer(path: Path, tokenizer: Tokenizer, facts: dict) -> None:
    saved, found = facts["fingerprints"].get("tokenizer"), tokenizer.fingerprint()
    if saved != found:
        raise Mismatch(
            f"{path} was trained with the tokenizer {saved}, and the files that its flags name now make {found}: restore them"
        )
