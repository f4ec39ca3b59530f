"""How a run stands, by its folder: a process that holds the lock runs; one that left without a word was killed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron.errors import KILLED, PEER_LOST, PREEMPTED, BadData, MissingInput
from megatron.files import is_there
from megatron.locks import LOCK, is_held
from megatron.rundir.folders import is_run, read_file
from megatron.rundir.names import EXIT, RESULT
from megatron.rundir.records import last_line, last_step

STATES = ("done", "running", "stopped", "failed", "waiting")
GO_ON = (PREEMPTED, KILLED, PEER_LOST)  # saved, or to be started again: no failure


@dataclass(frozen=True, kw_only=True)
class Status:
    """`state`: of STATES, or evaluated for a folder that only scored; the reason in words; the exit code, where there is one."""

    state: str
    reason: str = ""
    code: int | None = None
    step: int | None = None


def status(folder: str | Path) -> Status:
    """How the run of a folder stands. A damaged file of it is a failure that says so; starting the run again writes it anew."""
    folder = Path(folder)
    try:
        return _status(folder)
    except (BadData, MissingInput) as error:
        return Status(state="failed", reason=str(error))


def _status(folder: Path) -> Status:
    if is_there(folder / RESULT):
        read_file(folder, RESULT)
        return Status(state="done")
    if is_held(folder):
        return Status(state="running", reason=last_step(folder))
    ended = read_file(folder, EXIT)
    if ended:
        code, reason, step = ended.get("code"), ended.get("reason") or "no reason given", ended.get("step")
        state = "evaluated" if code == 0 else "stopped" if code in GO_ON else "failed"
        return Status(state=state, reason=reason, code=code, step=step)
    if not (is_run(folder) or (folder / LOCK).exists()):
        return Status(state="waiting")
    line = last_line(folder)
    if line.startswith("preflight passed"):
        return Status(state="waiting", reason="its preflight passed")
    if line.startswith("stopped at step"):
        return Status(state="stopped", reason=line)
    return Status(state="failed", reason=f"killed without a word, {last_step(folder)}; its log ends: {line or 'nothing'}")
