"""Prove that a layout changes speed and memory, and nothing else: the same experiment at every layout and in one process.

    python tools/verify_layouts.py                                          AR and MDM, a tiny model, the whole list
    python tools/verify_layouts.py --objective mdm --layouts tp2,pp2+zero1
    python tools/verify_layouts.py --layouts tp2xpp2,dp2+zero3+bf16 -- --num-layers 4 ... --data-path PREFIX     your own

Flags of pretrain_*.py describe the experiment; without a corpus among them, random tokens are made. Flags of the layout
among them (--tensor-model-parallel-size 2 --zero-stage 1 ...) stand for one layout, `as given`. A layout's name is its sizes
joined by x, and what else it does behind a +.

Each layout trains a few steps with an evaluation half way and must agree with one process. Bit for bit: sample numbers,
inputs with their masks, noise levels, initial weights and, with --checkpoints, every tensor of a checkpoint that this layout
saves and one process loads. Within rounding: losses, gradient norms, the validation loss. On GPUs (--device cuda) the ranks
need one each and use NCCL. Leaves with 1 on a difference or a failure, with 2 when the flags or a named layout cannot be.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import importlib
import json
import math
import multiprocessing
import os
import re
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.live import Live
from rich.table import Table

from megatron import config, engine, objectives
from megatron.batch import Batch, Progress, Step
from megatron.config import BUDGETS, CORPORA, Config
from megatron.core import checkpoint
from megatron.core.checkpoint import Piece
from megatron.core.mesh import build_mesh
from megatron.data.datasets import build_datasets
from megatron.data.indexed import IndexedWriter
from megatron.data.samples import Samples, hash64
from megatron.data.tokenizer import Vocabulary, build_tokenizer
from megatron.engine import Engine, deepspeed
from megatron.errors import Refusal, exits
from megatron.flags import ConfigError, find, split_words
from megatron.objectives import Objective
from megatron.training import device
from megatron.training.evaluate import Slice, evaluate
from megatron.training.loop import Interval, one_step, pose
from megatron.training.trained import cut_slice, sample_spec

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
RANDOM_TOKENS = 40_000
EVAL_ITERS = 2
OBJECTIVES = ("ar", "mdm")
PROCESSES = 8  # on a CPU, whatever its cores: the models are small
PATIENCE = 600.0  # seconds for one layout
COLUMNS = ("loss", "gradient norm", "validation", "samples, t, masks", "initial weights", "checkpoint")

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
    "dropout": "--hidden-dropout 0.1 --attention-dropout 0.1",
    "untied": "--untie-embeddings-and-output-weights",
    "bf16": "--bf16",
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
    tp2xpp2xdp2+bf16 tp2+sp+bf16 dp2+zero3+bf16 pp2+zero-bubble+bf16
    dp2+deepspeed-zero0 dp2+deepspeed-zero1 dp2+deepspeed-zero2 dp2+deepspeed-zero3 pp2xdp2+deepspeed-zero1
    tp2xdp2+deepspeed-zero1 tp2xdp2+deepspeed-zero3 dp2+deepspeed-zero1+cpu-optimizer dp2+deepspeed-zero3+dropout
    dp2+deepspeed-zero2+untied dp2+deepspeed-zero2+bf16""".split()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a layout may be from one process: sums have another order, and nothing else."""

    loss: float  # absolute
    norm: float  # relative
    validation: float  # absolute


LIMITS = {"fp32": Limits(loss=2e-6, norm=1e-5, validation=2e-6), "bf16": Limits(loss=5e-3, norm=5e-2, validation=2e-3)}


# The pool: warm processes for small distributed jobs

# One server imports all that is slow to import, and every worker is a fork of it: eight cost as much as one.
PRELOAD = [__name__, "megatron.engine.native"]
DUMP_SECONDS = 1.0  # a hung rank has written where it stands before the pool gives up


class JobFailed(RuntimeError):
    """What ended a job first: the rank, and its traceback, its death, or where it hangs."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One rank's part of a job."""

    function: str  # module:name
    args: tuple
    environ: dict[str, str]
    rank: int
    world_size: int
    folder: str  # of this job alone: the store, and where hung ranks say where they stand
    timeout_seconds: float
    device: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    value: Any = None
    trouble: str | None = None
    seconds: float = 0.0  # on the machine's clock, when it was raised: the first one is the cause
    died: bool = False


@dataclass(frozen=True, kw_only=True)
class Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection

    def answer(self) -> Answer:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return Answer(trouble=f"died with exit code {self.process.exitcode}", died=True)


