"""The registry of runs is the file system: what a run directory says of itself, and what sets two runs apart.

config.json, run.json, result.json, exit.json, metrics.jsonl and train.log of a run are all there is; nothing else is asked.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from megatron.config import experiment
from megatron.errors import MissingInput
from megatron.rundir.folders import is_run, read_file
from megatron.rundir.names import CONFIG, FACTS, LOG, MARKS, RESULT
from megatron.rundir.status import Status, status
from megatron.scaling.table.runs import records
from megatron.standard_errors import combined, half_width

METRICS = ("loss", "bits_per_byte", "accuracy", "test_loss", "best_loss", "train_loss")


def config_hash(config: dict, fingerprints: dict) -> str | None:
    """12 digits that are equal for equal experiments: of the data and of all flags that are not free to differ."""
    if not config:
        return None
    kept = {"fingerprints": fingerprints, **experiment(config)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def flat(nested: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    found: dict = {}
    for name, value in nested.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def in_words(now: Status) -> str:
    """Why a run stands as it does, with its exit code."""
    return now.reason if now.code is None else f"{now.reason} (exit code {now.code}, step {now.step})"


def describe(directory: Path) -> dict:
    """All that a run directory says: status, config with its hash, facts (run.json), result, events.

    Raises MissingInput where it is no run directory, BadData for a damaged file.
    """
    if not is_run(directory):
        raise MissingInput(f"{directory}: no run directory (it has none of {', '.join(sorted(MARKS))}); give one.")
    config, facts, result = (read_file(directory, name) for name in (CONFIG, FACTS, RESULT))
    now = status(directory)
    return {
        "run": directory.name,
        "path": str(directory),
        "status": now.state,
        "reason": in_words(now),
        "config_hash": config_hash(config, facts.get("fingerprints", {})),
        "config": config,
        "facts": facts,
        "result": result or _so_far(directory, config, facts),
        "skips": _skips(directory),
    }


def _so_far(directory: Path, config: dict, facts: dict) -> dict:
    """What a run without a result has reached."""
    found = {"objective": config.get("objective", {}).get("objective"), "params": facts.get("params")}
    trained, scored = records(directory, "train"), records(directory, "val")
    if trained:
        last = trained[-1]
        found |= {
            "steps": last["step"],
            "tokens": last.get("tokens"),
            "flops": last["flops"],
            "train_loss": last.get("loss_of_text", last["loss"]),
            "skipped": last.get("skipped"),
        }
    if scored:
        found |= {
            name: scored[-1].get(name)
            for name in ("loss", "loss_se_noise", "loss_se_noise_df", "loss_se_data", "bits_per_byte", "accuracy", "bound")
        }
    return found


def _skips(directory: Path) -> list[str]:
    """The lines of train.log on steps that were skipped or what the run went through, in its own words."""
    try:
        lines = (directory / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [line for line in lines if "is not finite" in line or line.startswith(("stopped at step", "changed since"))]


def summary(run: dict) -> dict:
    """A run in one row of `runs ls`."""
    result = run["result"]
    return {
        "run": run["run"],
        "status": run["status"],
        "objective": result.get("objective"),
        "params": result.get("params"),
        "tokens": result.get("tokens"),
        "step": result.get("steps"),
        "loss": result.get("loss"),
        "error": error_of(result),
        "bound": result.get("bound"),
        "seed": run["facts"].get("noise_seed"),
        "config_hash": run["config_hash"],
        "code": run["facts"].get("code"),
        "created": run["facts"].get("created"),
        "resumes": len(run["facts"].get("resumes", [])),
        "reason": run["reason"],
        "path": run["path"],
    }


def error_of(result: dict, name: str = "loss") -> float | None:
    """The standard error of a metric, from noise and from data together; None where none was recorded."""
    return combined(*_errors(result, name))[0]


def _errors(result: dict, name: str) -> list[tuple[float | None, float | None]]:
    """A metric's errors from noise and from data, each with its degrees of freedom where they are recorded."""
    if name == "bits_per_byte":  # the loss in another unit
        scale = result[name] / result["loss"] if result.get("loss") else None
        return [(error * scale if error is not None and scale else None, df) for error, df in _errors(result, "loss")]
    rows = (result.get("convention") or {}).get("rows")
    return [
        (result.get(f"{name}_se_noise"), result.get(f"{name}_se_noise_df")),
        (result.get(f"{name}_se_data"), rows - 1 if rows else None),
    ]


def compare(a: dict, b: dict) -> dict:
    """What sets two described runs apart: {"flags", "facts": {name: [a, b]}, "metrics": {name: {a, b, difference, error,
    exceeds}}}. `error` is the 95 % half-width of the difference, by Student's t, as if the errors were independent; runs
    that were scored on one slice with one noise seed share much of theirs, so that a true difference may be smaller than
    that."""
    metrics = {}
    for name in METRICS:
        one, other = a["result"].get(name), b["result"].get(name)
        if isinstance(one, (int, float)) and isinstance(other, (int, float)):
            metrics[name] = _side_by_side(one, other, _errors(a["result"], name), _errors(b["result"], name))
    outcome = {
        name: {key: value for key, value in run["result"].items() if key not in METRICS and "_se_" not in key}
        for name, run in (("a", a), ("b", b))
    }
    facts = [
        run["facts"] | outcome[name] | {"config_hash": run["config_hash"], "status": run["status"], "reason": run["reason"]}
        for name, run in (("a", a), ("b", b))
    ]
    return {"flags": _differences(a["config"], b["config"]), "facts": _differences(*facts), "metrics": metrics}


def _side_by_side(one: float, other: float, *errors: list[tuple[float | None, float | None]]) -> dict:
    known = all(error is not None for error, _ in (combined(*parts) for parts in errors))
    both, freedom = combined(*errors[0], *errors[1])
    error = half_width(both, freedom) if known and both is not None else None
    return {
        "a": one,
        "b": other,
        "difference": other - one,
        "error": error,
        "exceeds": None if error is None else abs(other - one) > error,
    }


def _differences(a: dict, b: dict) -> dict[str, list]:
    one, other = flat(a), flat(b)
    return {name: [one.get(name), other.get(name)] for name in sorted({*one, *other}) if one.get(name) != other.get(name)}
