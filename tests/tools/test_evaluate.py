import json

import pytest

from megatron.config import parse
from megatron.data.synthetic.corpus import write_corpus
from megatron.data.synthetic.presets import build
from megatron.training.pretrain import main as pretrain
from tools.evaluate import main

FLAGS = """--num-layers 1 --hidden-size 16 --num-attention-heads 1 --seq-length 16 --micro-batch-size 8 --global-batch-size 8
    --lr 1e-2 --train-iters 4 --tokenizer-type ByteTokenizer --split 80,20,0 --eval-iters 4 --num-threads 1
    --device cpu""".split()


@pytest.fixture(scope="module", params=["ar", "mdm"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_corpus(folder / "c", build("markov", symbols=4), 8000, 1)
    words = [*FLAGS, "--data-path", str(folder / "c"), "--run-dir", str(folder / "run"), "--save", str(folder / "run")]
    assert pretrain(parse(words, request.param)) == 0
    return folder / "run", request.param


def test_the_first_score_is_the_validations_own(trained, tmp_path, capsys):
    run, objective = trained
    assert main(["likelihood", str(run), "--out", str(tmp_path)]) == 0
    found, result = json.loads((tmp_path / "likelihood.json").read_text()), json.loads((run / "result.json").read_text())
    (entry,) = found["scores"]
    assert entry["nats_per_token"] == pytest.approx(result["loss"], rel=1e-5)
    assert entry["bits_per_byte"] == pytest.approx(result["bits_per_byte"], rel=1e-5)
    assert entry["se_rows"] == pytest.approx(result["loss_se_data"], rel=1e-3)
    assert (
        entry["value"] == ("exact" if objective == "ar" else "upper bound") and entry["draws"] == result["convention"]["num_mc"]
    )
    assert (tmp_path / "likelihood.png").stat().st_size > 10_000 and "given token 0" in capsys.readouterr().out


def test_the_sandwich_of_the_last_tokens(trained, tmp_path, capsys):
    run, objective = trained
    words = ["likelihood", str(run), "--last", "3", "--rows", "16", "--out", str(tmp_path), "--json"]
    scores = "nelbo,chain,korder:8,mixture,rule:left-to-right"
    if objective == "ar":
        assert main([*words, "--score", scores]) == 65 and "one order, and its NLL is exact" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
        return
    assert main([*words, "--score", scores]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "likelihood.json").read_text())
    assert found["tokens"] == 48 and found["convention"]["scored_tokens"] == "the last 3 of each row"
    assert [entry["forwards_per_row"] for entry in found["scores"]] == [2, 24, 24, 7, 3] and found["in_order"]


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["nowhere"], 66, "give the folder of a run"),
        (["RUN", "--rows", "0"], 65, "--rows 0: expected 1 or more"),
        (["RUN", "--last", "16"], 65, "--last 16: no row has more than 15 scored tokens"),
        (["RUN", "--nll-tolerance", "0"], 65, "--nll-tolerance 0.0: expected a number above 0"),
        (["RUN", "--score", "exact,exact"], 65, "expected each score once"),
        (["RUN", "--score", "elbo"], 65, "--score elbo"),
    ],
)
def test_refusals(trained, capsys, words, code, said):
    run, _ = trained
    assert main(["likelihood", *(str(run) if word == "RUN" else word for word in words)]) == code
    assert said in capsys.readouterr().err and not (run / "likelihood.json").exists()
