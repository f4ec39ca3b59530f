"""tools/evaluate.py instruct: losses and answers of runs side by side on instructions with one right answer."""

import json

import pytest

from megatron.config import parse
from megatron.data.synthetic.instructions import SHAPE
from megatron.evaluation.instruct import describe
from megatron.training.pretrain import main as pretrain
from tests.rows import carry_out, rows
from tools import evaluate, make_instruct_set, prepare_instruct

FLAGS = """--num-attention-heads 4 --seq-length 96 --micro-batch-size 16 --global-batch-size 16 --lr 3e-3 --min-lr 3e-4
    --lr-decay-style cosine --hidden-dropout 0 --attention-dropout 0 --tokenizer-type ByteTokenizer --device cpu
    --num-threads 1""".split()
TINY = "--num-layers 1 --hidden-size 16 --train-iters 2 --eval-iters 2".split()


def train(folder, name, objective, *flags, kind="instruct"):
    words = ["--train-data-path", f"{folder}/words_train", "--valid-data-path", f"{folder}/words_valid", "--data-kind", kind]
    assert pretrain(parse([*FLAGS, *words, "--save", f"{folder}/{name}", *flags], objective)) == 0


def instruct(capsys, *words):
    capsys.readouterr()
    code = evaluate.main(["instruct", *map(str, words), "--json"])
    said = capsys.readouterr()
    assert "Traceback" not in said.err, said.err
    return code or 0, json.loads(said.out) if not code else said.err


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instruct")
    make_instruct_set.main(["--count", "2000", "--output", f"{folder}/words.jsonl"])
    words = ["--input", f"{folder}/words.jsonl", "--output-prefix", f"{folder}/words", "--tokenizer-type", "ByteTokenizer"]
    prepare_instruct.main(words)
    return folder


@pytest.fixture(scope="module")
def runs(pairs):
    """Runs that have hardly learnt, and one of another kind of data."""
    for objective, more in (("ar", ()), ("mdm", ()), ("sdd", ("--sdd-ignore",))):
        train(pairs, objective, objective, *TINY, *more)
    train(pairs, "packed", "ar", *TINY, kind="packed")
    return pairs


def test_runs_side_by_side(runs, tmp_path, capsys):
    how = ["--pairs", 6, "--max-new-tokens", 4, "--steps", 2, "--format", SHAPE, "--out", tmp_path]
    code, said = instruct(capsys, *(runs / name for name in ("ar", "mdm", "sdd")), *how)
    assert code == 0 and said == json.loads((tmp_path / "instruct.json").read_text())
    ar, mdm, sdd = said["runs"]
    assert [run["bound"] for run in said["runs"]] == ["exact", "bound", "denoising"] and sdd["bits_per_byte"]["mean"] is None
    assert sdd["sampler"] == {"name": "sdd-renoise", "temperature": 0.0, "steps": 2}
    assert len(said["prompts"]) == len(ar["answers"]) == 6
    assert said["prompts"][0]["prompt"].startswith("### Instruction:\n")
    assert said["prompts"][0]["references"][0].startswith("Answer: ")
    result = json.loads((runs / "ar" / "result.json").read_text())
    assert ar["loss"]["mean"] == pytest.approx(result["loss"], rel=0.2)  # of other rows of the same kind
    assert ar["sampler"] == {"name": "autoregressive", "temperature": 0.0}
    assert mdm["sampler"] == {"name": "confidence", "temperature": 0.0, "steps": 2} and mdm["passes"] <= 2
    assert ar["format"]["mean"] == 0 and set(ar) >= {"ended", "says_something", "one_turn", "shaped"}
    gap = mdm["minus_first"]["rouge_l"]
    assert gap["mean"] == pytest.approx(mdm["rouge_l"]["mean"] - ar["rouge_l"]["mean"])
    assert (tmp_path / "instruct.png").stat().st_size > 10_000
    table = describe(said)
    assert (
        "exact" in table and "bound" in table and "denoising" in table and f"{runs / 'mdm'} minus {runs / 'ar'}: ROUGE-L" in table
    )


def test_a_run_of_other_data_is_asked_too(runs, tmp_path, capsys):
    code, said = instruct(capsys, runs / "packed", "--pairs", 2)
    assert code == 78 and "give --data PREFIX" in said
    words = [
        runs / "packed",
        runs / "ar",
        "--data",
        f"{runs}/words_valid",
        "--pairs",
        2,
        "--max-new-tokens",
        2,
        "--out",
        tmp_path,
    ]
    code, said = instruct(capsys, *words)
    assert code == 0 and [run["pairs"] for run in said["runs"]] == [2, 2]


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["--pairs", "0", "--temperature", "-1"], 2, "--pairs 0: expected 1 or more"),
        (["--format", "("], 2, "--format (: is no regular expression"),
        (["--sampler", "confidence"], 2, "--sampler confidence serves none of ar"),
        (["--sampler", "luck"], 2, "--sampler luck: expected one of"),
        (["--steps", "4"], 2, "--steps 4 is read by none of autoregressive"),
        (["--data", "nowhere"], 66, "nowhere"),
    ],
)
def test_refusals(runs, capsys, words, code, said):
    found, sentence = instruct(capsys, runs / "ar", *words)
    assert found == code and said in sentence and not (runs / "ar" / "instruct.json").exists()


@pytest.mark.slow
def test_each_row_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_instruct_set.main(["--count", "60", "--output", "words.jsonl"])
    given = dict(zip([*FLAGS, *TINY][::2], [*FLAGS, *TINY][1::2])) | {
        "--train-iters": "101",
        "--min-lr": "0",
        "--eval-iters": "1",
    }
    given |= {"--micro-batch-size": "2", "--global-batch-size": "2"}
    tiny = [word for flag, value in given.items() if flag != "--lr" for word in (flag, value)]
    asked = rows("instruct.md")
    assert len(asked) == 7
    for number, (what, command, printed) in enumerate(asked):
        assert printed in carry_out(command, lambda words: tiny, capsys), what
        if number == 1:
            for objective in ("ar", "mdm"):
                train("data", f"../runs/{objective}_base", objective, *TINY, kind="packed")


@pytest.mark.slow
@pytest.mark.parametrize("objective, steps, loss, right", [("ar", 1000, 0.15, 0.7), ("mdm", 1500, 0.3, 0.3)])
def test_a_tiny_model_learns_to_follow(pairs, tmp_path, capsys, objective, steps, loss, right):
    """Words that it has never seen: it keeps to the format always, and mostly says what was asked."""
    size = "--num-layers 2 --hidden-size 64 --lr-warmup-iters 100 --eval-iters 6".split()
    train(pairs, f"{objective}_tuned", objective, *size, "--train-iters", str(steps))
    code, said = instruct(capsys, pairs / f"{objective}_tuned", "--format", SHAPE, "--out", tmp_path)
    (run,) = said["runs"]
    assert code == 0 and run["loss"]["mean"] < loss
    assert run["format"]["mean"] > 0.95 and run["exact_match"]["mean"] > right
