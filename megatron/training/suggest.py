"""`--dry-run --suggest`: the layouts of a number of GPUs that train the same and fit, by the time of a step."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from megatron.config import Config, ConfigError, check_batch, memory_bytes, resolve
from megatron.flags import spelling
from megatron.forecast import Forecast, forecast, least_bytes, micro, weigh
from megatron.machines import GIB, Machine
from megatron.step_time import StepTime, Turn, block_turn, least_seconds, step_time

SHOWN = 5
HEADROOM = 0.85  # of a GPU's memory that a layout may take where --device-memory does not say: peaks are forecast to 15 %
RECOMPUTED: tuple[Literal["selective", "full"] | None, ...] = (None, "selective", "full")
MOST_ROWS = 64  # of a micro-batch
DATA_PARALLEL = "(none: data parallel)"  # what no flags stand for
Key = tuple[int, int, int]  # tensor size, pipeline size, ZeRO stage


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A legal layout."""

    values: dict[str, Any]  # of its flags
    cfg: Config
    least: float  # seconds that no step is below

    @property
    def key(self) -> Key:
        p = self.cfg.parallel
        return p.tensor_model_parallel_size, p.pipeline_model_parallel_size, p.zero_stage

    @property
    def flags(self) -> str:
        return spelled(self.values)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    flags: str
    peak: int  # bytes, of the process that needs most
    time: StepTime


@dataclass(kw_only=True)
class Found:
    """What a search came to."""

    best: list[Candidate] = field(default_factory=list)
    slower: int = 0  # fit, and another of their tensor x pipeline x ZeRO, or five others, are faster
    unasked: int = 0  # cannot be faster, whatever they hold
    too_large: int = 0
    nearest: tuple[int, str] | None = None  # of these the smallest: bytes of its largest process, and flags
    refused: Counter[str] = field(default_factory=Counter)  # sentences, without their numbers
    sentences: dict[str, str] = field(default_factory=dict)  # and the first of each kind
    given: Candidate | None = None  # as the flags have it, whether it fits or not; None where the batch has no room for it


def suggest(cfg: Config, machine: Machine) -> tuple[Found, int]:
    """The fastest layouts, and the bytes that each GPU may hold. Raises ConfigError with one sentence where nothing fits.

    Tensor, pipeline and data sizes, schedule, ZeRO stage, micro-batch and recomputation are tried; all else stays as given.
    """
    world = cfg.parallel.world_size
    limit = memory_bytes(cfg.train.device_memory) if cfg.train.device_memory else int(HEADROOM * machine.memory * GIB)
    found = search(cfg, machine, limit)
    if not found.best:
        why = (
            f"the smallest, {found.nearest[1] or DATA_PARALLEL}, needs {found.nearest[0] / GIB:.1f} GiB"
            if found.nearest
            else "; ".join(refusals(found))
        )
        raise ConfigError(
            [f"no layout of {world} GPUs fits {limit / GIB:.0f} GiB each: {why}; take more GPUs or a smaller model"]
        )
    found.given = given_layout(cfg, machine)
    return found, limit


def search(cfg: Config, machine: Machine, limit: int) -> Found:
    """From the layout that may be fastest on, until no other can be."""
    found = Found()
    ranked = sorted(trials(cfg, machine, found), key=lambda one: one.least)
    best: dict[Key, Candidate] = {}
    large: list[tuple[int, Trial]] = []
    for number, one in enumerate(ranked):
        totals = sorted(each.time.total for each in best.values())
        if len(totals) >= SHOWN and one.least >= totals[SHOWN - 1]:
            found.unasked += len(ranked) - number
            break
        if one.key in best and one.least >= best[one.key].time.total:
            found.unasked += 1
            continue
        memory, peak = held(one.cfg, limit)
        if memory is None:
            large.append((peak, one))
            continue
        new = candidate(one.flags, one.cfg, memory, machine)
        found.slower += 1
        best[one.key] = min(best.get(one.key, new), new, key=lambda each: each.time.total)
    found.best = sorted(best.values(), key=lambda each: each.time.total)[:SHOWN]
    found.slower -= len(found.best)
    found.too_large, found.nearest = len(large), smallest(large)
    return found


