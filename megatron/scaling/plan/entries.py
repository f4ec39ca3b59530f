"""Budgets, sizes and objectives -> a list of runs with their exact numbers, their flags and a forecast.

N parameters, D tokens, U unique tokens, C training FLOPs. Every run's flags are read by megatron/config.py before a plan is
written, and its numbers are those that its result.json will hold.
"""

from __future__ import annotations

import csv
import io
import json
import math
import operator
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron import config
from megatron.catalogue import ENTRY_POINTS, OBJECTIVES, default_of
from megatron.config import Config
from megatron.errors import BadData, CannotWrite, MissingInput, Untrusted
from megatron.files import read_json, replace_file
from megatron.flags import ConfigError, spelling
from megatron.rundir import fields
from megatron.rundir.index import count_documents
from megatron.rundir.names import is_run_name
from megatron.scaling.plan import axes, flags
from megatron.scaling.plan.cost import Rates, Speed, forecast
from megatron.scaling.plan.grid import CHOSEN, Cell, Request, Settled, corpus_size, filled, grid, trunk_name, unique_cells
from megatron.scaling.plan.halving import rungs_of, share_that_runs

SCHEMA_VERSION = 1
NESTED = ("flags", "forecast", "budget", "varied")  # parts of a run's entry that are no cells of a table
NUMBER = (int, float)
SHORT = 0.01  # of a run, that whole batches may leave out unsaid
SUMMED = ("tokens", "hours", "gpu_hours", "cost", "energy_kwh")
ENTRY: dict[str, tuple[type, ...]] = {  # types of a run's fields that other verbs read
    "name": (str,),
    "tokens": NUMBER,
    "steps": NUMBER,
    "flops_6nd": NUMBER,
    "entry": (str,),
    "flags": (list,),
    "forecast": (dict, type(None)),
    "load": (dict, type(None)),
    "varied": (dict,),
}
FORECAST: fields.Fields = {name: (fields.NUMBER, "", "") for name in (*SUMMED, "loss", "memory_bytes")}
NEEDED = ("name", "tokens", "steps", "flops_6nd")


@dataclass(frozen=True)
class Plan:
    """Runs in the order of their start: a trunk stands before its branches. A run is a dict, as plan.json holds it.

    `varied`: the flags, as fields of config.json, that the runs were planned to differ in; a run's `varied` holds its own values.
    `halving`: groups of runs of which only the best settings go on to the next length, as plan/halving.py has them.
    """

    kind: str
    scale: str
    defaults: dict
    runs: list[dict]
    created: str = ""
    schema_version: int = SCHEMA_VERSION
    notes: list[str] = field(default_factory=list)
    varied: list[str] = field(default_factory=list)
    halving: list[dict] = field(default_factory=list)

    def totals(self) -> dict[str, float | None]:
        """Sums over the runs of what each one does itself, of a rung for the share that runs; None where a forecast lacks it."""
        share = share_that_runs(self.halving)
        weights = [share.get(run["name"], 1.0) for run in self.runs]
        parts = {name: [run["forecast"][name] for run in self.runs] for name in SUMMED}
        return {"runs": round(math.fsum(weights))} | {
            name: None if None in values else math.fsum(map(operator.mul, weights, values)) for name, values in parts.items()
        }


