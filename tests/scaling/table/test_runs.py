import json

import numpy as np
import pytest

from megatron.errors import BadData, MissingInput
from megatron.scaling.table.runs import read_result, records, run_directories, training_curve


def write_metrics(folder, found):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in found))


def test_run_directories_do_not_hold_each_other(tmp_path):
    for name in ("sweep/b", "sweep/a", "sweep/a/step-00000100"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    assert [path.name for path in run_directories(tmp_path)] == ["a", "b"]
    with pytest.raises(MissingInput, match="no run in this folder"):
        list(run_directories(tmp_path / "nothing"))


def test_an_unfinished_run_says_how_far_it_came(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 7, "loss": 3.0}\n{"kind": "tr')
    assert read_result(tmp_path)["reason"] == "no result.json: running or stopped, last record at step 7"


def test_a_damaged_result_is_refused(tmp_path):
    for text, sentence in (("{", "not JSON"), ("[1]", "found a list")):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(BadData, match=f"result.json: {sentence}"):
            read_result(tmp_path)


@pytest.mark.parametrize(
    "loaded, trunk",
    [
        ("{home}/trunk/checkpoints/step-00000100", "trunk"),
        ("elsewhere/old/step-00000100", "elsewhere/old"),
        ("{home}/branch/checkpoints/step-00000050", None),
    ],
)
def test_a_branch_names_its_trunk(tmp_path, loaded, trunk):
    branch = tmp_path / "branch"
    branch.mkdir()
    (branch / "result.json").write_text("{}")
    (branch / "run.json").write_text(json.dumps({"resumes": [{"from": loaded.format(home=tmp_path)}]}))
    assert read_result(branch).get("trunk") == trunk


def test_a_result_names_the_event_that_its_loss_is_of(tmp_path):
    convention = {"scored_tokens": "1..7 of each row", "conditioned_on": "token 0"}
    (tmp_path / "result.json").write_text(json.dumps({"convention": convention}))
    assert read_result(tmp_path)["event"] == "1..7 of each row, given token 0"
    (tmp_path / "result.json").write_text(json.dumps({"convention": None}))
    assert "event" not in read_result(tmp_path)


def test_training_curve_keeps_the_last_write_of_a_step(tmp_path):
    write_metrics(
        tmp_path,
        [
            {"kind": "train", "step": 1, "flops": 10, "loss": 5.0},
            {"kind": "train", "step": 2, "flops": 20, "loss": 9.0},
            {"kind": "val", "step": 2, "flops": 20, "loss": 1.0},
            {"kind": "train", "step": 2, "flops": 20, "loss": 4.0},
            {"kind": "train", "step": 3, "flops": 30, "loss": float("nan")},
        ],
    )
    flops, loss = training_curve(tmp_path)
    np.testing.assert_array_equal(flops, [10, 20])
    np.testing.assert_array_equal(loss, [5, 4])
    assert len(training_curve(tmp_path / "none")[0]) == 0


def test_the_short_reading_of_train_records_is_the_whole_one(tmp_path):
    ours = {
        "kind": "train",
        "step": 3,
        "samples": 24,
        "tokens": 6144,
        "flops": 1.5e11,
        "epoch": 0.1,
        "time": 1.0,
        "loss": 3.25,
        "accuracy": 0.5,
    }
    write_metrics(tmp_path, [ours, ours | {"step": 4, "loss": "nan"}, ours | {"step": 5, "loss": 3.0}])
    short = records(tmp_path, "train")
    write_metrics(tmp_path, [{"kind": "train", "loss": 3.25, **ours}, ours | {"step": 5, "time": 2.0, "loss": 3.0}])
    assert [record["loss"] for record in short] == [3.25, 3.0]
    for name in ("step", "tokens", "flops", "loss"):
        assert [record[name] for record in records(tmp_path, "train")] == [record[name] for record in short]


def test_validations_are_read_whole_and_damage_is_named(tmp_path):
    write_metrics(tmp_path, [{"kind": "val", "step": 1, "flops": 1.0, "tokens": 1, "loss": 3.0, "bits_per_byte": 1.1}])
    assert records(tmp_path, "val")[0]["bits_per_byte"] == 1.1
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "val", nonsense\n')
    with pytest.raises(BadData, match="metrics.jsonl, line 2: not JSON"):
        records(tmp_path, "val")
