"""A dumped step run again: the first bad tensor is named."""

import json
import math
import re
import shutil

import pytest
import torch

from megatron.config import parse
from megatron.core import checkpoint
from megatron.core.transformer import GPT
from megatron.engine.native import NativeEngine
from megatron.training import pretrain
from tools import replay

FLAGS = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 32 --micro-batch-size 4 --global-batch-size 8 "
    "--lr 1e-3 --train-iters 3 --eval-iters 0 --log-interval 1 --tokenizer-type ByteTokenizer --device cpu --num-threads 1 "
    "--train-data-path"
).split()


@pytest.fixture
def bad_step(tmp_path, corpus, monkeypatch, capsys):
    """Train, with `before_step_2(model)` called once; the dump of step 2."""

    def train(before_step_2, objective="ar", extra=()):
        step = NativeEngine.step

        def spoiling(self, batches, lr):
            if batches[0].index[0] == 8:
                before_step_2(self.stages[0])
            return step(self, batches, lr)

        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(NativeEngine, "step", spoiling)
            pretrain.main(parse([*FLAGS, corpus, "--run-dir", str(tmp_path / "run"), *extra], objective))
        capsys.readouterr()
        return tmp_path / "run" / "bad_batches" / "step-00000002"

    return train


@torch.no_grad()
def spoil(model, name, value, at=...):
    model.get_parameter(name)[at] = value


def run(dump, capsys):
    code = replay.main([str(dump), "--device", "cpu"])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def test_a_bad_weight_is_named_before_anything_is_computed(bad_step, capsys):
    dump = bad_step(lambda model: spoil(model, "blocks.1.mlp.up.weight", math.nan, (3, 4)))
    code, said, _ = run(dump, capsys)
    assert code == 17
    assert "REPRODUCED: weight blocks.1.mlp.up.weight is not finite (1 NaN of" in said and "earlier checkpoint" in said


@pytest.mark.parametrize("objective", ["ar", "mdm"])
def test_the_first_bad_output_is_named_with_its_sample(bad_step, capsys, objective):
    dump = bad_step(lambda model: spoil(model, "blocks.1.mlp.up.weight", 3e38), objective)
    code, said, _ = run(dump, capsys)
    verdict = said.splitlines()[-1]
    assert code == 17 and re.match(
        r"REPRODUCED: micro-batch 0: output of blocks\.1\.mlp\.up is not finite \(.*Inf.* of \d+\), "
        r"first in sample 8 at position \d+; .*its samples are \[8, 9, 10, 11\]",
        verdict,
    )


def test_what_arises_between_modules_is_named_by_the_module_that_reads_it(bad_step, capsys):
    dump = bad_step(lambda model: spoil(model, "blocks.0.mlp.up.weight", 1e25))  # its square overflows in gate * up
    code, said, _ = run(dump, capsys)
    assert code == 17 and "an input of blocks.0.mlp.down is not finite" in said


def test_one_bad_sample_is_found_in_its_micro_batch(bad_step, capsys):
    """A row of the embedding so large that dropout's 1 / (1 - p) overflows, of an id that only the second micro-batch reads."""
    inputs = {}
    forward = GPT.forward

    def look(self, batch, *given):
        inputs[int(batch.index[0])] = batch.inputs
        return forward(self, batch, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPT, "forward", look)
        bad_step(lambda model: None, extra=["--untie-embeddings-and-output-weights"])
    rare = next(i for i in inputs[12].flatten().tolist() if i not in inputs[8])
    sample, place = (inputs[12] == rare).nonzero()[0].tolist()
    dump = bad_step(lambda model: spoil(model, "embed.weight", 3.4e38, rare), extra=["--untie-embeddings-and-output-weights"])
    code, said, _ = run(dump, capsys)
    assert code == 17 and "micro-batch 1: output of dropout is not finite" in said
    assert f"first in sample {12 + sample} at position {place}" in said


def test_a_gradient_is_named_when_the_loss_is_finite(bad_step, capsys):
    """Activations of 1e30 that the next weight makes small again: finite forwards, not backwards."""

    def explode(model):
        spoil(model, "norm.weight", 1e15)
        spoil(model, "blocks.1.mlp.up.weight", 1e15)
        spoil(model, "blocks.1.mlp.down.weight", 1e-30)

    code, said, _ = run(bad_step(explode), capsys)
    assert code == 17 and "micro-batch 0: the loss is finite; gradient of blocks.1.mlp.down.weight is not finite" in said


def test_what_is_finite_here_accuses_the_machine(bad_step, capsys):
    forward = GPT.forward

    def flaky(self, batch, *given):
        loss, nll, hit = forward(self, batch, *given)
        return (loss * math.nan if batch.index[0] == 12 else loss), nll, hit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPT, "forward", flaky)
        dump = bad_step(lambda model: None)
    code, said, _ = run(dump, capsys)
    assert code == 16
    assert "NOT REPRODUCED: every tensor is finite here" in said.splitlines()[-1] and "suspect that machine" in said
    assert "here the loss is 5." in said and "loss nan, gradient norm nan" in said
    assert "--objective ar --seed 1234, samples 8..15 of the train data " in said


def test_the_replay_computes_what_the_run_computed(bad_step, capsys, tmp_path):
    """Dropout on, weights of the second step: loss and gradient norm are those of the record, but for the poison."""
    hook = {}

    def only_gradient(model):
        hook["handle"] = model.norm.weight.register_hook(lambda grad: grad * math.nan)

    dump = bad_step(only_gradient)
    record = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    _, said, _ = run(dump, capsys)
    assert f"here the loss is {next(r['loss'] for r in record if r['step'] == 2):.6f}" in said


def test_programs_get_json(bad_step, capsys):
    dump = bad_step(lambda model: spoil(model, "blocks.1.mlp.up.weight", math.nan, (3, 4)))
    assert replay.main([str(dump), "--device", "cpu", "--json"]) == 17
    found = json.loads(capsys.readouterr().out)
    assert found["reproduced"] and found["first"].startswith("weight blocks.1.mlp.up.weight") and found["loss"] is None
    assert (found["step"], found["samples"], found["there"]["loss"]) == (2, list(range(8, 16)), "nan")


def test_users_mistakes_get_a_sentence(bad_step, tmp_path, capsys):
    code, _, said = run(tmp_path / "nowhere", capsys)
    assert code == 66 and "there is no checkpoint in" in said
    checkpoint.Saving(tmp_path / "other", 1, checkpoint.whole({"a": torch.zeros(1)}), {}).finish()
    code, _, said = run(tmp_path / "other", capsys)
    assert code == 78 and "is no dumped batch: give a folder of RUN_DIR/bad_batches" in said
    dump = bad_step(lambda model: spoil(model, "norm.weight", math.nan))
    shard = dump / "shard-00000-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    code, _, said = run(dump, capsys)
    assert code == 65 and "shard-00000-00001.safetensors has" in said
    if not torch.cuda.is_available():
        assert replay.main([str(dump), "--device", "cuda"]) == 66
    with pytest.raises(SystemExit, match="2"):
        replay.main([str(dump), "--dev", "cpu"])


def test_a_dump_of_another_version_is_refused(bad_step, capsys):
    dump = checkpoint.load(bad_step(lambda model: spoil(model, "norm.weight", math.nan)))
    dump.facts["config"]["model"]["no_such_flag"] = 1
    path = checkpoint.Saving(dump.path.parent, 9, checkpoint.whole(dump.tensors()), dump.facts, audit=False).finish()
    capsys.readouterr()
    code, _, said = run(path, capsys)
    assert code == 78 and "--no-such-flag" in said and "open it with that version" in said