def smallest(large: list[tuple[int, Trial]]) -> tuple[int, str] | None:
    """Of layouts and bytes that each needs more than: the least bytes that one really needs, and its flags."""
    found: tuple[int, str] | None = None
    for bound, one in sorted(large, key=lambda each: each[0]):
        if found and bound >= found[0]:
            break
        memory, peak = held(one.cfg, found[0] - 1 if found else sys.maxsize)
        found = (peak, one.flags) if memory else found
    return found


def held(cfg: Config, limit: int) -> tuple[Forecast | None, int]:
    """The forecast of what fits, and its largest process; of what does not, the bytes of one process that is too large."""
    plan = cfg.parallel.stages(cfg.model.num_layers)
    if (peak := least_bytes(cfg, plan)) > limit:
        return None, peak
    for rank in {0, plan.num_ranks - 1}:  # of all ranks, most often the largest
        if (peak := weigh(cfg, plan, rank).peak) > limit:
            return None, peak
    found = forecast(cfg)
    return (found if found.peak <= limit else None), found.peak


def trials(cfg: Config, machine: Machine, found: Found) -> Iterator[Trial]:
    """All legal layouts; the others are counted as refused."""
    turns: dict[tuple[Any, ...], Turn] = {}
    for layout in layouts(cfg, machine):
        for rows in micro_batches(cfg, layout):
            base, mistakes = relaid(cfg, layout | {"micro_batch_size": rows, "recompute_granularity": None})
            if mistakes:
                refuse(found, mistakes[0])
                if rows == 1:
                    break
                continue
            for kind in RECOMPUTED:
                one = replace(base, train=replace(base.train, recompute_granularity=kind))
                place = (micro(one), one.may_compile, kind)
                turn = turns[place] = turns.get(place) or block_turn(one, machine)
                values = {**layout, "micro_batch_size": rows, "recompute_granularity": kind}
                yield Trial(values=values, cfg=one, least=least_seconds(one, machine, turn))


