import json

import pytest

from megatron.scaling.__main__ import main


def test_report_prints_and_writes(run_folders, tmp_path, capsys):
    assert main(["report", str(run_folders), "--out", str(tmp_path / "out"), "--bootstrap", "20"]) == 0
    printed = capsys.readouterr().out
    assert "isoFLOP minima" in printed and "AR (exact NLL)" in printed and "report.html" in printed
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["objectives"]["ar"]["chinchilla"]["rows_used"] == 8
    assert (tmp_path / "out" / "isoflop.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/png;base64,") == 6


def test_a_file_of_another_verb_that_is_not_there_is_66_and_writes_nothing(run_folders, tmp_path, capsys):
    words = ["report", str(run_folders), "--out", str(tmp_path / "out"), "--bootstrap", "0", "--critical", str(tmp_path / "none")]
    assert main(words) == 66
    assert "critical-compute" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [[], ["--out", "x", "--bootstrap", "-1"], ["--out", "x", "--seed", "-1"], ["--ou", "x"]])
def test_bad_flags_are_2(flags, run_folders):
    with pytest.raises(SystemExit) as left:
        main(["report", str(run_folders), *flags])
    assert left.value.code == 2
