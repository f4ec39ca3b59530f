import fcntl
import json

import pytest

from megatron.errors import BadData, MissingInput
from megatron.rundir.folders import find_runs, read_file
from megatron.rundir.status import status
from megatron.scaling.table.registry import compare, config_hash, describe, error_of, flat, in_words, summary

CONFIG = {
    "model": {"hidden_size": 32},
    "optim": {"lr": 1e-3},
    "train": {"seed": 7, "save": "/a"},
    "log": {"run_dir": "/a"},
    "objective": {"objective": "mdm"},
}
RESULT = {
    "name": "a",
    "objective": "mdm",
    "params": 4000,
    "tokens": 8000,
    "steps": 10,
    "loss": 2.5,
    "loss_se_noise": 0.03,
    "loss_se_data": 0.04,
    "bits_per_byte": 5.0,
    "accuracy": 0.3,
    "bound": "bound",
    "eval_slice": "s",
}
FACTS = {
    "code": "abc",
    "created": 1.0,
    "noise_seed": 7,
    "eval_seed": 4321,
    "params": 4000,
    "fingerprints": {"tokenizer": "t"},
    "resumes": [{"time": 2.0, "step": 5, "from": "/a/step-5", "changed": ["--bf16 was False, is True"]}],
}


def write_run(folder, result=RESULT, config=CONFIG, facts=FACTS, exit=None, records=(), log=""):
    folder.mkdir(parents=True)
    for name, content in (("result", result), ("config", config), ("run", facts), ("exit", exit)):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "train.log").write_text(log)
    return folder


def test_finds_every_run_once_and_none_below_a_run(tmp_path):
    run = write_run(tmp_path / "sweep" / "a")
    write_run(run / "step-00000010")
    write_run(tmp_path / "sweep" / "b")
    (tmp_path / "sweep" / "c").mkdir()
    (tmp_path / "sweep" / "c" / "exit.json").write_text("{}")  # it never began
    assert [found.name for found in find_runs([tmp_path, run])] == ["a", "b", "c"]
    assert find_runs([tmp_path / "sweep" / "a"]) == [run]
    with pytest.raises(MissingInput, match="no such folder"):
        find_runs([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    "ended, state",
    [
        (None, "failed"),
        ({"code": 85, "reason": "SIGTERM", "step": 4}, "stopped"),
        ({"code": 75, "reason": "lost", "step": 4}, "stopped"),
        ({"code": 86, "reason": "kill switch", "step": 4}, "stopped"),
        ({"code": 65, "reason": "BadData: x", "step": 4}, "failed"),
        ({"code": 0, "reason": "evaluated", "step": 4}, "evaluated"),
    ],
)
def test_an_unfinished_run_gives_its_reason(tmp_path, ended, state):
    records = [{"kind": "train", "step": 4, "loss": 3.0, "flops": 1.0}]
    found = status(write_run(tmp_path / "a", result=None, exit=ended, records=records))
    assert found.state == state
    assert in_words(found) == (
        f"{ended['reason']} (exit code {ended['code']}, step 4)"
        if ended
        else "killed without a word, last record at step 4; its log ends: nothing"
    )


def test_a_run_whose_lock_is_held_is_running(tmp_path):
    run = write_run(tmp_path / "a", result=None)
    with open(run / ".lock", "w") as lock:
        assert status(run).state == "failed"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert (status(run).state, status(run).reason) == ("running", "nothing recorded")
    (run / "train.log").write_text("stopped at step 4: reached --exit-interval 4\n")
    assert (status(run).state, status(run).reason) == ("stopped", "stopped at step 4: reached --exit-interval 4")
    assert status(write_run(tmp_path / "b")).state == "done"


def test_equal_experiments_have_equal_hashes():
    elsewhere = CONFIG | {"log": {"run_dir": "/b"}, "train": {"seed": 7, "save": None}, "data": {"train_data_path": ["/b"]}}
    assert config_hash(CONFIG, {"train": "x"}) == config_hash(elsewhere, {"train": "x"}) != config_hash(CONFIG, {"train": "y"})
    assert config_hash(CONFIG, {}) != config_hash(CONFIG | {"optim": {"lr": 2e-3}}, {})
    assert len(config_hash(CONFIG, {})) == 12 and config_hash({}, {}) is None


def test_a_run_says_everything_of_itself(tmp_path):
    log = "step 3 is not finite (loss nan): skipped\nall else\nstopped at step 5: SIGTERM\n"
    run = describe(write_run(tmp_path / "a", log=log))
    assert run["facts"]["resumes"][0]["step"] == 5 and run["config"]["optim"]["lr"] == 1e-3
    assert run["skips"] == ["step 3 is not finite (loss nan): skipped", "stopped at step 5: SIGTERM"]
    row = summary(run)
    assert (row["loss"], row["error"], row["resumes"], row["seed"]) == (2.5, pytest.approx(0.05), 1, 7)
    with pytest.raises(MissingInput, match="no run directory"):
        describe(tmp_path)
    (tmp_path / "a" / "run.json").write_text("{")
    with pytest.raises(BadData, match="run.json: not JSON"):
        describe(tmp_path / "a")


def test_a_running_run_says_how_far_it_is(tmp_path):
    records = [
        {"kind": "train", "step": 4, "loss": 3.0, "flops": 1.0, "tokens": 64, "skipped": 1},
        {"kind": "val", "step": 4, "loss": 2.9, "flops": 1.0, "loss_se_noise": 0.0, "loss_se_data": 0.1, "bound": "exact"},
    ]
    row = summary(describe(write_run(tmp_path / "a", result=None, records=records)))
    assert (row["status"], row["objective"], row["step"], row["tokens"]) == ("failed", "mdm", 4, 64)
    assert (row["loss"], row["error"], row["bound"]) == (2.9, 0.1, "exact")


def test_what_differs_is_named_and_measured_against_its_error(tmp_path):
    one = describe(write_run(tmp_path / "a"))
    config = CONFIG | {"optim": {"lr": 2e-3}, "model": {"hidden_size": 32, "swiglu": True}}
    other = describe(
        write_run(
            tmp_path / "b",
            RESULT | {"loss": 2.7, "accuracy": 0.4, "tokens": 9000},
            config,
            FACTS | {"fingerprints": {"tokenizer": "u"}},
        )
    )
    found = compare(one, other)
    assert found["flags"] == {"model.swiglu": [None, True], "optim.lr": [1e-3, 2e-3]}
    assert found["facts"]["fingerprints.tokenizer"] == ["t", "u"] and found["facts"]["tokens"] == [8000, 9000]
    assert "config_hash" in found["facts"] and "eval_slice" not in found["facts"]
    loss = found["metrics"]["loss"]
    assert loss["difference"] == pytest.approx(0.2) and loss["error"] == pytest.approx(1.96 * 0.05 * 2**0.5, rel=1e-3)
    assert loss["exceeds"] and found["metrics"]["accuracy"]["exceeds"] is None
    assert not found["metrics"]["bits_per_byte"]["exceeds"]
    assert compare(one, one) == {
        "flags": {},
        "facts": {},
        "metrics": {name: m | {"difference": 0} for name, m in compare(one, one)["metrics"].items()},
    }


def test_errors_of_other_units_and_of_no_record():
    assert error_of(RESULT, "bits_per_byte") == pytest.approx(0.1) and error_of({"loss": 1.0}) is None
    assert error_of({}, "bits_per_byte") is None
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


def test_a_file_that_is_not_there_says_nothing(tmp_path):
    assert read_file(tmp_path, "run.json") == {}
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(BadData, match="found a list"):
        read_file(tmp_path, "run.json")
