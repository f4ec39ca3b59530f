"""The verb: two real runs and a trunk with branches, small enough for seconds; scripts and commands dry."""

import json
import shlex
import sys

import pytest

from megatron.scaling.__main__ import main
from megatron.scaling.plan.entries import Request, make_plan, save_plan


@pytest.fixture
def planned(corpus, tmp_path, warm, monkeypatch):
    monkeypatch.setattr(sys, "executable", warm.python)

    def plan(*flags, valid=corpus, **asked):
        asked = {"objectives": ("ar", "mdm"), "tokens": (6400,)} | asked
        save_plan(
            make_plan(
                Request(
                    scale="cpu",
                    sizes=("CPU_5K",),
                    seq_length=32,
                    train_data=("1.0", "0:0.8", corpus),
                    valid_data=("1.0", "0.8:1", valid),
                    flags=("--eval-iters", "2", *flags),
                    **asked,
                )
            ),
            tmp_path / "plan.json",
        )
        return str(tmp_path / "plan.json"), "--runs-dir", str(tmp_path / "runs")

    return plan


def test_a_plan_of_two_runs(planned, tmp_path, capfd):
    words = planned()
    assert main(["run", *words, "--processes", "2", "--json"]) == 0
    ran, aside = capfd.readouterr()
    assert "2 runs: 2 done" in aside
    names = [run["name"] for run in json.loads((tmp_path / "plan.json").read_text())["runs"]]
    for run in json.loads((tmp_path / "plan.json").read_text())["runs"]:
        result = json.loads((tmp_path / "runs" / run["name"] / "result.json").read_text())
        assert {name: result[name] for name in ("params", "tokens", "steps", "objective", "unique_tokens")} == {
            name: run[name] for name in ("params", "tokens", "steps", "objective", "unique_tokens")
        }
    assert main(["run", *words]) == 0
    assert f"{names[0]} is finished: skipped" in capfd.readouterr().err
    assert main(["status", *words, "--json"]) == 0
    said = capfd.readouterr().out
    assert json.loads(said)["total"]["done"] == 2 and said == ran


def test_branches_of_a_trunk(planned, tmp_path, capfd):
    words = planned("--lr-warmup-iters", "2", objectives=("ar",), tokens=(6400, 12800), schedule="wsd")
    assert main(["run", *words]) == 0
    for run in json.loads((tmp_path / "plan.json").read_text())["runs"]:
        known = json.loads((tmp_path / "runs" / run["name"] / "run.json").read_text())
        assert [r["step"] for r in known["resumes"]] == ([run["load"]["step"]] if run.get("load") else [])
    assert main(["status", *words]) == 0 and "3 runs: 3 done" in capfd.readouterr().out


def test_a_run_without_data_is_reported_with_its_reason(planned, tmp_path, capfd):
    words = planned(valid=str(tmp_path / "none"))
    assert main(["run", *words, "--only-index", "0"]) == 66
    assert main(["status", *words, "--json"]) == 1
    said = json.loads(capfd.readouterr().out)["runs"]
    assert (said[0]["state"], said[0]["code"], said[1]["state"]) == ("failed", 66, "waiting")
    assert "MissingInput" in said[0]["reason"] and str(tmp_path / "none") in said[0]["reason"]


def test_dry(planned, tmp_path, capfd):
    words = planned()
    assert main(["run", *words, "--dry-run"]) == 0
    first, second = map(shlex.split, capfd.readouterr().out.splitlines())
    assert first[0].endswith("/pretrain_gpt.py") and second[0].endswith("/pretrain_diff_gpt.py")
    assert main(["run", *words, "--dry-run", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["commands"] == [first, second]
    assert main(["run", *words, "--how", "slurm", "--dry-run", "--throttle", "1", "--sbatch", "partition=x", "time=60"]) == 0
    script = capfd.readouterr().out
    assert "#SBATCH --array=0-1%1\n" in script and "#SBATCH --partition=x\n#SBATCH --time=60\n" in script
    assert "--gpus" not in script
    assert not (tmp_path / "runs").exists()


def test_evaluate_scores_the_last_checkpoint(planned, tmp_path, capfd):
    words = planned(objectives=("ar",))
    assert main(["run", *words]) == 0
    capfd.readouterr()
    assert main(["run", *words, "--evaluate", "--json"]) == 0
    (command,) = json.loads(capfd.readouterr().out)["commands"]
    assert not {"--lr", "--train-samples", "--train-data-path"} & set(command) and "--skip-train" in command
    (name,) = [run["name"] for run in json.loads((tmp_path / "plan.json").read_text())["runs"]]
    scored = json.loads((tmp_path / "runs" / f"{name}_eval" / "evaluation.json").read_text())
    assert scored["valid"]["loss"] == json.loads((tmp_path / "runs" / name / "result.json").read_text())["loss"]
    assert main(["run", *words, "--checkpoint", "x"]) == 2 and "--evaluate" in capfd.readouterr().err


@pytest.mark.parametrize(
    "flags, code, sentence",
    [(["--only-index", "2"], 2, "the plan has runs 0 to 1"), (["--only", "x"], 2, "the plan has no such run")],
)
def test_refusals(flags, code, sentence, planned, capfd):
    assert main(["run", *planned(), *flags]) == code and sentence in capfd.readouterr().err


def test_no_plan(tmp_path, capfd):
    assert main(["run", str(tmp_path / "none.json")]) == 66 and "writes one" in capfd.readouterr().err
