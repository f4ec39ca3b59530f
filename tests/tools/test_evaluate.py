import json
import math

import pytest

from megatron.config import parse
from megatron.data.synthetic.corpus import write_corpus
from megatron.data.synthetic.presets import build
from megatron.training.pretrain import main as pretrain
from tools.evaluate import main

FLAGS = """--num-layers 1 --hidden-size 16 --num-attention-heads 1 --seq-length 16 --micro-batch-size 8 --global-batch-size 8
    --lr 1e-2 --train-iters 4 --tokenizer-type ByteTokenizer --split 80,20,0 --eval-iters 4 --num-threads 1
    --device cpu""".split()
SCORES = "nelbo,chain,korder:8,mixture,tangent:4,rule:left-to-right,mixture/2"


def train(folder, objective, *flags, into=None):
    into = str(into or folder / objective)
    words = [*FLAGS, "--data-path", str(folder / "c"), "--run-dir", into, "--save", into]
    assert pretrain(parse([*words, *flags], objective)) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run of each objective on one corpus."""
    folder = tmp_path_factory.mktemp("runs")
    write_corpus(folder / "c", build("markov", symbols=4), 8000, 1)
    for objective in ("ar", "mdm"):
        train(folder, objective)
    return folder


def line_of(folder):
    (line,) = (folder / "likelihood.jsonl").read_text().splitlines()
    return json.loads(line)


@pytest.mark.parametrize("objective", ["ar", "mdm"])
def test_the_first_score_is_the_validations_own(runs, objective, tmp_path, capsys):
    assert main(["likelihood", str(runs / objective), "--out", str(tmp_path)]) == 0
    found, result = line_of(tmp_path), json.loads((runs / objective / "result.json").read_text())
    (entry,) = found["scores"]
    assert entry["nats_per_token"] == pytest.approx(result["loss"], rel=1e-5)
    assert entry["bits_per_byte"] == pytest.approx(result["bits_per_byte"], rel=1e-5)
    assert entry["se_rows"] == pytest.approx(result["loss_se_data"], rel=1e-3)
    assert entry["value"] == ("exact" if objective == "ar" else "upper bound")
    assert entry["draws"] == result["convention"]["num_mc"] and found["convention"]["slice"] == result["eval_slice"]
    assert (tmp_path / "likelihood.png").stat().st_size > 10_000 and "given token 0" in capsys.readouterr().out


def test_the_sandwich_of_the_last_tokens(runs, tmp_path, capsys):
    words = ["likelihood", str(runs / "mdm"), "--last", "3", "--rows", "16", "--out", str(tmp_path), "--json"]
    assert main([*words, "--score", SCORES]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found | {"time": 0} == line_of(tmp_path) | {"time": 0}
    assert found["tokens"] == 48 and found["convention"]["scored_tokens"] == "the last 3 of each row"
    assert [entry["forwards_per_row"] for entry in found["scores"]] == [2, 24, 24, 7, 15, 3, 4] and found["in_order"]
    assert main([*words[:1], str(runs / "ar"), *words[2:], "--score", SCORES]) == 2
    assert "one order, and its NLL is exact" in capsys.readouterr().err


def test_a_loss_is_split_into_parts_that_add_up(runs, tmp_path, capsys):
    by = "position,level,frequency,category"
    words = ["likelihood", str(runs / "mdm"), "--by", by, "--rows", "32", "--num-mc", "4", "--out", str(tmp_path)]
    assert main([*words, "--score", "nelbo,korder:2"]) == 0
    nelbo, korder = line_of(tmp_path)["scores"]
    assert korder["by"] is None and "korder:2 is no sum over places" in capsys.readouterr().out
    for name, groups in nelbo["by"].items():
        assert sum(group["share"] for group in groups) == pytest.approx(1), name
        assert sum(group["share"] * group["nats_per_token"] for group in groups) == pytest.approx(nelbo["nats_per_token"])
    assert [group["group"] for group in nelbo["by"]["position"]] == ["1", "2-3", "4-7", "8-15"]
    assert [group["group"] for group in nelbo["by"]["category"]] == ["c"] and len(nelbo["by"]["level"]) == 8
    assert 0 < nelbo["by"]["category"][0]["se"] == pytest.approx(nelbo["se"])
    assert main(["likelihood", str(runs / "ar"), "--by", "position,frequency", "--out", str(tmp_path / "ar")]) == 0
    assert [group["group"] for group in line_of(tmp_path / "ar")["scores"][0]["by"]["position"]] == ["1", "2-3", "4-7", "8-15"]


def test_two_runs_are_compared_by_row(runs, tmp_path, capsys):
    ar, mdm = str(runs / "ar"), str(runs / "mdm")
    assert main(["compare", ar, mdm, "--score", "nelbo,rule:margin", "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "compare.json").read_text())
    nelbo, rule = found["scores"]
    assert [one["a"]["score"] for one in found["scores"]] == ["exact", "exact"] and rule["b"]["of"].startswith("sampler")
    for pair in found["scores"]:
        gap = pair["b_minus_a"]
        assert gap["nats_per_token"] == pytest.approx(pair["b"]["nats_per_token"] - pair["a"]["nats_per_token"])
        assert 0 < gap["se"] < math.hypot(pair["a"]["se"], pair["b"]["se"])
    assert main(["compare", mdm, mdm, "--nll-tolerance", "0.1"]) == 0
    assert "+0.0000  0.0000" in capsys.readouterr().out  # the same draws


def test_runs_that_read_other_tokens_are_not_compared(runs, tmp_path, capsys):
    write_corpus(tmp_path / "c", build("markov", symbols=4), 8000, 2)
    train(tmp_path, "ar")
    assert main(["compare", str(runs / "mdm"), str(tmp_path / "ar")]) == 78
    assert "the rows are not the same" in capsys.readouterr().err
    train(runs, "ar", "--score-first-token", into=tmp_path / "first")
    assert main(["compare", str(runs / "mdm"), str(tmp_path / "first")]) == 78
    assert "do not score the same tokens" in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["ar", "mdm"])
def test_a_run_that_is_trained_within_documents_is_scored_within_them(runs, objective, tmp_path, capsys):
    """As its validation is: ends are read by every score, and neither hidden nor scored."""
    borders = "--reset-attention-mask --reset-position-ids --eod-mask-loss".split()
    train(runs, objective, *borders, into=tmp_path)
    scores = "exact" if objective == "ar" else "nelbo,chain,korder:2,mixture/2,rule:confidence"
    assert main(["likelihood", str(tmp_path), "--score", scores]) == 0
    found, result = line_of(tmp_path), json.loads((tmp_path / "result.json").read_text())
    assert found["scores"][0]["nats_per_token"] == pytest.approx(result["loss"], rel=1e-5) and found["in_order"]


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["nowhere"], 66, "give the folder of a run"),
        (["RUN", "--rows", "0"], 2, "--rows 0: expected 1 or more"),
        (["RUN", "--last", "16"], 2, "--last 16: no row has more than 15 scored tokens"),
        (["RUN", "--nll-tolerance", "0"], 2, "--nll-tolerance 0.0: expected a number above 0"),
        (["RUN", "--score", "exact,exact"], 2, "expected each score once"),
        (["RUN", "--score", "elbo"], 2, "--score elbo"),
        (["RUN", "--score", ""], 2, "--score : expected nelbo"),
        (["RUN", "--score", "mixture"], 2, "give --last 12 or fewer, or mixture/12"),
        (["RUN", "--score", "tangent:4"], 2, "give --last 10 or fewer, or tangent:4/10"),
        (["RUN", "--set", "valid:code"], 2, "expected a set that the run scores: valid"),
        (["RUN", "--by", "luck"], 2, "--by luck: expected any of position"),
    ],
)
def test_refusals(runs, capsys, words, code, said):
    assert main(["likelihood", *(str(runs / "mdm") if word == "RUN" else word for word in words)]) == code
    assert said in capsys.readouterr().err and not (runs / "mdm" / "likelihood.jsonl").exists()


def test_samplers_beside_real_text(runs, tmp_path, capsys):
    words = ["--num-samples", "8", "--prompt-tokens", "4", "--out", str(tmp_path), "--judge", str(runs / "ar")]
    samplers = "confidence,confidence:block_length=6:cache=dual,threshold:threshold=0.3,confidence:steps=12:temperature=0"

    def said(objective, *more):
        code = main(["samples", str(runs / objective), *words, *more])
        return code or 0, capsys.readouterr()

    code, found = said("mdm", "--samplers", samplers, "--steps", "3,12", "--json")
    table, names = json.loads(found.out), [*(f"confidence:steps={n}" for n in (3, 12))]
    assert code == 0 and table == json.loads((tmp_path / "samples.json").read_text())
    assert (tmp_path / "samples.png").stat().st_size > 10_000
    real, *rest = table["samplers"]
    assert [one["sampler"] for one in rest[:2]] == names and len(rest) == 6
    assert [one["passes_per_sample"] for one in rest[:5]] == [3, 12, 3, 12, pytest.approx(rest[4]["passes_per_sample"])]
    assert rest[1]["places_per_token"] == 16 and rest[3]["places_per_token"] == pytest.approx((2 * 16 + 10 * 6) / 12)
    assert rest[0]["likelihood"]["score"] == "rule:confidence:4" and rest[1]["likelihood"]["score"] == "rule:confidence"
    assert [one["likelihood"] for one in rest[2:]] == [None] * 4
    assert rest[5]["entropy"] < real["entropy"] and rest[5]["judge_nll"] < real["judge_nll"]  # likely, and poor
    code, found = said("ar")
    assert code == 0 and "autoregressive" in found.out and "(exact, exact)" in found.out and "real text" in found.out
    for objective, more, expected, sentence in (
        ("mdm", ["--samplers", "beam"], 2, "no sampler beam; expected one of"),
        ("mdm", ["--samplers", "confidence:heat=2"], 2, "no setting 'heat=2'"),
        ("mdm", ["--samplers", "confidence:steps=two"], 2, "steps='two' is no int"),
        ("mdm", ["--samplers", "confidence:steps=40"], 2, "confidence:steps=40: --steps 40: each step fills at least one place"),
        ("mdm", ["--steps", "0"], 2, "--steps 0: expected whole numbers of 1 or more"),
        ("mdm", ["--prompt-tokens", "16"], 2, "--prompt-tokens 16: expected 1 to 15"),
        ("mdm", ["--num-samples", "1"], 2, "--num-samples 1: expected 2 or more"),
        ("mdm", ["--judge", str(runs / "mdm")], 78, "give an autoregressive run"),
        ("ar", ["--samplers", "margin"], 78, "margin does not serve the objective ar"),
    ):
        code, found = said(objective, *more)
        assert code == expected and sentence in found.err, found.err
