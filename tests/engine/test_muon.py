"""Muon against torch's own, and what it keeps; that a cut changes nothing is tests/test_layout.py's."""

from dataclasses import replace

import pytest
import torch

from megatron.config import ConfigError, Model, Optim, parse
from megatron.core import checkpoint
from megatron.core.parameters import Spec
from megatron.core.transformer import GPT
from megatron.engine.muon import COEFFICIENTS, EPSILON, ROUNDS, orthogonal, separate, together
from megatron.engine.native import NativeEngine
from tests.engine.test_native import MODEL, batch, same, state

GROUPED = replace(MODEL, num_attention_heads=4, kv_channels=8, group_query_attention=True, num_query_groups=2)
OPTIM = Optim(lr=1e-2, weight_decay=0.1, clip_grad=0.5, optimizer="muon", muon_lr=2e-2)


def engine(optim=OPTIM, model: Model = MODEL, seed=0):
    return NativeEngine([GPT(model, True, seed, live_rows=50)], optim)


def logical(name: str, w: torch.Tensor) -> list[torch.Tensor]:
    """The matrices that stand in a block's weight, by their places in transformer.py's words."""
    if "qkv" in name:  # two groups of two query heads, a key and a value head of 8 rows
        rows = w.reshape(2, 4, 8, 32)
        return [rows[:, :2].reshape(32, 32), rows[:, 2].reshape(16, 32), rows[:, 3].reshape(16, 32)]
    return [w[0::2], w[1::2]] if "mlp.up" in name else [w]


@pytest.mark.parametrize("scale, torchs", [("match-rms-adamw", "match_rms_adamw"), ("original", "original")])
def test_updates_are_those_of_torch(monkeypatch, scale, torchs):
    """Three updates of every logical matrix by torch.optim.Muon, which is made to compute in fp32 for once.

    In its own bf16 rounding moves the directions of small singular values, of which these gradients of 32 tokens have many.
    """
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    ours, gradients = engine(replace(OPTIM, muon_scale=scale), GROUPED), {}
    names = [s.name for s in ours.shares if s.spec.role == "matrix"]
    assert len(names) == 8 and all(name.startswith("blocks.") for name in names)
    begin = {name: p.detach().clone() for name, p in ours.stages[0].named_parameters()}
    theirs = {name: [torch.nn.Parameter(x.clone()) for x in logical(name, begin[name])] for name in names}
    muon = torch.optim.Muon(
        [p for ps in theirs.values() for p in ps], lr=2e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn=torchs
    )

    def update(lr, factor, really=ours.update):
        for name, p in ours.stages[0].named_parameters():
            gradients[name] = p.grad.clone() * factor
        really(lr, factor)

    ours.update = update
    for i in range(3):
        ours.step([batch(i)], 1e-2)
        for name in names:
            for p, g in zip(theirs[name], logical(name, gradients[name])):
                p.grad = g.clone()
        muon.step()
    for name in names:
        now = dict(ours.stages[0].named_parameters())[name].detach()
        for a, b, start in zip(logical(name, now), theirs[name], logical(name, begin[name])):
            assert torch.linalg.norm(a - b) < 1e-4 * torch.linalg.norm(b - start), name


def test_all_else_is_adamws_and_matrices_keep_one_moment():
    muon, adam = engine(), engine(Optim(lr=1e-2, weight_decay=0.1, clip_grad=0.5))
    for e in (muon, adam):
        e.step([batch()], 1e-2)
    a, b = state(muon), state(adam)
    matrices = {s.name for s in muon.shares if s.spec.role == "matrix"}
    assert {n.split("/", 2)[2] for n in a if n.startswith("optimizer/momentum/")} == matrices
    assert not any(n.startswith("optimizer/exp_avg") and n.split("/", 2)[2] in matrices for n in a)
    rest = {n for n in b if n.split("/")[-1] not in matrices}
    assert rest <= a.keys() and all(torch.equal(a[n], b[n]) for n in rest)


def test_resume_is_bit_exact_and_a_bad_step_touches_nothing(tmp_path):
    a, b = engine(), engine(seed=9)
    for i in range(2):
        a.step([batch(i)], 1e-2)
    b.load(checkpoint.load(checkpoint.Saving(tmp_path, 1, a.pieces(), {}).finish()))
    before = state(a)
    bad = batch(7)
    assert a.step([replace(bad, weights=torch.full_like(bad.weights, torch.nan))], 1e-2).skipped and same(before, state(a))
    assert a.step([batch(5)], 1e-2) == b.step([batch(5)], 1e-2) and same(state(a), state(b))


def test_orthogonal_has_published_singular_values_and_keeps_directions():
    x = torch.randn(48, 20, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    small = [torch.randn(20, 48, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    first, flat, *rest = orthogonal([x, x.t(), *small, x[:5]], torch.float32)  # of one shape and others, each as if alone
    assert torch.equal(flat, first.t()) and len(rest) == 3
    for one, got in zip([*small, x[:5]], rest):
        torch.testing.assert_close(got, orthogonal([one], torch.float32)[0], rtol=0, atol=1e-6)
    made = u.t() @ first @ v.t()
    assert 0.68 < made.diagonal().min() and made.diagonal().max() < 1.21
    assert (made - made.diagonal().diag()).abs().max() < 1e-5
    (low,), torchs = (
        orthogonal([x], torch.bfloat16),
        torch.optim._muon._zeropower_via_newtonschulz(x, COEFFICIENTS, ROUNDS, EPSILON),
    )
    assert low.dtype == torch.float32 and torch.linalg.norm(low - torchs) < 0.01 * torch.linalg.norm(torchs)
    assert torch.equal(orthogonal([torch.zeros(3, 2)], torch.float32)[0], torch.zeros(3, 2))


def test_fused_rows_come_back_to_their_places():
    x = torch.arange(24.0).view(12, 2)
    spec = Spec(role="matrix", fused=(3, 2, 1))
    parts = separate(spec, x)
    assert [part[:, 0].tolist() for part in parts] == [[0, 2, 4, 12, 14, 16], [6, 8, 18, 20], [10, 22]]
    assert torch.equal(together(spec, parts), x)


def test_flags_that_cannot_be():
    words = "--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 8 --train-iters 3 --vocab-size 50"
    words = f"{words} --train-data-path x --tokenizer-type ByteTokenizer --optimizer muon".split()
    with pytest.raises(ConfigError, match="--deepspeed: DeepSpeed cuts moments across matrices, which Muon needs whole"):
        parse([*words, "--lr", "1e-3", "--deepspeed"])
    with pytest.raises(ConfigError, match="--muon-lr 0.02 follows the schedule of --lr in proportion, and --lr is 0"):
        parse([*words, "--lr", "0", "--muon-lr", "0.02"])
    scaled = "--lr 1e-3 --parametrization mup --mup-base-hidden-size 16 --mup-base-kv-channels 16".split()
    with pytest.raises(
        ConfigError, match="--muon-scale match-rms-adamw, whose updates grow with the width: give --muon-scale orig"
    ):
        parse([*words, *scaled])
    with pytest.raises(ConfigError, match="--muon-momentum would do nothing here: use --optimizer muon"):
        parse([*words, "--lr", "1e-3", "--optimizer", "adam", "--muon-momentum", "0.9"])
