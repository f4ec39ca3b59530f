"""Runs of three architectures side by side: each loss by its own name, no perplexity where there is none, and what is refused."""

import json

import numpy as np
import pytest

from megatron.config import parse
from megatron.data.indexed import IndexedWriter
from megatron.training.pretrain import main
from tools import evaluate

FLAGS = """--num-layers 1 --hidden-size 16 --num-attention-heads 2 --seq-length 16 --global-batch-size 8 --train-iters 2 --lr 1e-2
    --micro-batch-size 4 --tokenizer-type ByteTokenizer --eval-iters 1 --num-threads 1 --device cpu --log-interval 1
    --split 80,20,0""".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    for name, size in (("text", 4096), ("other", 4000)):
        with IndexedWriter(str(folder / name), np.uint16) as writer:
            writer.add_document(np.random.default_rng(size).integers(97, 123, size))
    for name, objective, text in (("ar", "ar", "text"), ("mdm", "mdm", "text"), ("sdd", "sdd", "text"), ("far", "ar", "other")):
        assert main(parse([*FLAGS, "--data-path", str(folder / text), "--save", str(folder / name)], objective)) == 0
    return folder


def test_each_loss_has_its_own_name_and_samples_are_measured_alike(runs, capsys, tmp_path):
    names = ["ar", "mdm", "sdd"]
    words = ["architectures", *(str(runs / name) for name in names), "--judge", str(runs / "ar"), "--num-samples", "3"]
    assert not evaluate.main([*words, "--steps", "4", "--out", str(tmp_path)])
    said, found = capsys.readouterr().out, json.loads((tmp_path / "architectures.json").read_text())
    assert [one["bound"] for one in found["runs"]] == ["exact", "bound", "denoising"]
    kinds = [(one["perplexity"] is None, one["perplexity_upper_bound"] is None) for one in found["runs"]]
    assert kinds == [(False, True), (True, False), (True, True)]
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert "exact NLL" in lines["ar"] and "at most" in lines["mdm"] and "upper bound" in lines["mdm"]
    assert "denoising, no NLL" in lines["sdd"] and lines["sdd"].split()[2] == "-"
    for one in found["runs"]:
        result = json.loads((runs / one["run"] / "result.json").read_text())
        assert one["loss"] == pytest.approx(result["loss"], rel=1e-6) and one["judge_nll"] > 0
    assert [one["passes_per_sample"] for one in found["runs"][1:]] == [4, 4]
    assert (tmp_path / "architectures.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "words, code, sentence",
    [
        (["far"], 78, "differ in their rows"),
        (["sdd", "--judge", "sdd"], 78, "the NLL of a judge must be exact"),
        (["sdd", "--num-samples", "1"], 2, "--num-samples 1: expected 2 or more"),
        (["none"], 66, "is not there"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, capsys, tmp_path, words, code, sentence):
    given = [str(runs / word) if word in ("far", "sdd", "none") else word for word in words]
    found = evaluate.main(["architectures", str(runs / "ar"), *given, "--out", str(tmp_path)])
    said = capsys.readouterr()
    assert (found, sentence in said.err) == (code, True), said.err
    assert not list(tmp_path.iterdir())
