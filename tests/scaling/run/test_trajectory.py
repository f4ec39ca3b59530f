"""Bands of running runs, on curves whose law is known."""

import json

import numpy as np
import pytest

from megatron.scaling.run.progress import Standing
from megatron.scaling.run.trajectory import band, kind, mean_loss, places_of, watch, watched

SHARES = np.arange(1, 201) / 200


def entry(params, tokens, **more):
    named = {"name": "run", "objective": "ar", "params": params, "tokens": tokens, "unique_tokens": tokens}
    return named | more


def curve(of, random, scatter=0.02, noise=0.03):
    """A loss over the share of a run whose rate falls to 0: Chinchilla's law of D(t), and what the decay adds at its end."""
    seen = of["tokens"] * SHARES
    law = 1.8 + 480 / of["params"] ** 0.35 + 2100 / seen**0.37
    schedule = 1 + 0.03 * (1 + np.cos(np.pi * SHARES))
    return SHARES, law * schedule * np.exp(scatter * random.standard_normal() + noise * random.standard_normal(len(SHARES)))


def until(curve, share):
    return curve[0][curve[0] <= share], curve[1][curve[0] <= share]


def running():
    return Standing(run="run", state="running", work=1.0, loss=3.0)


GRID = [entry(n, d) for n in (1e7, 3e7, 1e8) for d in (3e8, 1e9, 3e9)]


def test_healthy_runs_raise_no_alarm_and_sick_ones_do():
    random, healthy, missed, looks = np.random.default_rng(0), 0, 0, 0
    for _ in range(60):
        number = random.integers(len(GRID))
        finished = [(one, curve(one, random)) for i, one in enumerate(GRID) if i != number]
        whole = curve(GRID[number], random)
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            found = watch(running(), GRID[number], until(whole, share), finished)
            healthy, looks = healthy + bool(found.alarm), looks + 1
        stuck = whole[0], np.where(SHARES > 0.3, np.maximum(whole[1], 1.6 * whole[1][60]), whole[1])
        missed += not watch(running(), GRID[number], until(stuck, 0.9), finished).alarm
    assert healthy <= 4 and looks == 300, healthy
    assert missed <= 3, missed


def test_curves_of_other_intervals_are_read_at_the_same_shares():
    coarse, fine = np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.arange(1, 101) / 200
    losses = np.array([9.0, 7.0, 5.0, 4.0, 3.0])
    for places, mean in (([0.4, 0.5], 3.5), ([0.35, 0.45], 4.0), ([0.49, 0.5], 3.05), ([0.05, 0.2], None), ([0.5, 0.6], None)):
        assert mean_loss((coarse, losses), np.array(places)) == (mean and pytest.approx(mean))
    assert places_of(coarse).tolist() == [0.4, 0.5] and len(places_of(fine)) == 5
    assert mean_loss((fine, 1 - fine), places_of(coarse)) == pytest.approx(0.56, abs=1e-9)  # what a WINDOW before each has


def test_the_band_is_the_prediction_interval_of_one_more_run():
    alike = [entry(1e7, 1e9)] * 4
    losses = np.array([3.0, 3.1, 2.9, 3.05])
    low, high = np.log(band(alike[0], alike, losses))
    half = 12.924 * np.log(losses).std(ddof=1) * np.sqrt(1 + 1 / 4)  # Student's t of 3 degrees of freedom at 99.95 %
    assert (low + high) / 2 == pytest.approx(np.log(losses).mean()) and (high - low) / 2 == pytest.approx(half, rel=1e-4)
    assert band(entry(1e8, 1e9), alike, losses) is None  # of another size than all
    assert band(alike[0], alike[:2], losses[:2]) is None
    along = [entry(n, 20 * n) for n in (1e7, 2e7, 4e7, 8e7, 1.6e8)]
    falling = np.array([one["params"] ** -0.1 for one in along]) * [1, 1.01, 0.99, 1.01, 1]
    assert band(entry(1e8, 2e9), along, falling) and band(entry(1e8, 2e8), along, falling) is None


def test_a_plan_says_which_of_its_runs_left_their_bands(tmp_path):
    class Plan:
        runs = [one | {"name": f"r{number}"} for number, one in enumerate(GRID)] + [entry(1e8, 1e9, load={"run": "r1"})]

    random = np.random.default_rng(1)
    for number, one in enumerate(Plan.runs[:9]):
        shares, losses = until(curve(one, random), 0.5 if number in (3, 4) else 1)
        losses = losses * (2 if number == 4 else 1)
        lines = [
            {"kind": "train", "step": step, "flops": 1.0, "tokens": int(share * one["tokens"]), "loss": loss}
            for step, (share, loss) in enumerate(zip(shares, losses))
        ]
        (tmp_path / one["name"]).mkdir()
        (tmp_path / one["name"] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    states = ["done"] * 3 + ["running"] * 2 + ["done"] * 4
    runs = [Standing(run=f"r{number}", state=state, work=1.0, loss=3.0) for number, state in enumerate(states)]
    found = watched(Plan, runs, tmp_path)
    assert [bool(run.alarm) for run in found] == [number == 4 for number in range(9)]
    assert "at 50% of the run, where 7 finished runs let expect" in found[4].alarm and found[4].alarm.endswith("does not learn")
    low, high = found[3].expected_loss
    assert low < found[3].training_loss < high < 2 * low
    assert kind(Plan.runs[0]) != kind(Plan.runs[9])
    assert "diverged" in watch(Standing(run="r", state="running", work=1.0, loss=float("nan")), GRID[0], ((), ()), []).alarm