class Pool:
    """Warm processes for small distributed jobs: started when first needed, used again, replaced after a failure."""

    def __init__(self, size: int = 8, device: str = "cpu"):
        self.size, self.device = size, device
        self.workers: list[Worker] = []
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_) -> None:
        self.dismiss()

    def run(self, world_size: int, function: Callable | str, *args, timeout: float = 120.0, fresh: bool = False) -> list:
        """`function(*args)` on every rank of a new world, which one process does without; the results by rank.

        `function` is one that can be imported, or its "module:name"; `fresh`: in processes that did nothing before, for a
        library that keeps state. Raises JobFailed; the pool can be used again.
        """
        if world_size > self.size:
            raise ValueError(f"a world of {world_size} asked of a pool of {self.size}")
        if fresh:
            self.dismiss()
        self.start(world_size)
        with tempfile.TemporaryDirectory() as folder:
            try:
                for rank, worker in enumerate(self.workers[:world_size]):
                    worker.pipe.send(
                        Job(
                            function=spell(function),
                            args=args,
                            environ=os.environ | place_of(rank, world_size),
                            rank=rank,
                            world_size=world_size,
                            folder=folder,
                            timeout_seconds=timeout,
                            device=self.device,
                        )
                    )
                return collect(self.workers[:world_size], timeout, Path(folder))
            except BaseException:
                self.dismiss()  # some may wait for each other; new ones cost little
                raise

    def start(self, count: int) -> None:
        if not all(worker.process.is_alive() for worker in self.workers):
            self.dismiss()
        while len(self.workers) < count:
            ours, theirs = self.context.Pipe()
            process = self.context.Process(target=serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self.workers.append(Worker(process=process, pipe=ours))

    def dismiss(self) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        self.workers = []


def place_of(rank: int, world_size: int) -> dict[str, str]:
    """What a launcher on one machine would say."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}


def spell(function: Callable | str) -> str:
    """A function as module:name. Raises ValueError where another process could not find it."""
    name = function if isinstance(function, str) else f"{function.__module__}:{function.__qualname__}"
    if "<" in name:
        raise ValueError(f"{name} cannot be imported by another process: define it at the top of a module")
    return name


def collect(workers: list[Worker], timeout: float, folder: Path) -> list:
    """The values by rank. Raises JobFailed with the first cause, which others may have felt as a closed connection."""
    deadline, values = time.monotonic() + timeout + DUMP_SECONDS, {}
    while waiting := {worker.pipe: rank for rank, worker in enumerate(workers) if rank not in values}:
        ready = wait(waiting, max(0.0, deadline - time.monotonic()))
        if not ready:
            raise JobFailed(describe_hang(sorted(waiting.values()), len(workers), timeout, folder))
        answers = {waiting[pipe]: workers[waiting[pipe]].answer() for pipe in ready}
        failures = {rank: answer for rank, answer in answers.items() if answer.trouble}
        if failures:
            rank = min(failures, key=lambda r: (not failures[r].died, failures[r].seconds))
            raise JobFailed(f"rank {rank} of {len(workers)}: {failures[rank].trouble}")
        values |= {rank: answer.value for rank, answer in answers.items()}
    return [values[rank] for rank in range(len(workers))]


def describe_hang(ranks: list[int], world_size: int, timeout: float, folder: Path) -> str:
    lines = [f"rank {', '.join(map(str, ranks))} of {world_size}: no answer within {timeout:g} s"]
    for rank in ranks:
        with contextlib.suppress(FileNotFoundError):
            main_thread = (folder / f"rank-{rank}").read_text().rpartition("Thread")[2].partition("\n")[2]
            lines.append(f"rank {rank} stands at (most recent call first)\n{main_thread}")
    return "\n".join(lines)


# The pool's workers


def serve(pipe: Connection) -> None:
    """Do one job after the other; end with the process that asks for them, however that ends."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    for job in jobs(pipe):
        try:
            pipe.send(Answer(value=do(job)))
        except BaseException as error:
            pipe.send(Answer(trouble=f"{type(error).__name__}: {error}\n{traceback.format_exc()}", seconds=time.monotonic()))


def end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def jobs(pipe: Connection) -> Iterator[Job]:
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            yield pipe.recv()


def do(job: Job) -> Any:
    os.environ.clear()
    os.environ.update(job.environ, OMP_NUM_THREADS="1")
    with open(Path(job.folder) / f"rank-{job.rank}", "w") as file:
        faulthandler.dump_traceback_later(job.timeout_seconds, file=file)
        try:
            module, _, name = job.function.partition(":")
            function = getattr(importlib.import_module(module), name)
            with world(job):
                return function(*job.args)
        finally:
            faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def world(job: Job) -> Iterator[None]:
    """torch's default process group, met over a file; none for a process alone. After a failure it dies with the worker."""
    if job.device == "cuda":
        torch.cuda.set_device(job.rank)
    if job.world_size > 1:
        # The pool gives up before a collective does, and so can say who is missing.
        patience = timedelta(seconds=job.timeout_seconds + 60)
        dist.init_process_group(
            "nccl" if job.device == "cuda" else "gloo",
            init_method=f"file://{job.folder}/store",
            rank=job.rank,
            world_size=job.world_size,
            timeout=patience,
        )
    yield
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


# One rank's part of an experiment


@dataclass(kw_only=True)
class Record:
    """What a layout did: on one rank, then on all together."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    validation: float = math.nan
    samples: dict[int, str] = field(default_factory=dict)  # number -> hash of what was asked: inputs, targets, 1 / t, masks
    begun: dict[str, int] = field(default_factory=dict)  # tensor -> fingerprint, before the first step
    ended: dict[str, int] = field(default_factory=dict)  # the same after the last, as saved

    def log_train(self, at: Progress, done: Step, interval: Interval, lr: float) -> None:
        """What the training loop tells a run."""
        self.losses.append(done.loss)
        self.norms.append(done.grad_norm)

    def dump(self, at: Progress, done: Step, batches: list[Batch]) -> None:
        """A skipped step is on record as a loss that is not finite."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """All that a run has on one rank."""

    cfg: Config
    engine: Engine
    objective: Objective
    reference: Objective
    train: Samples
    valid: Slice


def set_up(argv: list[str]) -> Trial:
    cfg = config.parse(argv)
    tokenizer = build_tokenizer(cfg.data.tokenizer_type, cfg.data.vocab_file, cfg.data.merge_file, cfg.data.tokenizer_model)
    cfg = cfg.with_vocabulary(tokenizer.vocab_size)
    where = device.setup(cfg)
    parallel = cfg.parallel
    mesh = build_mesh(parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, parallel.sequence_parallel)
    data = build_datasets(cfg.data, sample_spec(cfg, tokenizer))
    mask = Vocabulary(cfg.model.vocab_size, cfg.model.padded_vocab_size).mask
    objective = objectives.build(cfg, mask)
    reference = objectives.build(cfg, mask).reference()
    built = engine.build(cfg, objective, where, mesh, lambda line: None)
    return Trial(
        cfg=cfg,
        engine=built,
        objective=objective,
        reference=reference,
        train=data["train"],
        valid=cut_slice(cfg, data["valid"] or data["train"], reference, tokenizer),
    )


def train(argv: list[str], steps: int, save: str | None = None, load: str | None = None) -> Record:
    """Some steps of a run with an evaluation half way, from its beginning or a checkpoint in `load`; then one in `save`."""
    trial, record, at, interval = set_up(argv), Record(), Progress(), Interval()
    if load:
        found = checkpoint.load(Path(load), group=trial.engine.mesh.control)
        trial.engine.load(found)
        at = Progress(step=found.step, samples=found.step * trial.cfg.train.global_batch_size)
    record.begun = fingerprints(trial.engine)
    for step in range(1, steps + 1):
        record.samples |= hashes(pose(trial.objective, trial.train, trial.cfg, at, trial.engine.mesh.dp))
        at, interval = one_step(trial.cfg, trial.engine, trial.objective, trial.train, record, at, interval)
        if step == (steps + 1) // 2:
            record.validation = evaluate(trial.engine, trial.reference, trial.valid)["loss"]
    if save:
        checkpoint.save(Path(save), at.step, trial.engine.pieces(), {}, group=trial.engine.mesh.control)
        record.ended = fingerprints(trial.engine)
    return record


def hashes(batches: list[Batch]) -> dict[int, str]:
    """Sample number -> what its row asks of the model; rows that only fill up a batch are none."""
    found = {}
    for batch in batches:
        for row in batch.scored.any(1).nonzero()[:, 0].tolist():
            asked = (batch.inputs[row], batch.targets[row], batch.weights[row], batch.scored[row], batch.positions[row])
            found[int(batch.index[row])] = hashlib.sha256(b"".join(x.numpy().tobytes() for x in asked)).hexdigest()
    return found


def fingerprints(engine: Engine) -> dict[str, int]:
    """A number for each tensor. Over the ranks they add up to the same however the tensor is cut, if every entry is the same."""
    found: dict[str, int] = {}
    for piece in engine.pieces():
        found[piece.name] = (found.get(piece.name, 0) + fingerprint(piece)) % 2**64
    return found


def fingerprint(piece: Piece) -> int:
    """The sum of a hash of each entry's bits and its place in the whole tensor, modulo 2**64."""
    place = np.zeros((), np.int64)
    for start, size, extent in zip(piece.start, piece.shape, piece.tensor.shape):
        place = place[..., None] * size + start + np.arange(extent)  # one dimension more
    tensor = piece.tensor.detach().cpu().contiguous()
    bits = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]).numpy()
    return int(hash64(place, bits).sum())


