"""The evaluator of several trainers: flags, what it says of each architecture, a dictionary's file, and refusals."""

import json
import math

import numpy as np
import pytest

from megatron.config import parse
from megatron.data.indexed import IndexedWriter
from megatron.training.pretrain import main
from tools import convert_checkpoint, evaluate

FLAGS = """--num-layers 1 --hidden-size 16 --num-attention-heads 2 --seq-length 32 --global-batch-size 8 --train-iters 2 --lr 1e-2
    --micro-batch-size 4 --tokenizer-type ByteTokenizer --eval-iters 1 --num-threads 1 --device cpu""".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    for name in ("train", "valid"):
        with IndexedWriter(str(folder / name), np.uint16) as writer:
            for document in np.split(rng.integers(97, 123, 4096), 16):
                writer.add_document(document)
    data = ["--train-data-path", str(folder / "train"), "--valid-data-path", str(folder / "valid")]
    for objective in ("ar", "mdm", "sdd"):
        assert main(parse([*FLAGS, *data, "--save", str(folder / objective)], objective)) == 0
    return folder


def evaluated(capsys, tmp_path, *words):
    capsys.readouterr()
    code = evaluate.main([*map(str, words), "--output", str(tmp_path / "results.json")])
    said = capsys.readouterr()
    assert "Traceback" not in said.err, said.err
    return code, said.out + said.err


@pytest.mark.parametrize("objective, architecture", [("ar", "ar"), ("mdm", "diffusion"), ("sdd", "sdd")])
def test_every_metric(runs, tmp_path, capsys, objective, architecture):
    run = runs / objective
    val = [r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if r["kind"] == "val"][-1]
    words = ["--checkpoint", run, "--data_dir", runs, "--architecture", architecture, "--num_samples", "3"]
    code, said = evaluated(capsys, tmp_path, *words)
    found = json.loads((tmp_path / "results.json").read_text())
    assert code == 0 and found["architecture"] == architecture and found["loss"] == pytest.approx(val["loss"], rel=1e-6)
    if objective == "sdd":
        assert "perplexity" not in said + json.dumps(found) and found["loss_t4"] > found["loss_t1"] and "no NLL" in said
    else:
        exact, bound = found["perplexity"], found["perplexity_upper_bound"]
        assert (exact is None, bound is None) == (objective == "mdm", objective == "ar")
        assert (exact or bound) == pytest.approx(math.exp(val["loss"]), rel=1e-6)
        assert ("no perplexity" in said) == (objective == "mdm")
    assert found["accuracy"] == pytest.approx(val["accuracy"], abs=1e-6)
    assert (
        len(found["generation"]["samples"]) == 3
        and 0 < found["generation"]["self_bleu"] < 1
        and found["speed"]["tokens_per_sec"] > 0
    )
    assert convert_checkpoint.main([str(run), "--to", "dict", str(tmp_path / "dict")]) == 0
    file = tmp_path / "dict" / "checkpoint.pt"
    assert evaluated(capsys, tmp_path, "--checkpoint", file, "--metrics", "accuracy")[0] == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["loss"] == pytest.approx(val["loss"], rel=1e-6) and "perplexity" not in again and "speed" not in again


@pytest.mark.parametrize(
    "words, code, sentence",
    [
        (["--architecture", "sdd"], 78, "is a run of --objective ar"),
        (["--architecture", "diffusion"], 78, "is a run of --objective ar"),
        (["--metrics", "perplexity,beauty"], 2, "--metrics beauty: expected names of"),
        (["--num_samples", "0"], 2, "--num_samples 0"),
        (["--data_dir", "."], 66, "holds 0 validation corpora"),
    ],
)
def test_mistakes_get_a_sentence(runs, tmp_path, capsys, monkeypatch, words, code, sentence):
    monkeypatch.chdir(tmp_path)
    found, said = evaluated(capsys, tmp_path, "--checkpoint", runs / "ar", *words)
    assert (found, sentence in said) == (code, True), said
    assert not (tmp_path / "results.json").exists()
