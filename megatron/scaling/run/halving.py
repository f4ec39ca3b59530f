"""Which runs of a successive halving go on, by the losses of the rung before."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from megatron.scaling.run.progress import Standing, stand


@dataclass
class Decided:
    """Runs that will not be: name -> why; and runs whose turn is not settled yet: name -> what they wait for."""

    gave_way: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)


def decide(plan, runs_dir: Path, again: Collection[str] = ()) -> Decided:
    """At each rung the settings of least loss, a mean over seeds, go on; one with a failed run counts as the worst.

    `again`: runs that are about to be started, whatever became of them before.
    """
    entries, decided = {run["name"]: run for run in plan.runs}, Decided()
    for group in plan.halving:
        alive = list(range(len(group["rungs"][0])))
        for number, rung in enumerate(group["rungs"]):
            out = {name for at, names in enumerate(rung) if at not in alive for name in names}
            decided.gave_way |= {name: _why(number, group) for name in out}
            if number + 1 == len(group["rungs"]):
                break
            now = {at: [stand(entries[name], runs_dir / name) for name in rung[at]] for at in alive}
            unfinished = [
                one.run
                for found in now.values()
                for one in found
                if one.state != "done" and (one.run in again or not _failed(one))
            ]
            if unfinished:
                said = f"it waits for {unfinished[0]}" + f" and {len(unfinished) - 1} more" * (len(unfinished) > 1)
                for more in group["rungs"][number + 1 :]:
                    for at, names in enumerate(more):
                        if at in alive:
                            decided.waiting |= dict.fromkeys(names, f"{said}: successive halving")
                        else:
                            decided.gave_way |= dict.fromkeys(names, _why(number, group))
                break
            alive = sorted(sorted(alive, key=lambda at: _mean_loss(now[at]))[: group["keep"][number + 1]])
    return decided


def _failed(run: Standing) -> bool:
    """By itself; one that was killed without a word goes on."""
    return run.state == "failed" and run.code is not None


def _mean_loss(found: list[Standing]) -> float:
    losses = [one.loss if one.state == "done" and one.loss is not None else math.inf for one in found]
    return math.fsum(losses) / len(losses)


def _why(number: int, group: dict) -> str:
    return f"gave way to the {group['keep'][number]} best of {len(group['rungs'][0])} settings at the length before"
