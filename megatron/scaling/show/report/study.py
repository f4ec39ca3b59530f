"""One objective: its runs with what was fitted to them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from megatron.errors import Refusal
from megatron.scaling.answers.frontier import frontier_of
from megatron.scaling.answers.isoflop import IsoFlop, fit_isoflop, group_budgets
from megatron.scaling.law.fit import fit_chinchilla
from megatron.scaling.law.fitted import Fit
from megatron.scaling.table.labels import label_of

FRESH = 1.05  # epochs that are not yet a repetition
MOST_DRAWN = 600  # runs in a figure


@dataclass(frozen=True)
class Study:
    """One objective: its runs (rows of a Table, by rising budget and size), their isoFLOP minima and, where there are runs
    enough, their law."""

    objective: str
    runs: list[dict]
    isoflop: IsoFlop
    law: Fit | None = None
    warnings: list[str] = field(default_factory=list)
    stride: int = 1  # of so many runs that were fitted one stands in `runs`

    @property
    def label(self) -> str:
        """'AR (exact NLL)', 'MDM (upper bound)'; where runs do not say which, it says so."""
        return label_of(self.objective, self.runs[0])

    @cached_property
    def frontier(self) -> dict | None:
        """N*(C), D*(C) and L*(C) through the minima, as `frontier_of` says them."""
        return frontier_of(self.isoflop)

    @property
    def budgets(self) -> list[float]:
        """The FLOPs of every run's budget, [runs]."""
        return [budget_of(run) for run in self.runs]

    def column(self, name: str) -> np.ndarray:
        """A column of the runs as float64, NaN where a run does not have it."""
        return np.array([np.nan if run.get(name) is None else run[name] for run in self.runs], np.float64)


def budget_of(run: dict) -> float:
    """The nominal budget where a table states it, else the compute that was spent."""
    return run.get("budget") or run["flops"]


def by_budget(runs: list[dict]) -> list[dict]:
    """Runs by rising budget, then by rising size."""
    groups = group_budgets([budget_of(run) for run in runs])
    return [run for rows in groups for run in sorted((runs[row] for row in rows), key=lambda run: run["params"])]


def to_draw(study: Study) -> Study:
    """With as many of its runs as a figure can show."""
    stride = -(-len(study.runs) // MOST_DRAWN)
    return replace(study, runs=study.runs[::stride], stride=stride)


def study_runs(objective: str, runs: list[dict], num_resamples: int = 400, seed: int = 0) -> Study:
    """Fit minima and law to comparable runs of one objective; a law that cannot be fitted is a warning."""
    runs = by_budget(runs)
    columns = {name: np.array([run.get(name) or 0.0 for run in runs]) for name in ("params", "tokens", "loss", "loss_se_noise")}
    budgets = np.array([budget_of(run) for run in runs])
    # each objective draws its own noise: the ratio of two objectives pairs independent draws
    isoflop = fit_isoflop(
        budgets,
        columns["params"],
        columns["tokens"],
        columns["loss"],
        columns["loss_se_noise"],
        num_resamples,
        [seed, *objective.encode()],
    )
    law, warnings = fit_runs(runs, num_resamples, seed)
    return Study(objective, runs, isoflop, law, [*warnings, *_repeating(runs)])


def fit_runs(runs: list[dict], num_resamples: int = 400, seed: int = 0) -> tuple[Fit | None, list[str]]:
    """L(N, D) of runs of one objective, or None and why it cannot be fitted."""
    params, tokens, loss = (np.array([run[name] for run in runs]) for name in ("params", "tokens", "loss"))
    clusters = [run.get("cluster") or run["run"] for run in runs]
    try:
        return fit_chinchilla(params, tokens, loss, seed=seed, run=clusters, num_resamples=num_resamples), []
    except Refusal as refusal:
        return None, [f"no L(N, D): {refusal}"]


def _repeating(runs: list[dict]) -> list[str]:
    """What neither the minima nor L(N, D) know of."""
    epochs = [run["tokens"] / run["unique_tokens"] for run in runs if run.get("unique_tokens")]
    repeating = sum(number > FRESH for number in epochs)
    return (
        [
            f"{repeating} of {len(runs)} runs repeat their data, up to {max(epochs):.3g} epochs, which isoFLOP minima and "
            "L(N, D) take for fresh: use fit --form data-constrained, or leave them out (--drop 'epochs>1')."
        ]
        if repeating
        else []
    )