def make_plan(request: Request, speeds: dict[str, Speed] | None = None, rates: Rates | None = None) -> Plan:
    """The plan of a request. `speeds`: of each objective. Raises ConfigError with every mistake, MissingInput, BadData."""
    r, rates = request.settled(), rates or Rates()
    mistakes: list[tuple[str, str]] = []
    notes: list[str] = []
    cells = unique_cells(list(grid(r, mistakes)), mistakes, notes)
    notes += merged([(cell.name, sentence) for cell in cells for sentence in cell.beyond])
    runs = []
    for run in with_trunks(r, cells, mistakes) if r.schedule == "wsd" else [whole_run(r, cell) for cell in cells]:
        check_run(run, rates.gpus, mistakes)
        runs.append(run)
    if mistakes:
        raise ConfigError(merged(mistakes))
    missing = list(dict.fromkeys(sentence for run in runs for sentence in flags.missing_data(run["config"].data)))
    if missing and r.need_data:
        raise MissingInput("; ".join(missing))
    notes += [f"the data are not here yet: {sentence}" for sentence in missing]
    told = corpus_size(r.valid_data)
    finished = [finish_run(run, r, (speeds or {}).get(run["objective"]), rates, told) for run in runs]
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    varied = list(dict.fromkeys(name for run in finished for name in run["varied"]))
    groups = rungs_of(finished, r.halving) if r.halving else []
    return Plan(r.kind, r.scale, asdict(r), finished, created, notes=notes, varied=varied, halving=groups)


def short_of_asked(runs: list[dict]) -> list[str]:
    """A sentence where whole global batches leave out more than SHORT of the samples that a run was to have."""
    lost: dict[float, dict] = {}
    for run in runs:
        if "--train-samples" in run["flags"]:
            asked = int(run["flags"][run["flags"].index("--train-samples") + 1])
            lost[1 - run["steps"] * run["global_batch_size"] / asked] = run
    share = max(lost, default=0.0)
    if share <= SHORT:
        return []
    run = lost[share]
    return [
        f"{run['name']} is {share:.1%} shorter than asked, which no other run exceeds: it trains {run['steps']} whole batches of "
        f"{run['global_batch_size']} samples (epochs: {run['epochs']:.4g}); a smaller --batch-size comes nearer"
    ]


def joined(plan: Plan, more: Plan) -> Plan:
    """Both plans' runs, the first's first; a run that stands in both is one. Raises ConfigError for two that differ."""
    known = {run["name"]: run for run in plan.runs}
    other = [run["name"] for run in more.runs if known.get(run["name"], run) != run]
    if other:
        raise ConfigError([f"{name}: the plan holds another run of this name: give --name, or another --out" for name in other])
    return replace(
        plan,
        kind=plan.kind if plan.kind == more.kind else "joined",
        defaults=plan.defaults if plan.defaults == more.defaults else {},
        runs=plan.runs + [run for run in more.runs if run["name"] not in known],
        notes=list(dict.fromkeys(plan.notes + more.notes)),
        varied=list(dict.fromkeys(plan.varied + more.varied)),
        halving=plan.halving + [group for group in more.halving if group not in plan.halving],
    )


# -- flags


def whole_run(r: Settled, cell: Cell) -> dict:
    """A run with its own cosine decay, by the recipes' flags."""
    schedule = {"--lr-decay-style": "cosine"}
    return run_of(
        r,
        cell,
        flags.optim_flags(cell.samples, cell.warmup, cell.lr, cell.decay, schedule),
        {"--save-interval": 1000, "--keep-last": 2},
    )


def run_of(r: Settled, cell: Cell, optim: list[str], save: Mapping[str, object], **more) -> dict:
    """The start of a run's entry; check_run and finish_run add the rest. `more`: of trunks and branches."""
    at = flags.SCALES[r.scale]
    words = [
        *flags.model_flags(cell.shape, r.seq_length, at.precision, cell.seed, cell.batch),
        *optim,
        *flags.data_flags(cell.data, r.valid_data, r.tokenizer, cell.first),
        *flags.cadence_flags(at.log_interval, save),
    ]
    entry = OBJECTIVES[cell.objective].entry_point
    words += [] if default_of(entry) == cell.objective else ["--objective", cell.objective]
    point = axes.flags_of({name: value for name, value in cell.point.items() if name not in CHOSEN})
    said = {"run": cell.name, "objective": cell.objective, "program": entry.removesuffix(".py")}
    over = [re.sub(r"{(run|objective|program)}", lambda match: said[match[1]], word) for word in r.flags] + point
    return {
        "name": cell.name,
        "objective": cell.objective,
        "size": cell.size,
        "budget": cell.budget,
        "unique": cell.unique,
        "trunk": None,
        **begins(r, cell),
        **more,
        "entry": entry,
        "varied": varied_of(r, cell),
        "flags": flags.overlaid(words, over) if over else words,
    }


