"""Where the training loss of a running run should be, by the finished runs of its plan, and an alarm where it is not.

At the same share of their length runs of one kind stand at the same place of their schedules. There ln loss is taken to be linear
in ln N, ln D and ln U, as many of these as the finished runs vary, by least squares over them; the band is the prediction
interval of one more run (Student's t), so that it holds the scatter between runs, the noise of a curve and what the line does not
describe, and widens beyond the sizes that are finished.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from megatron.errors import Refusal
from megatron.scaling.run.progress import Standing
from megatron.scaling.table.runs import records

AXES = ("params", "tokens", "unique_tokens")
LEVEL = 0.999  # of the band: a status is looked at often
WINDOW = 0.02  # of a run's tokens, over which its loss is averaged
LEAST_RECORDS = 2  # that are averaged
LEAST_SHARE = 0.05  # of a run, before which nothing is said
LEAST_FREEDOM = 2  # of the residuals
VARIES = 0.05  # of ln N, ln D and ln U: less is no difference
Curve = tuple[np.ndarray, np.ndarray]  # share of the run's tokens, training loss


def watched(plan, runs: Sequence[Standing], runs_dir: Path) -> list[Standing]:
    """The runs, those that are on with their training loss, its band and an alarm, as far as finished runs tell it."""
    entries, curves = {run["name"]: run for run in plan.runs}, {}
    for run in runs:
        alike = any(one.state == "running" and kind(entries[one.run]) == kind(entries[run.run]) for one in runs)
        if run.state in ("running", "done") and alike:
            curves[run.run] = curve_of(entries[run.run], runs_dir / run.run)
    done = [run.run for run in runs if run.state == "done" and run.run in curves]
    return [
        watch(run, entries[run.run], curves[run.run], [(entries[name], curves[name]) for name in done])
        if run.state == "running"
        else run
        for run in runs
    ]


def kind(entry: dict) -> tuple:
    """Runs of one kind have one objective and, at each share of their length, one place in their schedule."""
    return entry.get("objective"), entry.get("load") is None, "checkpoints" in entry


def curve_of(entry: dict, folder: Path) -> Curve:
    """Empty where the file is damaged: `run` says so."""
    try:
        found = records(folder, "train")
    except Refusal:
        found = []
    points = np.array([(record.get("tokens", math.nan), record["loss"]) for record in found], np.float64).reshape(-1, 2)
    return points[:, 0] / entry["tokens"], points[:, 1]


def places_of(shares: np.ndarray) -> np.ndarray:
    """The shares of the last records of a run: those of the last WINDOW, or two."""
    return shares[min(np.searchsorted(shares, shares[-1] - WINDOW), len(shares) - LEAST_RECORDS) :]


def mean_loss(curve: Curve, places: np.ndarray) -> float | None:
    """The mean training loss at these shares: at each that of the records over the WINDOW before it or, of a curve with too few
    there, on a straight line between its records; None beyond them."""
    shares, loss = curve
    if not len(shares) or places[0] < shares[0] * (1 - 1e-9) or places[-1] > shares[-1] + WINDOW:
        return None
    first, last = np.searchsorted(shares, places - WINDOW), np.searchsorted(shares, places * (1 + 1e-9), side="right")
    total, count = np.append(0.0, np.cumsum(loss)), last - first
    means = (total[last] - total[first]) / np.maximum(count, 1)
    return float(np.mean(np.where(count >= LEAST_RECORDS, means, np.interp(places, shares, loss))))


def watch(run: Standing, entry: dict, curve: Curve, finished: Sequence[tuple[dict, Curve]]) -> Standing:
    """A run that is on, beside finished runs (entry, curve)."""
    if run.loss is not None and not math.isfinite(run.loss):
        return replace(run, alarm=f"the training loss is {run.loss}: it diverged")
    share = float(curve[0][-1]) if len(curve[0]) >= LEAST_RECORDS else 0.0
    if share < LEAST_SHARE:
        return run
    places = places_of(curve[0])
    now = mean_loss(curve, places)
    assert now is not None  # a curve reaches its own last records
    alike = [(one, mean_loss(other, places)) for one, other in finished if kind(one) == kind(entry)]
    known = [(one, loss) for one, loss in alike if loss is not None and loss > 0]
    ends = band(entry, [one for one, _ in known], np.array([loss for _, loss in known]))
    if ends is None:
        return replace(run, training_loss=now)
    run, between = replace(run, training_loss=now, expected_loss=ends), f"{ends[0]:.4g} to {ends[1]:.4g}"
    start = f"training loss {now:.4g} at {share:.0%} of the run, where {len(known)} finished runs let expect {between}"
    if now > ends[1]:
        return replace(run, alarm=f"{start}: it diverges or does not learn")
    if now < ends[0]:
        return replace(run, alarm=f"{start}: lower than it should be; is its data or its loss another one?")
    return run


def band(entry: dict, finished: Sequence[dict], losses: np.ndarray) -> list[float] | None:
    """[low, high] of the loss of one more run beside these [n]; None where they are too few, or all of another size."""
    if not all(entry.get(name) for name in AXES) or not all(one.get(name) for one in finished for name in AXES):
        return None
    axes = np.log([[one[name] for name in AXES] for one in finished]).reshape(-1, len(AXES))
    place = np.log([entry[name] for name in AXES])
    if len(axes) < LEAST_FREEDOM + 1:
        return None
    moved, place = axes - axes.mean(axis=0), place - axes.mean(axis=0)
    varied = np.ptp(axes, axis=0) > VARIES
    if np.any(np.abs(place[~varied]) > VARIES):
        return None
    design, at = np.column_stack([np.ones(len(axes)), moved[:, varied]]), np.append(1.0, place[varied])
    inverse, rank = np.linalg.pinv(design, rcond=1e-6), np.linalg.matrix_rank(design, tol=1e-6 * np.linalg.norm(design, 2))
    freedom = len(axes) - rank
    along = at @ inverse  # what each finished run adds to the prediction
    if freedom < LEAST_FREEDOM or np.max(np.abs(along @ design - at)) > VARIES:  # N and D rise together, and not along that line
        return None
    ln_loss = np.log(losses)
    scatter = math.sqrt(float(np.sum((ln_loss - design @ (inverse @ ln_loss)) ** 2)) / freedom)
    half = stdtrit(freedom, 0.5 + LEVEL / 2) * scatter * math.sqrt(1 + float(along @ along))
    centre = float(along @ ln_loss)
    return [math.exp(centre - half), math.exp(min(centre + half, 700.0))]
