"""A student beside its teacher: the loss by torch's own, a teacher that is learnt, and runs that begin with none."""

import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F

from megatron.batch import Clean, Noise, Taught
from megatron.config import Model, Optim, parse
from megatron.core import checkpoint
from megatron.core.head import weighted_nll
from megatron.core.transformer import GPT
from megatron.engine.native import NativeEngine
from megatron.errors import Refusal
from megatron.objectives.autoregressive import NextToken
from megatron.objectives.distilled import Distilled
from megatron.objectives.masked import MaskedDiffusion
from megatron.training.pretrain import main


@pytest.mark.parametrize("alpha, tau", [(0.3, 1.0), (1.0, 2.5), (0.0, 3.0)])
def test_loss_and_gradients_are_those_of_torch(alpha, tau):
    rng = torch.Generator().manual_seed(0)
    x, table = (torch.randn(n, 5, generator=rng, dtype=torch.float64, requires_grad=True) for n in (7, 12))
    taught = torch.randn(7, 11, generator=rng, dtype=torch.float64).softmax(-1)
    targets, weights = torch.randint(0, 11, (7,), generator=rng), torch.rand(7, generator=rng, dtype=torch.float64)
    logits = x @ table[:11].t()
    ce = F.cross_entropy(logits, targets, reduction="none")
    kl = F.kl_div((logits / tau).log_softmax(-1), taught, reduction="none").sum(-1)
    expected = (weights * ((1 - alpha) * ce + alpha * tau**2 * kl)).sum()
    wanted = torch.autograd.grad(expected, (x, table))
    known = Taught(taught, *torch.tensor([alpha, tau], dtype=torch.float64))
    loss, nll, _ = weighted_nll(x, table, targets, weights, 11, known=known)
    found = torch.autograd.grad(loss, (x, table))
    assert loss.item() == pytest.approx(expected.item()) and torch.allclose(nll, ce)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, wanted))
    with torch.no_grad():
        assert weighted_nll(x, table, targets, weights, 11, known=known)[0].item() == pytest.approx(expected.item())


class OneStep:
    """Predicts by the id that is read, whatever the text says."""

    def __init__(self, read, said):
        self.table = 2 * torch.randn(read, said, generator=torch.Generator().manual_seed(1))

    def logits(self, batches):
        return [self.table[batch.inputs.flatten()[batch.asked]] for batch in batches]


@pytest.mark.parametrize("kind", ["ar", "mdm"])
def test_a_student_learns_a_teacher(kind):
    """Texts are noise, so that only the teacher can teach: KL falls to near nothing."""
    text = NextToken() if kind == "ar" else MaskedDiffusion(mask_id=8, eps=0.0, count=True)
    teacher = OneStep(9, 8)
    objective = Distilled.around(text, teacher, weight=1.0, temperature=1.0)
    model = Model(num_layers=1, hidden_size=16, num_attention_heads=2, kv_channels=8, ffn_hidden_size=32, seq_length=8,
                  vocab_size=8, padded_vocab_size=128, attention_dropout=0.0, hidden_dropout=0.0)  # fmt: skip
    student = NativeEngine([GPT(model, text.causal, 0, live_rows=9)], Optim(lr=1e-2, weight_decay=0.0))
    rng, losses = torch.Generator().manual_seed(0), []
    for step in range(150):
        tokens = torch.randint(0, 8, (16, 9), generator=rng)
        clean = Clean(tokens=tokens, scored=torch.ones_like(tokens, dtype=torch.bool), index=torch.arange(16) + 16 * step)
        batch = objective.finished(objective.pose(clean, Noise(0, clean.index), 0.0))
        losses.append(student.step([batch], 1e-2).loss)
    asked = teacher.logits([batch])[0].softmax(-1)
    kl = (asked * (asked.log() - student.logits([batch])[0].log_softmax(-1))).sum(-1).mean()
    assert losses[0] > 0.5 and kl < 0.02 and losses[-1] < 0.05
    assert objective.reference() == text.reference()


