"""Our own run directories: metrics.jsonl, with what result.json, run.json and config.json say of the whole run."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron.errors import BadData
from megatron.scaling.table.ingest.curves import Curves, slug
from megatron.scaling.table.runs import event_of, read_json, read_result, run_directories

FACTS = (
    "objective",
    "params",
    "params_non_embedding",
    "params_with_head",
    "params_published",
    "params_convention",
    "flops_convention",
    "bound",
    "tokenizer",
    "eval_slice",
    "event",
    "seed",
    "seq_length",
    "batch_size",
    "lr",
    "lr_decay_style",
    "vocab_size",
    "trunk",
)
AXES = ("samples", "tokens", "flops")
# The beginning of a train record as we write it: 100 runs of 10,000 records must not need a million whole objects.
TRAIN_START = b'{"kind": "train", '
TRAIN = re.compile(
    rb'\{"kind": "train", "step": (\d+), "samples": (\d+), "tokens": (\d+), "flops": ([^,]+), '
    rb'"epoch": [^,]+, "time": [^,]+, "loss": ([^,}]+)[,}]'
)
NON_FINITE = {"nan", "inf", "-inf"}


def read_runs(folders: Iterable[Path], wanted: Iterable[str] = ()) -> Iterator[Curves]:
    """The curves of every run directory, at or below these. Raises as `read_run`, and MissingInput where there is none."""
    for folder in folders:
        yield from (read_run(directory, wanted) for directory in run_directories(folder))


def read_run(directory: Path, wanted: Iterable[str] = ()) -> Curves:
    """The curves of one run directory, named train/loss, val/loss, tokens, ... Raises BadData with file and line.

    Train records are by far the most: of them there is only the loss, and only where the run has no validations, unless the
    metrics `wanted` name them.
    """
    of_train = {slug(name) for name in wanted if name.startswith("train")}
    file = directory / "metrics.jsonl"
    curves = Curves(run=directory.name, path=directory, files=[file] if file.is_file() else [], facts=_facts(directory))
    if not curves.files:
        return curves
    columns: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    data = _whole_lines(file.read_bytes())
    wants_train = bool(of_train) or b'"kind": "val"' not in data
    heads = TRAIN.findall(data) if wants_train and of_train <= {"train-loss"} else []
    in_full = wants_train and data.count(TRAIN_START) != len(heads)  # or not as we write them today
    for number, line in enumerate(data.split(b"\n"), 1):
        if in_full or not line.startswith(TRAIN_START):
            _add(_record(file, number, line), columns, curves)
    if heads and not in_full:
        steps, *values, losses = zip(*heads)
        for name, column in zip((*AXES, "train/loss"), (*values, (loss.strip(b'"') for loss in losses))):
            curves.add(name, list(map(int, steps)), list(map(float, column)))
    for name, (steps, values) in columns.items():
        curves.add(name, steps, values)
    return curves


def _whole_lines(data: bytes) -> bytes:
    """Without the last line where it was cut short: the run is being written, or was killed."""
    rest, tail = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
    try:
        json.loads(tail)
    except ValueError:
        return rest
    return data


def _record(file: Path, number: int, line: bytes) -> dict:
    try:
        record = json.loads(line or b"{}")
    except ValueError:
        raise BadData(f"{file}, line {number}: not JSON; expected one object a line.") from None
    if not isinstance(record, dict):
        raise BadData(f"{file}, line {number}: found a {type(record).__name__}, expected an object.")
    return record


def _add(record: dict, columns: dict, curves: Curves) -> None:
    step, kind = record.get("step"), record.get("kind")
    if not isinstance(step, int) or str(kind).partition("-")[0] not in ("train", "val", "test"):
        return
    for name, value in record.items():
        if name in ("kind", "step") or not (isinstance(value, (int, float)) or isinstance(value, str) and value in NON_FINITE):
            continue
        steps, values = columns[name if name in AXES else f"{kind}/{name}"]
        steps.append(step)
        values.append(float(value))
    if kind == "val" and "bound" in record:
        curves.facts["bound"] = record["bound"]


def _facts(directory: Path) -> dict:
    """Columns of the whole run, as far as its files know them yet."""
    config, known, result = (read_json(directory / name) for name in ("config.json", "run.json", "result.json"))
    flags = {name: value for section in config.values() if isinstance(section, dict) for name, value in section.items()}
    found = {
        "batch_size": flags.get("global_batch_size"),
        **flags,
        **known,
        "tokenizer": known.get("fingerprints", {}).get("tokenizer"),
        "event": event_of(known),
    }
    if result:
        found |= read_result(directory)
    facts = {name: found[name] for name in FACTS if found.get(name) is not None}
    ending = {"last_step": result.get("steps"), "lr_decayed_at_end": result.get("lr_decayed")} if result else {}
    return facts | {"tokens_per_epoch": known.get("tokens_per_epoch")} | ending
