"""The step in C++ against torch's of the same network; tests that compute with it skip where it was not built."""

from dataclasses import replace

import pytest
import torch

from megatron.batch import Batch, asked_positions
from megatron.config import Model, Optim
from megatron.core.transformer import GPT
from megatron.engine import cpp_step
from megatron.engine.native import NativeEngine
from megatron.errors import Mismatch, MissingInput

OPTIM = Optim(lr=1e-2, weight_decay=0.1, clip_grad=0.5)
IDS = 50


@pytest.fixture
def built():
    return pytest.importorskip("megatron.engine._cpp_step", reason="the C++ step is not built: no compiler at install time")


def network(hidden, ffn, heads, channels, positions, causal=True, **others):
    model = Model(
        num_layers=2,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        kv_channels=channels,
        seq_length=positions,
        vocab_size=IDS,
        padded_vocab_size=64,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        init_method="small-init",
        **others,
    )
    made = GPT(model, causal, 1, live_rows=IDS + 1)
    for p in made.parameters():  # norms that are not all ones
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
    return made


def batch(positions, rows=5, share=0.5, start=0):
    rng = torch.Generator().manual_seed(rows)
    weights = torch.rand(rows, positions, generator=rng) * (torch.rand(rows, positions, generator=rng) < share)
    weights[1] = 0  # a row of which nothing is asked
    return Batch(
        inputs=torch.randint(0, IDS + 1, (rows, positions), generator=rng),
        targets=torch.randint(0, IDS, (rows, positions), generator=rng),
        weights=weights,
        scored=weights > 0,
        positions=start + torch.arange(positions).expand(rows, positions),
        index=torch.arange(rows),
        asked=asked_positions(weights),
    )


NETWORKS = {
    "whole": dict(hidden=16, ffn=64, heads=2, channels=16, positions=32),
    "ragged": dict(hidden=10, ffn=30, heads=3, channels=6, positions=45, untie_embeddings_and_output_weights=True),
    "wide": dict(hidden=72, ffn=100, heads=4, channels=18, positions=70, causal=False),
    "scaled": dict(
        hidden=24,
        ffn=40,
        heads=2,
        channels=20,
        positions=33,
        causal=False,
        parametrization="completep",
        mup_base_hidden_size=8,
        mup_base_num_layers=1,
        mup_base_kv_channels=10,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_is_torchs_step(name, built, monkeypatch):
    """Losses, hits, gradients and the update, on every instruction set here; micro-batches change no bit."""
    said = NETWORKS[name]
    rows = batch(said["positions"])
    plain = NativeEngine([network(**said)], OPTIM)
    total = int(rows.scored.sum())
    ((loss, nll, hit),) = plain.forward_backward([rows], total)
    wanted = {s.name: s.gradient().clone() for s in plain.shares}
    wide = network(**said).double()
    wide.dtype = torch.float64
    (wide(rows)[0] / total).backward()
    for instructions in built.sets():
        monkeypatch.setattr(built, "sets", lambda one=instructions: [one])
        engine = cpp_step.CppStepEngine([network(**said)], OPTIM)
        ((own_loss, own_nll, own_hit),) = engine.forward_backward([rows], total)
        torch.testing.assert_close(own_loss, loss, rtol=2e-6, atol=0)
        torch.testing.assert_close(own_nll, nll, rtol=2e-6, atol=2e-6)
        assert torch.equal(own_hit, hit)
        for share, exact in zip(engine.shares, wide.parameters()):
            size = exact.grad.abs().max()
            torch_is_off, we_are = ((x.double() - exact.grad).abs().max() for x in (wanted[share.name], share.gradient()))
            assert we_are <= max(3 * torch_is_off, 1e-6 * size), share.name
        whole = {s.name: s.gradient().clone() for s in engine.shares}
        engine.forward_backward([take(rows, slice(0, 2)), take(rows, slice(2, 5))], total)
        assert all(torch.equal(whole[s.name], s.gradient()) for s in engine.shares)
    plain.stages[0].zero_grad()
    first, second = plain.step([rows], 1e-2), engine.step([rows], 1e-2)
    assert (second.loss, second.grad_norm) == pytest.approx((first.loss, first.grad_norm), rel=1e-5)
    assert second.accuracy == first.accuracy and engine.updates() == 1


def take(rows, which):
    weights = rows.weights[which]
    return replace(
        rows, **{name: x[which] for name, x in rows.tensors().items() if name != "asked"}, asked=asked_positions(weights)
    )


def test_reads_each_rows_positions_and_ties(built):
    """Positions that differ from row to row; a network that says nothing ties all ids, and a NaN is a step that is skipped."""
    said = NETWORKS["ragged"]
    rows = batch(said["positions"])
    rows = replace(rows, positions=rows.positions + 3 * torch.arange(5)[:, None])
    stage = network(**said)
    engine = cpp_step.CppStepEngine([stage], OPTIM)
    _, nll, hit = stage(rows)
    ((_, own, _),) = engine.forward_backward([rows], 9)
    torch.testing.assert_close(own, nll, rtol=2e-6, atol=2e-6)
    stage.head.weight.data.zero_()
    ((_, nll, hit),) = engine.forward_backward([rows], 9)
    torch.testing.assert_close(hit, torch.full_like(hit, 1 / IDS))
    stage.head.weight.data[3, 0] = torch.nan
    assert engine.step([rows], 1e-2).skipped


def test_refuses_what_it_does_not_compute(built, monkeypatch):
    said = NETWORKS["whole"]
    engine, rows = cpp_step.CppStepEngine([network(**said)], OPTIM), batch(said["positions"])
    with pytest.raises(Mismatch, match="--cpp-step reads rows of tokens alone, and this run's have attend, segments too"):
        engine.step([replace(rows, attend=torch.ones(32, 32, dtype=torch.bool), segments=rows.inputs)], 1e-2)
    for wrong in (replace(rows, inputs=rows.inputs + 64), replace(rows, targets=rows.targets - IDS), batch(16)):
        with pytest.raises(ValueError, match="outside the table|do not belong together"):
            engine.step([wrong], 1e-2)
    monkeypatch.setitem(__import__("sys").modules, "megatron.engine._cpp_step", None)
    with pytest.raises(MissingInput, match="--cpp-step: the compiled step is not installed"):
        cpp_step.CppStepEngine([network(**said)], OPTIM)