def begins(r: Settled, cell: Cell) -> dict:
    """With another run's weights, at step 0."""
    if not r.finetune:
        return {}
    base = filled(r.finetune, {"objective": cell.objective, "size": cell.size})
    return {"load": {"run": base, "step": 0, "finetune": True}}


def varied_of(r: Settled, cell: Cell) -> dict[str, object]:
    """What a run was planned to differ from others in: its point, and its rate, batch, decay and seed where there are several."""
    own = {"lr": cell.lr, "global_batch_size": cell.batch, "weight_decay": cell.decay, "seed": cell.seed}
    several = {"lr": r.lr, "global_batch_size": r.batch_size, "weight_decay": r.weight_decay}
    grids = [name for name, text in several.items() if text.startswith("grid:")] + ["seed"] * (len(r.seeds) > 1)
    return {name: own[name] for name in grids} | cell.point


def with_trunks(r: Settled, cells: list[Cell], mistakes: list[tuple[str, str]]) -> Iterator[dict]:
    """Cells that differ in length alone become one run at a constant rate, and a cooldown for each."""
    groups: dict[str, tuple[Cell, list[Cell]]] = {}
    for cell in cells:
        trunk = replace(cell, name=trunk_name(r, cell), budget={}, samples=0, warmup=0)
        groups.setdefault(trunk.name, (trunk, []))[1].append(cell)
    for trunk, branches in groups.values():
        try:
            yield from trunk_and_branches(r, trunk, branches)
        except ValueError as error:
            mistakes.append((trunk.name, str(error)))


