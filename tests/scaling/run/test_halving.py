"""Successive halving carried out: who goes on is settled by the rung before, and a plan ends although most of it never ran."""

import json

import pytest

from megatron.scaling.__main__ import main
from tests.scaling.run.test_execute import carry_out, entry  # noqa: F401  (a fixture)

LOSSES = {"a": 3.0, "b": 2.0, "c": 2.5, "d": 2.2}  # of the shortest runs
GROUP = {"rungs": [[[f"{name}{length}"] for name in LOSSES] for length in (1, 2, 4)], "keep": [4, 2, 1]}


def members(**does):
    """Runs of three lengths; at the second d is better than b."""
    losses = {f"{name}1": loss for name, loss in LOSSES.items()} | {"b2": 1.9, "d2": 1.8}
    return [
        entry(f"{name}{length}", *does.get(f"{name}{length}", ("--loss", str(losses.get(f"{name}{length}", 1.0)))))
        for length in (1, 2, 4)
        for name in LOSSES
    ]


@pytest.mark.parametrize("how", ["one-by-one", "in-process"])
def test_the_best_go_on_and_the_rest_is_left_out(how, carry_out):  # noqa: F811
    code, order, said = carry_out(members(), how, halving=[GROUP])
    assert code == 0 and [name for name, *_ in order] == ["a1", "b1", "c1", "d1", "b2", "d2", "d4"]
    assert "5 runs are left out: their settings gave way" in said and "7 runs: 7 done" in said
    code, order, _ = carry_out(members(), how, halving=[GROUP])
    assert (code, order) == (0, [])


def test_a_failed_run_is_the_worst_and_an_unfinished_one_holds_the_rung(carry_out, tmp_path):  # noqa: F811
    code, order, _ = carry_out(members(b1=("--does", "fail65")), halving=[GROUP])
    assert code == 1 and [name for name, *_ in order] == ["a1", "b1", "c1", "d1", "c2", "d2", "c4"]
    (tmp_path / "runs/c1/result.json").unlink()
    code, order, said = carry_out(members(), halving=[GROUP], only=["d4"])
    assert (code, order) == (1, []) and "d4 cannot start: it waits for c1: successive halving" in said


def test_a_failed_run_that_is_tried_again_is_not_the_worst_before_it_has_run(carry_out):  # noqa: F811
    carry_out(members(b1=("--does", "fail65")), halving=[GROUP])
    code, order, _ = carry_out(members(), halving=[GROUP], retry_failed=True)
    assert (code, [name for name, *_ in order]) == (0, ["b1", "b2", "d4"])


def test_status_knows_who_gave_way(carry_out, tmp_path, capsys):  # noqa: F811
    plan = {"schema_version": 1, "kind": "chinchilla", "scale": "cpu", "defaults": {}, "runs": members(), "halving": [GROUP]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    carry_out(members()[:4])
    words = [str(tmp_path / "plan.json"), "--runs-dir", str(tmp_path / "runs")]
    assert main(["status", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["gave_way"]) == {"a2", "c2", "a4", "c4"}
    assert {run["run"]: run["reason"] for run in found["runs"]}["b4"] == "it waits for b2 and 1 more: successive halving"
    assert main(["run", *words, "--dry-run"]) == 0
    said, aside = capsys.readouterr()
    assert said.count("--save") == 2 and "4 runs are left out" in aside and "2 runs wait for shorter ones" in aside
