"""Whether runs may stand in one table at all: what makes their losses or axes incomparable, in words."""

from __future__ import annotations

from collections.abc import Iterable

from megatron.errors import Mismatch
from megatron.scaling.table.covariates import covariate_differences
from megatron.scaling.table.scores import score_of

SAME_FOR_ALL = ("tokenizer", "eval_slice", "event", "params_convention", "flops_convention")
LINTS = (*SAME_FOR_ALL, "lr_decayed", "bound", "score")


def check_comparable(runs: list[dict], allow: Iterable[str] = ()) -> None:
    """Raise Mismatch with every difference that makes losses or axes incomparable, but for the names in `allow`:
    of LINTS, or a flag of training as it is spelled (weight-decay)."""
    apart = differences(runs) | covariate_differences(runs)
    found = [f"{sentence}, or give --allow {name}." for name, sentence in apart.items() if name not in allow]
    if found:
        raise Mismatch(" ".join(found))


def differences(runs: list[dict]) -> dict[str, str]:
    """name of LINTS -> what makes the losses or axes of these runs incomparable, naming runs.

    A run that does not state a convention differs from one that does.
    """
    found = {}
    for name in SAME_FOR_ALL:
        by_value: dict = {}
        for run in runs:
            by_value.setdefault(run.get(name), []).append(run["run"])
        if len(by_value) > 1:
            found[name] = f"runs differ in {name}: {_sides(by_value)}; fit them apart"
    undecayed = [run["run"] for run in runs if run.get("lr_decayed") in (False, 0)]
    if undecayed:
        found["lr_decayed"] = (
            f"the learning rate was not decayed to its end in {_some(undecayed)}; finish them, "
            "leave them out with --drop lr_decayed=false"
        )
    bounds, scores = _bounds(runs), _scores(runs)
    return found | ({"bound": bounds} if bounds else {}) | ({"score": scores} if scores else {})


def _sides(runs_by_value: dict) -> str:
    return "; ".join(f"{'not stated' if value is None else value} in {_some(names)}" for value, names in runs_by_value.items())


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _scores(runs: list[dict]) -> str | None:
    """Of one objective all losses are one score."""
    labels: dict = {}
    for run in runs:
        by_value = labels.setdefault(run.get("trained_objective") or run["objective"], {})
        by_value.setdefault(score_of(run), []).append(run["run"])
    stated = {run.get("trained_objective") or run["objective"] for run in runs if run.get("score")}
    mixed = [f"{one} runs mix scores: {_sides(found)}" for one, found in labels.items() if len(found) > 1 and one in stated]
    return f"{'; '.join(mixed)}; fit them apart, or all with the same --score" if mixed else None


def _bounds(runs: list[dict]) -> str | None:
    """An exact NLL and a bound may stand side by side, each under its own objective and its own label."""
    labels: dict = {}
    for run in runs:
        objective = run.get("trained_objective") or run["objective"]
        labels.setdefault(objective, {}).setdefault(run.get("bound"), []).append(run["run"])
    without = [name for name, by_bound in labels.items() if "denoising" in by_bound]
    if without and len(without) < len(labels):
        return (
            f"the losses of {', '.join(without)} are of denoising and no NLL, which others here have or bound: "
            f"leave them out with --drop objective={without[0]}"
        )
    for objective, by_bound in labels.items():
        if len(by_bound) > 1:
            return f"{objective} runs mix exact losses and bounds: {_sides(by_bound)}; fit them apart"
        if len(labels) > 1 and None in by_bound:
            return (
                f"{objective} runs do not say whether their loss is exact or a bound ({_some(by_bound[None])}), and would "
                "stand beside another objective; add the column bound (exact or bound)"
            )
    return None
