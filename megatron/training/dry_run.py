"""`--dry-run`: what every process would hold and send, how long a step would take, and whether it fits; nothing is started."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations
from typing import Any

from megatron.config import Config, ConfigError, memory_bytes
from megatron.errors import exits
from megatron.flags import spelling
from megatron.forecast import Forecast, Load, forecast, zero_stage
from megatron.machines import DEFAULT, GIB, Machine, read_machine
from megatron.step_time import PARTS, StepTime, link_of, step_time
from megatron.training import suggest
from megatron.training.trained import open_tokenizer

SIZES = {
    "weights": "weights",
    "gradients": "gradients",
    "moments": "moments",
    "host": "on CPU",
    "activations": "activations",
    "buffers": "buffers",
    "peak": "peak",
}
GROUPS = ("tensor", "data", "pipeline", "embedding")


@exits
def show(cfg: Config) -> None:
    """Print the forecast. Raises ConfigError, and so leaves with 2, when it does not fit --device-memory."""
    cfg, machine = with_vocabulary(cfg), read_machine(cfg.train.machine or DEFAULT)
    called = machine.name if cfg.train.machine else f"{machine.name} (--machine says another)"
    if cfg.train.suggest:
        best, most = suggest.suggest(cfg, machine)
        if cfg.train.json:
            print(json.dumps(suggest.as_json(cfg, machine, best, most), indent=1))
        else:
            print("\n".join(suggest.told(cfg, called, best, most)))
        return
    found = forecast(cfg)
    time = step_time(cfg, found, machine)
    if cfg.train.json:
        print(json.dumps(as_json(cfg, found, machine, time), indent=1))
    else:
        times = time_table(cfg, machine, called, time)
        tables = memory_table(cfg, found), traffic_table(cfg, found), times, notes(cfg, found, machine, time)
        print("\n".join([headline(cfg), *(line for one in tables for line in ("", *one))]))
    limit = memory_bytes(cfg.train.device_memory) if cfg.train.device_memory else None
    worst = max(found.loads, key=lambda load: load.peak)
    if limit is not None and worst.peak > limit:
        raise ConfigError(
            [
                f"stage {worst.rank} needs about {worst.peak / GIB:.1f} GiB on each process, more than "
                f"--device-memory {cfg.train.device_memory}: {advice(cfg, limit)}"
            ]
        )


def with_vocabulary(cfg: Config) -> Config:
    """The tokenizer is opened only where its size is not known without it."""
    if cfg.model.padded_vocab_size:
        return cfg
    return cfg.with_vocabulary(open_tokenizer(cfg).vocab_size)


def headline(cfg: Config) -> str:
    p, t = cfg.parallel, cfg.train
    tp, pp, dp = p.tensor_model_parallel_size, p.pipeline_model_parallel_size, p.data_parallel_size
    extras = [p.pipeline_schedule] * (pp > 1) + ["sequence parallel"] * p.sequence_parallel + [f"ZeRO {zero_stage(cfg)}"]
    extras += [f"recompute {t.recompute_granularity}"] * bool(t.recompute_granularity) + ["bf16" if t.bf16 else "fp32"]
    sizes = f"tensor {tp} x pipeline {pp} x data {dp}"
    return (
        f"dry run: {p.world_size} processes = {sizes}, {', '.join(extras)}; nothing is started\n"
        f"{cfg.model.shape().total():,} parameters, {cfg.num_micro_batches} micro-batches of up to {t.micro_batch_size} x "
        f"{cfg.model.seq_length} tokens a step on each data-parallel process"
    )


def memory_table(cfg: Config, found: Forecast) -> list[str]:
    """A line for each pipeline rank, of its data-parallel process with the largest share."""
    lines = [
        [
            str(load.rank),
            processes(cfg, load),
            spans(load),
            f"{load.num_parameters:,}",
            *(gib(getattr(load, name)) for name in SIZES),
        ]
        for load in found.loads
    ]
    return ["memory of each process, GiB", *table(("stage", "processes", "layers", "parameters", *SIZES.values()), lines)]


def traffic_table(cfg: Config, found: Forecast) -> list[str]:
    lines = [[str(load.rank), processes(cfg, load), *(gib(load.sent[g]) for g in GROUPS)] for load in found.loads]
    return ["sent by each process in a step, GiB, by group", *table(("stage", "processes", *GROUPS), lines)]


def time_table(cfg: Config, machine: Machine, called: str, time: StepTime) -> Iterator[str]:
    """Seconds of a step by what they are spent on, and what follows for the run."""
    p, steps = cfg.parallel, cfg.train.num_samples // cfg.train.global_batch_size
    yield f"time of a step on {called}, s"
    yield from table((*PARTS, "total"), [[f"{getattr(time, part):.3g}" for part in (*PARTS, "total")]])
    links = [f"{name} over {link_of(ranks, machine)}" for name, ranks in p.groups.items() if ranks.size > 1]
    if links:
        yield f"messages: {', '.join(links)}; {time.hidden:.3g} s of the replicas' are hidden behind computing"
    rate = time.tokens_per_second
    run = f"; {steps * time.total / 86400:.3g} days for {steps:,} steps" if steps else ""
    yield (
        f"{rate:,.0f} tokens/s, {rate / p.world_size:,.0f} a GPU; MFU {100 * time.mfu:.0f} %, "
        f"by what is really computed {100 * time.executed:.0f} %{run}"
    )


def as_json(cfg: Config, found: Forecast, machine: Machine, time: StepTime) -> dict[str, Any]:
    """Bytes of each pipeline rank's processes, and seconds of a step."""
    p, steps = cfg.parallel, cfg.train.num_samples // cfg.train.global_batch_size
    stages = [asdict(load) | {"layers": [[r.start, r.stop] for r in load.layers]} for load in found.loads]
    return {
        "world_size": p.world_size,
        "tensor": p.tensor_model_parallel_size,
        "pipeline": p.pipeline_model_parallel_size,
        "data": p.data_parallel_size,
        "parameters": cfg.model.shape().total(),
        "micro_batches": cfg.num_micro_batches,
        "stages": stages,
        "machine": asdict(machine),
        "seconds": asdict(time),
        "steps": steps or None,
        "days": steps * time.total / 86400 if steps else None,
    }


