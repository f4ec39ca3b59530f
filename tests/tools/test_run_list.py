"""A list of runs in one process, or in several."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from megatron.errors import exits
from megatron.training import pretrain
from tools import run_list

FLAGS = (
    "--num-layers 1 --hidden-size 8 --num-attention-heads 1 --seq-length 16 --global-batch-size 2 --micro-batch-size 2 "
    "--lr 1e-3 --tokenizer-type ByteTokenizer --device cpu --eval-iters 0 --train-data-path PREFIX"
)


def line(entry, samples, run_dir):
    return f"{entry} {FLAGS} --train-samples {samples} --run-dir '{run_dir}'\n"


@pytest.fixture
def started(monkeypatch):
    """Stands in for the trainer: remembers run names; a run leaves a result, 3 samples fail, 5 crash, 7 stop."""
    names = []

    def main(cfg, score):
        names.append(Path(cfg.log.run_dir).name)
        samples = cfg.train.train_samples // 2
        if samples == 5:
            raise RuntimeError("crash")
        if samples in (3, 7):
            return {3: 65, 7: 85}[samples]
        Path(cfg.log.run_dir).mkdir(parents=True)
        (Path(cfg.log.run_dir) / "result.json").write_text(json.dumps({"loss": 1.5, "bound": "exact"}))
        return 0

    monkeypatch.setattr(pretrain, "main", exits(main))  # as the real one: a crash is an exit code
    return names


def run(tmp_path, *lines, processes=1, extra=()):
    (tmp_path / "list").write_text("".join(lines))
    return run_list.main([str(tmp_path / "list"), "--processes", str(processes), *extra])


def test_failed_members_are_reported_and_the_rest_goes_on(tmp_path, started, capsys):
    code = run(
        tmp_path,
        line("pretrain_gpt.py", 6, tmp_path / "bad data"),
        line("pretrain_gpt.py", 10, tmp_path / "crash"),
        line("pretrain_gpt.py --no-such-flag", 2, tmp_path / "bad flags"),
        line("pretrain_diff_gpt.py", 2, tmp_path / "a good one"),
    )
    said = capsys.readouterr().err
    assert code == 1 and started == ["bad data", "crash", "a good one"]
    assert "bad data FAILED with exit code 65" in said and "RuntimeError: crash" in said
    assert "bad flags FAILED: --no-such-flag is not a flag" in said
    assert json.loads((tmp_path / "bad flags/exit.json").read_text())["code"] == 2
    assert "a good one done, loss 1.5000 (exact)" in said and "4 runs: 1 done, 0 were finished, 3 failed" in said


def test_finished_members_are_skipped(tmp_path, started, capsys):
    lines = [line("pretrain_gpt.py", 2, tmp_path / "one"), line("pretrain_gpt.py", 2, tmp_path / "two")]
    assert run(tmp_path, lines[0]) == 0
    assert run(tmp_path, *lines) == 0
    assert started == ["one", "two"] and "one is finished: skipped" in capsys.readouterr().err
    assert run(tmp_path, *lines, line("pretrain_gpt.py", 6, tmp_path / "bad"), extra=["--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(r["name"], r["finished"], r["loss"]) for r in found] == [
        ("one", True, 1.5),
        ("two", True, 1.5),
        ("bad", False, None),
    ]


def test_a_stop_ends_the_list_with_its_code(tmp_path, started):
    assert run(tmp_path, line("pretrain_gpt.py", 14, tmp_path / "stopped"), line("pretrain_gpt.py", 2, tmp_path / "later")) == 85
    assert started == ["stopped"]


def test_unreadable_lists(tmp_path, capsys):
    assert run_list.main([str(tmp_path / "none")]) == 66
    assert run(tmp_path, "rm -rf /\n") == 65
    assert "list:1: expected a line that starts with pretrain_gpt.py" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run_list.main([str(tmp_path / "list"), "--processes", "0"])


def test_side_by_side_a_missing_corpus_is_one_failure_a_run(tmp_path, capfd, spawned_warm):
    lines = [line("pretrain_gpt.py", 2, tmp_path / name).replace("PREFIX", str(tmp_path / "absent")) for name in ("one", "two")]
    assert run(tmp_path, *lines, processes=2) == 1
    said = capfd.readouterr().err
    assert "one FAILED with exit code 66" in said and "two FAILED with exit code 66" in said
    recorded = json.loads((tmp_path / "one/exit.json").read_text())  # although the run never began
    assert recorded["code"] == 66 and str(tmp_path / "absent") in recorded["reason"] and recorded["reason"].startswith("Missing")


def test_side_by_side_a_signal_saves_every_run(tmp_path, corpus, warm):
    lines = [line("pretrain_gpt.py", 10**9, tmp_path / name).replace("PREFIX", corpus).rstrip() for name in ("one", "two")]
    (tmp_path / "list").write_text(
        "".join(
            f"{start} --save '{tmp_path / name}' --log-interval 20 --compile off\n"
            for start, name in zip(lines, ("one", "two"), strict=True)
        )
    )
    child = os.posix_spawn(
        warm.python,
        [warm.python, run_list.__file__, str(tmp_path / "list"), "--processes", "2"],
        os.environ | {"OMP_NUM_THREADS": "1"},
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and not all(
        (tmp_path / name / "metrics.jsonl").exists() and (tmp_path / name / "metrics.jsonl").stat().st_size
        for name in ("one", "two")
    ):
        time.sleep(0.1)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 85
    assert all((tmp_path / name / "latest").exists() for name in ("one", "two"))
