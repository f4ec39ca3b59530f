"""A folder of checkpoints belongs to the run's last start: what that one did not begin from is set aside by name.

Every start of a run is a branch, with an id that run.json and the checkpoints carry. A checkpoint is gone on from only if it is
of the last branch or of what that one began from, and if metrics.jsonl reaches as far as when it was saved.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from megatron.batch import Progress
from megatron.config import Config
from megatron.core import checkpoint
from megatron.core.checkpoint import Checkpoint
from megatron.core.mesh import Mesh
from megatron.errors import BadData, CannotWrite
from megatron.files import replace_file
from megatron.rundir import records
from megatron.rundir.folders import read_file
from megatron.rundir.names import FACTS, METRICS, aside_name, step_and_attempt


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the checkpoints of one start carry: its branch, and the checkpoint that it began from, if any."""

    branch: str | None = None
    parent: str | None = None


Starts = list[tuple[str | None, int]]  # (branch, step it began at) of each start, the last one last


def is_own(cfg: Config, folder: Path) -> bool:
    """Whether checkpoints are read from where this run writes its own."""
    own = [Path(p).resolve() for p in (cfg.train.save, cfg.log.run_dir) if p]
    return folder.resolve() in own


def read_ledger(cfg: Config, folder: Path) -> dict:
    """{starts, recorded} of the run whose checkpoints are in `folder`; `recorded`, the last step of a run's own record, or None.

    A run.json that cannot be read says nothing of either.
    """
    own = is_own(cfg, folder)
    home = Path(cfg.log.run_dir) if own else folder
    known = known_of(home)
    recorded = None
    if own and (known or (home / METRICS).exists()) and not (cfg.train.finetune or cfg.train.skip_train):
        recorded = records.last_train_step(home / METRICS)
    return {"starts": starts_of(known), "recorded": recorded}


def known_of(run: Path) -> dict:
    """What run.json says; {} where it cannot be read."""
    try:
        return read_file(run, FACTS)
    except BadData:
        return {}


def starts_of(known: dict) -> Starts:
    """Of a run.json; versions without branches have starts of none."""
    if not known:
        return []
    later = [(resume.get("branch"), resume.get("step") or 0) for resume in known.get("resumes", [])]
    return [(known.get("first_branch"), known.get("began") or 0), *later]


def refusal(ledger: dict, step: int, facts: dict) -> str:
    """Why a checkpoint of that step is not to be gone on from; empty where it is."""
    starts, recorded = ledger["starts"], ledger["recorded"]
    if starts and not on_branch(starts, facts.get("branch"), step):
        return f"it is of an earlier start, and the run's last one began at step {starts[-1][1]} without it"
    interval = facts.get("interval", {})
    logged = step - interval.get("steps", 0) - interval.get("skipped", 0)
    if recorded is not None and logged > recorded:
        return f"it is newer than the record: {METRICS} ends at step {recorded}, and had step {logged} when it was saved"
    return ""


def on_branch(starts: Starts, branch: str | None, step: int) -> bool:
    """Whether the last start went through a checkpoint. What was there before the first start is known to nobody."""
    if step <= min(began for _, began in starts):
        return True
    return any(
        one == branch and step <= min((later for _, later in starts[i + 1 :]), default=step) for i, (one, _) in enumerate(starts)
    )


def begin(
    cfg: Config, mesh: Mesh, at: Progress, loaded: Checkpoint | None, changed: list[str], say: Callable[[str], None]
) -> Start:
    """Write the start of a new branch into run.json, then set aside what it leaves behind.

    Raises CannotWrite. In this order, so that a kill between the two leaves no checkpoint in doubt.
    """
    folder, branch, layout = Path(cfg.log.run_dir), secrets.token_hex(8), layout_of(cfg, mesh)
    known = read_known(folder, say) if at.step else {}
    if not known:
        known = {"name": folder.name, "created": time.time(), "first_branch": branch, "began": at.step, "layout": layout}
    known |= {"branch": branch, "resumes": known.get("resumes", [])}
    if loaded:
        went_on = {"time": time.time(), "step": at.step, "from": str(loaded.path), "changed": changed}
        known["resumes"] = [*known["resumes"], went_on | {"layout": layout, "branch": branch}]
    write_json(folder / FACTS, known)
    if cfg.train.save:
        set_aside(Path(cfg.train.save), at.step, loaded, say)
    return Start(branch=branch, parent=str(loaded.path) if loaded else None)


def layout_of(cfg: Config, mesh: Mesh) -> dict:
    parallel = cfg.parallel
    return {
        "world_size": mesh.world.size,
        "tensor": mesh.tp.size,
        "pipeline": mesh.pp.size,
        "data": mesh.dp.size,
        "schedule": parallel.pipeline_schedule,
        "zero_stage": parallel.zero_stage,
        "sequence_parallel": parallel.sequence_parallel,
        "deepspeed": parallel.deepspeed,
    }


def read_known(folder: Path, say: Callable[[str], None]) -> dict:
    """What run.json says so far. A damaged one moves aside: who the run is will be known again, not when it went on."""
    try:
        return read_file(folder, FACTS)
    except BadData as error:
        aside = folder / f"{FACTS}.damaged"
        os.replace(folder / FACTS, aside)
        say(f"{error.args[0].partition(';')[0]}; it moved to {aside.name} and is begun anew")
        return {}


def set_aside(folder: Path, step: int, loaded: Checkpoint | None, say: Callable[[str], None]) -> None:
    """Rename later checkpoints, so that nothing takes them for the run's own. Damaged ones stay for a person to look at."""
    for path in checkpoint.find(folder):
        kept = loaded is not None and (path.name in loaded.refused or path.resolve() == loaded.path.resolve())
        if kept or step_and_attempt(path.name)[0] <= step:
            continue
        places = (folder / aside_name(path.name, number) for number in count())
        aside = next(place for place in places if not os.path.lexists(place))
        try:
            os.rename(path, aside)
        except OSError as error:
            raise CannotWrite(f"{path} is of an earlier start and cannot be set aside: {error.strerror}") from error
        say(f"{path.name} is of an earlier start: set aside as {aside.name}")


def remove(path: Path) -> None:
    """Take a file away, if it is there. Raises CannotWrite."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CannotWrite(f"{path} cannot be removed: {error.strerror}; make it writable or choose another --run-dir") from error


def write_json(path: Path, what: dict) -> None:
    """Publish plain JSON at once. Raises CannotWrite."""
    try:
        replace_file(path, json.dumps(records.plain(what), indent=1, allow_nan=False).encode())
    except OSError as error:
        raise CannotWrite(f"{path} cannot be written: {error.strerror}; make room or choose another --run-dir") from error
