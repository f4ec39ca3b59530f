"""Which process holds what: the arithmetic of a tensor x pipeline x data layout, on the standard library alone."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


def split_evenly(total: int, parts: int) -> list[range]:
    """0..total in `parts` ranges of near-equal length, the longer ones first."""
    least, more = divmod(total, parts)
    starts = [i * least + min(i, more) for i in range(parts + 1)]
    return [range(a, b) for a, b in zip(starts, starts[1:])]


@dataclass(frozen=True, kw_only=True)
class Stages:
    """How the layers are dealt to pipeline ranks. A stage is a run of layers; a rank holds one stage or several."""

    layers: tuple[range, ...]  # of each stage, in the order of the model
    num_ranks: int
    v_shaped: bool = False  # rank r holds stages r and 2 ranks - 1 - r: first and last share a rank

    def home(self, stage: int) -> int:
        """The pipeline rank of a stage."""
        lap, place = divmod(stage, self.num_ranks)
        return self.num_ranks - 1 - place if self.v_shaped and lap % 2 else place

    def of_rank(self, rank: int) -> list[int]:
        """The stages of a pipeline rank, in the order of the model."""
        laps = range(len(self.layers) // self.num_ranks)
        return [lap * self.num_ranks + (self.num_ranks - 1 - rank if self.v_shaped and lap % 2 else rank) for lap in laps]


def make_stages(
    num_layers: int,
    num_ranks: int,
    per_rank: int = 1,
    *,
    first: int | None = None,
    last: int | None = None,
    v_shaped: bool = False,
) -> Stages:
    """Layers dealt evenly over the stages, the earlier ones longer; `first` and `last` fix the two ends. Raises ValueError."""
    count = num_ranks * per_rank
    ends = {stage: fixed for stage, fixed in ((0, first), (count - 1, last)) if fixed is not None}
    rest, between = num_layers - sum(ends.values()), count - len(ends)
    if rest < between or (rest and not between):
        raise ValueError(
            f"{num_layers} layers cannot be dealt to {count} pipeline stages"
            + "".join(f", {fixed} to the {'last' if stage else 'first'}" for stage, fixed in ends.items())
        )
    lengths = iter(split_evenly(rest, between) if between else ())
    layers, start = [], 0
    for stage in range(count):
        stop = start + (ends[stage] if stage in ends else len(next(lengths)))
        layers.append(range(start, stop))
        start = stop
    return Stages(layers=tuple(layers), num_ranks=num_ranks, v_shaped=v_shaped)


def num_micro_batches(global_batch: int, replicas: int, micro_batch: int) -> int:
    """How many a replica computes in a step, rows of padding included: the same for all."""
    most_rows = -(-global_batch // replicas)  # as split_evenly cuts
    return -(-most_rows // micro_batch)


class Ranks(NamedTuple):
    """The groups of one axis (core/mesh.py): so many ranks, so far apart, in a world of so many."""

    size: int
    stride: int
    world: int


@functools.cache
def over_hosts(ranks: Ranks, host: int) -> tuple[int, int]:
    """Over how many hosts of so many ranks a group lies at most, and the fewest of its ranks on one of several hosts."""
    span = ranks.size * ranks.stride
    starts = {first + offset for first in range(0, ranks.world, span) for offset in range(ranks.stride)}
    groups = [Counter((start + n * ranks.stride) // host for n in range(ranks.size)) for start in {one % host for one in starts}]
    return max(map(len, groups)), min((min(group.values()) for group in groups if len(group) > 1), default=ranks.size)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which process of the run this is, as its launcher says."""

    rank: int = 0
    local_rank: int = 0  # among the processes of its node
    world_size: int = 1
    local_world_size: int = 1
    num_nodes: int = 1
    launcher: str = ""  # "torchrun" (or any that sets the same variables), "slurm", or "": alone


def find_place(environ: Mapping[str, str]) -> Place:
    """From torchrun's variables, which the deepspeed launcher sets too; else those of an srun step of several tasks; else alone.

    Raises ValueError with a sentence when they contradict each other.
    """
    if environ.get("RANK") or environ.get("WORLD_SIZE", "1") not in ("", "1"):
        world, rank, local_rank = (read_whole(environ, *name) for name in (("WORLD_SIZE",), ("RANK",), ("LOCAL_RANK", "0")))
        local_world = next((read_whole(environ, name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if environ.get(name)), world)
        num_nodes, launcher = -(-world // max(1, local_world)), "torchrun"
    elif read_whole(environ, "SLURM_STEP_NUM_TASKS", "1") > 1:
        world, rank, local_rank = (read_whole(environ, f"SLURM_{name}") for name in ("STEP_NUM_TASKS", "PROCID", "LOCALID"))
        node = read_whole(environ, "SLURM_NODEID", "0")
        tasks = tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        local_world, num_nodes, launcher = tasks[node] if node < len(tasks) else world, len(tasks) or 1, "slurm"
    else:
        return Place()
    if not (rank < world and local_rank < local_world <= world):
        raise ValueError(
            f"{launcher}'s variables contradict each other: rank {rank} of {world}, local rank {local_rank} of "
            f"{local_world}: start all processes with one launcher"
        )
    return Place(
        rank=rank, local_rank=local_rank, world_size=world, local_world_size=local_world, num_nodes=num_nodes, launcher=launcher
    )


def read_whole(environ: Mapping[str, str], name: str, default: str = "") -> int:
    text = environ.get(name) or default
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(
            f"the environment has {name}={text!r} where a number is needed: "
            "start with torchrun, the deepspeed launcher or srun, or unset RANK and WORLD_SIZE"
        )
    return int(text)


def tasks_per_node(text: str) -> list[int]:
    """Slurm's `4(x2),3` is [4, 4, 3]."""
    return [int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]
