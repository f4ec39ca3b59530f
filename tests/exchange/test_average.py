"""Averages of checkpoints, beside the one that torch makes, and as whoever evaluates or goes on meets them."""

import torch
from torch.optim.swa_utils import AveragedModel

from megatron.config import parse
from megatron.core import checkpoint
from megatron.training import open_run
from megatron.training.pretrain import main
from tools import average_checkpoints

FLAGS = """--num-layers 1 --hidden-size 16 --num-attention-heads 2 --seq-length 16 --global-batch-size 4 --lr 1e-2 --train-iters 6
    --save-interval 2 --eval-iters 1 --tokenizer-type ByteTokenizer --device cpu --num-threads 1 --split 80,20,0""".split()


def train(run, corpus, *more, objective="mdm"):
    flags = [*FLAGS, "--data-path", corpus, "--run-dir", str(run), "--save", str(run), *more]
    return main(parse(flags, objective))


def test_the_mean_of_the_last_steps(tmp_path, corpus, capsys):
    run, out = tmp_path / "run", tmp_path / "mean"
    assert train(run, corpus) == 0
    assert average_checkpoints.main([str(run), "--last", "3", "--out", str(out)]) == 0
    by_torch = AveragedModel(open_run(run, 2).engine.stages[0])
    for step in (2, 4, 6):
        by_torch.update_parameters(open_run(run, step).engine.stages[0])
    trained = open_run(out)
    for name, parameter in by_torch.module.named_parameters():
        found = dict(trained.engine.stages[0].named_parameters())[name]
        assert torch.allclose(found, parameter, rtol=0, atol=1e-6), name
    said = trained.checkpoint.facts["averaged"]
    assert (said["steps"], said["weights"], said["unfinished"]) == ([2, 4, 6], [1 / 3] * 3, []) and trained.averaged[
        "averaged"
    ] == said
    # one weight counts for nothing beside the other: it is that checkpoint
    heavy = ["--weights", "1e-12,1", "--out", str(tmp_path / "heavy")]
    assert average_checkpoints.main([str(run / "step-00000002"), str(run / "step-00000006"), *heavy]) == 0
    last, found = (checkpoint.load(path).tensors() for path in (run, tmp_path / "heavy"))
    assert all(torch.allclose(found[name], last[name], rtol=0, atol=1e-7) for name in found) and len(found) > 5
    # it is no place in a run, but weights to score and to begin with
    assert train(tmp_path / "on", corpus, "--load", str(out)) == 78
    assert "an average of checkpoints and no place in a run: add --finetune" in capsys.readouterr().err
    assert train(tmp_path / "on", corpus, "--load", str(out), "--finetune") == 0
    at, flags = FLAGS.index("--save-interval"), ["--data-path", corpus, "--run-dir", str(tmp_path / "e"), "--load", str(out)]
    assert main(parse([*FLAGS[:at], *FLAGS[at + 2 :], *flags, "--skip-train"], "mdm")) == 0
    assert '"averaged"' in (tmp_path / "e" / "evaluation.json").read_text()


def test_an_exponential_average_is_what_validation_scores(tmp_path, corpus, capsys):
    """Of a run that did not finish, too, which is said."""
    run, mean = tmp_path / "run", tmp_path / "mean"
    assert train(run, corpus, "--ema", "0.5", "--exit-interval", "4", objective="ar") == 85
    capsys.readouterr()
    assert average_checkpoints.main([str(run), "--steps", "2,4", "--out", str(mean)]) == 0
    assert (
        capsys.readouterr().err == f"{run} did not finish: its newest checkpoint is at step 4 of 6; what is written says so too\n"
    )
    two, four = (checkpoint.load(run / f"step-0000000{step}").tensors() for step in (2, 4))
    written = checkpoint.load(mean)
    assert written.facts["averaged"]["unfinished"] == [str(run)]
    found, middle = written.tensors()["model/norm.weight"], (two["ema/norm.weight"] + four["ema/norm.weight"]) / 2
    assert torch.allclose(found, middle, rtol=0, atol=1e-7)


def test_what_cannot_be_averaged_is_refused(tmp_path, corpus, capsys):
    run, other, out = tmp_path / "run", tmp_path / "other", str(tmp_path / "mean")
    assert train(run, corpus) == 0 and train(other, corpus, "--ffn-hidden-size", "8") == 0
    capsys.readouterr()
    for words, code, sentence in (
        ([str(run), "--last", "9"], 66, "has 3 intact checkpoints"),
        ([str(run), "--steps", "2"], 2, "one checkpoint is no average"),
        ([str(run), "--steps", "2,2"], 2, "named twice"),
        ([str(run), "--last", "2", "--weights", "1"], 2, "1 numbers for 2 checkpoints"),
        ([str(run), "--steps", "x"], 2, "expected positive numbers"),
        ([str(run), str(other)], 78, "differ in the architecture (ffn_hidden_size"),
        ([str(run), str(other), "--last", "2"], 2, "are of one run"),
    ):
        assert average_checkpoints.main([*words, "--out", out]) == code
        assert sentence in capsys.readouterr().err and not (tmp_path / "mean").exists()
