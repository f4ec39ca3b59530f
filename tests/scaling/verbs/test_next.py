import csv
import json

import pytest

from megatron.scaling.__main__ import main
from megatron.scaling.law.fit import fit_law, save_fit
from tests.scaling.answers.test_critical import AR
from tests.scaling.answers.test_design import observations


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    save_fit(fit_law(observations(AR, (1, 4, 32)), "data-constrained", num_resamples=50), folder)
    return str(folder)


def test_it_proposes_runs(fitted, tmp_path, capsys):
    words = ["next", fitted, "--quantity", "R_D", "--out", str(tmp_path), "--max-flops", "1e20", "--flops-per-second", "1e14"]
    assert main(words) == 0
    (proposal,) = json.loads((tmp_path / "next.json").read_text())["proposals"]
    assert proposal["runs"] and proposal["ci_now"][0] < proposal["value"] < proposal["ci_now"][1]
    for run in (*proposal["runs"], proposal["strongest"]):
        assert run["flops"] <= 1e20 and run["gpu_hours"] == pytest.approx(run["flops"] / 3.6e17) and 0 < run["shrinkage"] < 1
    rates = [run["shrinkage_per_gpu_hour"] for run in proposal["runs"]]
    assert rates == sorted(rates, reverse=True) and proposal["strongest"]["epochs"] > 4
    said = capsys.readouterr().out
    assert "linearised 95 % interval" in said and "at any cost" in said and "resampled" in said


@pytest.mark.parametrize("quantity", ["a", "alpha", "beta", "E", "N*@1e21", "loss@1e21,U=1e9", "loss@N=1e9,D=1e11,U=1e10"])
def test_every_quantity_has_a_run(fitted, quantity, capsys):
    assert main(["next", fitted, "--quantity", quantity]) == 0
    assert quantity in capsys.readouterr().out


def test_a_budget_too_small_to_tell_says_so(fitted, capsys):
    assert main(["next", fitted, "--quantity", "alpha", "--least", "0.9"]) == 0
    assert "no single run of this budget shrinks the interval by 90%" in capsys.readouterr().out


def test_a_ledger_is_scored_by_the_runs(fitted, tmp_path, capsys):
    ledger, table = str(tmp_path / "ledger.jsonl"), str(tmp_path / "runs.csv")
    for N in ("1e8", "2e8", "4e8"):
        assert main(["predict", fitted, "--params", N, "--tokens", "1e10", "--unique-tokens", "1e9", "--ledger", ledger]) == 0
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["params", "tokens", "unique_tokens", "loss"],
                [1e8, 1e10, 1e9, AR.loss(1e8, 1e10, 1e9)],
                [2e8, 1e10, 1e9, 1.5 * AR.loss(2e8, 1e10, 1e9)],
            ]
        )
    capsys.readouterr()
    assert main(["next", "--score", ledger, "--runs", table, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "score.json").read_text())
    assert [row["inside"] for row in found["scored"]] == [True, False] and found["pending"] == [3]
    assert "1 of 2 inside (expected 1.9)" in capsys.readouterr().out


def test_what_is_asked_must_be_said(fitted, capsys):
    assert main(["next", fitted]) == 2 and "--quantity" in capsys.readouterr().err
    assert main(["next", "--score", "nowhere"]) == 2
    assert main(["next", "--score", "nowhere", fitted]) == 66
    assert main(["next", fitted, "--quantity", "gamma"]) == 65 and "gamma" in capsys.readouterr().err
