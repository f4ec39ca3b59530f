import json

import pytest

from megatron.config import parse
from megatron.data.synthetic.corpus import write_corpus
from megatron.data.synthetic.presets import build
from megatron.training.floor import describe
from megatron.training.pretrain import main as pretrain
from tools.entropy_floor import main

FLAGS = """--num-layers 1 --hidden-size 16 --num-attention-heads 1 --seq-length 32 --micro-batch-size 8 --global-batch-size 8
    --lr 1e-2 --train-iters 4 --tokenizer-type ByteTokenizer --split 80,20,0 --eval-iters 4 --num-threads 1
    --device cpu""".split()


@pytest.fixture(scope="module", params=["ar", "mdm"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_corpus(folder / "c", build("markov", symbols=4), 20_000, 1)
    words = [*FLAGS, "--data-path", str(folder / "c"), "--run-dir", str(folder / "run"), "--save", str(folder / "run")]
    assert pretrain(parse(words, request.param)) == 0
    return folder / "run", request.param


def test_the_models_number_is_the_runs_own(trained, capsys):
    run, objective = trained
    assert main([str(run)]) == 0
    found, result = json.loads((run / "entropy_floor.json").read_text()), json.loads((run / "result.json").read_text())
    assert found["step"] == 4 and found["objective"] == objective and found["rows"] + found["rows_left_out"] == 32
    assert found["model"] == pytest.approx(result["loss"], rel=1e-2 if found["rows_left_out"] else 1e-6)
    assert found["difference"] > 1 and f"model minus oracle +{found['difference']:.6f}" in capsys.readouterr().out


def test_rows_and_draws_may_be_chosen_and_programs_get_json(trained, capsys):
    run, objective = trained
    assert main([str(run), "--rows", "50", "--num-mc", "3", "--json"]) == 0
    found = json.loads((run / "entropy_floor.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found["rows"] + found["rows_left_out"] == 50 and found["num_mc"] == 3


def test_below_the_floor_is_an_exit_code_and_a_sentence(trained, monkeypatch, capsys):
    run, _ = trained
    found = {"difference": -0.4, "se": 0.1, "below_floor": True, "model": 1.0, "oracle": 1.4, "bound": "exact"}
    found |= {"rows": 9, "rows_left_out": 2}
    monkeypatch.setattr("megatron.training.floor.compare", lambda *_: found)
    assert main([str(run)]) == 1
    said = capsys.readouterr().out
    assert "below the floor by more than three standard errors" in said and "(2 spliced rows left out)" in said
    fine = found | {"below_floor": False, "set": "valid", "objective": "ar", "step": 1}
    assert "below the floor" not in describe(fine)


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["nowhere"], 66, "give the folder of a run"),
        (["RUN", "--set", "train"], 2, "expected a set that the run scores: valid"),
        (["RUN", "--rows", "0"], 2, "--rows 0: expected 1 or more"),
        (["RUN", "--num-mc", "0"], 2, "--num-mc 0"),
        (["RUN", "--checkpoint", "nowhere"], 66, "has no checkpoint nowhere: expected newest, best, a path, or a step of 4"),
    ],
)
def test_refusals(trained, capsys, words, code, said):
    run, _ = trained
    assert main([str(run) if word == "RUN" else word for word in words]) == code
    assert said in capsys.readouterr().err


def test_a_run_that_saved_nothing(trained, tmp_path, capsys):
    run, _ = trained
    config = json.loads((run / "config.json").read_text())
    config["train"]["save"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main([str(tmp_path)]) == 66 and "holds no checkpoint: train with --save" in capsys.readouterr().err