def trunk_and_branches(r: Settled, trunk: Cell, branches: list[Cell]) -> Iterator[dict]:
    """Raises ValueError for a run too short to have both parts."""
    warmup = min(cell.warmup for cell in branches)
    lengths = [cell.samples // cell.batch for cell in branches]
    points = branch_points(lengths, r.decay_share, math.ceil(warmup / trunk.batch))
    samples, saves = max(points) * trunk.batch, sorted(set(points))
    yield run_of(
        r,
        trunk,
        flags.optim_flags(samples, warmup, trunk.lr, trunk.decay, {"--lr-decay-style": "constant"}),
        {"--save-interval": 1000, "--keep-last": 1, "--save-at": saves},
        checkpoints=len(saves),
    )
    for cell, length, point in zip(branches, lengths, points):
        schedule = {
            "--lr-decay-style": "WSD",
            "--lr-wsd-decay-samples": (length - point) * cell.batch,
            "--lr-wsd-decay-style": "minus_sqrt",
        }  # 1 - sqrt: arXiv:2405.18392
        yield run_of(
            r,
            cell,
            flags.optim_flags(length * cell.batch, warmup, cell.lr, cell.decay, schedule),
            {"--save-interval": 1000, "--keep-last": 2},
            trunk=trunk.name,
            load={"run": trunk.name, "step": point},
        )


def branch_points(lengths: list[int], share: float, warmup: int) -> list[int]:
    """Where each run of so many steps leaves the trunk: its decay's share before its end. Raises ValueError."""
    points = [round(length * (1 - share)) for length in lengths]
    for point, length in zip(points, lengths):
        if not max(warmup, 1) <= point < length:
            raise ValueError(
                f"a run of {length} steps is too short for {warmup} of warm-up and a cooldown of {share:g} of it: "
                "take longer runs, a smaller --batch-size or another --decay-share"
            )
    return points


# -- checks and numbers


def check_run(run: dict, gpus: int, mistakes: list[tuple[str, str]]) -> None:
    """Read a run's flags as its processes will; keeps their Config in the entry."""
    environ = {"WORLD_SIZE": str(gpus), "RANK": "0"} if gpus > 1 else {}
    folder = ["--save", run["name"], "--load", run["name"]]
    try:
        run["config"] = config.parse(run["flags"] + folder, run["objective"], environ)
    except ConfigError as error:
        for mistake in error.mistakes:
            idle = any(mistake.startswith(f"{spelling(name)} would do nothing") for name in run["varied"])  # in some of the runs
            mistakes.append((run["name"], mistake + ", or plan the runs that use it apart and join them with --append" * idle))


def finish_run(run: dict, r: Settled, speed: Speed | None, rates: Rates, valid_tokens: int | None) -> dict:
    """The entry of plan.json."""
    cfg, first = run["config"], run.get("load", {}).get("step", 0)
    if cfg.model.padded_vocab_size is None:
        cfg = cfg.with_vocabulary(r.vocab_size)
    entry = {name: value for name, value in run.items() if name not in ("config", "unique", "flags")}
    own = "unique_tokens" in flags.fields_of(r.flags) or cfg.data.data_kind != "packed"
    unique = unique_tokens(cfg) if own else run["unique"]
    return entry | numbers(cfg, unique) | {"flags": run["flags"], "forecast": forecast(cfg, first, speed, rates, valid_tokens)}


def numbers(cfg: Config, unique: int | None) -> dict:
    """N, D, C and what else result.json will say; D counts whole global batches, as training does. `unique`: tokens an epoch."""
    shape, samples, seq_length = cfg.model.shape(), cfg.train.num_samples, cfg.model.seq_length
    tokens = samples * seq_length
    epoch = unique or tokens
    return {
        "params": shape.total(),
        "params_non_embedding": shape.non_embedding(),
        "params_with_head": shape.with_head(),
        "params_published": shape.published(),
        "tokens": tokens,
        "samples": samples,
        "steps": samples // cfg.train.global_batch_size,
        "unique_tokens": min(tokens, epoch),
        "epochs": tokens / epoch,
        "flops_6nd": 6.0 * shape.total() * tokens,
        "flops_exact": cfg.flops_per_token() * tokens,
        "lr": cfg.optim.lr,
        "weight_decay": cfg.optim.weight_decay,
        "global_batch_size": cfg.train.global_batch_size,
        "seq_length": seq_length,
        "seed": cfg.train.seed,
    }


def unique_tokens(cfg: Config) -> int | None:
    """What --unique-tokens says, `1.0 0:N PREFIX`, or a whole corpus that is here; None where nothing does."""
    words, part = cfg.data.train_data_path, cfg.data.unique_tokens
    if part and part > 1:
        return int(part)
    if cfg.data.data_kind in ("instruct", "pairs"):  # a row holds one document
        rows = count_documents(words[0]) if words else None
        return rows and rows * cfg.model.seq_length
    whole: int | None
    if words and len(words) == 3 and words[1].startswith("0:") and words[1][2:].isdigit():
        whole = int(words[1][2:])
    else:
        whole = flags.corpus_tokens(tuple(words or ()))
    return round(part * whole) if part and whole else whole


def merged(mistakes: list[tuple[str, str]]) -> list[str]:
    """Each sentence once, with the runs it is about."""
    runs: dict[str, list[str]] = {}
    for name, sentence in mistakes:
        runs.setdefault(sentence, []).append(name)
    return [f"{names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}: {sentence}" for sentence, names in runs.items()]


# -- files


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write plan.json at once. Raises CannotWrite."""
    write(Path(path), json.dumps(asdict(plan), indent=1, allow_nan=False).encode())


def save_csv(plan: Plan, path: str | Path) -> None:
    """A line for each run: its numbers and its forecast. Raises CannotWrite."""
    rows = [
        {name: value for name, value in run.items() if name not in (*NESTED, "load", "checkpoints")}
        | {name: run["varied"].get(name) for name in plan.varied}
        | {f"forecast_{name}": value for name, value in run["forecast"].items()}
        for run in plan.runs
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(Path(path), text.getvalue().encode())


def write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data)
    except OSError as error:
        raise CannotWrite(f"{path} cannot be written: {error.strerror}; choose another place") from None


def load_plan(path: str | Path, needed: Iterable[str] = ()) -> Plan:
    """A plan from its file, whose runs have these fields too. Raises MissingInput, BadData for what is no plan of this version,
    and Untrusted for one whose runs would leave the folder of runs or start another program.
    """
    held = read_json(Path(path), f"plan again: `scaling_laws.py plan --out {path}` writes one", "a plan")
    if not isinstance(held.get("runs"), list):
        raise BadData(f"{path}: no list of runs; this is no plan: give the file that `plan --out` wrote")
    if held.get("schema_version") != SCHEMA_VERSION:
        raise BadData(
            f"{path}: expected a plan of schema_version {SCHEMA_VERSION}, found {held.get('schema_version')!r:.40}; plan again"
        )
    for number, run in enumerate(held["runs"]):
        check_entry(f"{path}: runs[{number}]", run, needed)
    names = {run["name"] for run in held["runs"]}
    if len(names) < len(held["runs"]):
        raise BadData(f"{path}: two runs have one name; plan again")
    check_halving(f"{path}: halving", held.get("halving", []), names)
    return Plan(**{name: held[name] for name in Plan.__dataclass_fields__ if name in held})


def check_halving(where: str, groups: Any, names: set[str]) -> None:
    """Raises BadData."""
    try:
        whole = all(is_group(group["rungs"], group["keep"], names) for group in groups)
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise BadData(f"{where}: expected groups with rungs of the plan's runs and how many go on; plan again")


def is_group(rungs: Any, keep: Any, names: set[str]) -> bool:
    """Whether every rung has the first one's number of settings, of which so many go on, and all are runs of the plan."""
    known = {name for rung in rungs for found in rung for name in found} <= names
    return known and len(keep) == len(rungs) >= 2 and all(1 <= n <= len(rung) == len(rungs[0]) for rung, n in zip(rungs, keep))


def is_folder_name(name: object) -> bool:
    """A run's name, or one that people gave to a folder of their own, with spaces."""
    return isinstance(name, str) and is_run_name(name.replace(" ", "_"))


def check_entry(where: str, run: object, needed: Iterable[str]) -> None:
    """Raises BadData, Untrusted."""
    if not isinstance(run, dict):
        raise BadData(f"{where} is {run!r:.40}, expected an object; plan again")
    for name, kinds in ENTRY.items():
        if (name in run or name in NEEDED or name in needed) and not isinstance(run.get(name), kinds):
            raise BadData(f"{where}.{name} is {run.get(name)!r:.40}, expected {kinds[0].__name__}; plan again")
    fields.check_fields(f"{where}.forecast", run.get("forecast") or {}, FORECAST, "plan again")
    load = run.get("load") or {"run": run["name"], "step": 0}
    if (
        not all(isinstance(word, str) for word in run.get("flags", []))
        or not isinstance(load.get("step"), int)
        or run["tokens"] <= 0
    ):
        raise BadData(f"{where}: expected flags that are text, load.step a whole number and tokens above 0; plan again")
    for folder in (run["name"], load.get("run")):
        if not is_folder_name(folder):
            raise Untrusted(
                f"{where}: {folder!r:.80} is no name of a run: it may leave the folder of runs; give it letters, digits, ._-"
            )
    if run.get("entry", "pretrain_gpt.py") not in ENTRY_POINTS:
        raise Untrusted(f"{where}.entry is {run['entry']!r:.80}, expected {' or '.join(ENTRY_POINTS)}; plan again")
