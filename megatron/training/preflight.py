"""Everything that can be known wrong before the first step, a line each. Passing means that step 0 is reached."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import torch

import megatron
from megatron.batch import Progress
from megatron.config import Config
from megatron.core.mesh import Group, Mesh
from megatron.data.samples import Samples
from megatron.data.tokenizer import Tokenizer
from megatron.engine import deepspeed
from megatron.errors import BadData, CannotWrite, Mismatch
from megatron.forecast import forecast
from megatron.layout import find_place
from megatron.objectives import Objective
from megatron.training.device import Where
from megatron.training.evaluate import Slice
from megatron.training.loop import pose


def check(
    cfg: Config,
    where: Where,
    tokenizer: Tokenizer,
    data: dict[str, Samples | None],
    slices: dict[str, Slice],
    objective: Objective,
    at: Progress,
    mesh: Mesh,
    say: Callable[[str], None],
) -> None:
    """Run every check and say what each found. Raises the Refusal of the first that fails."""
    checks = {
        "environment": lambda: environment(),
        "device": lambda: device(where),
        "layout": lambda: layout(cfg, mesh),
        "deepspeed": lambda: use_deepspeed(cfg, say),
        "cpp-step": lambda: cpp_step(cfg),
        "output": lambda: output(cfg),
        "tokenizer": lambda: f"{tokenizer.name}, {tokenizer.vocab_size} ids, {tokenizer.fingerprint()[:16]}",
        "model": lambda: model(cfg),
        "memory": lambda: memory(cfg, where),
        "data": lambda: describe(cfg, data, slices),
        "batch": lambda: batch(cfg, data["train"], objective, at, mesh.dp),
        "dropout": lambda: dropout(cfg),
        "compile": lambda: compiled(where),
    }
    for name, what in checks.items():
        for line in filter(None, (what() or "").split("\n")):
            say(f"preflight ok | {name}: {line}")


def environment() -> str:
    root = Path(megatron.__file__).parent
    lines = [f"megatron {megatron.__version__} from {root}, torch {torch.__version__}"]
    try:
        other = importlib.metadata.version("megatron-core")
    except importlib.metadata.PackageNotFoundError:
        other = None
    if other and (root / "core" / "transformer").is_dir():
        raise Mismatch(
            f"megatron-core {other} is installed into the same folder {root}: the two overwrite each other; "
            "use an environment of its own for this project"
        )
    if other:
        lines.append(
            f"megatron-core {other} is installed here too, under the same name `megatron`: "
            "in this process the name is this project's"
        )
    if importlib.util.find_spec("amp_C"):
        lines.append("NVIDIA apex is installed; it is not used: torch's own fused kernels are")
    if importlib.util.find_spec("megatron.data._helpers") is None:
        lines.append("the compiled data helper is missing (no compiler at install time): numpy gives the same arrays, slower")
    return "\n".join(lines)


def cpp_step(cfg: Config) -> str:
    if not cfg.train.cpp_step or cfg.train.skip_train:
        return ""
    from megatron.engine.cpp_step import instructions

    return f"forward and backward pass in C++, {instructions()}"


def device(where: Where) -> str:
    peak = f"{where.peak_flops / 1e9:.0f} GFLOP/s ({where.peak_source})"
    return f"{where.device.type}, {where.dtype}, {torch.get_num_threads()} threads, peak {peak}"


def output(cfg: Config) -> str:
    """Write, sync and rename a probe in every folder that the run will write to."""
    folders = dict.fromkeys(Path(p) for p in (cfg.log.run_dir, cfg.train.save, cfg.log.tensorboard_dir) if p)
    for folder in folders:
        probe = folder / f".probe-{uuid.uuid4().hex}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(probe, "wb") as f:
                f.write(b"probe")
                f.flush()
                os.fsync(f.fileno())
            probe.rename(probe.with_suffix(".renamed"))
            probe.with_suffix(".renamed").unlink()
        except OSError as error:
            raise CannotWrite(
                f"{folder} cannot be written to ({error.strerror}): choose another --run-dir, --save or --tensorboard-dir"
            ) from error
    needed = (16 if cfg.optim.ema else 12) * cfg.model.shape().total() if cfg.train.save else 0
    free = shutil.disk_usage(cfg.train.save or cfg.log.run_dir).free
    if free < needed:
        raise CannotWrite(
            f"a checkpoint takes {needed / 2**30:.1f} GiB and --save {cfg.train.save} has {free / 2**30:.1f} GiB free: make room"
        )
    takes = f", a checkpoint takes {needed / 2**30:.2f}" if needed else ""
    return f"{', '.join(map(str, folders))} can be written; {free / 2**30:.0f} GiB free{takes}"


def model(cfg: Config) -> str:
    shape = cfg.model.shape()
    return (
        f"{shape.total():,} parameters ({shape.non_embedding():,} outside the embedding; "
        f"published formula {shape.published():,}), vocabulary {cfg.model.vocab_size} in {cfg.model.padded_vocab_size} rows"
    )


def memory(cfg: Config, where: Where) -> str:
    """What a process of the run will take, against what is there for it. Only what is certain not to fit is refused."""
    if where.device.type == "cuda":
        total = torch.cuda.mem_get_info(where.device)[1]
    else:
        here = find_place(os.environ).local_world_size
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // here
    load = max(forecast(cfg).loads, key=lambda one: one.peak)
    state = load.weights if cfg.train.skip_train else load.weights + load.gradients + load.moments
    state += load.host if where.device.type == "cpu" else 0
    kept = 0 if cfg.train.skip_train else load.activations
    if state > total:
        raise CannotWrite(
            f"weights, gradients and moments take {state / 2**30:.1f} GiB and {where.device.type} has "
            f"{total / 2**30:.1f} GiB for a process: take a smaller model, or shard it (--dry-run shows how)"
        )
    advice = "; this may not fit: lower --micro-batch-size or use --recompute-granularity full"
    tight = advice if state + kept > 0.9 * total else ""
    return f"about {state / 2**30:.2f} GiB of state and {kept / 2**30:.2f} GiB of activations, of {total / 2**30:.0f} GiB{tight}"


def describe(cfg: Config, data: dict[str, Samples | None], slices: dict[str, Slice]) -> str:
    lines = [f"{split}: {line}" for split, found in data.items() if found for line in found.describe().split("\n")]
    if cfg.data.data_path and data["test"] is None and (cfg.data.split.split(",") + ["0"] * 3)[2] not in ("0", "0.0"):
        lines.append(f"test: the last share of --split {cfg.data.split} is shorter than one sample: nothing is tested at the end")
    if data["train"]:
        tokens, per_epoch = cfg.train.num_samples * cfg.model.seq_length, data["train"].tokens_per_epoch
        lines.append(f"Tokens per epoch: {per_epoch} | {tokens} tokens to train on = {tokens / per_epoch:.3f} epochs")
    for split, found in slices.items():
        asked = cfg.train.eval_iters * cfg.train.global_batch_size
        short = f" (all there are; {asked} were asked for)" if found.rows < asked else ""
        lines.append(
            f"{split} slice: {found.rows} rows of {found.seq_length} tokens{short}, "
            f"{found.bytes_per_token:.3f} bytes a token, {found.fingerprint()}"
        )
    return "\n".join(lines)


def layout(cfg: Config, mesh: Mesh) -> str:
    """Silent for a process alone."""
    if mesh.world.size == 1:
        return ""
    parallel, sequence = cfg.parallel, ", sequence cut between layers" if mesh.tp.sequence else ""
    schedule = f" ({parallel.pipeline_schedule})" if mesh.pp.size > 1 else ""
    return (
        f"{mesh.world.size} processes = tensor {mesh.tp.size} x pipeline {mesh.pp.size}{schedule} x data {mesh.dp.size}, "
        f"ZeRO {parallel.zero_stage}{sequence}"
    )


def use_deepspeed(cfg: Config, say: Callable[[str], None]) -> str:
    return "\n".join(deepspeed.check(cfg, say)) if cfg.parallel.deepspeed else ""


def batch(cfg: Config, data: Samples | None, objective: Objective, at: Progress, dp: Group) -> str:
    """Pose this replica's part of the step that comes next and look at it."""
    if data is None or cfg.train.skip_train or at.samples + cfg.train.global_batch_size > cfg.train.num_samples:
        return ""
    batches = pose(objective, data, cfg, at, dp)
    largest = max(int(b.inputs.max()) for b in batches)
    if largest >= cfg.model.padded_vocab_size:
        raise BadData(
            f"a posed batch holds id {largest}, the embedding table has {cfg.model.padded_vocab_size} rows: "
            "is the tokenizer the one that made the data?"
        )
    asked, scored = sum(len(b.asked) for b in batches), sum(int(b.scored.sum()) for b in batches)
    those = "as many as the objective's own network will choose" if any(b.draws is not None for b in batches) else str(asked)
    return f"step {at.step} has {len(batches)} micro-batches, {those} asked of {scored} scored tokens, largest id {largest}"


def dropout(cfg: Config) -> str:
    m, slow = cfg.model, ""
    if m.attention_dropout and not cfg.train.skip_train:
        slow = "; attention dropout writes the probabilities out and costs several times a fused attention"
    read = "" if m.embedding_dropout is None else f", embedding {m.embedding_dropout:g}"
    weights = f", parameters {m.parameter_dropout:g}" if m.parameter_dropout else ""
    return f"attention {m.attention_dropout:g}, hidden {m.hidden_dropout:g}{read}{weights}{slow}"


def compiled(where: Where) -> str:
    return f"{'on' if where.compile else 'off'}: {where.compile_reason}"
