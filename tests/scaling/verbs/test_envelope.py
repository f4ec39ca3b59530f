import json

import numpy as np

from megatron.scaling.__main__ import main


def write_curves(path, sizes):
    rows = [(f"{n:.0f}", n, d, 1.7 + 406 / n**0.34 + 410 / d**0.28) for n in sizes for d in np.geomspace(1e8, 1e12, 60)]
    path.write_text("run,params,tokens,loss\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))


def test_the_exponents_of_a_law_are_written(tmp_path, capsys):
    write_curves(tmp_path / "t.csv", np.geomspace(1e7, 1e10, 12))
    assert main(["envelope", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out"), "--bootstrap", "20"]) == 0
    found = json.loads((tmp_path / "out" / "envelope.json").read_text())
    assert abs(found["exponents"]["a"] - 0.28 / 0.62) < 0.02 and found["rows_used"] == 720 and found["rows_dropped"] == []
    assert found["ci"]["a"][0] < found["exponents"]["a"] < found["ci"]["a"][1]
    assert len(found["points"]["flops"]) == len(found["points"]["loss"])
    assert "N ~ C^a" in capsys.readouterr().out


def test_no_exponent_is_no_success(tmp_path, capsys):
    write_curves(tmp_path / "t.csv", [1e8, 1e9])
    assert main(["envelope", str(tmp_path / "t.csv")]) == 65
    assert "no exponent for unlabelled" in capsys.readouterr().err
