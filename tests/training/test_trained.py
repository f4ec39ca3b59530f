"""Runs opened again: logits, scores and precision at several layouts, and what cannot be opened."""

import json
import shutil

import numpy as np
import pytest
import torch

from megatron.batch import Noise
from megatron.config import ConfigError, parse
from megatron.core import checkpoint
from megatron.data.indexed import IndexedWriter
from megatron.engine import deepspeed
from megatron.errors import BadData, Mismatch, MissingInput
from megatron.training import open_run
from megatron.training.evaluate import cleans, evaluate
from megatron.training.pretrain import main
from megatron.training.trained import find_checkpoint

FLAGS = """--num-layers 4 --hidden-size 32 --num-attention-heads 2 --seq-length 32 --micro-batch-size 4 --global-batch-size 8
    --train-iters 4 --lr 3e-3 --tokenizer-type ByteTokenizer --split 80,20,0 --eval-iters 1 --eval-interval 2 --save-interval 2
    --hidden-dropout 0 --attention-dropout 0 --log-interval 1 --num-threads 1 --device cpu""".split()
LAYOUTS = [
    {"tensor_model_parallel_size": 2},
    {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    {"pipeline_model_parallel_size": 2},
    {"pipeline_model_parallel_size": 2, "pipeline_schedule": "zero-bubble"},
    {"zero_stage": 3},
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with IndexedWriter(str(folder / "corpus"), np.uint16) as writer:
        for document in np.split(np.random.default_rng(0).integers(0, 250, 8192), 16):
            writer.add_document(document)
    for name, more in {
        "ar": "",
        "mdm": "",
        "told": "--objective mdm --time-conditioning --ema 0.9 --noise-schedule cosine",
    }.items():
        words = [*FLAGS, "--data-path", str(folder / "corpus"), "--save", str(folder / name), *more.split()]
        assert main(parse(words, "ar" if name == "ar" else "mdm")) == 0
    return folder


def posed(trained, rows=4):
    """The reference's problem on the first validation rows."""
    (clean,) = cleans(trained.slice(rows=rows), 0)
    return trained.reference.pose(clean, Noise(7, clean.index), 1.0)


def read(folder, layouts, dtype="fp32"):
    """At each layout, the logits and the row losses of one problem, as every rank knows them."""
    found = []
    for layout in layouts:
        trained = open_run(folder, dtype=dtype, say=lambda line: None, **layout)
        batch = posed(trained)
        found.append((trained.logits(batch).numpy(), trained.score([batch, batch])[1].loss))
    return found


def brute_force(trained, batch):
    """Each row's loss, from the logits."""
    log_p = trained.logits(batch).double().log_softmax(-1)
    nll = -log_p.gather(2, batch.targets[..., None])[..., 0]
    return (nll * batch.weights).sum(1).numpy()


@pytest.mark.parametrize("objective", ["ar", "mdm"])
@pytest.mark.parametrize("dtype, limit", [("fp64", 1e-12), ("fp32", 1e-6), ("bf16", 1e-5)])
def test_scores_are_the_softmax_of_the_logits(runs, objective, dtype, limit):
    trained = open_run(runs / objective, dtype=dtype)
    batch = posed(trained)
    (scored,) = trained.score([batch])
    assert trained.logits(batch).shape == (4, 32, 257)
    assert scored.loss == pytest.approx(brute_force(trained, batch), rel=limit)


def test_an_opened_run_scores_what_its_validation_did(runs):
    records = [json.loads(line) for line in (runs / "ar" / "metrics.jsonl").read_text().splitlines()]
    trained = open_run(runs / "ar")
    batch = posed(trained, rows=8)
    (scored,) = trained.score([batch])
    last = [r for r in records if r["kind"] == "val"][-1]
    assert scored.loss.sum() / scored.scored.sum() == pytest.approx(last["loss"], rel=1e-9)


def test_a_run_that_is_told_and_averaged_opens_as_its_validation_scored_it(runs):
    records = [json.loads(line) for line in (runs / "told" / "metrics.jsonl").read_text().splitlines()]
    trained = open_run(runs / "told")
    found = evaluate(trained.engine, trained.reference, trained.slice())
    assert found["loss"] == pytest.approx([r for r in records if r["kind"] == "val"][-1]["loss"], rel=1e-9)
    (average, weights) = trained.checkpoint.tensors(["ema/embed.weight", "model/embed.weight"]).values()
    assert torch.equal(trained.engine.stages[0].embed.weight, average) and not torch.equal(average, weights)
    half, none = (torch.full((1, 32), 5).masked_fill(torch.arange(32) < hidden, trained.objective.mask_id) for hidden in (16, 0))
    assert not torch.equal(trained.logits(half)[0, 16:], trained.logits(none)[0, 16:])
    with pytest.raises(Mismatch, match="--cache: this network is told of a whole row"):
        trained.engine.cache(1, 32)


def test_double_precision_agrees_with_single_and_is_finer(runs):
    (single, _), (double, _) = (read(runs / "mdm", [{}], dtype)[0] for dtype in ("fp32", "fp64"))
    assert double.dtype == np.float64 and 1e-9 < abs(single - double).max() < 1e-5


@pytest.mark.parametrize("objective", ["ar", "mdm", "told"])
def test_every_rank_of_every_layout_has_the_logits_of_one_process(runs, pool, objective):
    ((logits, loss),) = read(runs / objective, [{}])
    for rank in pool.run(2, read, runs / objective, LAYOUTS):
        for found, (there, scored) in zip(LAYOUTS, rank, strict=True):
            assert there == pytest.approx(logits, abs=1e-6), found
            assert scored == pytest.approx(loss, rel=1e-6), found


def test_deepspeed_has_the_same_logits(runs, pool):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed: its engine is not tested here")
    deepspeed.set_environment(on_cpu=True)
    if not all(map(deepspeed.is_built, deepspeed.OPS)):
        pytest.skip("DeepSpeed's op is not built: run once: python -m megatron.engine.deepspeed")
    layout = {"deepspeed": True, "zero_stage": 3}
    ((logits, _),) = read(runs / "ar", [{}])
    for ((there, _),) in pool.run(2, read, runs / "ar", [layout], fresh=True):
        assert there == pytest.approx(logits, abs=1e-6)


def test_ids_alone_are_read_and_later_ones_are_not_seen(runs):
    trained = open_run(runs / "ar")
    ids = torch.from_numpy(trained.tokenizer.encode("an open house").astype(np.int64))[None]
    other = torch.cat([ids[:, :6], ids[:, 6:].flip(1)], 1)
    assert torch.equal(trained.logits(ids)[:, :6], trained.logits(other)[:, :6])
    for bad in (ids + 250, ids - 300):
        with pytest.raises(BadData, match="the tokenizer has 257: encode with the run's tokenizer"):
            trained.logits(bad)


@pytest.mark.parametrize("which, step", [(None, 4), ("newest", 4), ("best", 4), (2, 2), ("2", 2)])
def test_the_checkpoint_is_the_one_that_was_named(runs, which, step):
    assert open_run(runs / "ar", which).checkpoint.step == step


def test_a_checkpoint_is_opened_by_its_path_and_a_run_where_it_was_moved(runs, tmp_path):
    assert open_run(runs / "ar" / "step-00000002").checkpoint.step == 2
    assert open_run(runs / "ar", runs / "mdm" / "step-00000002").cfg.objective.objective == "mdm"
    shutil.copytree(runs / "ar", tmp_path / "moved")
    assert open_run(tmp_path / "moved").checkpoint.path.parent == tmp_path / "moved"


def test_what_cannot_be_opened_is_said_in_a_sentence(runs, tmp_path):
    unfinished, empty, older = tmp_path / "unfinished", tmp_path / "empty", tmp_path / "older"
    shutil.copytree(runs / "ar", unfinished)
    shutil.rmtree(unfinished / "step-00000004")
    with pytest.raises(MissingInput, match=r"not finished: its newest checkpoint is at step 2 of 4; .* newest, best or a step"):
        open_run(unfinished)
    assert open_run(unfinished, "newest").checkpoint.step == 2
    for path in unfinished.glob("step-*/manifest.json"):
        path.write_text(path.read_text().replace('"format_version": ', '"format_version": 9'))
    with pytest.raises(Mismatch, match="has format version 9.*: use a newer one"):
        open_run(unfinished, "newest")
    with pytest.raises(MissingInput, match="none is not there: give the folder of a run"):
        open_run(tmp_path / "none")
    with pytest.raises(MissingInput, match="config.json is no folder: give the folder of a run"):
        open_run(runs / "ar" / "config.json")
    empty.mkdir()
    with pytest.raises(MissingInput, match="empty holds no checkpoint: train with --save"):
        open_run(empty)
    with pytest.raises(MissingInput, match="has no checkpoint 3: expected newest, best, a path, or a step of 2, 4"):
        open_run(runs / "ar", 3)
    found = checkpoint.load(runs / "ar")
    for change, said in (
        ({"config": found.facts["config"] | {"train": {"gone": 1}}}, "written by a version with other flags .*gone"),
        ({"imported_from": "elsewhere"}, "holds imported weights and no run"),
        ({"fingerprints": {"tokenizer": "another"}}, "was trained with the tokenizer another, and the files"),
    ):
        shutil.rmtree(older, ignore_errors=True)
        checkpoint.Saving(older, 4, checkpoint.whole(found.tensors()), found.facts | change).finish()
        with pytest.raises(Mismatch, match=said):
            open_run(older)


def test_a_live_run_may_delete_an_old_checkpoint_meanwhile(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "ar", tmp_path / "ar")
    newest, oldest = checkpoint.find(tmp_path / "ar")
    seen, read = [], checkpoint.read_manifest

    def reading(path):
        if path in seen:
            shutil.rmtree(oldest, ignore_errors=True)
        seen.append(path)
        return read(path)

    monkeypatch.setattr(checkpoint, "read_manifest", reading)
    assert find_checkpoint(tmp_path / "ar", None) == newest and seen == [newest, oldest]


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"dtype": "fp16"}, "dtype fp16: expected one of fp64, fp32, bf16"),
        ({"device": "tpu"}, "device tpu: expected auto, cpu or cuda"),
        ({"tensor_parallel": 2}, "tensor_parallel is no flag of the layout"),
        ({"tensor_model_parallel_size": 2}, "needs a multiple of 2 processes, found 1"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(runs, asked, said):
    with pytest.raises(ConfigError, match=said):
        open_run(runs / "ar", **asked)
