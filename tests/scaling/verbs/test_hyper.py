import csv
import json
import math
from pathlib import Path

import pytest

from megatron.scaling.__main__ import main
from megatron.scaling.law.hyper import as_record, fit_hyper, read_hyper
from tests.scaling.law.test_hyper import LR, runs


def write(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_a_table_ends_in_a_file_that_plans_follow(tmp_path, capsys):
    table = write(
        tmp_path / "runs.csv", [row | {"objective": name, "bound": "exact"} for name in ("ar", "mdm") for row in runs(0.001)]
    )
    assert main(["hyper", table, "--window", "1", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "ar: best settings, 180 runs at 12 places" in said and "mdm: by place" in said
    laws = read_hyper(tmp_path / "out" / "hyper.json", "lr")
    truth = LR["constant"] + LR["params"] * math.log(2e6) + (LR["tokens"] + LR["unique_tokens"]) * math.log(4e8)
    for objective in ("ar", "mdm"):
        assert laws[objective].at(params=2e6, tokens=4e8, unique_tokens=4e8) == pytest.approx(math.exp(truth), rel=0.02)
    held = json.loads((tmp_path / "out" / "hyper.json").read_text())
    assert held["sources"][0]["path"] == table and len(held["objectives"]["ar"]["places"]) == 12


def test_the_file_is_documented():
    fit = fit_hyper(runs(0.0), ["lr"], window=9.0)
    page = (Path(__file__).parents[3] / "docs/formats.md").read_text().split("## Laws of hyperparameters")[1].split("## ")[0]
    assert all(f"`{name}`" in page for record in (as_record(fit), as_record(fit)["settings"]["lr"]) for name in record)


def test_other_differences_are_not_pooled_and_settings_are_named(tmp_path, capsys):
    rows = [row | {"hidden_dropout": 0.1 * (i % 2)} for i, row in enumerate(runs(0.001))]
    assert main(["hyper", write(tmp_path / "runs.csv", rows)]) == 78
    assert "differ in hidden-dropout" in capsys.readouterr().err
    assert main(["hyper", write(tmp_path / "runs.csv", runs(0.001)), "--of", "lr"]) == 78
    assert "differ in weight-decay" in capsys.readouterr().err
    assert main(["hyper", str(tmp_path / "runs.csv"), "--of", "lr,rate"]) == 65
    assert "--form with rate: no such flag" in capsys.readouterr().err
