import itertools

import numpy as np
import pytest

from megatron.errors import BadData
from megatron.scaling.answers.measured import measured_crossover

CROSSINGS = {1e4: 3e10, 4e4: 3e11}  # U -> the C at which both are equal


def runs(noise=0.0, seed=0, budgets=(1e10, 1e11, 1e12)):
    random, rows = np.random.default_rng(seed), {"ar": [], "mdm": []}
    for objective, U, C, size, _ in itertools.product(rows, CROSSINGS, budgets, (1e4, 4e4), (1, 2)):
        loss = 3 - 0.1 * np.log(C / 1e10) + 0.05 * np.log(size / 1e4)
        loss -= 0.1 * np.log(C / CROSSINGS[U]) * (objective == "mdm") + noise * random.standard_normal()
        row = {"objective": objective, "run": f"{len(rows[objective])}", "bound": "bound" if objective == "mdm" else "exact"}
        rows[objective].append(row | {"params": size, "tokens": C / 6 / size, "unique_tokens": U, "flops": C, "loss": loss})
    return rows["ar"], rows["mdm"]


def test_the_crossing_of_the_best_runs_is_found_and_covered():
    found = measured_crossover(*runs())
    assert [point["flops"] for point in found["critical"]] == pytest.approx(list(CROSSINGS.values()), rel=1e-6)
    assert found["num_draws"] == 0 or found["critical"][0]["low"] is not None  # noise-free replicates
    alone = measured_crossover(*([row for row in rows if row["run"] and int(row["run"]) % 2 == 0] for rows in runs()))
    assert [point["flops"] for point in alone["critical"]] == pytest.approx(list(CROSSINGS.values()), rel=1e-6)
    assert {(p["low"], p["high"], p["share_of_draws"]) for p in alone["critical"]} == {(None, None, None)}
    assert "no intervals" in alone["warnings"][0]
    inside = []
    for seed in range(40):
        found = measured_crossover(*runs(noise=0.02, seed=seed), num_draws=200)
        truth = CROSSINGS.values()
        inside += [point["low"] <= C <= point["high"] for point, C in zip(found["critical"], truth)]
    assert np.mean(inside) >= 0.88 and "24 degrees of freedom of replicates" in found["warnings"][0]


def test_what_is_not_in_range_is_said():
    ar, mdm = runs(budgets=(1e10, 2e10))
    first, second = measured_crossover(ar, mdm)["critical"]
    assert first["reason"] == second["reason"] == "none in range: AR leads up to 2e+10 FLOPs"
    late = measured_crossover(*runs(budgets=(1e12, 2e12)))["critical"]
    assert all("MDM leads already at 1e+12" in point["reason"] and point["flops"] is None for point in late)
    with pytest.raises(BadData, match="no two budgets over the same unique tokens"):
        measured_crossover(*runs(budgets=(1e10,)))
    with pytest.raises(BadData, match="repeat their data"):
        measured_crossover([row | {"unique_tokens": row["tokens"]} for row in ar], mdm)
