"""Whether a short run did what a run should, by its records alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron.errors import MissingInput
from megatron.rundir.folders import read_file
from megatron.rundir.names import CONFIG, METRICS, RESULT
from megatron.rundir.records import read

HALF = ("linear", "log-linear", "cosine-squared")  # schedules that hide half of the tokens in the mean over time
LEAST_SPREAD = 0.1  # of the importance that ATAT's network has found


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    passed: bool
    found: str


def check_run(folder: Path) -> list[Check]:
    """Of a run that trained. Raises MissingInput for a folder without records, BadData for damaged ones."""
    path = folder / METRICS
    if not path.is_file():
        raise MissingInput(f"{folder} has no {METRICS}: give the folder of a run that has trained")
    records = [record for _, record in read(path)]
    train = [record for record in records if record["kind"] == "train"]
    if len(train) < 3:
        raise MissingInput(
            f"{path} has {len(train)} training records, expected 3 or more: train longer, or give --log-interval 1"
        )
    config = read_file(folder, CONFIG)
    found = [*of_training(train, config), *of_validation(records), finished(folder)]
    if "importance_std" in train[-1]:
        found += of_atat(train, config.get("objective", {}))
    return found


def of_training(train: list[dict], config: dict) -> Iterator[Check]:
    losses, skipped = [record["loss"] for record in train], train[-1]["skipped"]
    yield Check(
        name="every step is finite", passed=all(map(math.isfinite, losses)) and not skipped, found=f"{skipped} steps were skipped"
    )
    last = losses[-max(1, len(losses) // 4) :]
    end = sum(last) / len(last)
    yield Check(name="the loss falls", passed=end < losses[0], found=f"{losses[0]:.3f} to {end:.3f}")
    rates, peak = [record["lr"] for record in train], config.get("optim", {}).get("lr")
    yield Check(
        name="the learning rate follows its schedule",
        passed=max(rates) > 0 and (peak is None or max(rates) <= peak * (1 + 1e-9)),
        found=f"{rates[0]:.2g}, at most {max(rates):.2g}, last {rates[-1]:.2g}",
    )
    norms = [record["grad_norm"] for record in train]
    yield Check(name="gradients flow", passed=min(norms) > 0, found=f"norms from {min(norms):.3g} to {max(norms):.3g}")


def of_validation(records: list[dict]) -> Iterator[Check]:
    losses = [record["loss"] for record in records if record["kind"] == "val"]
    passed = bool(losses) and all(map(math.isfinite, losses))
    yield Check(
        name="the validation loss is measured", passed=passed, found=", ".join(f"{loss:.3f}" for loss in losses) or "never"
    )


def finished(folder: Path) -> Check:
    steps = read_file(folder, RESULT).get("steps")
    return Check(
        name="the run is finished", passed=bool(steps), found=f"after {steps} steps" if steps else f"there is no {RESULT}"
    )


def of_atat(train: list[dict], objective: dict) -> Iterator[Check]:
    rates = [record["masking_rate"] for record in train]
    mean = sum(rates) / len(rates)
    half = objective.get("noise_schedule", "linear") in HALF and not objective.get("low_noise_start")
    yield Check(
        name=f"{'half' if half else 'some'} of the tokens are hidden in the mean, and not always",
        passed=(0.35 < mean < 0.65 or not half) and max(rates) > min(rates),
        found=f"masking_rate {mean:.3f}, from {min(rates):.3f} to {max(rates):.3f}",
    )
    stages = [record["curriculum_stage"] for record in train]
    found = ", ".join(f"{stage:g}" for stage in dict.fromkeys(stages))
    yield Check(name="the curriculum has its stages in order", passed=stages == sorted(stages), found=found)
    last = train[-1]
    low, high, spread = last["importance_min"], last["importance_max"], last["importance_std"]
    if "auxiliary_loss" in last:
        yield Check(
            name="the network tells tokens apart",
            passed=spread > LEAST_SPREAD and 0 <= low < high <= 1,
            found=f"importance_std {spread:.3f} of {low:.3f} to {high:.3f}",
        )
