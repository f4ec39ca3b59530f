import json

import numpy as np
import pytest

from megatron.errors import BadData, Mismatch, MissingInput
from megatron.scaling.runs import check_comparable, load_runs, read_runs, training_curve

RESULT = {"name": "small", "objective": "ar", "params": 4000, "tokens": 8_000_000, "flops": 1.92e11, "loss": 2.5,
          "loss_se_noise": 0.0, "bound": "exact", "tokenizer": "t", "eval_slice": "s", "params_convention": "total",
          "flops_convention": "6ND", "lr_decayed": True}


def write_run(folder, **changes):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "result.json").write_text(json.dumps(RESULT | {"name": folder.name} | changes))
    return folder


def test_reads_run_directories_and_folders_of_them_once(tmp_path):
    run = write_run(tmp_path / "sweep" / "a")
    write_run(tmp_path / "sweep" / "b", loss=2.4)
    write_run(run / "step-00000100")            # what lies below a run belongs to it
    rows = load_runs([tmp_path / "sweep", run])
    assert [row["run"] for row in rows] == ["a", "b"]
    assert rows[0]["loss"] == 2.5 and rows[0]["params"] == 4000.0 and rows[0]["objective"] == "ar"


def test_unfinished_runs_are_listed_with_the_reason(tmp_path):
    write_run(tmp_path / "done")
    write_run(tmp_path / "nan", loss=float("nan"))
    (tmp_path / "going").mkdir()
    (tmp_path / "going" / "metrics.jsonl").write_text('{"kind": "train", "step": 7, "loss": 3.0}\n{"kind": "tr')
    finished, unfinished = read_runs([tmp_path])
    assert [run["run"] for run in finished] == ["done"]
    reasons = {run["run"]: run["reason"] for run in unfinished}
    assert reasons == {"nan": "loss is nan", "going": "no result.json: running or stopped, last record at step 7"}


def test_reads_tables_with_whatever_columns_they_have(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("params,tokens,loss,budget\n10000000000,2000000000000,2.1,\n1e9,1e9,0,\n")
    finished, unfinished = read_runs([table])
    assert finished[0]["flops"] == 1.2e23 and finished[0]["flops_convention"] == "6ND"      # 6ND overflows an int64
    assert finished[0]["objective"] == "unlabelled" and finished[0]["run"] == "t:2"
    assert unfinished[0]["reason"] == "loss is 0"
    lines = tmp_path / "t.jsonl"
    lines.write_text('{"params": 1, "tokens": 2, "loss": 3, "flops": 12, "objective": "mdm"}\n')
    assert load_runs([lines])[0]["objective"] == "mdm"


@pytest.mark.parametrize("name, text, sentence", [
    ("t.csv", "params,loss\n1,2\n", "line 2: no column tokens"),
    ("t.csv", "params,tokens,loss\n1,2,many\n", "line 2, column loss: found 'many'"),
    ("t.csv", "params,tokens,loss\n1,2\n", "line 2: fewer fields"),
    ("t.jsonl", "[1]\n", "line 1: found a list"),
    ("t.jsonl", "nonsense\n", "line 1: not JSON"),
])
def test_damaged_tables_are_refused_by_line(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadData, match=sentence):
        load_runs([tmp_path / name])


def test_missing_paths_and_damaged_results_are_refused(tmp_path):
    with pytest.raises(MissingInput, match="no such file"):
        load_runs([tmp_path / "nowhere"])
    with pytest.raises(MissingInput, match="no run in this folder"):
        load_runs([tmp_path])
    (write_run(tmp_path / "a") / "result.json").write_text("{")
    with pytest.raises(BadData, match="result.json: not JSON"):
        load_runs([tmp_path])


def row(name, **changes):
    return RESULT | {"run": name} | changes


@pytest.mark.parametrize("changes, difference", [
    ({"tokenizer": "other"}, "tokenizer"), ({"eval_slice": "other"}, "eval_slice"),
    ({"params_convention": "non-embedding"}, "params_convention"), ({"flops_convention": None}, "flops_convention"),
    ({"lr_decayed": False}, "lr_decayed"), ({"bound": "bound"}, "bound"),
])
def test_what_cannot_be_compared_is_refused_unless_allowed(changes, difference):
    runs = [row("one"), row("two", **changes)]
    with pytest.raises(Mismatch, match=f"two.*--allow {difference}"):
        check_comparable(runs)
    check_comparable(runs, allow=[difference])


def test_exact_and_bound_stand_side_by_side_only_with_labels():
    check_comparable([row("one"), row("two", objective="mdm", bound="bound")])
    with pytest.raises(Mismatch, match="two"):
        check_comparable([row("one"), row("two", objective="mdm", bound=None)])


def test_training_curve_keeps_the_last_write_of_a_step(tmp_path):
    records = [{"kind": "train", "step": 1, "flops": 10, "loss": 5.0}, {"kind": "train", "step": 2, "flops": 20, "loss": 9.0},
               {"kind": "val", "step": 2, "flops": 20, "loss": 1.0}, {"kind": "train", "step": 2, "flops": 20, "loss": 4.0},
               {"kind": "train", "step": 3, "flops": 30, "loss": float("nan")}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    flops, loss = training_curve(tmp_path)
    np.testing.assert_array_equal(flops, [10, 20])
    np.testing.assert_array_equal(loss, [5, 4])
    assert len(training_curve(tmp_path / "none")[0]) == 0
