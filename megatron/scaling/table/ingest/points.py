"""One table of points out of everything that was read: which runs there are, and the columns of each."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain, repeat
from pathlib import Path

import numpy as np

from megatron.errors import BadData, CannotWrite, MissingInput
from megatron.files import replace_file
from megatron.progress import ProgressLine
from megatron.scaling.table.covariates import FLAGS, as_columns, in_a_table
from megatron.scaling.table.ingest.curves import SYNONYMS, Curves, find_one, find_synonym, trailing_mean
from megatron.scaling.table.ingest.event_files import read_tensorboard
from megatron.scaling.table.ingest.run_records import read_runs
from megatron.scaling.table.ingest.stdout_logs import read_logs
from megatron.scaling.table.ingest.tables import number, read_rows, read_wandb_export, renamed
from megatron.scaling.table.ingest.wandb_files import read_wandb

HEAD = ("run", "objective", "step", "params", "tokens", "unique_tokens", "flops", "loss")  # columns that are always there
NUMBERS = ("step", "params", "tokens", "samples", "unique_tokens", "flops", "loss")
UNNAMED = ("tensorboard", "tb", "wandb", "files", "logs", "log", "train", "stdout", "output")  # they name no run: its folder does
BESIDE = ("loss_se_noise", "loss_se_data", "bits_per_byte", "accuracy")  # logged with the loss
ARGUMENTS = ("objective", "seed", *FLAGS)  # columns that tell what a trainer was called with
INTERNAL = ("last_step", "lr_decayed_at_end", "tokens_per_epoch", "covariates")


@dataclass(frozen=True)
class Sources:
    """What to read: folders, folders, folders or files, files, files, files."""

    metrics: list[Path] = field(default_factory=list)
    tensorboard: list[Path] = field(default_factory=list)
    wandb: list[Path] = field(default_factory=list)
    csv: list[Path] = field(default_factory=list)
    jsonl: list[Path] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Choices:
    """`mapping`: column -> (its name in the source, a factor). `constants`: (pattern of names or paths of runs, column, value).
    `last_k`: a loss is the mean of so many validations up to its step. `only_final`: the last point of every run."""

    mapping: dict[str, tuple[str, float]] = field(default_factory=dict)
    constants: list[tuple[str, str, str | float]] = field(default_factory=list)
    last_k: int = 1
    only_final: bool = False

    def given(self, run: str, path: Path) -> dict:
        """The constants of a run, by its name or its path."""
        return {
            column: value
            for pattern, column, value in self.constants
            if fnmatchcase(run, pattern) or fnmatchcase(path.as_posix(), pattern)
        }


@dataclass
class Points:
    """The rows of one run: columns as lists [n], or one value for all. `loss_metric`: what the loss was called."""

    run: str
    path: Path
    files: list[Path]
    columns: dict
    loss_metric: str
    num_overwritten: int = 0

    def __len__(self) -> int:
        return len(self.columns["loss"])

    def last(self, column: str):
        value = self.columns.get(column)
        return value[-1] if isinstance(value, list) else value


def ingest(sources: Sources, choices: Choices) -> tuple[list[Points], list[str]]:
    """(the points of every run, sentences on what is missing). Raises MissingInput, BadData."""
    curves, tables = _read(sources, choices)
    notes = [
        f"{one.run}: no loss in {one.path}; it has {', '.join(one.names[:8]) or 'nothing'}."
        for one in curves
        if one.metric("loss", choices.mapping)[0] is None
    ]
    runs = [_points(one, choices) for one in _whole_runs(curves, choices) if one.metric("loss", choices.mapping)[0]]
    runs += [points for path, rows in tables for points in _table_points(path, rows, choices)]
    if not runs:
        raise MissingInput(f"no point was found: {' '.join(notes)} Name the loss with --map loss=...")
    if choices.only_final:
        for points in runs:
            points.columns = {name: [value[-1]] if isinstance(value, list) else value for name, value in points.columns.items()}
    return runs, notes + _missing(runs)


def _read(sources: Sources, choices: Choices) -> tuple[list[Curves], list[tuple[Path, list]]]:
    """(curves, tables as (path, rows)) of every source, a source given twice only once."""
    for path in (path for paths in vars(sources).values() for path in paths):
        if not path.exists():
            raise MissingInput(f"{path}: no such file or folder; check the path.")
    readers = (
        read_runs(sources.metrics, [name for name, _ in choices.mapping.values()]),
        read_tensorboard(sources.tensorboard),
        read_wandb(p for p in sources.wandb if p.suffix != ".csv"),
        read_logs(sources.logs),
    )
    curves, line = [], ProgressLine(None, "runs")
    for number_read, one in enumerate(chain(*readers), 1):
        curves.append(one)
        line.show(number_read, f"{number_read} runs, {one.run}")
    line.clear()
    tables = [(path, read_rows(path)) for path in (*sources.csv, *sources.jsonl)]
    for path in (path for path in sources.wandb if path.suffix == ".csv"):
        exported = read_wandb_export(path)
        if exported is None:
            tables.append((path, read_rows(path)))
        else:
            curves += exported
    by_file = {(one.key, tuple(file.resolve() for file in one.files)): one for one in curves}
    return list(by_file.values()), list({path.resolve(): (path, rows) for path, rows in tables}.values())


def _whole_runs(curves: list[Curves], choices: Choices) -> list[Curves]:
    """Processes of one run joined in the order given, and every run under a name of its own."""
    whole: dict[str, Curves] = {}
    for one in curves:
        if one.run.lower() in UNNAMED:
            one.run = one.path.resolve().parent.name
        name = choices.given(one.run, one.path).get("run")
        key = one.key if name is None else f"--set run={name}"
        if key in whole:
            whole[key].follow(one)
        else:
            whole[key] = one
    names = [one.run for one in whole.values()]
    for one in whole.values():
        one.facts |= choices.given(one.run, one.path)
        one.run = str(one.facts.pop("run", one.path.as_posix() if names.count(one.run) > 1 else one.run))
    return list(whole.values())


def _points(curves: Curves, choices: Choices) -> Points:
    """The points at which the loss was measured, with the progress and the facts of the run there."""
    metric, factor = curves.metric("loss", choices.mapping)
    assert metric is not None  # runs without one were left out
    steps, loss = curves.curve(metric)
    called = {name: in_a_table(_typed(value)) for name, value in curves.arguments.items() if name in ARGUMENTS}
    facts = as_columns(called | curves.facts.get("covariates", {})) | curves.facts
    columns: dict = {
        "run": curves.run,
        "step": steps.tolist(),
        "loss": trailing_mean(loss * factor, choices.last_k).tolist(),
        "loss_metric": metric,
    }
    columns |= _progress(curves, steps, facts, choices)
    for name in BESIDE:
        beside = f"{metric.rpartition('/')[0]}/{name}"
        if beside in curves.chunks:
            columns[name] = _listed(curves.at(beside, steps))
    for name in set(choices.mapping) - {"loss", "tokens", "samples", "flops", "step", "run"}:
        found, factor = curves.metric(name, choices.mapping)
        columns[name] = _listed(curves.at(str(found), steps) * factor)
    if "last_step" in facts:
        ended = steps == facts["last_step"]
        columns["lr_decayed"] = [bool(e and facts["lr_decayed_at_end"]) for e in ended]
    if choices.last_k > 1:
        columns["loss_smoothing"] = f"last-k:{choices.last_k}"
    columns |= {name: value for name, value in facts.items() if name not in INTERNAL}
    num_written = sum(len(chunk[0]) for chunk in curves.chunks[metric])
    return Points(curves.run, curves.path, curves.files, columns, metric, num_written - len(steps))


def _progress(curves: Curves, steps: np.ndarray, facts: dict, choices: Choices) -> dict:
    """tokens, unique_tokens and flops [n] where they are known: from what was consumed, never from steps x batch."""
    found = {}
    for name in ("samples", "tokens", "flops"):
        metric, factor = curves.metric(name, choices.mapping)
        if metric:
            found[name] = curves.progress_at(metric, steps) * factor
    length = facts.get("seq_length") or _only_value(curves, "seq_length")
    if "tokens" not in found and "samples" in found and length:
        found["tokens"] = found["samples"] * length
    tokens, epoch, params = found.get("tokens"), facts.get("tokens_per_epoch"), facts.get("params")
    if tokens is not None and epoch:
        found["unique_tokens"] = np.minimum(tokens, epoch)
    if tokens is not None and "flops" not in found and isinstance(params, (int, float)):
        found["flops"] = 6.0 * params * tokens
        facts.setdefault("flops_convention", "6ND")
    return {name: _listed(values if name == "flops" else np.round(values)) for name, values in found.items()}


def _only_value(curves: Curves, quantity: str) -> float | None:
    """What a curve says, if it always says the same."""
    metric = find_synonym(curves.names, quantity)
    values = np.unique(curves.curve(metric)[1]) if metric else np.empty(0)
    return float(values[0]) if len(values) == 1 else None


def _listed(values: np.ndarray) -> list:
    """Numbers for a table: None where there is none, integers where all are."""
    if np.isnan(values).any():
        return [None if math.isnan(value) else value for value in values.tolist()]
    exact = (values == np.round(values)) & (np.abs(values) < 2**53)
    return values.astype(np.int64).tolist() if exact.all() else values.tolist()


def _typed(text):
    """A number where a trainer printed one."""
    for kind in (int, float) if isinstance(text, str) else ():
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# Tables: rows that others made


def _table_points(path: Path, rows: list, choices: Choices) -> Iterator[Points]:
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    old = {new: find_one(names, wanted, new, path) for new, (wanted, _) in choices.mapping.items()}
    for quantity in SYNONYMS:
        synonym = find_synonym(names, quantity)
        if quantity not in (*names, *old) and synonym and synonym not in old.values():
            old[quantity] = synonym
    if "loss" not in (*names, *old):
        raise BadData(f"{path}: no column for the loss; it has {', '.join(names)}. Name it with --map loss=COLUMN.")
    by_run: dict[tuple, list] = {}
    for line, row in renamed(rows, old):
        row = _row(row, path, line, choices)
        by_run.setdefault((row["run"], row.get("objective"), row.get("seed")), []).append(row)
    for (run, *_), members in by_run.items():
        yield _joined(run, path, members, choices, old.get("loss", "loss"))


def _row(row: dict, path: Path, line: int, choices: Choices) -> dict:
    """A row with its numbers as numbers, its constants, and tokens where only samples are known."""
    where = f"{path}, line {line}"
    row = {column: json.dumps(cell) if isinstance(cell, (dict, list)) else cell for column, cell in row.items()}
    row["run"] = str(row.get("run") or f"{path.stem}:{line}")
    row |= {"loss": row.get("loss")} | choices.given(row["run"], path)
    for column in (column for column in {*NUMBERS, *choices.mapping} if column in row):
        factor = choices.mapping.get(column, (None, 1.0))[1]
        if column in NUMBERS or factor != 1:
            value = number(row[column], where, column)
            row[column] = None if value is None else value * factor
    if row.get("tokens") is None and None not in (row.get("samples"), row.get("seq_length")):
        row["tokens"] = row["samples"] * number(row["seq_length"], where, "seq_length")
    return row


def _joined(run: str, path: Path, rows: list[dict], choices: Choices, metric: str) -> Points:
    """The rows of one run by step, each step once where they have steps."""
    written = len(rows)
    if written > 1 and all(row.get("step") is not None for row in rows):
        by_step = {row["step"]: row for row in rows}
        rows = [by_step[step] for step in sorted(by_step)]
    columns: dict = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    if choices.last_k > 1 and None not in columns["loss"]:
        columns["loss"] = trailing_mean(np.array(columns["loss"], np.float64), choices.last_k).tolist()
        columns["loss_smoothing"] = f"last-k:{choices.last_k}"
    return Points(run, path, [path], columns, metric, written - len(rows))


# What comes out


def _missing(runs: list[Points]) -> list[str]:
    """What no law can do without and these runs do not say."""
    hints = {
        "params": "give --set params=124e6, or --set 'RUN:params=124e6' for runs of different sizes",
        "tokens": "give --set seq_length=2048 where samples were logged, or --map tokens=...",
    }
    notes = []
    for column, hint in hints.items():
        lacking = [points.run for points in runs if points.last(column) is None]
        if lacking:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            notes.append(f"{column} is not known of {', '.join(lacking[:3])}{more}: {hint}.")
    kinds = sorted({points.loss_metric for points in runs})
    if len(kinds) > 1:
        notes.append(f"the losses were called {', '.join(kinds)} (column loss_metric): say which to take with --map loss=...")
    return notes


def write_points(path: Path, runs: list[Points], choices: Choices) -> None:
    """The table (CSV, or JSONL by its name), and beside it NAME.sources.json: every file with its SHA-256, every choice.

    Raises CannotWrite.
    """
    found = dict.fromkeys(
        name
        for points in runs
        for name, value in points.columns.items()
        if any(cell is not None for cell in (value if isinstance(value, list) else [value]))
    )
    names = [*HEAD, *(name for name in found if name not in HEAD)]
    rows = (row for points in runs for row in _rows(points, names))
    record = {
        "table": path.name,
        "rows": sum(map(len, runs)),
        "map": {new: list(old) for new, old in choices.mapping.items()},
        "set": choices.constants,
        "last_k": choices.last_k,
        "only_final": choices.only_final,
        "runs": [_provenance(points) for points in runs],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path.with_name(f"{path.name}.sources.json"), json.dumps(record, indent=1).encode())
        replace_file(path, _json_text(names, rows) if path.suffix == ".jsonl" else _csv_text(names, rows))
    except OSError as error:
        raise CannotWrite(f"{path} cannot be written: {error.strerror}; choose another --out.") from error


def _rows(points: Points, names: list[str]) -> Iterator[tuple]:
    columns = (points.columns.get(name) for name in names)
    return zip(*(column if isinstance(column, list) else repeat(column, len(points)) for column in columns))


def _csv_text(names: list[str], rows: Iterable[tuple]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return out.getvalue().encode()


def _json_text(names: list[str], rows: Iterable[tuple]) -> bytes:
    lines = (json.dumps({name: None if cell != cell else cell for name, cell in zip(names, row)}) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode()


def _provenance(points: Points) -> dict:
    return {
        "run": points.run,
        "rows": len(points),
        "loss_metric": points.loss_metric,
        "overwritten": points.num_overwritten,
        "files": [{"path": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()} for file in points.files],
    }
