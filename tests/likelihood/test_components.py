"""Losses by category and by seen tokens: what adds up, what is paired with what, and a folder of transformers beside runs."""

import json

import numpy as np
import pytest

from megatron.config import parse
from megatron.likelihood.components import by_number, over_seeds, seen_bins
from megatron.training.pretrain import main as pretrain
from tests.rows import carry_out, rows
from tools import convert_checkpoint, evaluate, make_components

FLAGS = """--num-layers 1 --hidden-size 16 --num-attention-heads 1 --seq-length 16 --micro-batch-size 8 --global-batch-size 8
    --lr 1e-2 --train-iters 3 --tokenizer-type ByteTokenizer --eval-iters 2 --num-threads 1 --device cpu --hidden-dropout 0
    --attention-dropout 0 --data-kind random-window --unique-tokens 2000 --component-uniform""".split()


def components(capsys, *words):
    capsys.readouterr()
    code = evaluate.main(["components", *map(str, words), "--json"])
    said = capsys.readouterr()
    assert "Traceback" not in said.err, said.err
    return code or 0, json.loads(said.out) if not code else said.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each objective on one category and on two, of which one is the same."""
    folder = tmp_path_factory.mktemp("components")
    words = [
        "--components",
        "2",
        "--symbols",
        "4",
        "--tokens",
        "4000",
        "--paper-length",
        "100",
        "--output",
        str(folder / "chains"),
    ]
    make_components.main(words)
    for objective in ("ar", "mdm"):
        for count in (1, 2):
            out = str(folder / f"{objective}{count}")
            words = ["--data-path", str(folder / "chains"), "--num-categories", str(count), "--valid-by-category", "--save", out]
            assert pretrain(parse([*FLAGS, *words], objective)) == 0
    return folder


def test_bins_hold_every_number_of_seen_tokens_once():
    for width in (2, 3, 16, 17, 100):
        numbers = [n for low, high in seen_bins(width) for n in range(low, high + 1)]
        assert numbers == list(range(1, width))


def test_errors_are_of_the_scatter_of_runs_where_there_are_several():
    assert over_seeds([(1.0, 0.3)]) == (1.0, 0.3, None)
    assert over_seeds([(1.0, 0.3), (2.0, 0.3), (3.0, 0.3)]) == pytest.approx((2.0, 1 / np.sqrt(3), 2.0))
    assert by_number([]) == []


def test_losses_by_category_and_by_seen_tokens(runs, tmp_path, capsys):
    names = [runs / name for name in ("ar1", "ar2", "mdm1", "mdm2")]
    code, said = components(capsys, *names, "--windows", 20, "--num-mc", 2, "--out", tmp_path)
    assert code == 0 and json.loads((tmp_path / "components.json").read_text()) == said
    assert (tmp_path / "components.png").stat().st_size > 10_000
    one, two, bound, _ = said["runs"]
    (shared,) = one["categories"]
    assert len(two["categories"]) == 2 and shared in two["categories"] and bound["bound"] == "bound"
    assert set(one["categories"][shared]) >= {"perplexity"} and "perplexity_upper_bound" in bound["categories"][shared]
    sizes = [high - low + 1 for low, high in (at["seen"] for at in one["profile"])]
    mean = np.average([at["nats_per_token"] for at in one["profile"]], weights=sizes)
    assert sum(sizes) == 15 and mean == pytest.approx(one["nats_per_token"])
    for gap, (many, alone) in zip(said["delta"], [(two, one), (said["runs"][3], bound)]):
        assert gap["num_categories"] == 2 and gap["error_from"] == "windows"
        difference = many["categories"][shared]["nats_per_token"] - alone["categories"][shared]["nats_per_token"]
        assert gap["nats_per_token"] == pytest.approx(difference)
    assert evaluate.main(["components", *map(str, names[:2]), "--set", "test", "--windows", "9", "--out", str(tmp_path)]) in (
        0,
        None,
    )
    assert "delta XE(2) ar: " in capsys.readouterr().out


def test_validation_by_category_is_in_the_record(runs):
    lines = [json.loads(line) for line in (runs / "ar2" / "metrics.jsonl").read_text().splitlines()]
    last = {line["kind"]: line["loss"] for line in lines if line["kind"].startswith("val")}
    assert set(last) == {"val", "val-chain-0", "val-chain-1"} and len(set(last.values())) == 3


@pytest.mark.slow
def test_a_folder_of_transformers_scores_the_same_windows(runs, tmp_path, capsys):
    pytest.importorskip("transformers")
    assert not convert_checkpoint.main([str(runs / "ar2"), "--to", "hf", str(tmp_path / "hf")])
    words = [runs / "ar2", "--baseline", tmp_path / "hf", "--windows", 10, "--out", tmp_path]
    code, said = components(capsys, *words)
    ours, theirs = said["runs"]
    assert (
        code == 0 and theirs["objective"] == "hf" and theirs["nats_per_token"] == pytest.approx(ours["nats_per_token"], rel=1e-4)
    )
    assert [at["nats_per_token"] for at in theirs["profile"]] == pytest.approx(
        [at["nats_per_token"] for at in ours["profile"]], rel=1e-3
    )


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["RUN", "--windows", "0"], 2, "--windows 0: expected 1 or more"),
        (["RUN", "RUN"], 2, "a run stands there twice"),
        (["RUN", "--baseline", "nowhere"], 65, "expected the folder of a Hugging Face model"),
        (["nowhere"], 66, "give the folder of a run"),
    ],
)
def test_refusals(runs, capsys, words, code, said):
    found, sentence = components(capsys, *(runs / "ar1" if word == "RUN" else word for word in words))
    assert found == code and said in sentence and not (runs / "ar1" / "components.json").exists()


def test_each_row_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    papers = [{"text": f"{name} {n} " * 80, "label": name} for n in range(60) for name in ("cs.AI", "math.ST")]
    (tmp_path / "papers.jsonl").write_text("".join(json.dumps(paper) + "\n" for paper in papers))
    tiny = [word for word in FLAGS[: FLAGS.index("--data-kind")] if word not in ("--train-iters", "3")]
    asked = rows("components.md")
    assert len(asked) == 10

    def flags(words):
        return tiny if "--token_budget" in words else [*tiny, "--train-iters", "3"]

    for what, command, printed in asked:
        assert printed in carry_out(command, flags, capsys), what
    assert (tmp_path / "again" / "result.json").read_bytes() == (tmp_path / "runs" / "k2" / "result.json").read_bytes()
