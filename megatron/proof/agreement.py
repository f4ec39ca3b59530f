"""A layout against one process: what must be the same bit for bit, and how far sums in another order may lie apart."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass

import torch

from megatron.config import Config
from megatron.proof.layouts import Experiment, Layout
from megatron.proof.pool import JobFailed, Pool
from megatron.proof.trial import Record, train

COLUMNS = ("loss", "gradient norm", "validation", "updates", "samples, t, masks", "initial weights", "checkpoint")
PATIENCE = 600.0  # seconds for one layout
PROCESSES = 8  # on a CPU, whatever its cores: the models are small


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a layout may be from one process: sums have another order, and nothing else."""

    loss: float  # absolute
    norm: float  # relative
    validation: float  # absolute
    updates: float  # relative, of the weight whose change is the furthest off


LIMITS = {
    "fp32": Limits(loss=2e-6, norm=1e-5, validation=2e-6, updates=1e-3),
    "bf16": Limits(loss=5e-3, norm=5e-2, validation=2e-3, updates=0.5),
}


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
        for name, sums in record.moved.items():
            whole.moved[name] = [a + b for a, b in zip(whole.moved.get(name, [0.0] * len(sums)), sums)]
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
        within([away(layout.moved[name], moved) for name, moved in single.moved.items()], limits.updates),
        same(layout.samples, single.samples),
        same(layout.begun, single.begun),
        kept,
    ]


def away(ours: list[float], theirs: list[float]) -> float:
    """The length of a difference in lengths of what it is compared with."""
    length = math.hypot(*theirs)
    return math.dist(ours, theirs) / length if length else math.inf if any(ours) else 0.0


def within(differences: list[float], limit: float) -> Check:
    worst = max(map(abs, differences))
    passed = all(abs(d) <= limit for d in differences)  # not so for NaN
    return Check(text=f"{worst:.1e}" if passed else f"{worst:.1e} > {limit:g}", passed=passed)


def same(ours: dict, theirs: dict) -> Check:
    differing = sum(ours.get(name) != theirs.get(name) for name in ours.keys() | theirs.keys())
    if differing:
        return Check(text=f"{differing} of {len(theirs)} differ", passed=False)
    return Check(text="same bits", passed=True)


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

    def record(self) -> dict:
        """The row as plain JSON: each check's largest difference, in words, and whether it is within its limit."""
        checks = {name: {"found": c.text, "passed": c.passed} for name, c in zip(COLUMNS, self.checks)}
        return {
            "objective": self.objective,
            "layout": self.layout.name,
            "ranks": self.layout.world_size,
            "passed": self.passed,
            "checks": checks,
            "trouble": self.trouble,
            "seconds": round(self.seconds, 1),
        }


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


def open_pool(cfg: Config) -> Pool:
    if cfg.train.device != "cpu" and torch.cuda.is_available():
        return Pool(torch.cuda.device_count(), "cuda")
    return Pool(PROCESSES)
