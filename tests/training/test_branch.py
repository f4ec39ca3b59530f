"""Checkpoints belong to the run's last start, and to its record."""

import json
import shutil

import pytest

from megatron.core import checkpoint
from megatron.errors import BadData, Untrusted
from megatron.exchange.average import chosen
from megatron.rundir.names import step_of
from megatron.training.branch import on_branch
from megatron.training.trained import find_checkpoint


@pytest.fixture
def trainer(trainer):
    """Without checkpoints of the best validation."""
    trainer.flags |= {"eval_interval": 100}
    return trainer


def names(folder):
    return sorted(path.name for path in folder.iterdir() if "step-" in path.name)


def test_a_run_that_was_rolled_back_goes_on_from_its_new_branch(tmp_path, trainer, records, capsys):
    run, other = tmp_path / "run", tmp_path / "other"
    assert trainer.run(run) == 0
    assert trainer.run(run, load=run / "step-00000008", lr=2e-3, exit_interval=9) == 85
    said = capsys.readouterr().out
    assert "step-00000012 is of an earlier start: set aside as aside-step-00000012" in said
    assert names(run) == ["aside-step-00000012", "step-00000004", "step-00000008", "step-00000009"]
    # nor does who opens the run take what was left behind, as when the start was killed before it set anything aside
    (run / "aside-step-00000012").rename(run / "step-00000012")
    assert find_checkpoint(run, "newest").name == chosen([run], 2, None)[-1].name == "step-00000009"
    (run / "step-00000012").rename(run / "aside-step-00000012")
    assert find_checkpoint(run / "aside-step-00000012", None).name == "aside-step-00000012"
    assert trainer.run(run, load=run, lr=2e-3) == 0
    resumes = json.loads((run / "run.json").read_text())["resumes"]
    assert [one["step"] for one in resumes] == [8, 9]
    # the same, straight through
    assert trainer.run(other, exit_interval=8) == 85 and trainer.run(other, load=other, lr=2e-3) == 0
    assert records(run) == records(other)
    # what was set aside is not gone: it opens under its name, and a copy of it is not taken for the run's own
    assert checkpoint.load(run / "aside-step-00000012").step == 12
    shutil.rmtree(run / "step-00000012")
    shutil.copytree(run / "aside-step-00000012", run / "step-00000012")
    (run / "result.json").unlink()
    capsys.readouterr()
    assert trainer.run(run, load=run, lr=2e-3) == 0
    assert "checkpoint step-00000012 is refused: " in (said := capsys.readouterr().out) and "of an earlier start" in said
    assert records(run) == records(other)


def test_a_fresh_start_in_a_used_folder_leaves_its_checkpoints_behind(tmp_path, trainer, records, capsys):
    run = tmp_path / "run"
    assert trainer.run(run) == 0
    before = records(run)
    assert trainer.run(run, exit_interval=1) == 85
    assert names(run) == ["aside-step-00000004", "aside-step-00000008", "aside-step-00000012", "step-00000001"]
    assert trainer.run(run, load=run) == 0
    assert json.loads((run / "run.json").read_text())["resumes"][0]["step"] == 1 and records(run) == before


def test_a_checkpoint_that_is_newer_than_the_record_is_refused(tmp_path, trainer, records, capsys):
    run = tmp_path / "run"
    assert trainer.run(run) == 0
    whole, lines = records(run), (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:10]))  # to step 8, as when the disk was full from there on
    capsys.readouterr()
    assert trainer.run(run, load=run / "step-00000012") == 78
    assert "newer than the record" in capsys.readouterr().err
    facts = (run / "run.json").read_bytes()
    (run / "run.json").unlink()
    assert trainer.run(run, load=run / "step-00000012") == 78
    assert "newer than the record" in capsys.readouterr().err
    (run / "run.json").write_bytes(facts)
    assert trainer.run(run, load=run) == 0
    assert "checkpoint step-00000012 is refused: " in capsys.readouterr().out and records(run) == whole
    assert trainer.run(tmp_path / "new", load=run / "step-00000012", skip_train=True) == 0


def test_a_damaged_run_json_is_begun_anew_and_said(tmp_path, trainer, capsys):
    run = tmp_path / "run"
    assert trainer.run(run, exit_interval=5) == 85
    (run / "run.json").write_text('{"resumes": [1')
    assert trainer.run(run, load=run) == 0
    assert "run.json: not JSON" in (said := capsys.readouterr().out) and "moved to run.json.damaged" in said
    assert json.loads((run / "run.json").read_text())["began"] == 5


@pytest.mark.parametrize("odd", ['{"kind": "train", "step": "x"}', "[1]", "{}", '{"kind": 3, "step": 2}', "\0\0", "[" * 99999])
def test_odd_lines_of_the_record_move_aside_and_nothing_else_is_lost(tmp_path, trainer, records, capsys, odd):
    run = tmp_path / "run"
    assert trainer.run(run, exit_interval=5) == 85
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([*lines[:3], odd + "\n", *lines[3:]]))
    assert trainer.run(run, load=run) == 0
    said = capsys.readouterr().out
    assert "metrics.jsonl: line 4: " in said and "missed" not in said and odd in (run / "metrics.superseded.jsonl").read_text()
    assert [r["step"] for r in records(run) if r["kind"] == "train"] == list(range(1, 13))


def test_a_checkpoint_under_another_name_or_a_link_is_refused(tmp_path, trainer, capsys):
    run = tmp_path / "run"
    assert trainer.run(run, exit_interval=4, train_iters=8) == 85
    (run / "step-00000004").rename(run / "step-00000099")
    for path in (run, run / "step-00000099"):
        with pytest.raises(BadData):
            checkpoint.load(path)
    assert trainer.run(run, load=run, train_iters=8) == 65
    assert "holds step 4" in capsys.readouterr().out
    (run / "step-00000099").rename(tmp_path / "elsewhere")
    (run / "step-00000004").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Untrusted, match="is a link"):
        checkpoint.load(run)
    assert trainer.run(run, load=run, train_iters=8) == 77


def test_branches():
    starts = [("a", 0), ("b", 6), ("c", 7)]
    assert all(on_branch(starts, *at) for at in (("a", 6), ("a", 2), ("b", 7), ("c", 12), ("c", 8)))
    assert not any(on_branch(starts, *at) for at in (("a", 7), ("a", 12), ("b", 8), (None, 12), ("x", 3)))
    assert on_branch([("a", 8)], None, 8) and not on_branch([("a", 8)], None, 9)
    assert [step_of(name) for name in ("step-00000004.a2", "aside-3-step-00000004", "best")] == [4, 4, None]
