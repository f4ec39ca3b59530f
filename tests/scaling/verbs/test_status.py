import json

from megatron.scaling.__main__ import main
from megatron.scaling.plan.entries import Plan, save_plan
from megatron.scaling.verbs.status import clock


def make(tmp_path, **folders):
    """A plan of these runs, and what their folders hold."""
    runs = [{"name": name, "tokens": 1000, "steps": 10, "flops_6nd": 6e6, "forecast": {"hours": 1.0}} for name in folders]
    save_plan(Plan(kind="chinchilla", scale="cpu", defaults={}, runs=runs), tmp_path / "plan.json")
    for name, files in folders.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        for file, held in files.items():
            (tmp_path / "runs" / name / f"{file}.json").write_text(json.dumps(held))
    return [str(tmp_path / "plan.json"), "--runs-dir", str(tmp_path / "runs")]


DONE = {"result": {"loss": 2.5, "steps": 10, "seconds": 7200.0}, "run": {"created": 0.0}}
FAILED = {"exit": {"code": 87, "reason": "TooManyBadSteps: 3 in a row", "step": 4}}


def test_the_table_says_why_and_how_long(tmp_path, capsys):
    assert main(["status", *make(tmp_path, good=DONE, bad=FAILED, new={})]) == 1
    said = capsys.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines() if line.split()}
    assert lines["good"].split() == ["good", "done", "100%", "10", "2:00:00", "1:00:00", "2.5000"]
    assert "TooManyBadSteps: 3 in a row" in lines["bad"]
    assert lines["new"].split() == ["new", "waiting", "0%", "1:00:00", "2:00:00"]
    assert "3 runs: 1 done, 1 failed, 1 waiting; 2:00:00 of run time so far" in said
    assert "finished runs took 2.00 x their forecast" in said
    assert "unfinished: 4:00:00 of run time left, about 4:00:00 with 1 at a time" in said


def test_exit_codes(tmp_path, capsys):
    assert main(["status", *make(tmp_path / "a", good=DONE)]) == 0
    assert "unfinished" not in capsys.readouterr().out
    assert main(["status", *make(tmp_path / "b", good=DONE, new={})]) == 0
    assert "unfinished" in capsys.readouterr().out


def test_json(tmp_path, capsys):
    assert main(["status", *make(tmp_path, good=DONE, bad=FAILED), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [run["state"] for run in said["runs"]] == ["done", "failed"] and said["total"]["runs"] == 2


def test_clock():
    assert [clock(s) for s in (None, 9.04, 90, 9000)] == ["", "9.0 s", "1:30", "2:30:00"]
