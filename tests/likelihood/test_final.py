"""Runs that are scored when they end, and opened again at other layouts."""

import json

import numpy as np
import pytest

from megatron.config import ConfigError, parse
from megatron.data.indexed import IndexedWriter
from megatron.likelihood.final import score
from megatron.likelihood.measure import measure
from megatron.training import open_run
from megatron.training.pretrain import main

FLAGS = """--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 16 --micro-batch-size 4 --global-batch-size 8
    --train-iters 4 --lr 3e-3 --tokenizer-type ByteTokenizer --split 80,20,0 --eval-iters 4 --log-interval 1 --num-threads 1
    --device cpu --final-score-rows 19""".split()
SCORES = ["nelbo", "chain", "korder:2", "mixture/2", "tangent:4/2", "rule:confidence:2", "rule:margin/8"]
LAYOUTS = [
    {"tensor_model_parallel_size": 2},
    {"pipeline_model_parallel_size": 2},
    {"zero_stage": 3},  # two replicas
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run of each objective, scored at its end."""
    folder = tmp_path_factory.mktemp("runs")
    with IndexedWriter(str(folder / "corpus"), np.uint16) as writer:
        for document in np.split(np.random.default_rng(0).integers(0, 250, 8192), 16):
            writer.add_document(document)
    for objective in ("ar", "mdm"):
        words = [*FLAGS, "--data-path", str(folder / "corpus"), "--save", str(folder / objective), "--final-scores", *SCORES]
        assert main(parse(words, objective), score) == 0
    return folder


def scored(folder, layouts, scores):
    return [measure(open_run(folder, dtype="fp64", say=lambda line: None, **layout), scores, rows=19) for layout in layouts]


def values(found):
    return [entry["nats_per_token"] for entry in found["scores"]]


def test_a_run_leaves_the_likelihoods_that_its_flag_names(runs):
    for objective, names in (("ar", ["exact"]), ("mdm", SCORES)):
        (line,) = (runs / objective / "likelihood.jsonl").read_text().splitlines()
        found = json.loads(line)
        assert [entry["score"] for entry in found["scores"]] == names and (found["rows"], found["step"]) == (19, 4)
        assert values(found) == values(scored(runs / objective, [{}], names)[0])


def test_every_layout_measures_the_same(runs, pool):
    found = json.loads((runs / "mdm" / "likelihood.jsonl").read_text())
    for rank in pool.run(2, scored, runs / "mdm", LAYOUTS, SCORES):
        for layout, there in zip(LAYOUTS, rank, strict=True):
            assert values(there) == pytest.approx(values(found), abs=1e-9), layout
            assert there["scores"][0]["se"] == pytest.approx(found["scores"][0]["se"], rel=1e-6)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--final-scores", "elbo"], "--final-scores elbo: expected nelbo"),
        (["--final-scores", "mixture"], "for 12 places at most; give mixture/12"),
        (["--final-scores", "tangent:4/11"], "give tangent:4/10"),
        ([], "--final-score-rows would do nothing here: give --final-scores"),
    ],
)
def test_names_are_read_before_the_run_begins(words, said):
    with pytest.raises(ConfigError, match=said):
        parse([*FLAGS, "--data-path", "x", "--save", "y", *words], "mdm")
