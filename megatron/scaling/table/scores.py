"""Runs by another score than their validation's: what tools/evaluate.py likelihood measured of them, in the place of the loss."""

from __future__ import annotations

from pathlib import Path

from megatron.errors import BadData, Mismatch, MissingInput
from megatron.files import is_there
from megatron.rundir import fields
from megatron.rundir.names import LIKELIHOODS
from megatron.scaling.table.runs import event_of, json_lines

VALIDATED = {"exact": "exact", "bound": "nelbo"}  # what a validation measures, by the column bound
BOUND = {"exact": "exact", "upper bound": "bound", "lower bound": "lower bound"}
MEASURED: fields.Fields = {
    "set": (fields.TEXT, "", "valid, test, .."),
    "step": (fields.COUNT, "steps", "of the checkpoint"),
    "convention": (fields.OBJECT, "", "what is scored"),
    "scores": (fields.OBJECTS, "", "as SCORED"),
}
SCORED: fields.Fields = {
    "score": (fields.TEXT, "", "its name"),
    "value": (fields.TEXT, "", "of BOUND"),
    "nats_per_token": (fields.NUMBER, "nats/token", "the loss"),
    "bits_per_byte": (fields.NUMBER, "bits/byte", "the same over bytes"),
    "se_noise": (fields.NUMBER, "nats/token", "error from the draws"),
    "se_noise_df": (fields.NUMBER, "", "its degrees of freedom"),
    "se_rows": (fields.NUMBER, "nats/token", "error from the rows"),
}


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
    if entry["value"] not in BOUND:
        raise BadData(f"{directory / LIKELIHOODS}: {wanted} is {entry['value']!r}, expected one of {', '.join(BOUND)}")
    return {
        "score": wanted,
        "bound": BOUND[entry["value"]],
        "loss": entry["nats_per_token"],
        "loss_se_noise": entry.get("se_noise"),
        "loss_se_noise_df": entry.get("se_noise_df"),
        "loss_se_data": entry.get("se_rows"),
        "bits_per_byte": entry.get("bits_per_byte"),
        "eval_slice": one["convention"].get("slice"),
        "event": event_of(one),
        "convention": one["convention"],
    }


def measurements(directory: Path) -> list[dict]:
    """Lines of likelihood.jsonl, oldest first. Raises BadData with file and line, MissingInput for a link to nothing."""
    path = directory / LIKELIHOODS
    if not is_there(path):
        return []
    found = []
    for number, one in json_lines(path):
        where = f"{path}, line {number}"
        check_whole(where, one, MEASURED, tuple(MEASURED))
        for entry in one["scores"]:
            check_whole(where, entry, SCORED, ("score", "value", "nats_per_token"))
        found.append(one)
    return found


def check_whole(where: str, record: dict, kinds: fields.Fields, needed: tuple[str, ...]) -> None:
    """Raises BadData for a field of another type, and where one that is needed is not there."""
    remedy = "score the run again, and remove that line"
    fields.check_fields(where, record, kinds, remedy)
    if lacking := [name for name in needed if record.get(name) is None]:
        raise BadData(f"{where}: no {lacking[0]}; {remedy}")
