"""Predictions written down before their runs end, and scored afterwards: JSON lines that are only ever appended."""

from __future__ import annotations

import json
import math
import os
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from megatron.errors import BadData, CannotWrite, Mismatch, MissingInput
from megatron.scaling.answers.predict import NORMAL_975
from megatron.scaling.table.runs import json_lines

SAME_RUN = 0.01  # largest relative difference in N, D and U of a prediction and its run
NEEDED = ("made", "params", "tokens", "unique_tokens", "loss", "run_ci", "ln_sd")
DIVERSE = 5  # scored predictions, below which a calibration says nothing


def enter(path: str | Path, predictions: list[dict], sources: list[dict], unit: str, run: str | None = None) -> None:
    """Append predictions (of `predict_run`), each with the time, the run's name if it has one, and the fit's SHA-256.

    Raises BadData for a prediction without an interval, CannotWrite.
    """
    if not all(prediction["ln_sd"] > 0 for prediction in predictions):
        raise BadData(
            "a fit without resamples and residuals predicts no interval, which nothing could be scored by; "
            "fit again with --bootstrap 400."
        )
    made = datetime.now(timezone.utc).isoformat(timespec="seconds")
    lines = [
        json.dumps({"made": made, "run": run, "unit": unit, "fit": source, **prediction}, allow_nan=False)
        for prediction, source in zip(predictions, sources)
    ]
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CannotWrite(f"{path} cannot be written: {error.strerror}; choose another --ledger.") from None


def read_ledger(path: str | Path) -> list[dict]:
    """The entries of a ledger. Raises MissingInput, BadData with the line of one that is no prediction."""
    if not Path(path).is_file():
        raise MissingInput(f"{path}: no such ledger; `predict --ledger {path}` begins one.")
    entries = []
    for number, entry in json_lines(Path(path)):
        missing = [name for name in NEEDED if name not in entry]
        if missing:
            raise BadData(f"{path}, line {number}: no {missing[0]}; expected what `predict --ledger` writes.")
        entries.append(entry | {"line": number})
    return entries


def score(entries: list[dict], table) -> dict:
    """{"scored": one row for each prediction and finished run of it, "pending": lines without a run, "calibration"}.

    z is (ln loss - ln predicted) / ln_sd. `late` marks a prediction that was made after its run had ended. Raises Mismatch where
    the unit of the losses is not the ledger's.
    """
    unit = table.choices.get("unit", "nats")
    scored, pending = [], []
    for entry in entries:
        if entry.get("unit", unit) != unit:
            raise Mismatch(
                f"ledger line {entry['line']} predicts {entry['unit']} and the runs are read in {unit}; give --unit "
                f"{entry['unit']}."
            )
        found = [row for row in table.rows if _is_run_of(entry, row)]
        scored += [_scored(entry, row) for row in found]
        if not found:
            pending.append(entry["line"])
    return {"scored": scored, "pending": pending, "calibration": _calibration([row for row in scored if not row["late"]])}


def _is_run_of(entry: dict, row: dict) -> bool:
    if entry.get("run"):
        return row["run"] == entry["run"]
    # tokens that are never reached make no difference: U counts up to D
    unique = [min(one["unique_tokens"] or one["tokens"], one["tokens"]) for one in (entry, row)]
    pairs = [unique, *((entry[name], row[name]) for name in ("params", "tokens"))]
    near = all(abs(np.log(one / other)) <= SAME_RUN for one, other in pairs)
    near = near and all(_is_at(row.get(name), value) for name, value in entry.get("at", {}).items())
    return near and {entry.get("label"), row["objective"]} != {"ar", "mdm"}


def _is_at(found, value: float) -> bool:
    return isinstance(found, (int, float)) and math.isclose(found, value, rel_tol=SAME_RUN)


def _scored(entry: dict, row: dict) -> dict:
    z = float(np.log(row["loss"] / entry["loss"]) / entry["ln_sd"])
    low, high = entry["run_ci"]
    return {
        "line": entry["line"],
        "made": entry["made"],
        "run": row["run"],
        "label": entry.get("label"),
        "predicted": entry["loss"],
        "run_ci": [low, high],
        "loss": row["loss"],
        "inside": bool(low <= row["loss"] <= high),
        "z": z,
        "late": _is_late(entry, row),
    }


def _is_late(entry: dict, row: dict) -> bool:
    """Whether the run's result is older than the prediction; False where the run is only a row of a table."""
    result = Path(row.get("path") or "") / "result.json"
    return result.is_file() and result.stat().st_mtime < datetime.fromisoformat(entry["made"]).timestamp()


def _calibration(scored: list[dict]) -> dict:
    """How many of 95 % intervals held; the mean of z shows a bias, its root mean square (1 expected) the width."""
    z = np.array([row["z"] for row in scored])
    inside = sum(row["inside"] for row in scored)
    found = {
        "num_scored": len(scored),
        "inside": inside,
        "expected": 0.95 * len(scored),
        "mean_z": float(z.mean()) if len(z) else None,
        "rms_z": float(np.sqrt(np.mean(z**2))) if len(z) else None,
    }
    return found | {"verdict": _verdict(found)}


def _verdict(found: dict) -> str:
    if found["num_scored"] < DIVERSE:
        return f"{found['num_scored']} scored predictions say nothing about calibration yet"
    bias = abs(found["mean_z"]) * np.sqrt(found["num_scored"])
    if bias > NORMAL_975:
        return f"biased: runs end {'above' if found['mean_z'] > 0 else 'below'} their predictions"
    if found["rms_z"] > 1 + NORMAL_975 / np.sqrt(2 * found["num_scored"]):
        return "overconfident: the intervals are too narrow"
    return "consistent with 95 % intervals"