# All ranks together


def joined(records: list[Record]) -> Record:
    """One record of all ranks'. What they should agree on and do not becomes something that no other run agrees with."""

    def agreed(values: list[list[float]]) -> list[float]:
        return values[0] if all(v == values[0] for v in values) else [math.nan for _ in values[0]]

    whole = Record(
        losses=agreed([r.losses for r in records]),
        norms=agreed([r.norms for r in records]),
        validation=agreed([[r.validation] for r in records])[0],
    )
    for record in records:
        for number, said in record.samples.items():
            if whole.samples.setdefault(number, said) != said:
                whole.samples[number] = "ranks disagree"
        for ours, theirs in ((whole.begun, record.begun), (whole.ended, record.ended)):
            for name, number in theirs.items():
                ours[name] = (ours.get(name, 0) + number) % 2**64
    return whole


@dataclass(frozen=True, kw_only=True)
class Check:
    """One cell of the table."""

    text: str
    passed: bool


def compare(layout: Record, single: Record, reloaded: Record | None, limits: Limits) -> list[Check]:
    """A layout against one process, in the order of COLUMNS; `reloaded` is one process that began where the layout ended."""
    ratios = [a / b - 1 for a, b in zip(layout.norms, single.norms, strict=True)]
    kept = same(layout.ended, reloaded.begun) if reloaded else Check(text="-", passed=True)
    return [
        within([a - b for a, b in zip(layout.losses, single.losses, strict=True)], limits.loss),
        within(ratios, limits.norm),
        within([layout.validation - single.validation], limits.validation),
        same(layout.samples, single.samples),
        same(layout.begun, single.begun),
        kept,
    ]


