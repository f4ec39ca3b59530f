"""The command: a verdict and exit code, files for each, and flags that cannot be."""

import json

import pytest

from tools import coordinate_check

SMALL = """--num-layers 1 --hidden-size 32 --num-attention-heads 2 --ffn-hidden-size 64 --seq-length 16 --global-batch-size 4
    --micro-batch-size 4 --lr 3e-3 --device cpu""".split()


def test_a_verdict_with_its_table_and_figure(tmp_path, capsys):
    words = ["--objective", "ar", "--widths", "64,128", "--seeds", "1", "--output", str(tmp_path)]
    assert coordinate_check.main([*words, "--", *SMALL]) == 0
    assert "mup: all slopes within 0.3 of flat" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"coordinates.json", "coordinates.png", "coordinates.pdf"}
    standard, mup = json.loads((tmp_path / "coordinates.json").read_text())["checks"]
    assert (standard["parametrization"], standard["passed"], mup["passed"]) == ("standard", False, True)
    assert mup["slopes"]["hidden"]["low"] is None  # two sizes and one seed have no interval
    assert coordinate_check.main([*words, "--parametrization", "standard", "--", *SMALL]) == 1


@pytest.mark.parametrize(
    "words, said",
    [
        ("--widths 64", "--widths 64: expected two different whole numbers or more, such as 64,128,256"),
        ("--widths=", "--widths : expected two different whole numbers"),
        ("--depths 2,4", "--depths: muP scales with the width alone; give --parametrization completep or standard"),
        ("--widths 32,40 -- " + " ".join(SMALL), "--widths 40: expected a multiple of the heads' width 16"),
        ("-- --parametrization mup", "--parametrization behind -- would do nothing here"),
    ],
)
def test_flags_that_cannot_be(words, said, capsys, tmp_path):
    assert coordinate_check.main([*"--objective ar --output".split(), str(tmp_path / "out"), *words.split()]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
