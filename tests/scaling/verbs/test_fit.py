import json
from pathlib import Path

import numpy as np
import pytest

from megatron.scaling.__main__ import main
from megatron.scaling.law.fit import load_fit
from megatron.scaling.law.forms.chinchilla import Chinchilla
from megatron.scaling.law.forms.data_constrained import DataConstrained

LAW = Chinchilla(E=1.7, A=300.0, B=900.0, alpha=0.34, beta=0.37)


@pytest.fixture
def table(tmp_path):
    random, path = np.random.default_rng(0), tmp_path / "runs.csv"
    flops, params = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e18, 1e21, 5), np.geomspace(5e7, 5e9, 6)))
    loss = LAW.loss(params, flops / 6 / params) * np.exp(0.003 * random.standard_normal(30))
    lines = [f"{n},{c / 6 / n},{value},{i < 2}" for i, (n, c, value) in enumerate(zip(params, flops, loss))]
    path.write_text("\n".join(["params,tokens,loss,odd", *lines]) + "\n")
    return str(path)


def read(folder):
    return json.loads((folder / "fit.json").read_text())


def test_needs_no_more_than_a_table(table, tmp_path, capsys):
    assert main(["fit", table, "--form", "chinchilla", "--out", str(tmp_path / "out")]) == 0
    found = read(tmp_path / "out")
    assert found["params"]["alpha"] == pytest.approx(0.34, abs=0.02) and found["rows_used"] == 30 and found["rows_dropped"] == []
    low, high = found["ci"]["E"]
    assert low < 1.7 < high and found["warnings"] == [] and len(found["draws"]) == 1000
    assert found["sources"][0]["path"] == table and len((tmp_path / "out" / "residuals.csv").read_text().splitlines()) == 31
    shown = capsys.readouterr().out
    assert "30 used in 30 clusters" in shown and "alpha" in shown and "condition number" in shown
    assert "no two runs have one configuration" in shown


def test_scatter_of_seeds_is_printed_in_the_unit_of_the_loss(table, tmp_path, capsys):
    lines = Path(table).read_text().splitlines()
    size, tokens, loss, odd = lines[7].split(",")
    path = tmp_path / "seeds.csv"
    path.write_text("\n".join([*lines, f"{size},{tokens},{float(loss) + 0.02!r},{odd}"]) + "\n")
    assert main(["fit", str(path), "--form", "chinchilla", "--bootstrap", "0"]) == 0
    assert "runs of one configuration scatter by 0.0141 nats" in capsys.readouterr().out  # 0.02 / sqrt 2


def test_rows_are_dropped_only_by_a_flag_and_listed(table, tmp_path, capsys):
    assert main(["fit", table, "--drop", "odd", "--bootstrap", "0", "--out", str(tmp_path / "out")]) == 0
    found = read(tmp_path / "out")
    assert found["rows_used"] == 28 and [row["reason"] for row in found["rows_dropped"]] == ["--drop odd"] * 2
    assert "--drop odd" in capsys.readouterr().out


def test_every_flag_is_on_record(table, tmp_path):
    flags = [
        "--delta",
        "1e-4",
        "--reduction",
        "mean",
        "--starts",
        "40",
        "--bootstrap",
        "30",
        "--ci",
        "profile",
        "--holdout",
        "flops>=9e20",
        "--seed",
        "5",
        "--form",
        "chinchilla-tied",
    ]
    assert main(["fit", table, *flags, "--out", str(tmp_path / "out")]) == 0
    found = read(tmp_path / "out")
    assert (found["delta"], found["reduction"], found["num_starts"], found["num_resamples"]) == (1e-4, "mean", 40, 30)
    assert (found["ci_method"], found["seed"], found["form"]) == ("profile", 5, "chinchilla-tied")
    assert found["holdout"]["rows"] == 6