def layouts(cfg: Config, machine: Machine) -> Iterator[dict[str, Any]]:
    """Values of the flags that cut the model; not all are legal. Tensor parallelism stays on a host."""
    world, layers = cfg.parallel.world_size, cfg.model.num_layers
    for tp in (n for n in divisors(world) if machine.host % n == 0):
        for pp in (n for n in divisors(world // tp) if n <= layers):
            for schedule in schedules(layers, pp):
                for stage in range(cfg.parallel.use_distributed_optimizer, 4) if world > tp * pp else (0,):
                    yield {
                        "tensor_model_parallel_size": tp,
                        "sequence_parallel": tp > 1 and cfg.model.seq_length % tp == 0,
                        "pipeline_model_parallel_size": pp,
                        **schedule,
                        "decoder_first_pipeline_num_layers": None,
                        "decoder_last_pipeline_num_layers": None,
                        "zero_stage": stage,
                    }


def schedules(layers: int, pp: int) -> Iterator[dict[str, Any]]:
    plain = {"pipeline_schedule": "1f1b", "num_layers_per_virtual_pipeline_stage": None}
    yield plain
    if pp > 1:
        yield plain | {"pipeline_schedule": "zero-bubble"}
        for each in (n for n in divisors(layers // pp) if n < layers // pp and layers % pp == 0):
            yield {"pipeline_schedule": "interleaved", "num_layers_per_virtual_pipeline_stage": each}


def micro_batches(cfg: Config, layout: dict[str, Any]) -> list[int]:
    ranks = layout["tensor_model_parallel_size"] * layout["pipeline_model_parallel_size"]
    rows = -(-cfg.train.global_batch_size * ranks // cfg.parallel.world_size)
    return sorted(n for n in {2**k for k in range(MOST_ROWS.bit_length())} | {rows} if n <= min(rows, MOST_ROWS))


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def relaid(cfg: Config, values: dict[str, Any]) -> tuple[Config, list[str]]:
    """The config with other values of a layout's flags, and what is wrong with it."""
    values = values | {"suggest": False}  # beside which a given layout need not be legal
    parallel, train = ({n: v for n, v in values.items() if hasattr(part, n)} for part in (cfg.parallel, cfg.train))
    late: dict[str, Any] = {"padded_vocab_size": None}  # it may grow with tensor parallelism
    other = replace(
        cfg, model=replace(cfg.model, **late), parallel=replace(cfg.parallel, **parallel), train=replace(cfg.train, **train)
    )
    return resolve(other, {})


def refuse(found: Found, sentence: str) -> None:
    kind = re.sub(r"\d+", "N", sentence)
    found.refused[kind] += 1
    found.sentences.setdefault(kind, sentence.partition(": ")[0].partition("; ")[0])


def refusals(found: Found) -> list[str]:
    """The commonest, by the first of their kind."""
    return [f"{n:,} are refused, such as: {found.sentences[kind]}" for kind, n in found.refused.most_common(3)]


def spelled(values: dict[str, Any]) -> str:
    """The flags of a layout, those left out that say what is so without them."""
    idle = {"pipeline_schedule": "1f1b", "zero_stage": 0}
    kept = {
        n: v for n, v in values.items() if v not in (None, False) and idle.get(n) != v and not (n.endswith("size") and v == 1)
    }
    return " ".join(spelling(name) + ("" if value is True else f" {value}") for name, value in kept.items())


def told(cfg: Config, machine: str, found: Found, limit: int) -> list[str]:
    """A table of flags to paste, the layout that was given below it, and why others are not in it."""
    world, given = cfg.parallel.world_size, found.given
    nearest = f" (the nearest: {found.nearest[1] or DATA_PARALLEL}, {found.nearest[0] / GIB:.1f} GiB)" if found.nearest else ""
    return [
        f"the fastest of each tensor x pipeline x ZeRO on {world} {machine} that fits {limit / GIB:.0f} GiB, "
        f"{cfg.train.global_batch_size} rows of {cfg.model.seq_length} tokens a step; in place of layout flags:",
        "    s/step  tokens/s/GPU  MFU    GiB  flags",
        *(row(one, world, one.flags or DATA_PARALLEL) for one in found.best),
        *([row(given, world, "(as given)" + ", does not fit" * (given.peak > limit))] if given else []),
        f"others: {found.too_large:,} do not fit{nearest}; {found.slower:,} fit and are slower; {found.unasked:,} would be "
        "slower, whatever they hold",
        *(f"others: {line}" for line in refusals(found)),
        "not tried: tensor parallelism between hosts, uneven ends, offload to the CPU, DeepSpeed",
    ]


def row(one: Candidate, world: int, flags: str) -> str:
    seconds = f"  {one.time.total:8.4g}  {one.time.tokens_per_second / world:12,.0f}  {100 * one.time.mfu:2.0f}%  "
    return f"{seconds}{one.peak / GIB:5.1f}  {flags}"


def given_layout(cfg: Config, machine: Machine) -> Candidate | None:
    wrong: list[str] = []
    check_batch(cfg.parallel, cfg.train, wrong)
    return None if wrong else candidate("", cfg, forecast(cfg), machine)


def candidate(flags: str, cfg: Config, memory: Forecast, machine: Machine) -> Candidate:
    return Candidate(flags=flags, peak=memory.peak, time=step_time(cfg, memory, machine))


def as_json(cfg: Config, machine: Machine, found: Found, limit: int) -> dict[str, Any]:
    given = found.given
    return {
        "world_size": cfg.parallel.world_size,
        "machine": asdict(machine),
        "limit_bytes": limit,
        "layouts": [{"flags": one.flags, **figures(one)} for one in found.best],
        "given": figures(given) | {"fits": given.peak <= limit} if given else None,
        "others": {
            "too_large": found.too_large,
            "nearest": {"flags": found.nearest[1], "peak_bytes": found.nearest[0]} if found.nearest else None,
            "slower": found.slower,
            "unasked": found.unasked,
            "refused": found.refused.total(),
        },
    }


def figures(one: Candidate) -> dict[str, Any]:
    return {"peak_bytes": one.peak, "seconds": asdict(one.time)}
