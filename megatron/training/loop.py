"""The training loop. It knows samples, steps and cadence; not losses, layouts or files."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.distributed as dist

from megatron.batch import Batch, Noise, Progress, Step
from megatron.config import Config
from megatron.core.mesh import ALONE, Group, all_reduce
from megatron.data.loader import replica_batches
from megatron.data.samples import Samples
from megatron.engine import Engine
from megatron.engine.learner import Learner
from megatron.engine.noise_scale import noise_scale, smoothed
from megatron.errors import TooManyBadSteps
from megatron.objectives import Objective
from megatron.training.schedule import learning_rate


@dataclass
class Interval:
    """Sums since the last log line. Kept in checkpoints, so that a restart prints the same means."""

    steps: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    parts: dict[str, list[float]] = field(default_factory=dict)  # of the loss: a sum, and what it is a mean over

    def add(self, done: Step, seconds: float, parts: dict[str, list[float]] | None = None) -> None:
        self.seconds += seconds
        if done.skipped:
            self.skipped += 1
            return
        self.steps, self.loss, self.accuracy = self.steps + 1, self.loss + done.loss, self.accuracy + done.accuracy
        for name, pair in (parts or {}).items():
            self.parts[name] = [a + b for a, b in zip(self.parts.get(name, [0.0, 0.0]), pair)]

    def means(self) -> dict[str, float]:
        """Of the parts of the loss that some step had."""
        return {name: total / count for name, (total, count) in self.parts.items() if count}

    def mean(self, done: Step) -> tuple[float, float]:
        """Loss and accuracy a step; the last step's own when none counted, so that a NaN is seen."""
        return (self.loss / self.steps, self.accuracy / self.steps) if self.steps else (done.loss, done.accuracy)


class Records(Protocol):
    """What a step leaves behind."""

    def log_train(self, at: Progress, done: Step, interval: Interval, lr: float) -> None: ...
    def dump(self, at: Progress, done: Step, batches: list[Batch]) -> None: ...


class Run(Records, Protocol):
    """What the loop tells the world, and what the world may tell the loop."""

    def validate(self, at: Progress) -> Progress: ...
    def score_tasks(self, at: Progress) -> dict[str, dict]: ...
    def save(self, at: Progress, interval: Interval, last: bool = False) -> bool: ...
    def attend(self, at: Progress) -> None: ...
    def settle(self) -> bool: ...
    def owes_save(self, at: Progress) -> bool: ...
    def stop_reason(self, at: Progress) -> str | None: ...


def train(
    cfg: Config,
    engine: Engine,
    objective: Objective,
    data: Samples,
    run: Run,
    at: Progress,
    interval: Interval,
    learner: Learner | None = None,
) -> tuple[Progress, str | None]:
    """Go on from `at` to the last sample, or until the run is asked to stop; says why it stopped early."""
    saved = at.step
    reason = run.stop_reason(at)
    while reason is None and left(cfg, at):
        at, interval = one_step(cfg, engine, objective, data, run, at, interval, learner)
        run.attend(at)
        if left(cfg, at) and cfg.train.eval_tasks and due(at, cfg.train.eval_tasks_interval or cfg.train.eval_interval):
            run.score_tasks(at)
        new_best = False
        if left(cfg, at) and cfg.train.eval_iters and due(at, cfg.train.eval_interval):
            at = run.validate(at)
            new_best = bool(cfg.train.save_interval) and at.best_step == at.step
        wanted = due(at, cfg.train.save_interval) or at.step in (cfg.train.save_at or ()) or run.owes_save(at)
        if left(cfg, at) and (wanted or new_best) and run.save(at, interval):
            saved = at.step
        reason = run.stop_reason(at)
    written = run.settle()
    if reason is None and cfg.train.eval_iters:
        at = run.validate(at)
    if reason is None and cfg.train.eval_tasks:
        run.score_tasks(at)
    if not written or reason is None or saved != at.step:
        run.save(at, interval, last=True)
    return at, reason


