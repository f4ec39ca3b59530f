"""Our own run directories: metrics.jsonl, with what result.json, run.json and config.json say of the whole run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron.rundir import names
from megatron.rundir.folders import read_file
from megatron.rundir.records import read, scan
from megatron.scaling.table.covariates import read_covariates
from megatron.scaling.table.ingest.curves import Curves, slug
from megatron.scaling.table.runs import event_of, read_result, run_directories

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
    file = directory / names.METRICS
    curves = Curves(run=directory.name, path=directory, files=[file] if file.is_file() else [], facts=_facts(directory))
    if not curves.files:
        return curves
    columns: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    trained, rest = scan(file)
    others: Iterable[tuple[int, dict]] = list(rest)
    wants_train = bool(of_train) or not any(record.get("kind") == "val" for _, record in others)
    if trained is not None and wants_train and not of_train <= {"train-loss"}:
        trained, others = None, read(file)  # every column of them
    for _, record in others:
        if wants_train or record.get("kind") != "train":
            _add(record, columns, curves)
    if trained and trained["step"] and wants_train:
        for name in (*AXES, "loss"):
            curves.add(name if name in AXES else f"train/{name}", trained["step"], trained[name])
    for name, (steps, values) in columns.items():
        curves.add(name, steps, values)
    return curves


def _add(record: dict, columns: dict, curves: Curves) -> None:
    step, kind = record.get("step"), record.get("kind")
    if not isinstance(step, int) or str(kind).partition("-")[0] not in ("train", "val", "test", "task"):
        return
    for name, value in record.items():
        if name in ("kind", "step") or not isinstance(value, (int, float)):
            continue
        steps, values = columns[name if name in AXES else f"{kind}/{name}"]
        steps.append(step)
        values.append(float(value))
    if kind == "val" and "bound" in record:
        curves.facts["bound"] = record["bound"]


def _facts(directory: Path) -> dict:
    """Columns of the whole run, as far as its files know them yet."""
    config, known, result = (read_file(directory, name) for name in (names.CONFIG, names.FACTS, names.RESULT))
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
    return facts | {"tokens_per_epoch": known.get("tokens_per_epoch"), "covariates": read_covariates(config, known)} | ending
