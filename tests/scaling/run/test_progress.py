"""Where runs stand, from folders made by hand."""

import json

import pytest

from megatron.rundir.records import TAIL_BYTES, last_record
from megatron.scaling.run.progress import seconds_so_far, stand, status, total


def entry(name, **more):
    return {"name": name, "tokens": 1000, "steps": 10, "flops_6nd": 6e6, "forecast": {"hours": 100 / 3600}} | more


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, held in files.items():
        lines = held if isinstance(held, list) else [held]
        name = {"train": "train.log", "metrics": "metrics.jsonl"}.get(name, f"{name}.json")
        (folder / name).write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))


def record(step, time, **more):
    return {"kind": "train", "step": step, "tokens": 100 * step, "time": time, "tokens_per_sec": 10.0, "loss": 3.0} | more


class Plan:
    def __init__(self, *runs):
        self.runs = list(runs)


def test_states(tmp_path):
    write(tmp_path / "done", result={"loss": 2.5, "steps": 10, "seconds": 80.0}, run={"created": 0.0})
    write(
        tmp_path / "failed", exit={"code": 65, "reason": "BadData: x", "step": 3}, run={"created": 0.0}, metrics=[record(3, 30.0)]
    )
    write(
        tmp_path / "stopped",
        exit={"code": 85, "reason": "received SIGUSR1", "step": 5},
        run={"created": 100.0},
        metrics=[record(4, 140.0), record(5, 150.0), {"kind": "val", "step": 5, "time": 151.0}],
    )
    write(tmp_path / "killed", train=["saved", "the last words"])
    (tmp_path / "killed/.lock").touch()
    found = {run.run: run for run in status(Plan(*map(entry, ("done", "failed", "stopped", "killed", "new"))), tmp_path)}
    assert [run.state for run in found.values()] == ["done", "failed", "stopped", "failed", "waiting"]
    assert (found["done"].loss, found["done"].seconds, found["done"].share) == (2.5, 80.0, 1.0)
    assert found["done"].remaining_seconds is None
    assert (found["failed"].reason, found["failed"].code, found["failed"].seconds) == ("BadData: x", 65, 30.0)
    assert (found["stopped"].step, found["stopped"].share, found["stopped"].seconds) == (5, 0.5, 50.0)
    assert found["killed"].reason.endswith("its log ends: the last words") and found["killed"].code is None
    pace = (80 + 30 + 50) / (100 + 30 + 50)  # seconds as measured / as forecast
    assert found["new"].remaining_seconds == pytest.approx(100 * pace)
    assert found["stopped"].remaining_seconds == pytest.approx(50 * pace)
    whole = total(list(found.values()))
    assert (whole["done"], whole["failed"], whole["stopped"], whole["waiting"], whole["runs"]) == (1, 2, 1, 1, 5)
    assert whole["hours"] == pytest.approx(160 / 3600) and whole["forecast_hours"] == pytest.approx(500 / 3600)
    assert whole["hours_left"] == pytest.approx((100 + 50 + 100 + 70) * pace / 3600)


def test_without_a_forecast_the_pace_is_that_of_flops(tmp_path):
    write(tmp_path / "a", result={"steps": 10, "seconds": 60.0}, run={"created": 0.0})
    plan = Plan(entry("a", forecast={"hours": None}), entry("b", flops_6nd=1.2e7, forecast={"hours": None}))
    assert status(plan, tmp_path)[1].remaining_seconds == pytest.approx(120.0)
    assert total(status(plan, tmp_path))["forecast_hours"] is None
    unknown = total(status(Plan(entry("b", forecast={"hours": None})), tmp_path))
    assert unknown["hours_left"] is None


def test_all_done_leaves_nothing(tmp_path):
    write(tmp_path / "a", result={"steps": 10, "seconds": 60.0}, run={"created": 0.0})
    assert total(status(Plan(entry("a")), tmp_path))["hours_left"] == 0.0


def test_a_branch_has_done_only_what_is_its_own(tmp_path):
    write(tmp_path / "b", run={"created": 0.0}, exit={"code": 85, "reason": "x"}, metrics=[record(9, 10.0)])
    run = stand(entry("b", load={"run": "trunk", "step": 8}), tmp_path / "b")
    assert (run.share, run.work) == (pytest.approx(0.5), pytest.approx(1.2e6))


def test_the_seconds_of_all_processes_of_a_run_count(tmp_path):
    write(
        tmp_path / "a",
        run={"created": 0.0, "resumes": [{"time": 1000.0}]},
        metrics=[record(1, 10.0), record(2, 20.0), record(3, 1005.0), record(4, 1010.0)],
    )
    assert seconds_so_far(tmp_path / "a") == pytest.approx(20 + 10)
    assert seconds_so_far(tmp_path / "a", {"seconds": 15.0}) == pytest.approx(20 + 15)
    assert seconds_so_far(tmp_path / "none") is None


def test_the_last_record_of_a_file_that_is_being_written(tmp_path):
    write(tmp_path / "a", metrics=[record(1, 1.0), {"kind": "val", "step": 1}, record(2, 2.0)])
    with open(tmp_path / "a/metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 3')
    assert last_record(tmp_path / "a")["step"] == 2
    write(tmp_path / "long", metrics=["x" * (2 * TAIL_BYTES), json.dumps(record(7, 1.0))])
    assert last_record(tmp_path / "long")["step"] == 7 and last_record(tmp_path / "none") == {}
