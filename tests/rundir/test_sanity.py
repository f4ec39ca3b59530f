"""A run's records are checked one by one."""

import json

import pytest

from megatron.errors import MissingInput
from megatron.rundir.records import encode
from megatron.rundir.sanity import check_run
from tools import sanity_check


def record(step, **more):
    found = {"kind": "train", "step": step, "samples": step, "tokens": step, "flops": 1.0, "epoch": 0.0, "time": 0.0}
    return found | {"loss": 5.0 - step / 10, "lr": 1e-3, "grad_norm": 1.0, "skipped": 0} | more


def atat(step, **more):
    stage = {"masking_rate": 0.5 + step % 2 / 10, "curriculum_stage": 1.0 + step // 4, "auxiliary_loss": 0.2}
    spread = {"importance_mean": 0.5, "importance_std": 0.2, "importance_min": 0.1, "importance_max": 0.9}
    return record(step, **stage, **spread, **more)


def write(folder, records, steps=9):
    (folder / "metrics.jsonl").write_text("".join(map(encode, [*records, record(9, kind="val", loss=4.2)])))
    (folder / "config.json").write_text(json.dumps({"optim": {"lr": 1e-3}}))
    if steps:
        (folder / "result.json").write_text(json.dumps({"steps": steps}))
    return folder


def failed(folder):
    return [check.name for check in check_run(folder) if not check.passed]


def test_a_run_as_it_should_be_passes(tmp_path, capsys):
    assert sanity_check.main([str(write(tmp_path, [atat(step) for step in range(1, 10)]))]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "Sanity check PASSED: 9 checks" and sum(line.startswith("ok ") for line in said) == 9
    assert failed(write(tmp_path, [record(step) for step in range(1, 10)])) == []


@pytest.mark.parametrize(
    "changed, name",
    [
        ({"loss": float("nan")}, "every step is finite"),
        ({"skipped": 1}, "every step is finite"),
        ({"loss": 6.0}, "the loss falls"),
        ({"lr": 1.0}, "the learning rate follows its schedule"),
        ({"grad_norm": 0.0}, "gradients flow"),
        ({"masking_rate": 9.0}, "half of the tokens are hidden in the mean, and not always"),
        ({"curriculum_stage": 1.0}, "the curriculum has its stages in order"),
        ({"importance_std": 0.01}, "the network tells tokens apart"),
    ],
)
def test_what_goes_wrong_is_named(tmp_path, changed, name, capsys):
    folder = write(tmp_path, [*(atat(step) for step in range(1, 9)), atat(9) | changed])
    assert name in failed(folder)
    assert sanity_check.main([str(folder)]) == 1 and "Sanity check FAILED" in capsys.readouterr().out


def test_an_unfinished_run_and_one_without_records(tmp_path):
    assert failed(write(tmp_path, [record(step) for step in range(9)], steps=0)) == ["the run is finished"]
    with pytest.raises(MissingInput, match="expected 3 or more"):
        check_run(write(tmp_path, [record(1)]))
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(MissingInput, match="has no metrics.jsonl"):
        check_run(tmp_path)
