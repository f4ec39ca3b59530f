import contextlib
import json

import numpy as np
import pytest

from megatron import progress
from megatron.progress import ProgressLine
from megatron.scaling.law.solver import Problem, minimise
from megatron.scaling.table.ingest.points import Choices, Sources, ingest
from megatron.scaling.table.table import read_table
from tests.training.conftest import Trainer
from tools import gather_text, prepare_instruct


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


def test_a_line_a_minute_off_a_terminal(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    line = ProgressLine(100e6, done=10e6)
    for clock.now, done in ((1, 20e6), (59, 30e6), (60, 40e6), (100, 50e6), (120, 70e6)):
        line.show(done, "7 documents")
    line.clear()
    assert capsys.readouterr().err == "7 documents, 40%, 0.5 MB/s, 120 s left\n7 documents, 70%, 0.5 MB/s, 60 s left\n"
    unknown = ProgressLine(None, "pairs")
    clock.now = 220
    unknown.show(500)
    assert capsys.readouterr().err == "5 pairs/s\n"


def test_one_line_in_place_on_a_terminal(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    line = ProgressLine(10, "rows")
    for clock.now, done in ((1, 1), (1.2, 2), (2, 4)):
        line.show(done)
    line.clear()
    assert capsys.readouterr().err == "\r10%, 1 rows/s, 9 s left\033[K\r40%, 2 rows/s, 3 s left\033[K\r\033[K"


def table_of(folder):
    path = folder / "runs.csv"
    rows = "".join(f"r{n},{10**6 * n},{10**7 * n},{3 + 1 / n}\n" for n in range(1, 9))
    path.write_text("run,params,tokens,loss\n" + rows)
    return path


def a_validation(folder, corpus):
    assert Trainer(corpus).run(folder / "run", objective="mdm", train_iters=1, num_mc=2) == 0


def a_table(folder, _):
    assert len(read_table([table_of(folder)])) == 8


def a_fit(*_):
    problem = Problem(lambda theta: (theta @ np.ones((1, 4)), np.ones((len(theta), 1, 4))), np.arange(4.0), 1e-3)
    assert minimise(problem, np.zeros((600, 1)), np.array([-9.0]), np.array([9.0])).converged.all()


def an_ingest(folder, _):
    (folder / "a.log").write_text(" iteration 1/ 9 | consumed samples: 8 | lm loss: 2.0 |\n")
    assert len(ingest(Sources(logs=[folder / "a.log"]), Choices())[0]) == 1


def pairs(folder, _):
    (folder / "a.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    words = ["--input", str(folder / "a.jsonl"), "--output-prefix", str(folder / "o"), "--valid-fraction", "0"]
    assert prepare_instruct.main([*words, "--tokenizer-type", "ByteTokenizer"]) == 0


def a_gathering(folder, _):
    assert gather_text.main(["--output", str(folder / "a.jsonl"), "--megabytes", "0.01"]) == 0


@pytest.mark.parametrize(
    "work, said",
    [
        (a_validation, "validation draw 2 of 2, 100%"),
        (a_table, "runs.csv, 100%"),
        (a_fit, "fitting, 43%"),
        (an_ingest, "1 runs, a"),
        (pairs, "100%"),
        (a_gathering, "2 documents, 100%"),
    ],
)
def test_long_work_tells_off_a_terminal_how_far_it_is(monkeypatch, capsys, tmp_path, corpus, work, said):
    monkeypatch.setattr(progress, "ELSEWHERE", 0.0)
    monkeypatch.setattr("megatron.scaling.table.runs.ROWS_A_SHOW", 4)  # a table of eight rows
    work(tmp_path, corpus)
    assert said in capsys.readouterr().err


def test_what_cannot_be_said_stops_no_work(monkeypatch):
    monkeypatch.setattr(progress, "ELSEWHERE", 0.0)
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stderr", full)
        ProgressLine(10).show(5)
        monkeypatch.undo()
        assert full.tell() == 0  # and what it wrote was lost
