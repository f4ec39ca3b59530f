"""What a flag does to the loss, from runs that have all else in common: differences within pairs of one seed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from megatron.config import declared, experiment
from megatron.errors import BadData
from megatron.flags import find, spelling
from megatron.scaling.table.covariates import in_a_table
from megatron.standard_errors import half_width

# What the runs of a pair have in common; the seed names initial weights, the order of the data and the noise.
COMMON = ("objective", "params", "tokens", "unique_tokens", "batch_size", "seed", "eval_slice")


def paired(runs: Sequence[dict], name: str) -> list[dict]:
    """Of each value of a flag, as `registry.describe` gave the runs: its loss minus that of the flag's default, or first value.

    -> a row a value: pairs, mean difference, half of its 95 % interval (Student's t over pairs), the least and the largest.
    One pair has a difference and no interval. Raises BadData where there is none.
    """
    field = find(name, declared())[0]
    if field is None:
        raise BadData(f"--by {name}: no such flag")
    section, f, _ = declared()[field]
    done = [run for run in runs if run["status"] == "done" and run["result"].get("loss") is not None]
    values = {run["path"]: in_a_table(run["config"].get(section, {}).get(field, f.default)) for run in done}
    found = list(dict.fromkeys(values.values()))
    default = in_a_table(f.default)
    base = default if default in found else next(iter(found), None)
    losses: dict = {}
    first: dict = {}
    for run in done:
        value, key = values[run["path"]], (*map(run["result"].get, COMMON), elsewhere(run["config"], section))
        other = first.setdefault((value, key), run["path"])
        if other != run["path"]:
            raise BadData(
                f"{other} and {run['path']} both are {spelling(field)} {value} at one seed, size and data, and "
                "differ in another flag or in nothing: name one of them"
            )
        losses.setdefault(value, {})[key] = run["result"]["loss"]
    rows = [row_of(spelling(field), value, base, losses) for value in found if value != base]
    if not any(row["pairs"] for row in rows):
        raise BadData(
            f"{spelling(field)}: no two finished runs differ in it and have seed, size and data in common: "
            "train the same seeds with and without it"
        )
    return rows


def elsewhere(config: dict, section: str) -> str:
    """Flags of the other sections; those of the flag's own may follow from it."""
    names = declared()
    kept = {name: value for name, value in experiment(config).items() if names[name][0] != section}
    return json.dumps(kept, sort_keys=True)


def row_of(flag: str, value, base, losses: dict) -> dict:
    differences = [loss - losses[base][key] for key, loss in losses[value].items() if key in losses[base]]
    n = len(differences)
    mean = math.fsum(differences) / n if n else None
    error = None
    if n > 1:
        error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    return {
        "flag": flag,
        "value": value,
        "against": base,
        "pairs": n,
        "difference": mean,
        "half_width": None if error is None else half_width(error, n - 1),
        "least": min(differences, default=None),
        "largest": max(differences, default=None),
    }
