import argparse
import csv
import json

import numpy as np
import pytest

from megatron.scaling.__main__ import main
from megatron.scaling.law.fit import save_fit
from megatron.scaling.verbs.critical_compute import span
from tests.scaling.answers.test_critical import AR, MDM, stated_fit
from tests.scaling.answers.test_measured import CROSSINGS, runs


@pytest.fixture
def fits(tmp_path):
    """Folders of an AR and an MDM fit, the latter with the bound stated or not."""

    def save(bound="bound"):
        save_fit(stated_fit(AR, 0.002, num_draws=40), tmp_path / "ar")
        save_fit(stated_fit(MDM, 0.002, bound, seed=1, num_draws=40), tmp_path / "mdm")
        return ["--ar", str(tmp_path / "ar" / "fit.json"), "--diffusion", str(tmp_path / "mdm"), "--out", str(tmp_path / "out")]

    return save


def test_it_ends_in_a_file_and_a_figure(fits, tmp_path, capsys):
    assert main(["critical-compute", *fits(), "--unique-tokens", "1e8:1e9:3"]) == 0
    found = json.loads((tmp_path / "out" / "critical_compute.json").read_text())
    assert [point["unique_tokens"] for point in found["critical"]] == pytest.approx([1e8, 10**8.5, 1e9])
    assert all(point["low"] < point["flops"] < point["high"] for point in found["critical"])
    assert found["power_law"]["p"] == pytest.approx(2, abs=1e-3) and [len(s["sha256"]) for s in found["sources"]] == [64, 64]
    assert (tmp_path / "out" / "crossover.png").stat().st_size > 10_000 and (tmp_path / "out" / "crossover.pdf").is_file()
    said = capsys.readouterr().out
    assert "p = 2.0000" in said and "MDM: upper bound" in said and "epochs of MDM" in said


def test_an_unlabelled_loss_needs_a_word(fits, tmp_path, capsys):
    words = ["critical-compute", *fits(bound=None), "--unique-tokens", "1e8"]
    assert main(words) == 78 and "--allow bound" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*words, "--allow", "bound"]) == 0
    assert main([*words, "--allow", "bounds"]) == 2 and "expected one of" in capsys.readouterr().err


def test_fits_are_of_the_score_that_is_insisted_on_and_the_answer_says_which(fits, tmp_path, capsys):
    words = ["critical-compute", *fits(), "--unique-tokens", "1e8"]
    path = tmp_path / "mdm" / "fit.json"
    record = json.loads(path.read_text())
    record["conventions"]["score"] = "rule:margin"
    path.write_text(json.dumps(record))
    assert main([*words, "--score", "korder:16"]) == 78 and "the mdm fit is of rule:margin" in capsys.readouterr().err
    assert main([*words, "--score", "rule:margin"]) == 0
    assert "MDM: upper bound of the sampler rule:margin" in capsys.readouterr().out  # as its conventions state
    found = json.loads((tmp_path / "out" / "critical_compute.json").read_text())
    assert "sampler rule:margin" in found["label"] and any("NLL of a sampler" in warning for warning in found["warnings"])


def test_none_in_range_is_an_answer(fits, tmp_path, capsys):
    assert main(["critical-compute", *fits(), "--unique-tokens", "1e8", "--flops", "1e15:1e16"]) == 0
    assert "none in range: AR leads up to 1e+16 FLOPs" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "critical_compute.json").read_text())
    assert found["critical"][0]["flops"] is None and found["power_law"] is None


def test_fits_without_resamples_give_points_and_no_interval(tmp_path, capsys):
    for name, law in (("ar", AR), ("mdm", MDM)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"params": vars(law)}))
    words = ["--ar", str(tmp_path / "ar.json"), "--diffusion", str(tmp_path / "mdm.json"), "--out", str(tmp_path / "out")]
    assert main(["critical-compute", *words, "--unique-tokens", "1e8,1e9", "--allow", "bound"]) == 0
    said = capsys.readouterr().out
    assert "p = 2.0000 (-)" in said and "no resamples" in said and (tmp_path / "out" / "crossover.png").is_file()


def test_spans():
    assert span("1e8:1e10") == pytest.approx(np.geomspace(1e8, 1e10, 7)) and span("3e8") == [3e8]
    assert span("1e8,5e8") == [1e8, 5e8] and span("1:100:3") == pytest.approx([1, 10, 100])
    for text in ("1e9:1e8", "1:2:3:4", "1:10:2.5", "x", "1:10:1", "-1"):
        with pytest.raises(argparse.ArgumentTypeError):
            span(text)


def test_a_fit_that_is_not_there(fits, capsys):
    words = fits()
    assert main(["critical-compute", "--ar", "nowhere", *words[2:], "--unique-tokens", "1e8"]) == 66
    assert "nowhere" in capsys.readouterr().err


def test_earlier_answers_stand_beside(fits, tmp_path, capsys):
    words = ["critical-compute", *fits(), "--unique-tokens", "1e8,1e9"]
    assert main(words) == 0 and not (tmp_path / "out" / "crossings.png").exists()
    assert main([*words, "--beside", f"earlier={tmp_path / 'out'}", "--label", "now"]) == 0
    assert (tmp_path / "out" / "crossings.png").stat().st_size > 10_000
    (tmp_path / "out" / "critical_compute.json").write_text("{}")
    assert main([*words, "--beside", f"earlier={tmp_path / 'out'}"]) == 65
    assert "no critical compute" in capsys.readouterr().err
    assert main([*words, "--beside", f"earlier={tmp_path / 'none'}"]) == 66


def test_runs_themselves_are_compared_without_a_law(tmp_path, capsys):
    ar, mdm = runs(noise=0.01)
    for name, rows in (("ar", ar), ("mdm", mdm)):
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    words = [
        "critical-compute",
        "--ar",
        str(tmp_path / "ar.csv"),
        "--diffusion",
        str(tmp_path / "mdm.csv"),
        "--out",
        str(tmp_path / "m"),
    ]
    assert main(words) == 0
    found = json.loads((tmp_path / "m" / "critical_compute.json").read_text())
    assert all(point["low"] < C < point["high"] for point, C in zip(found["critical"], CROSSINGS.values()))
    assert "The best run of each C and U.  AR: exact NLL, MDM: upper bound." in capsys.readouterr().out
    assert main([*words, "--unique-tokens", "1e4"]) == 2 and "leave out --unique-tokens" in capsys.readouterr().err
    words[2] = words[4]  # MDM on both sides
    assert main(words) == 65 and "those of one alone" in capsys.readouterr().err
