import csv
import json

import numpy as np
import pytest

from megatron.scaling.__main__ import main
from megatron.scaling.law.fit import save_fit
from megatron.scaling.law.forms.data_constrained import DataConstrained
from tests.scaling.answers.test_critical import AR, MDM, stated_fit

LAWS = {"ar": (AR, "exact"), "mdm": (MDM, "bound")}


def write_runs(path, sizes, budgets, epochs, objectives=("ar", "mdm")):
    random = np.random.default_rng(0)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["params", "tokens", "unique_tokens", "loss", "objective", "bound"])
        for objective in objectives:
            law, bound = LAWS[objective]
            for N, C, e in ((N, C, e) for N in sizes for C in budgets for e in epochs):
                D = C / 6 / N
                loss = law.loss(N, D, D / e) * np.exp(0.002 * random.standard_normal())
                writer.writerow([N, D, D / e, loss, objective, bound])
    return str(path)


def run(out, *words):
    code = main(["data-value", *words, "--out", str(out)])
    return json.loads((out / "data_value.json").read_text()) if code == 0 else code


def test_a_table_alone_is_fitted_for_each_objective(tmp_path, capsys):
    table = write_runs(tmp_path / "runs.csv", (2e7, 7e7, 2e8, 7e8), (3e17, 3e18, 3e19), (1, 4, 32, 256))
    found = run(tmp_path / "out", table, "--bootstrap", "60")
    for curve, R_D in zip(found["curves"], (AR.R_D, MDM.R_D)):
        assert curve["R_D"] == pytest.approx(R_D, rel=0.25) and len(curve["points"]) == 36
        assert curve["R_D_ci"][0] < curve["R_D"] < curve["R_D_ci"][1]
    assert [curve["objective"] for curve in found["curves"]] == ["ar", "mdm"] and found["sources"][0]["path"] == table
    assert (tmp_path / "out" / "data_value.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "AR (exact NLL): value of a token D'/D" in said and "MDM (upper bound)" in said


def test_a_fit_alone_is_a_curve(tmp_path, capsys):
    law = DataConstrained(1.87, 520.8, 1487.7, 0.35, 0.35, 15.387756, 5.31)
    save_fit(stated_fit(law), tmp_path / "fit")
    found = run(tmp_path / "out", "--fit", str(tmp_path / "fit"), "--max-epochs", "100")
    assert found["curves"][0]["value"][-1] == pytest.approx(0.1636, abs=1e-4) and found["curves"][0]["points"] == []
    shown = capsys.readouterr().out
    assert all(value in shown for value in ("0.98", "0.931", "0.82", "0.66", "0.37", "0.163"))


def test_fit_and_runs_of_it_stand_together(tmp_path):
    save_fit(stated_fit(AR, 0.005), tmp_path / "fit")
    table = write_runs(tmp_path / "runs.csv", (1e8,), (1e19,), (1, 4, 16), ["ar"])
    found = run(tmp_path / "out", table, "--fit", str(tmp_path / "fit"))
    assert [point["epochs"] for point in found["curves"][0]["points"]] == [4, 16]
    assert len(found["sources"]) == 2


def test_a_sweep_of_one_size_is_read_without_a_law(tmp_path, capsys):
    table = write_runs(tmp_path / "runs.csv", (1e6,), (6e15,), (1, 2, 4, 16, 32), ["ar"])
    assert run(tmp_path / "out", table) == 65 and "add fresh runs of that size" in capsys.readouterr().err
    with open(table, "a", newline="") as file:
        csv.writer(file).writerows([1e6, D, D, AR.loss(1e6, D), "ar", "exact"] for D in np.geomspace(1e8, 9e8, 8))
    found = run(tmp_path / "out", table)
    assert found["curves"][0]["R_D"] == pytest.approx(AR.R_D, rel=0.4) and len(found["curves"][0]["points"]) == 4


def test_runs_that_repeat_nothing_and_no_input_at_all(tmp_path, capsys):
    table = write_runs(tmp_path / "runs.csv", (1e7, 1e8), (1e18, 1e19), (1,), ["ar"])
    assert run(tmp_path / "out", table) == 65 and "none of the 4 runs repeats its data" in capsys.readouterr().err
    assert run(tmp_path / "out") == 2 and "--fit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