def table(head: tuple[str, ...], lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *lines)]
    return ["  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in (head, *lines)]


def processes(cfg: Config, load: Load) -> str:
    each = cfg.parallel.world_size // cfg.parallel.pipeline_model_parallel_size
    return f"{load.rank * each}-{(load.rank + 1) * each - 1}" if each > 1 else str(load.rank)


def spans(load: Load) -> str:
    return ",".join(f"{r.start}-{r.stop - 1}" if len(r) > 1 else str(r.start) for r in load.layers)


def gib(number: int) -> str:
    return f"{number / GIB:.3f}" if number < 10 * GIB else f"{number / GIB:.1f}"


def notes(cfg: Config, found: Forecast, machine: Machine, time: StepTime) -> Iterator[str]:
    p, t = cfg.parallel, cfg.train
    if p.pipeline_model_parallel_size > 1:
        yield f"pipeline bubble: {100 * time.bubble / time.total:.1f} % of a step"
    yield "weights, gradients and moments are exact (fp32); activations and buffers are estimates for a GPU without compile"
    yield "peak: all of these, and 1 GiB for CUDA and its communicators"
    if t.machine and not t.device_memory and found.peak > machine.memory * GIB:
        yield f"does not fit: {found.peak / GIB:.1f} GiB, and {machine.name} has {machine.memory:g}; --suggest shows what does"
    yield f"time: an estimate without saves and validations; {tried(cfg, machine)} (docs/layouts.md)"
    if share := cfg.orthogonalising_flops() / cfg.flops_per_token():
        yield f"orthogonalising: {100 * share:.2g} % of the model's FLOPs besides, which executed TFLOPs count"
    if cfg.objective.distill:
        told = cfg.num_micro_batches * cfg.train.micro_batch_size * cfg.model.seq_length * cfg.model.predicted_ids * 4
        teachers = f"{len(cfg.objective.distill)} teachers"
        yield f"--distill: weights and forward passes of {teachers} come on top, whole on each process, in time too"
        yield f"--distill: and what they say of a step's asked positions, up to {told / 2**30:.2f} GiB whatever the micro-batch"
    if p.deepspeed and p.pipeline_model_parallel_size == 1:
        yield "counted as the native engine shards; DeepSpeed has buffers of its own besides"


def tried(cfg: Config, machine: Machine) -> str:
    """How far off the forecast was where steps like this one were published."""
    p, objective, optimizer = cfg.parallel, cfg.objective.objective, cfg.optim.optimizer
    other = {
        machine.name: machine.name.partition(",")[0] not in ("a100", "h100"),
        "fp32": not cfg.train.bf16,
        f"--objective {objective}": objective != "ar",
        f"--optimizer {optimizer}": optimizer != "adam",
        "--pipeline-schedule zero-bubble": p.pipeline_schedule == "zero-bubble",
        "offload to the CPU": p.cpu_optimizer or p.cpu_params,
    }
    if untried := [name for name, is_other in other.items() if is_other]:
        return f"held against no published step with {', '.join(untried)}"
    return "published steps of autoregressive bf16 models with AdamW on A100 and H100 were within 25 % of it"


def advice(cfg: Config, limit: int) -> str:
    """Up to three small changes that make it fit, each of other flags; else what comes nearest."""
    fits: dict[tuple[str, ...], str] = {}
    nearest, least = "", 0
    for values, peak in alternatives(cfg):
        words = " ".join(f"{spelling(name)} {value}" for name, value in values.items())
        if peak <= limit:
            fits.setdefault(tuple(values), words)
        if not nearest or peak < least:
            nearest, least = words, peak
    if fits:
        return f"at --global-batch-size {cfg.train.global_batch_size} it fits with {', or '.join(list(fits.values())[:3])}"
    smallest = f"the smallest has {nearest} and {least / GIB:.1f} GiB: " if nearest else ""
    return f"no near layout fits; {smallest}take more processes or a smaller model"


def alternatives(cfg: Config) -> Iterator[tuple[dict[str, int | str], int]]:
    """({flag: value}, peak bytes) of every legal layout that is one or two changes away."""
    changes = list(single_changes(cfg))
    pairs = (pair for pair in combinations(changes, 2) if pair[0][0] != pair[1][0])
    for values in map(dict, (*((one,) for one in changes), *pairs)):
        if other := changed(cfg, values):
            yield values, forecast(other).peak


def single_changes(cfg: Config) -> Iterator[tuple[str, int | str]]:
    """In the order of what they cost in speed."""
    p, t = cfg.parallel, cfg.train
    for stage in range(max(1, p.zero_stage + 1), 4):
        yield "zero_stage", stage
    size = t.micro_batch_size
    while size > 1:
        size = next(n for n in range(size // 2, 0, -1) if t.global_batch_size % n == 0)
        yield "micro_batch_size", size
    for kind in ("selective", "full"):
        if t.recompute_granularity not in (kind, "full"):
            yield "recompute_granularity", kind
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
        for size in {getattr(p, name) * factor for factor in (2, 4, 8)} | {1} - {getattr(p, name)}:
            yield name, size


def changed(cfg: Config, values: dict[str, int | str]) -> Config | None:
    """The config with other values, if they are legal and would act."""
    other, mistakes = suggest.relaid(cfg, values)
    idle = "zero_stage" in values and other.parallel.data_parallel_size == 1
    return None if mistakes or idle or other.model.padded_vocab_size is None else other