def within(differences: list[float], limit: float) -> Check:
    worst = max(map(abs, differences))
    passed = all(abs(d) <= limit for d in differences)  # not so for NaN
    return Check(text=f"{worst:.1e}" if passed else f"{worst:.1e} > {limit:g}", passed=passed)


def same(ours: dict, theirs: dict) -> Check:
    differing = sum(ours.get(name) != theirs.get(name) for name in ours.keys() | theirs.keys())
    if differing:
        return Check(text=f"{differing} of {len(theirs)} differ", passed=False)
    return Check(text="same bits", passed=True)


# Layouts by name


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


def read_experiment(words: list[str], objective: str, folder: Path) -> Experiment:
    """The flags of pretrain_*.py, completed where they leave open what a tiny run can be. Raises ConfigError."""
    named = {find(spelled, config.declared())[0]: values for spelled, values in split_words(words, [])}
    missing = write_json(folder / "missing.json", {} if "--config" in words else completion(named.keys(), folder))
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


def completion(named: Collection[str], folder: Path) -> dict[str, Any]:
    """What a run needs and nobody named."""
    found: dict[str, Any] = {}
    if not {"num_layers", "model_config"} & set(named):
        found |= TINY
    if not set(BUDGETS) & set(named):
        found |= {"train_iters": 100}
    if not {name for group in CORPORA for name in group} & set(named):
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


def write_json(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


# The command


@dataclass(frozen=True, kw_only=True)
class Row:
    """A layout's line of the table."""

    objective: str
    layout: Layout
    checks: list[Check]
    seconds: float
    trouble: str = ""  # why there is nothing to compare

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)


