"""What the files of a run folder and its checkpoints are called."""

from __future__ import annotations

import re

METRICS = "metrics.jsonl"  # the record: an object a line
SUPERSEDED = "metrics.superseded.jsonl"  # its lines that a later start left behind
METRICS_TABLE = "metrics.csv"  # the numbers of the record, a row a record
CONFIG = "config.json"  # every resolved flag
FACTS = "run.json"  # who the run is, and each time it went on
RESULT = "result.json"  # there when, and only when, the run is done
EXIT = "exit.json"  # how its last process ended
EVALUATION = "evaluation.json"  # of --skip-train
LIKELIHOODS = "likelihood.jsonl"  # of tools/evaluate.py: an object a measurement
LOG = "train.log"  # all that it said
BAD_BATCHES = "bad_batches"  # steps that were not finite
MARKS = frozenset({METRICS, FACTS, RESULT, EXIT})  # any of them makes a folder a run

CHECKPOINT = re.compile(r"step-([0-9]+)(?:\.a([0-9]+))?")
SET_ASIDE = re.compile(r"aside(?:-[0-9]+)?-(step-[0-9]+(?:\.a[0-9]+)?)")
MANIFEST = "manifest.json"  # of a checkpoint; written last
LATEST = "latest"  # of a folder of checkpoints: a hint for people
RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=,@-]{0,199}")  # file systems take 255 bytes, and names grow: .tmp-NAME-..


def checkpoint_name(step: int, attempt: int = 0) -> str:
    """step-00000200, or step-00000200.a1 for another attempt at that step."""
    return f"step-{step:08d}{f'.a{attempt}' if attempt else ''}"


def step_and_attempt(name: str) -> tuple[int, int]:
    """(200, 1) for step-00000200.a1; (-1, -1) for any other name."""
    match = CHECKPOINT.fullmatch(name)
    return (int(match[1]), int(match[2] or 0)) if match else (-1, -1)


def aside_name(name: str, number: int = 0) -> str:
    """aside-step-00000200, or aside-2-step-00000200: a checkpoint that a later start left behind, which nothing goes on from."""
    return f"aside-{f'{number}-' if number else ''}{name}"


def step_of(name: str) -> int | None:
    """The step that a checkpoint's name states, also of one that was set aside; None where it states none."""
    match = SET_ASIDE.fullmatch(name)
    step, _ = step_and_attempt(match[1] if match else name)
    return step if step >= 0 else None


def is_run_name(name: object) -> bool:
    """Whether a name from a file may become a folder of its own: it cannot leave the folder that it is put into."""
    return isinstance(name, str) and bool(RUN.fullmatch(name))
