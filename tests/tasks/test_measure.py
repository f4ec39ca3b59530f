"""Accuracy and bits a byte from likelihoods, as records of training, columns of tables, and refusals of bad files."""

import json
import math

import numpy as np
import pytest

from megatron.config import ConfigError, parse
from megatron.errors import BadData
from megatron.sampling.generate import Source
from megatron.scaling.table.table import read_table
from megatron.tasks.answers import Method, score_answers
from megatron.tasks.measure import encoded, measure
from megatron.tasks.questions import read_questions
from megatron.training import open_run
from megatron.training.pretrain import main


def of_kind(folder, kind):
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["kind"] == kind]


@pytest.mark.parametrize("objective", ["ar", "mdm"])
def test_numbers_by_hand(runs, questions, objective):
    trained = open_run(runs / objective)
    source = Source.of(trained.cfg, trained.tokenizer)
    task = encoded("quiz", read_questions(runs / "quiz.jsonl"), source)
    method = Method(kind="exact" if objective == "ar" else "bound", num_mc=8, seed=4321)
    log_p = iter(score_answers(trained.engine, source, task.answers, method).log_p)
    right, right_norm, bits = [], [], []
    for one in questions:
        scores = [next(log_p) for _ in one["choices"]]
        size = [len(choice) for choice in one["choices"]]
        right.append(np.argmax(scores) == one["gold"])
        right_norm.append(np.argmax(np.array(scores) / size) == one["gold"])
        bits.append(-scores[one["gold"]] / math.log(2) / size[one["gold"]])
    found = measure(trained.engine, source, task, method)
    names = ("accuracy", "accuracy_norm", "answer_bpb")
    assert [found[name] for name in names] == pytest.approx([np.mean(x) for x in (right, right_norm, bits)], rel=1e-6)
    assert found["answer_bpb_se"] == pytest.approx(np.std(bits, ddof=1) / 2, rel=1e-6)
    assert (found["bound"], found["questions"]) == ("exact" if objective == "ar" else "bound", 4)
    last = of_kind(runs / objective, "task-quiz")[-1]  # what training said of the same weights
    assert [last[name] for name in names] == pytest.approx([found[name] for name in names], rel=1e-6)


def test_records_tables_and_columns(runs):
    found = of_kind(runs / "mdm", "task-quiz")
    assert [record["step"] for record in found] == [2, 4] and found[0]["answer_bpb"] != found[1]["answer_bpb"]
    result = json.loads((runs / "mdm" / "result.json").read_text())
    assert result["tasks"]["quiz"]["answer_bpb"] == found[1]["answer_bpb"]
    table = read_table([runs / "mdm"], mapping={"loss": "task-quiz/answer_bpb"})
    assert table.rows[0]["loss"] == found[1]["answer_bpb"]
    assert "task-quiz at iteration 4 | accuracy: " in (runs / "mdm" / "train.log").read_text()


def test_a_resumed_run_and_an_evaluation_say_the_same(runs, flags, tmp_path):
    quiz = str(runs / "quiz.jsonl")
    words = [*flags, "--data-path", str(runs / "corpus"), "--eval-tasks", quiz]
    run = ["--save", str(tmp_path / "run"), "--load", str(tmp_path / "run")]
    assert main(parse([*words, *run, "--exit-interval", "3"], "ar")) == 85
    assert main(parse([*words, *run], "ar")) == 0
    pairs = [[(r["step"], r["answer_bpb"]) for r in of_kind(f, "task-quiz")] for f in (runs / "ar", tmp_path / "run")]
    assert pairs[0] == pairs[1]
    scored = ["--run-dir", str(tmp_path / "scored"), "--load", str(tmp_path / "run"), "--skip-train"]
    assert main(parse([*words, *scored], "ar")) == 0
    found = json.loads((tmp_path / "scored" / "evaluation.json").read_text())["task-quiz"]
    assert found["answer_bpb"] == pairs[0][-1][1]


GOOD = {"query": "a", "choices": ["b", "c"], "gold": 0}


@pytest.mark.parametrize(
    "rows, sentence",
    [
        ([GOOD, {"query": "a", "choices": ["b", "c"]}], "line 2: no gold (found query, choices); name the keys"),
        ([GOOD | {"gold": 2}], "line 1: gold is 2"),
        ([GOOD | {"choices": ["b"]}], "line 1: choices must be two texts or more"),
        ([GOOD | {"choices": ["b", " "]}], "none of them empty"),
        ([[1]], "line 1: found a list"),
        ([], "holds no question"),
        ([GOOD | {"choices": ["b", "c" * 40]}], "quiz.jsonl: an answer of question 0 has 41 tokens, and the window 32"),
    ],
)
def test_bad_files_are_refused_before_anything_starts(runs, flags, write_questions, tmp_path, capsys, rows, sentence):
    quiz = write_questions(tmp_path / "quiz.jsonl", rows)
    words = [*flags, "--data-path", str(runs / "corpus"), "--run-dir", str(tmp_path / "run"), "--eval-tasks", quiz]
    assert main(parse(words, "mdm")) == BadData.code and sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_flags_that_would_do_nothing_are_refused(flags, tmp_path):
    words = [word for word in flags if word not in ("--eval-tasks-interval", "2")]
    data = ["--data-path", str(tmp_path / "x")]
    with pytest.raises(ConfigError, match="--eval-tasks-interval would do nothing here: give --eval-tasks"):
        parse([*words, *data, "--eval-tasks-interval", "5"], "ar")
    with pytest.raises(ConfigError, match="--eval-tasks-num-mc would do nothing here: give --eval-tasks and --objective mdm"):
        parse([*words, *data, "--eval-tasks", "x", "--eval-tasks-num-mc", "5"], "ar")
