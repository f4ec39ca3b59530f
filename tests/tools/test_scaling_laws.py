import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "scaling_laws.py"
CONVENTIONS = {
    "bound": "exact",
    "tokenizer": "t",
    "eval_slice": "s",
    "params_convention": "total",
    "flops_convention": "6ND",
    "lr_decayed": True,
}


@pytest.fixture
def run_tool(warm):
    def run(*arguments):
        return subprocess.run([warm.python, TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture
def sweep(tmp_path):
    for flops in (2e11, 6e11):
        for params in np.geomspace(4e3, 4e5, 4):
            folder = tmp_path / "runs" / f"{flops:.0e}-{params:.0f}"
            folder.mkdir(parents=True)
            tokens = flops / 6 / params
            result = {
                "name": folder.name,
                "objective": "ar",
                "params": params,
                "tokens": tokens,
                "flops": flops,
                "loss_se_noise": 0.002,
                "loss": 1 + 15 / params**0.4 + 60 / tokens**0.3,
            }
            (folder / "result.json").write_text(json.dumps(result | CONVENTIONS))
    return tmp_path / "runs"


def test_report_prints_and_writes(sweep, tmp_path, run_tool):
    done = run_tool("report", sweep, "--out", tmp_path / "out", "--bootstrap", 20)
    assert done.returncode == 0, done.stderr
    assert "isoFLOP minima" in done.stdout and "AR (exact NLL)" in done.stdout
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["objectives"]["ar"]["chinchilla"]["rows_used"] == 8
    assert (tmp_path / "out" / "isoflop.png").stat().st_size > 10_000


def test_no_finished_run_is_66_and_writes_nothing(tmp_path, run_tool):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "run.json").write_text("{}")
    done = run_tool("report", tmp_path / "runs", "--out", tmp_path / "out")
    assert done.returncode == 66 and "no finished run" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_incomparable_runs_are_78_and_name_the_flag_that_allows_them(sweep, tmp_path, run_tool):
    first = sorted(sweep.iterdir())[0] / "result.json"
    first.write_text(json.dumps(json.loads(first.read_text()) | {"tokenizer": "other"}))
    done = run_tool("report", sweep, "--out", tmp_path / "out")
    assert done.returncode == 78 and "--allow tokenizer" in done.stderr
    assert run_tool("report", sweep, "--out", tmp_path / "out", "--allow", "tokenizer", "--bootstrap", 0).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [[], ["report"], ["report", "x"], ["report", "x", "--ou", "y"], ["report", "x", "--out", "y", "--bootstrap", "-1"]],
)
def test_bad_flags_are_2(arguments, run_tool):
    assert run_tool(*arguments).returncode == 2


def test_an_output_that_cannot_be_written_is_73(sweep, tmp_path, run_tool):
    (tmp_path / "file").write_text("")
    done = run_tool("report", sweep, "--out", tmp_path / "file" / "out", "--bootstrap", 0)
    assert done.returncode == 73 and "Traceback" not in done.stderr
