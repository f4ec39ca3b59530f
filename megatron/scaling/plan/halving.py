"""Successive halving: every setting at the shortest length, the best share of them at the next, and so on to the longest.

As Jamieson and Talwalkar (arXiv:1502.07943), but that a rung is runs of their own, each with its whole schedule: no run is cut
short, its record is like any other's, and a setting is judged by a finished decay. A plan holds every run; `run` leaves out those
whose setting gave way.
"""

from __future__ import annotations

import math

from megatron.flags import ConfigError


def rungs_of(runs: list[dict], eta: int) -> list[dict]:
    """A group for each objective, size and unique tokens: {rungs: [k][n] names, one a seed; keep: [k] settings that run}.

    Settings stand in the same order at every rung. Raises ConfigError where there is nothing to halve.
    """
    found: dict[tuple, dict[float, dict[str, list[str]]]] = {}
    for run in runs:
        setting = repr(sorted((name, str(value)) for name, value in run["varied"].items() if name != "seed"))
        repeats = not run["budget"] or run["unique_tokens"] < run["tokens"]  # fresh data grow with the length
        key = (run["objective"], run["size"], round(run["tokens"] / run["epochs"]) if repeats else None)
        length = next(iter(run["budget"].values()), None) or round(run["epochs"])  # as asked: tokens are whole batches
        found.setdefault(key, {}).setdefault(length, {}).setdefault(setting, []).append(run["name"])
    groups = []
    for (objective, size, _), lengths in found.items():
        settings = list(dict.fromkeys(setting for rung in lengths.values() for setting in rung))
        if len(lengths) < 2 or len(settings) < 2 or any(set(rung) != set(settings) for rung in lengths.values()):
            raise ConfigError(
                [
                    f"--halving: {objective} {size} has {len(lengths)} lengths and {len(settings)} settings, expected several of "
                    "both and every setting at every length: name --sizes, give several --flops, --tokens or --epochs, and --vary"
                ]
            )
        rungs = [[lengths[length][setting] for setting in settings] for length in sorted(lengths)]
        groups.append({"rungs": rungs, "keep": [math.ceil(len(settings) / eta**k) for k in range(len(rungs))]})
    return groups


def share_that_runs(groups: list[dict]) -> dict[str, float]:
    """Name -> the share of its rung's settings that will run; of runs that are in a group."""
    return {
        name: keep / len(rung)
        for group in groups
        for rung, keep in zip(group["rungs"], group["keep"])
        for names in rung
        for name in names
    }
