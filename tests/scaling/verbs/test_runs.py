import json

import pytest

from megatron.scaling.__main__ import main
from tests.scaling.table.test_registry import CONFIG, RESULT, write_run


@pytest.fixture
def two(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", RESULT | {"loss": 2.7}, CONFIG | {"optim": {"lr": 2e-3}})
    return tmp_path


def said(capsys, *words):
    assert main(["runs", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_ls_lists_every_run_with_status_and_error(two, capsys):
    write_run(two / "c", result=None, exit={"code": 65, "reason": "BadData: [x]", "step": 3})
    text = said(capsys, "ls", two)
    assert "2.50000 +- 0.05000 (bound)" in text and "BadData: [x] (exit code 65, step 3)" in text
    assert text.splitlines()[-1] == "3 runs, 2 done, 1 failed"
    rows = json.loads(said(capsys, "ls", two, "--json"))
    assert [(row["run"], row["status"]) for row in rows] == [("a", "done"), ("b", "done"), ("c", "failed")]
    write_run(two / "sweep" / "a")
    text = said(capsys, "ls", two)
    assert str(two / "a") in text and str(two / "sweep" / "a") in text  # namesakes are told apart
    (two / "none").mkdir()
    assert said(capsys, "ls", two / "none").splitlines()[-1] == "0 runs"


def test_show_tells_all_of_one(two, capsys):
    text = said(capsys, "show", two / "a")
    for part in (
        "a: done",
        "config, hash",
        "optim.lr",
        "fingerprints.tokenizer",
        "eval_seed",
        "resumed at step 5 on ",
        "from /a/step-5; --bf16 was False, is True",
    ):
        assert part in text
    assert json.loads(said(capsys, "show", two / "a", "--json"))["result"]["loss"] == 2.5


def test_diff_names_what_differs(two, capsys):
    lines = [line.split() for line in said(capsys, "diff", two / "a", two / "b").splitlines()]
    assert ["optim.lr", "0.001", "0.002"] in [[word for word in line if word != "\u2502"] for line in lines]
    assert any(line[1:2] == ["loss"] and line[-2] == "yes" for line in lines)
    assert json.loads(said(capsys, "diff", two / "a", two / "b", "--json"))["flags"] == {"optim.lr": [1e-3, 2e-3]}


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["runs", "show", str(tmp_path)]) == 66
    assert "no run directory" in capsys.readouterr().err


def test_pairs_tell_what_a_flag_does(tmp_path, capsys):
    for seed, losses in enumerate([(2.5, 2.6), (2.4, 2.52), (2.45, 2.5)]):
        for dropout, loss in zip((0.1, 0.2), losses):
            config = CONFIG | {"model": {"hidden_dropout": dropout}}
            write_run(tmp_path / f"{dropout}-{seed}", RESULT | {"loss": loss, "seed": seed}, config)
    text = said(capsys, "pairs", tmp_path, "--by", "hidden-dropout")
    assert "--hidden-dropout 0.2" in text and "+0.0900" in text and "+0.0004 to +0.1796" in text