FLAGS = """--num-layers 1 --hidden-size 16 --num-attention-heads 2 --seq-length 16 --global-batch-size 4 --lr 1e-2 --train-iters 4
    --micro-batch-size 2 --log-interval 1 --eval-iters 1 --tokenizer-type ByteTokenizer --device cpu --num-threads 1
    --split 80,20,0""".split()


def run(folder, corpus, *more, objective="mdm"):
    return main(parse([*FLAGS, "--data-path", corpus, "--save", str(folder), "--load", str(folder), *more], objective))


def weights(folder):
    return {name: x for name, x in checkpoint.load(folder).tensors().items()}


@pytest.mark.parametrize("objective", ["ar", "mdm"])
def test_runs_with_teachers(tmp_path, corpus, capsys, objective):
    teachers = [str(tmp_path / f"teacher-{seed}") for seed in (1, 2)]
    for seed, teacher in enumerate(teachers, 1):
        assert run(teacher, corpus, "--seed", str(seed), objective=objective) == 0
    taught = ["--distill", *teachers, "--distill-weight", "0.7", "--distill-temperature", "2"]
    assert run(tmp_path / "whole", corpus, *taught, objective=objective) == 0
    # a restart changes nothing
    assert run(tmp_path / "parts", corpus, *taught, "--exit-interval", "2", objective=objective) == 85
    assert run(tmp_path / "parts", corpus, *taught, objective=objective) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    records = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    trained = [one for one in records if one["kind"] == "train"]
    assert all(one["loss_of_text"] > 0 and one["loss"] != one["loss_of_text"] for one in trained)
    assert all(one["perplexity"] == pytest.approx(math.exp(one["loss_of_text"])) for one in trained)
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["train_loss"] == trained[-1]["loss_of_text"]
    # a weight of 0 is plain training in every bit
    assert run(tmp_path / "none", corpus, "--distill", *teachers, "--distill-weight", "0", objective=objective) == 0
    assert run(tmp_path / "plain", corpus, objective=objective) == 0
    none, plain = weights(tmp_path / "none"), weights(tmp_path / "plain")
    assert all(torch.equal(none[name], plain[name]) for name in plain) and not torch.equal(
        whole["model/norm.weight"], plain["model/norm.weight"]
    )
    # another network at the teacher's place is another experiment
    shutil.rmtree(teachers[1])
    assert run(teachers[1], corpus, "--seed", "3", objective=objective) == 0
    capsys.readouterr()
    assert run(tmp_path / "whole", corpus, *taught, objective=objective) == 78
    assert "the teacher (its weights) was" in capsys.readouterr().err


def test_what_cannot_teach_is_refused(tmp_path, corpus):
    assert run(tmp_path / "ar", corpus, objective="ar") == 0
    for more, sentence in (
        (["--tensor-model-parallel-size", "2", "--dry-run"], "the teacher stands whole on every process"),
        (["--block-size", "4"], "a teacher is not asked what that poses"),
        (["--distill-temperature", "0"], "--distill-temperature must be above 0"),
        (["--distill-weight", "1.5"], "1.5"),
    ):
        with pytest.raises(Refusal, match=sentence):
            parse([*FLAGS, "--data-path", corpus, "--distill", str(tmp_path / "ar"), *more], "mdm")
    with pytest.raises(Refusal, match="would do nothing here: give --distill"):
        parse([*FLAGS, "--data-path", corpus, "--distill-weight", "0.3"], "mdm")


def test_a_teacher_of_another_objective_is_refused(tmp_path, corpus, capsys):
    assert run(tmp_path / "ar", corpus, objective="ar") == 0
    assert run(tmp_path / "mdm", corpus, "--distill", str(tmp_path / "ar")) == 78
    assert "is ar and the student mdm" in capsys.readouterr().err
    assert run(tmp_path / "wide", corpus, "--distill", str(tmp_path / "ar"), "--predict-reserved", objective="ar") == 78
    assert "and the student" in capsys.readouterr().err
