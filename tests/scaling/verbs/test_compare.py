import json

import pytest

from megatron.scaling.__main__ import main


def write_optima(path, objective, bound, cost, tokenizer="t"):
    rows = [f"{objective},{bound},{tokenizer},{c},{0.05 * c**0.5},{3 * (c / cost / 1e18) ** -0.06}" for c in (1e18, 1e19, 1e20)]
    path.write_text("\n".join(["objective,bound,tokenizer,flops,params,loss", *rows]) + "\n")
    return str(path)


def test_two_tables(tmp_path, capsys):
    ar = write_optima(tmp_path / "ar.csv", "ar", "exact", 1)
    mdm = write_optima(tmp_path / "mdm.csv", "mdm", "bound", 16)
    assert main(["compare", ar, mdm, "--optima", "--at-loss", "2.5", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "compute of mdm (upper bound) over ar (exact NLL)" in out and "overstate" in out
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["pairs"][0]["compute"][0]["ratio"] == pytest.approx(16)


def test_what_differs_is_refused_by_name(tmp_path, capsys):
    tables = [write_optima(tmp_path / "a.csv", "ar", "exact", 1), write_optima(tmp_path / "b.csv", "ar", "exact", 2, "other")]
    assert main(["compare", *tables, "--optima"]) == 78
    assert "runs differ in tokenizer" in capsys.readouterr().err
    assert main(["compare", *tables, "--optima", "--allow", "tokenizer"]) == 0
    assert "allowed: runs differ in tokenizer" in capsys.readouterr().out


def test_one_side_is_not_enough(tmp_path, capsys):
    assert main(["compare", write_optima(tmp_path / "a.csv", "ar", "exact", 1), "--optima"]) == 65
    assert "nothing stands beside it" in capsys.readouterr().err


def test_fits(tmp_path, capsys):
    for name, grow, decay in (("ar", 1, 0.1), ("mdm", 2**0.15, 0.3)):
        (tmp_path / name).mkdir()
        params = {"E": 1e-9, "A": 400 * grow, "B": 400 * grow, "alpha": 0.3, "beta": 0.3}
        (tmp_path / name / "fit.json").write_text(
            json.dumps(
                {
                    "form": "chinchilla",
                    "params": params,
                    "range": {"flops": [1e18, 1e20]},
                    "warnings": ["lack of fit: the residuals have a pattern"],
                    "conventions": {"objective": name, "bound": "exact", "weight_decay": decay, "adam_beta2": None},
                }
            )
        )
    assert main(["compare", str(tmp_path / "ar"), str(tmp_path / "mdm" / "fit.json")]) == 0
    out = capsys.readouterr().out
    assert "note: mdm: lack of fit: the residuals have a pattern" in out
    assert " 2 " in out and "the sides differ in weight-decay: 0.1 in ar; 0.3 in mdm." in out and "adam" not in out


def test_published_optima(tmp_path, published):
    """Nie et al., arXiv:2410.18514: 16 times the compute at equal loss, half the size."""
    table = str(published("smdm_isoflop_optima_digitised.csv"))
    assert (
        main(
            [
                "compare",
                table,
                "--optima",
                "--params",
                "non-embedding",
                "--allow",
                "bound",
                "--at-loss",
                "2.76",
                "--at-flops",
                "2.2e20",
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    (pair,) = json.loads((tmp_path / "compare.json").read_text())["pairs"]
    assert pair["compute"][0]["ratio"] == pytest.approx(15.48, abs=0.3)
    assert pair["params"][0]["ratio"] == pytest.approx(1.97, abs=0.03)
    assert pair["compute"][0]["ci"][0] < 15.48 < pair["compute"][0]["ci"][1]
