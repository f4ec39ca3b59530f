import json

import numpy as np
import pytest

from megatron.scaling.__main__ import main


def write_table(path, budgets=(2e11, 6e11, 2e12), objectives=("ar",), sizes=5, noise=0.003):
    """Parabolas with N* = 0.045 C^0.5 and L* ~ C^-0.06 (MDM: of twice the compute)."""
    random, lines = np.random.default_rng(0), ["objective,bound,params,tokens,flops,loss"]
    for number, objective in enumerate(objectives):
        for c in budgets:
            for place in np.geomspace(0.2, 6, sizes):
                n = place * 0.045 * c**0.5
                loss = 3 * (c / 2**number / 2e11) ** -0.06 + 0.25 * np.log10(place) ** 2 + noise * random.standard_normal()
                lines.append(f"{objective},{('exact', 'bound')[number]},{n},{c / 6 / n},{c},{loss}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def run(tmp_path, *words, code=0):
    assert main(["isoflop", *words, "--out", str(tmp_path / "out"), "--bootstrap", "100"]) == code
    return json.loads((tmp_path / "out" / "isoflop.json").read_text())


def test_one_objective_is_written_flat(tmp_path, capsys):
    found = run(tmp_path, write_table(tmp_path / "t.csv"))
    assert found["exponents"]["a"] == pytest.approx(0.5, abs=0.05) and found["exponents"]["g"] == pytest.approx(0.06, abs=0.02)
    assert found["ci"]["a"][0] < 0.5 < found["ci"]["a"][1]
    assert (found["rows_used"], found["rows_dropped"], len(found["minima"])) == (15, [], 3)
    assert {"warnings", "sources", "choices", "conventions", "versions", "schema_version"} <= set(found)
    figures = {f"{name}.{suffix}" for name in ("isoflop", "frontier", "contours") for suffix in ("png", "pdf")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"isoflop.json", *figures}
    assert found["optimum"]["params"]["k_N"] == pytest.approx(0.045, rel=0.8) and found["optimum"]["bands"]["tokens"]["low"]
    assert "a: N* ~ C^a" in capsys.readouterr().out


def test_two_objectives_are_written_by_name(tmp_path):
    found = run(tmp_path, write_table(tmp_path / "t.csv", objectives=("ar", "mdm")))
    assert set(found["exponents"]) == {"ar", "mdm"} and set(found["exponents"]["mdm"]) == {"a", "b", "g"}


def test_dropped_rows_and_warnings(tmp_path):
    table = write_table(tmp_path / "t.csv")
    with open(table, "a") as file:
        file.write("ar,exact,1e5,1e9,6e14,2.2\nar,exact,2e5,5e8,6e14,2.1\n")
    found = run(tmp_path, table, "--drop", "loss>3.12", "--x", "tokens")
    reasons = {row["reason"] for row in found["rows_dropped"]}
    assert any("2 token count(s)" in reason for reason in reasons) and "--drop loss>3.12" in reasons
    assert found["rows_used"] + len(found["rows_dropped"]) == 17 and any("2 token count" in line for line in found["warnings"])


def test_no_exponent_is_no_success(tmp_path, capsys):
    found = run(tmp_path, write_table(tmp_path / "t.csv", budgets=(2e11,)), code=65)
    assert found["exponents"]["a"] is None and "no exponent for ar" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--map", "params"], ["--allow", "everything"], ["--window", "0"], ["--unit", "bits"]])
def test_flags_that_do_not_exist(tmp_path, flags):
    with pytest.raises(SystemExit) as left:
        main(["isoflop", write_table(tmp_path / "t.csv"), *flags])
    assert left.value.code == 2


def test_a_power_law_says_that_it_has_no_irreducible_loss(tmp_path, capsys):
    run(tmp_path, write_table(tmp_path / "t.csv"))
    assert "not fitted" in capsys.readouterr().out
    assert main(["predict", str(tmp_path / "out"), "--flops", "1e24"]) == 0
    assert "has no irreducible loss: beyond the budgets it falls too low" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "out" / "isoflop.json")]) == 65
    assert "this is no plan" in capsys.readouterr().err


def test_published_optima(tmp_path, published):
    """Nie et al., arXiv:2410.18514, figures 2 and 3, digitised."""
    found = run(
        tmp_path, str(published("smdm_isoflop_optima_digitised.csv")), "--optima", "--params", "non-embedding", "--allow", "bound"
    )
    for objective, g, a in (("ar", 0.0642, 0.6417), ("mdm", 0.0625, 0.6294)):
        assert found["exponents"][objective]["g"] == pytest.approx(g, abs=5e-4)
        assert found["exponents"][objective]["a"] == pytest.approx(a, abs=3e-3)
        assert found["ci"][objective]["a"][0] < a < found["ci"][objective]["a"][1]


def test_published_isoflops(tmp_path, published):
    """Hoffmann et al., arXiv:2203.15556, table 2: a = 0.49 by parabolas."""
    found = run(tmp_path, str(published("isoflop_chinchilla_epoch.csv")))
    assert found["exponents"]["a"] == pytest.approx(0.49, abs=0.03) and len(found["minima"]) == 9
    assert found["rows_used"] == 123 and any("outside the data" in line for line in found["warnings"])