def one_step(
    cfg: Config,
    engine: Engine,
    objective: Objective,
    data: Samples,
    run: Records,
    at: Progress,
    interval: Interval,
    learner: Learner | None = None,
) -> tuple[Progress, Interval]:
    """Pose, update or skip, and log. Raises TooManyBadSteps."""
    start = time.monotonic()
    batches = pose(objective, data, cfg, at, engine.mesh.dp)
    lr = learning_rate(cfg.optim, at.samples) * at.lr_scale
    batches = learner.refine(batches) if learner else batches
    done = engine.step(batches, lr)
    if learner:
        done = replace(done, extra=learner.learn(batches, engine.nlls, done, lr))
    if done.skipped:
        run.dump(at, done, batches)
    at = after(at, done, cfg.train.global_batch_size)
    if done.spread:
        noise, signal = smoothed((at.gradient_noise, at.gradient_signal), done.spread)
        at = replace(at, gradient_noise=noise, gradient_signal=signal)
    interval.add(done, time.monotonic() - start, split(objective, batches, engine))
    if due(at, cfg.log.log_interval) or done.skipped or not left(cfg, at):
        found = done.extra | interval.means() | measured(objective, batches, engine, done.scored)
        spread = noise_scale(at.gradient_noise, at.gradient_signal) if cfg.log.log_gradient_noise_scale else {}
        done = replace(done, extra=found | spread)
        run.log_train(at, done, interval, lr)
        interval = Interval()
    if at.skipped_in_row >= cfg.train.max_skipped_steps:
        raise TooManyBadSteps(
            f"{at.skipped_in_row} steps in a row were not finite, the last one step {at.step}: "
            "tools/replay.py runs the dumped batches of bad_batches/ alone and names the first bad tensor"
        )
    return at, interval


def left(cfg: Config, at: Progress) -> bool:
    """Whether a whole global batch is left."""
    return at.samples + cfg.train.global_batch_size <= cfg.train.num_samples


def pose(objective: Objective, data: Samples, cfg: Config, at: Progress, dp: Group = ALONE) -> list[Batch]:
    """This replica's micro-batches of the step that begins at `at`: a pure function of config, progress and its place."""
    cleans = replica_batches(data, at.samples, cfg.train.global_batch_size, cfg.train.micro_batch_size, dp.rank, dp.size)
    progress = at.samples / cfg.train.num_samples
    posed = (data.borders.apply(objective.pose(c, Noise(cfg.train.seed, c.index), progress), c) for c in cleans)
    return [objective.finished(batch) for batch in posed]


def split(objective: Objective, batches: list[Batch], engine: Engine) -> dict[str, list[float]]:
    """The parts of a step's loss that the objective tells apart, a sum and a count each; the same on every rank."""
    if not objective.parts:
        return {}
    found = torch.zeros(len(objective.parts), 2, dtype=torch.float64)
    for batch, nll in zip(batches, engine.nlls if engine.mesh.tp.rank == 0 else []):  # tensor ranks have them in common
        found += objective.split(batch, nll.detach().cpu())
    return dict(zip(objective.parts, all_reduce(found.to(engine.device), engine.mesh.world).tolist()))


def measured(objective: Objective, batches: list[Batch], engine: Engine, scored: int) -> dict[str, float]:
    """What the objective says of the step's batches, a scored position, or the least or the largest; the same on every rank."""
    found = hit_rates(objective, batches, engine) if objective.groups else {}
    said = [objective.measure(batch) for batch in batches]
    ops = {"_min": (min, dist.ReduceOp.MIN), "_max": (max, dist.ReduceOp.MAX)}
    for ending in ("", *ops):
        names = sorted({name for one in said for name in one if (name[-4:] if name[-4:] in ops else "") == ending})
        if names:
            each, op = ops.get(ending, (sum, dist.ReduceOp.SUM))
            values = [each(one[name] for one in said if name in one) for name in names]
            there = all_reduce(torch.tensor(values, dtype=torch.float64, device=engine.device), engine.mesh.dp, op)
            found |= dict(zip(names, (there if ending else there / scored).tolist()))
    return found


def hit_rates(objective: Objective, batches: list[Batch], engine: Engine) -> dict[str, float]:
    """The share of right answers in each of the objective's groups that asked something; the same on every rank."""
    counts = torch.zeros(len(objective.groups), 2, dtype=torch.float64)
    for batch, hit in zip(batches, engine.hits if engine.mesh.tp.rank == 0 else []):  # tensor ranks have them in common
        counts += objective.count_hits(batch, hit.cpu())
    found = all_reduce(counts.to(engine.device), engine.mesh.world).tolist()
    return {name: right / asked for name, (right, asked) in zip(objective.groups, found) if asked}


def after(at: Progress, done: Step, samples: int) -> Progress:
    return replace(
        at,
        step=at.step + 1,
        samples=at.samples + samples,
        skipped=at.skipped + done.skipped,
        skipped_in_row=at.skipped_in_row + 1 if done.skipped else 0,
    )


def due(at: Progress, every: int | None) -> bool:
    return every is not None and at.step % every == 0
