import json
import os

import numpy as np
import pytest

from megatron.errors import BadData, Mismatch, MissingInput
from megatron.scaling.answers.ledger import enter, read_ledger, score
from megatron.scaling.answers.predict import predict_run
from megatron.scaling.table.table import Table
from tests.scaling.answers.test_critical import AR, stated_fit

SOURCE = {"path": "fit.json", "sha256": "0" * 64}


def predictions(count=1, ln_sd=0.01):
    found = [predict_run(stated_fit(AR), "ar", params=1e8 * (1 + i), tokens=1e10, unique_tokens=1e9) for i in range(count)]
    ends = np.exp(np.array([-1.96, 1.96]) * ln_sd)
    return [one | {"ln_sd": ln_sd, "run_ci": (one["loss"] * ends).tolist()} for one in found]


def outcome(prediction, z=0.0, **more):
    row = {
        "run": "r",
        "params": prediction["params"],
        "tokens": 1e10,
        "unique_tokens": 1e9,
        "objective": "ar",
        "loss": prediction["loss"] * np.exp(z * prediction["ln_sd"]),
    }
    return row | more


def written(path, found, **more):
    enter(path, found, [SOURCE] * len(found), more.get("unit", "nats"), more.get("run"))
    return read_ledger(path)


def test_lines_are_only_appended(tmp_path):
    path = tmp_path / "new" / "ledger.jsonl"
    written(path, predictions(2))
    first = path.read_bytes()
    assert [entry["line"] for entry in written(path, predictions(1))] == [1, 2, 3] and path.read_bytes().startswith(first)
    assert read_ledger(path)[0]["fit"] == SOURCE


def test_a_run_is_found_by_its_numbers_and_scored(tmp_path):
    one, two = predictions(2)
    found = score(written(tmp_path / "l", [one, two]), Table([outcome(one, z=3.0, run="high"), outcome(one, z=1.0, run="near")]))
    assert [(row["run"], row["inside"]) for row in found["scored"]] == [("high", False), ("near", True)]
    assert [row["z"] for row in found["scored"]] == pytest.approx([3, 1]) and found["pending"] == [2]


def test_other_numbers_objectives_and_names_are_other_runs(tmp_path):
    one = predictions()[0]
    others = [outcome(one, params=1.02e8), outcome(one, unique_tokens=5e8), outcome(one, objective="mdm")]
    assert score(written(tmp_path / "a", [one]), Table(others))["pending"] == [1]
    named = written(tmp_path / "b", [one], run="that")
    assert score(named, Table([outcome(one)]))["pending"] == [1]
    assert score(named, Table([outcome(one, run="that", params=3e8)]))["pending"] == []


def test_fresh_data_is_the_same_for_every_larger_corpus(tmp_path):
    one = predictions()[0] | {"unique_tokens": None}
    assert score(written(tmp_path / "l", [one]), Table([outcome(one, unique_tokens=1e10)]))["pending"] == []
    two = one | {"unique_tokens": 5e10}
    assert score(written(tmp_path / "m", [two]), Table([outcome(two, unique_tokens=1e10)]))["pending"] == []


@pytest.mark.parametrize(
    "scale, shift, verdict", [(1, 0, "consistent"), (4, 0, "overconfident"), (1, 3, "biased: runs end above")]
)
def test_calibration(tmp_path, scale, shift, verdict):
    found = predictions(12)
    z = np.linspace(-1.5, 1.5, 12) * scale + shift
    said = score(written(tmp_path / "l", found), Table([outcome(*pair) for pair in zip(found, z)]))["calibration"]
    assert said["verdict"].startswith(verdict) and said["num_scored"] == 12 and said["mean_z"] == pytest.approx(shift, abs=1e-9)
    assert said["inside"] == np.sum(np.abs(z) <= 1.96)


def test_few_scores_say_nothing(tmp_path):
    one = predictions()[0]
    assert "nothing" in score(written(tmp_path / "l", [one]), Table([outcome(one)]))["calibration"]["verdict"]


def test_a_prediction_after_its_run_is_marked_and_not_counted(tmp_path):
    one = predictions()[0]
    (tmp_path / "result.json").write_text("{}")
    os.utime(tmp_path / "result.json", (1e9, 1e9))
    found = score(written(tmp_path / "l", [one]), Table([outcome(one, path=str(tmp_path))]))
    assert found["scored"][0]["late"] and found["calibration"]["num_scored"] == 0


def test_a_prediction_without_an_interval_is_not_entered(tmp_path):
    with pytest.raises(BadData, match="no interval"):
        written(tmp_path / "l", [predictions()[0] | {"ln_sd": 0.0}])
    assert not (tmp_path / "l").exists()


def test_units_must_agree(tmp_path):
    entries = written(tmp_path / "l", predictions(), unit="bits-per-byte")
    with pytest.raises(Mismatch, match="--unit bits-per-byte"):
        score(entries, Table([], choices={"unit": "nats"}))


def test_what_is_no_ledger_is_refused(tmp_path):
    with pytest.raises(MissingInput, match="predict --ledger"):
        read_ledger(tmp_path / "none")
    (tmp_path / "l").write_text(json.dumps({"made": "x"}) + "\n")
    with pytest.raises(BadData, match="line 1: no params"):
        read_ledger(tmp_path / "l")