def test_two_stages_from_a_file_or_by_hand(table, tmp_path):
    law = DataConstrained(**vars(LAW), R_D=15.0, R_N=8.0)
    params, unique, epochs = (grid.ravel() for grid in np.meshgrid([5e7, 3e8, 1e9, 4e9], [1e9, 1e10], [1, 2, 8, 30]))
    rows = zip(params, unique * epochs, unique, law.loss(params, unique * epochs, unique))
    path = tmp_path / "repeated.csv"
    path.write_text("\n".join(["params,tokens,unique_tokens,loss", *(",".join(map(str, row)) for row in rows)]) + "\n")
    assert main(["fit", table, "--out", str(tmp_path / "first")]) == 0
    for given in (str(tmp_path / "first"), "E=1.7,A=300,B=900,alpha=0.34,beta=0.37", "single-epoch"):
        flags = ["--form", "data-constrained", "--chinchilla", given, "--bootstrap", "20", "--out", str(tmp_path / "second")]
        assert main(["fit", str(path), *flags]) == 0
        found = read(tmp_path / "second")
        assert set(found["held"]) >= {"E", "A", "B", "alpha", "beta"} and found["num_parameters"] == 2
        assert found["params"]["R_D"] == pytest.approx(15, rel=0.5)


def test_objectives_are_fitted_apart(tmp_path):
    path, grid = tmp_path / "both.csv", [(n, d) for n in (1e7, 3e7, 1e8, 3e8) for d in (1e9, 4e9, 2e10)]
    kinds = (("ar", "exact", 1), ("mdm", "bound", 1.1))
    rows = [f"{name},{bound},{n},{d},{LAW.loss(n, d) * scale}" for name, bound, scale in kinds for n, d in grid]
    path.write_text("\n".join(["objective,bound,params,tokens,loss", *rows]) + "\n")
    assert main(["fit", str(path), "--bootstrap", "0", "--out", str(tmp_path / "out")]) == 0
    assert read(tmp_path / "out" / "mdm")["params"]["E"] == pytest.approx(1.87, rel=1e-3)
    assert read(tmp_path / "out" / "ar")["params"]["E"] == pytest.approx(1.7, rel=1e-3)


@pytest.mark.parametrize(
    "flags",
    [
        ["--form", "cubic"],
        ["--starts", "0"],
        ["--bootstrap", "-1"],
        ["--delta", "0"],
        ["--ci", "guess"],
        ["--by", ","],
        ["--chinchilla", "E=1,A"],
    ],
)
def test_wrong_flags_leave_with_2(table, flags):
    with pytest.raises(SystemExit) as left:
        main(["fit", table, *flags])
    assert left.value.code == 2


def test_other_trouble_has_its_own_code(table, tmp_path, capsys):
    assert main(["fit", str(tmp_path / "none.csv")]) == 66
    assert main(["fit", table, "--out", ""]) == 2 and "--out is followed by an empty word" in capsys.readouterr().err
    assert main(["fit", table, "--holdout", "nonsense"]) == 65
    assert main(["fit", table, "--chinchilla", "single-epoch"]) == 65
    assert main(["fit", table, "--form", "data-constrained", "--chinchilla", str(tmp_path / "none")]) == 66
    assert "Traceback" not in capsys.readouterr().err


def test_one_loss_by_another_of_runs_at_the_same_place(tmp_path, capsys):
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 4)))
    ar = 1.6 + 200 / N**0.3 + 900 / D**0.35
    for name, loss in (("ar", ar), ("mdm", 1.1 + 1.2 * (ar - 1.5) ** 0.9)):
        rows = zip([f"{name}{i}" for i in range(16)], N, D, loss, [name] * 16, ["exact" if name == "ar" else "bound"] * 16)
        text = "run,params,tokens,loss,objective,bound\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
        (tmp_path / f"{name}.csv").write_text(text)
    mdm, beside = str(tmp_path / "mdm.csv"), ["--beside", str(tmp_path / "ar.csv")]
    assert main(["fit", mdm, *beside, "--form", "loss-to-loss", "--bootstrap", "0", "--out", str(tmp_path / "out")]) == 0
    fit = load_fit(tmp_path / "out")
    assert fit.params == pytest.approx({"K": 1.2, "E": 1.1, "F": 1.5, "kappa": 0.9}, rel=1e-2) and len(fit.sources) == 2
    capsys.readouterr()
    for words, said in (
        ([*beside], "--beside makes the column other_loss"),
        (["--form", "loss-to-loss"], "give --beside TABLE"),
        (["--chance", "0.25"], "give --accuracy COLUMN too"),
        (["--accuracy", "acc", "--loss", "best", "--unit", "bits-per-byte"], "--unit says which loss"),
    ):
        assert main(["fit", mdm, *words]) in (2, 65) and said in capsys.readouterr().err