class Verifier:
    """Runs layouts of one experiment, and once the process that they are compared with."""

    def __init__(self, pool: Pool, experiment: Experiment, steps: int, checkpoints: bool):
        self.pool, self.experiment, self.steps, self.checkpoints = pool, experiment, steps, checkpoints
        self.singles: dict[tuple[str, ...], Record] = {}

    def verify(self, layout: Layout) -> Row:
        began, checks, trouble = time.monotonic(), [], ""
        try:
            checks = self.check(layout)
        except JobFailed as error:
            trouble = str(error)
        return Row(
            objective=self.experiment.cfg.objective.objective,
            layout=layout,
            checks=checks,
            trouble=trouble,
            seconds=time.monotonic() - began,
        )

    def check(self, layout: Layout) -> list[Check]:
        alone = Layout(name="alone", world_size=1, flags=(), experiment=layout.experiment)
        if layout.experiment not in self.singles:
            self.singles[layout.experiment] = self.train(alone, self.steps)
        with tempfile.TemporaryDirectory() as folder:
            found = self.train(layout, self.steps, save=folder if self.checkpoints else None)
            reloaded = self.train(alone, 0, load=folder) if self.checkpoints else None
        bf16 = self.experiment.cfg.train.bf16 or "--bf16" in layout.experiment
        return compare(found, self.singles[layout.experiment], reloaded, LIMITS["bf16" if bf16 else "fp32"])

    def train(self, layout: Layout, steps: int, save: str | None = None, load: str | None = None) -> Record:
        """A layout's run, the record of all its ranks."""
        argv = [*self.experiment.single, *layout.flags, *layout.experiment]
        return joined(self.pool.run(layout.world_size, train, argv, steps, save, load, timeout=PATIENCE, fresh=layout.deepspeed))


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


def new_table() -> Table:
    said = [
        f"{kind}: loss {limits.loss:g}, gradient norm {limits.norm:g} (relative), validation {limits.validation:g}"
        for kind, limits in LIMITS.items()
    ]
    return Table(
        "objective", "layout", "ranks", *COLUMNS, "s", title="Largest difference from one process", caption="; ".join(said)
    )


def add_row(table: Table, row: Row) -> None:
    cells = [check.text if check.passed else f"[bold red]{check.text}[/]" for check in row.checks] or ["[bold red]failed[/]"]
    cells += [""] * (len(COLUMNS) - len(cells))
    table.add_row(row.objective, row.layout.name, str(row.layout.world_size), *cells, f"{row.seconds:.1f}")


def read_words(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """This tool's flags, and those of pretrain_*.py."""
    parser = argparse.ArgumentParser(
        prog="verify_layouts.py", allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objective", choices=OBJECTIVES, action="append", help="verify this one [all]")
    parser.add_argument("--layouts", default="", help="names joined by commas [what the other flags say, or the whole list]")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of each layout [6]")
    parser.add_argument("--checkpoints", action="store_true", help="also save at each layout and load in one process")
    given, words = parser.parse_known_args(argv)
    if given.steps < 2:
        parser.error(f"--steps {given.steps} must be at least 2")
    return given, [word for word in words if word != "--"]


@exits
def main(argv: list[str] | None = None) -> int:
    given, words = read_words(argv)
    names = [name.strip() for name in given.layouts.split(",") if name.strip()]
    console = Console() if sys.stdout.isatty() else Console(width=180)
    rows, table = [], new_table()
    with tempfile.TemporaryDirectory() as folder:
        experiments = [read_experiment(words, objective, Path(folder)) for objective in given.objective or OBJECTIVES]
        with open_pool(experiments[0].cfg) as pool:
            plans = [(experiment, *choose(names, experiment, pool.size)) for experiment in experiments]
            with Live(table, console=console):
                for experiment, layouts, _ in plans:
                    verifier = Verifier(pool, experiment, given.steps, given.checkpoints)
                    for layout in layouts:
                        rows.append(verifier.verify(layout))
                        add_row(table, rows[-1])
    return conclude(rows, [line for _, _, left_out in plans for line in left_out], console)


def open_pool(cfg: Config) -> Pool:
    if cfg.train.device != "cpu" and torch.cuda.is_available():
        return Pool(torch.cuda.device_count(), "cuda")
    return Pool(PROCESSES)


def conclude(rows: list[Row], left_out: list[str], console: Console) -> int:
    """Say what the table leaves open; 1 when a layout differs or failed."""
    console.print()
    for line in dict.fromkeys(left_out):
        console.print(f"left out: {line}", highlight=False)
    wrong = [row for row in rows if not row.passed]
    for row in wrong:
        print(f"{row.objective} {row.layout.name}: {row.trouble or 'differs from one process'}", file=sys.stderr)
    console.print(f"{len(rows) - len(wrong)} of {len(rows)} layouts do what one process does", highlight=False)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
