"""Runs by another score than their validation's: what tools/evaluate.py likelihood measured of them, in the place of the loss."""

from __future__ import annotations

from pathlib import Path

from megatron.errors import Mismatch, MissingInput
from megatron.rundir.names import LIKELIHOODS
from megatron.scaling.table.runs import event_of, json_lines

VALIDATED = {"exact": "exact", "bound": "nelbo"}  # what a validation measures, by the column bound
BOUND = {"exact": "exact", "upper bound": "bound", "lower bound": "lower bound"}


def score_of(row: dict) -> str | None:
    """Which score a row's loss is: its validation's own, where nothing else is said."""
    return row.get("score") or VALIDATED.get(row.get("bound") or "")


def by_score(directory: Path, result: dict, name: str) -> dict:
    """What result.json would say if validation had measured this score; of an autoregressive run `exact` whatever the name.

    The newest measurement of the run's last step on its own validation set counts. Raises MissingInput where there is none.
    """
    if result.get("bound") == "denoising":
        raise Mismatch(
            f"{directory}: its loss is one of denoising, and it has no likelihood to score it by: leave --score out, or the run"
        )
    own = VALIDATED.get(result.get("bound") or "")
    wanted = "exact" if own == "exact" else name
    found = None
    for one in measurements(directory):
        if one.get("set") == "valid" and one.get("step") == result.get("steps"):
            entry = next((entry for entry in one["scores"] if entry["score"] == wanted), None)
            found = (one, entry) if entry else found
    if found is None and wanted == own:
        return {"score": wanted}
    if found is None:
        raise MissingInput(
            f"{directory}: not scored by {wanted} at its last step {result.get('steps')}; "
            f"run python tools/evaluate.py likelihood {directory} --score {wanted}"
        )
    one, entry = found
    return {
        "score": wanted,
        "bound": BOUND[entry["value"]],
        "loss": entry["nats_per_token"],
        "loss_se_noise": entry["se_noise"],
        "loss_se_noise_df": entry["se_noise_df"],
        "loss_se_data": entry["se_rows"],
        "bits_per_byte": entry["bits_per_byte"],
        "eval_slice": one["convention"]["slice"],
        "event": event_of(one),
        "convention": one["convention"],
    }


def measurements(directory: Path) -> list[dict]:
    """Lines of likelihood.jsonl, oldest first. Raises BadData."""
    path = directory / LIKELIHOODS
    return [one for _, one in json_lines(path)] if path.is_file() else []
