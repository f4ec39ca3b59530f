"""What benchmarks share: a row of the table, and variants timed in turn, each in a process of its own."""

from __future__ import annotations

import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from megatron.stopping import held_back

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: `ratio` is peer / ours in cost, and passes from `gate` on, if any; None: not measured, and `why`."""

    section: str
    what: str
    ours: str = ""
    peer: str = ""
    ratio: float | None = None
    gate: float | None = None
    why: str = ""

    def verdict(self) -> str:
        if self.ratio is None:
            return f"not measured: {self.why}"
        if self.gate is None:
            return "no gate"
        return "passed" if self.ratio >= self.gate else "FAILED"


class Spent(NamedTuple):
    """Seconds that a call took."""

    wall: float
    cpu: float  # of all threads
    computing: float  # CPU seconds of the calling thread, which stands still while it waits for other ranks


def in_turn(variants: dict[str, tuple], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant (a builder of a step, and its arguments) in each round."""
    found = side_by_side({name: [variant] for name, variant in variants.items()}, rounds)
    return {name: [spent.cpu for (spent,) in each] for name, each in found.items()}


def side_by_side(teams: dict[str, list[tuple]], rounds: int) -> dict[str, list[list[Spent]]]:
    """What each member of a team spends in each round, after two that are not counted: teams in turn, members at once.

    Each has a process of its own, as in use: allocator, threads and torch's global switches are not shared.
    """
    found: dict[str, list[list[Spent]]] = {name: [] for name in teams}
    with ExitStack() as stack:
        homes = {name: [stack.enter_context(process()) for _ in members] for name, members in teams.items()}
        for number in range(-2, rounds):
            for name, members in teams.items():
                calls = [home.submit(timed_call, *member) for home, member in zip(homes[name], members, strict=True)]
                spent = [call.result() for call in calls]
                if number >= 0:
                    found[name].append(spent)
    return found


def process() -> ProcessPoolExecutor:
    """One that runs already, and leaves Ctrl-C to this one."""
    home = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with held_back():
        home.submit(clocks)
    return home


def timed_call(build: Callable, *given) -> Spent:
    """One call of the step that `build` makes, once in this process."""
    run = built(build, *given)
    began = clocks()
    run()
    return Spent(*(after - before for before, after in zip(began, clocks(), strict=True)))


def clocks() -> Spent:
    return Spent(wall=time.perf_counter(), cpu=time.process_time(), computing=time.thread_time())


@functools.cache
def built(build: Callable, *given) -> Callable[[], object]:
    import torch

    torch.set_num_threads(1)
    return build(*given)


def median_ratio(peer: list[float], ours: list[float]) -> float:
    return statistics.median(p / o for p, o in zip(peer, ours, strict=True))


def limit_row(section: str, what: str, found: float, limit: float, unit: str) -> Row:
    """A cost that must stay at or below a limit."""
    return Row(
        section=section,
        what=what,
        ours=f"{found:.3g} {unit}",
        peer=f"limit {limit:g} {unit}",
        ratio=limit / max(found, 1e-12),
        gate=1.0,
    )


def product(dtype: str, size: int = 1024) -> Callable[[], Tensor]:
    """The matmul that stands for what this machine can do: 2 size^3 FLOPs."""
    import torch

    a = torch.randn(size, size).to(getattr(torch, dtype))
    return lambda: a @ a
