import math
from dataclasses import replace

import pytest
import torch

from megatron.batch import Batch, asked_positions
from megatron.budget import padded_vocab
from megatron.config import Model
from megatron.core.fused import rotate
from megatron.core.slots import LevelFeatures, Slots
from megatron.core.transformer import GPT, rotary

TINY = Model(
    num_layers=3,
    hidden_size=32,
    num_attention_heads=4,
    kv_channels=8,
    ffn_hidden_size=64,
    seq_length=12,
    vocab_size=50,
    padded_vocab_size=128,
    attention_dropout=0.0,
    hidden_dropout=0.0,
)


def batch(b=3, s=12, seed=0, vocab=50):
    rng = torch.Generator().manual_seed(seed)
    weights = torch.rand(b, s, generator=rng) * (torch.rand(b, s, generator=rng) < 0.7)
    return Batch(
        inputs=torch.randint(0, vocab, (b, s), generator=rng),
        targets=torch.randint(0, vocab, (b, s), generator=rng),
        weights=weights,
        scored=torch.ones(b, s, dtype=torch.bool),
        positions=torch.arange(s).expand(b, s),
        index=torch.arange(b) + 7,
        asked=asked_positions(weights),
    )


def test_small_init_follows_the_width():
    for h in (16, 64):
        model = GPT(replace(TINY, hidden_size=h, vocab_size=100, init_method="small-init"), True, 0)
        expected = {"embed": 1.0, "up": 1.0, "qkv": 1.0, "out": 6**-0.5, "down": 6**-0.5}  # three layers
        drawn = {"embed": model.embed.weight[:100]} | {
            name.split(".")[-2]: p for name, p in model.named_parameters() if name.startswith("blocks.1.") and p.dim() == 2
        }
        for name, p in drawn.items():
            assert abs(float(p.detach().std()) / (expected[name] * math.sqrt(2 / (5 * h))) - 1) < 0.1, (h, name)


def all_asked(x: Batch) -> Batch:
    return replace(x, asked=torch.arange(x.inputs.numel()))


def gradients(model, x):
    model.zero_grad()
    loss, _, _ = model.train()(x)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_count_is_the_budgets(tied):
    cfg = replace(TINY, untie_embeddings_and_output_weights=not tied)
    model = GPT(cfg, True, 0)
    assert sum(p.numel() for p in model.parameters()) == cfg.shape().total()
    tables = sum(p.numel() for n, p in model.named_parameters() if n in ("embed.weight", "head.weight"))
    assert cfg.shape().total() - tables == cfg.shape().non_embedding()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_grouped_queries_are_full_attention_with_equal_keys_and_values(dropout):
    """4 query heads in 2 groups; gradients of shared keys and values are sums over the heads that read them."""
    whole = replace(TINY, attention_dropout=dropout, hidden_dropout=dropout)
    cfg = replace(whole, group_query_attention=True, num_query_groups=2)
    grouped, full = GPT(cfg, True, 1), GPT(whole, True, 1)
    assert sum(p.numel() for p in grouped.parameters()) == cfg.shape().total() < whole.shape().total()
    weights = grouped.state_dict()
    for name in (n for n in weights if "qkv" in n):
        rows = weights[name].unflatten(0, (2, 4, 8))  # [group, q q k v, d, h]
        weights[name] = torch.stack([torch.stack([g[i], g[2], g[3]]) for g in rows for i in range(2)]).flatten(0, 2)
    full.load_state_dict(weights)
    (loss, grads), (expected, of_full) = gradients(grouped, batch()), gradients(full, batch())
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for name, grad in grads.items():
        other = of_full[name]
        if "qkv" in name:
            heads = other.unflatten(0, (2, 2, 3, 8))  # [group, head, q|k|v, d, h]
            other = torch.cat([heads[:, :, 0], heads[:, :, 1:].sum(1)], 1).flatten(0, 2)
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()))


def test_causal_does_not_see_the_future_and_bidirectional_does():
    x = batch()
    changed = replace(x, inputs=torch.cat([x.inputs[:, :-1], (x.inputs[:, -1:] + 1) % 50], 1))
    for causal in (True, False):
        model = GPT(TINY, causal, 1).eval()
        with torch.no_grad():
            same = torch.equal(model.hidden(x)[:, :-1], model.hidden(changed)[:, :-1])
        assert same == causal


def test_skipping_unasked_positions_changes_nothing():
    model = GPT(TINY, False, 1)
    loss, grads = gradients(model, batch())
    full_loss, full = gradients(model, all_asked(batch()))
    torch.testing.assert_close(loss, full_loss, rtol=1e-6, atol=0)
    for name in grads:
        torch.testing.assert_close(grads[name], full[name], rtol=1e-5, atol=1e-6 * float(full[name].abs().max()))


def test_recompute_is_bit_equal_also_with_dropout():
    cfg = replace(TINY, hidden_dropout=0.2, attention_dropout=0.1)
    plain, recomputed = gradients(GPT(cfg, True, 1), batch()), gradients(GPT(cfg, True, 1, recompute="full"), batch())
    assert torch.equal(plain[0], recomputed[0])
    assert all(torch.equal(plain[1][n], recomputed[1][n]) for n in plain[1])


def test_dropout_belongs_to_the_sample_and_rests_in_evaluation():
    model = GPT(replace(TINY, hidden_dropout=0.2, attention_dropout=0.1), True, 1)
    x = batch()
    one = Batch(**{k: v[1:2] for k, v in x.tensors().items() if k != "asked"}, asked=asked_positions(x.weights[1:2]))
    torch.testing.assert_close(model.train().hidden(x)[1:2], model.hidden(one), rtol=1e-5, atol=1e-6)
    assert not torch.equal(model.hidden(x), model.eval().hidden(x))
    assert torch.equal(model.hidden(x), GPT(TINY, True, 1).eval().hidden(x))


def test_dropped_attention_at_rate_zero_is_the_fused_one():
    attention = GPT(TINY, True, 1).blocks["0"].attention
    q, k, v = torch.randn(3, 2, 4, 12, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    explicit = attention.dropped(q, k, v, torch.zeros(2, 12, dtype=torch.int32))
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(explicit, fused, rtol=1e-5, atol=1e-6)


def test_weights_are_named_by_seed_and_name_whatever_the_padding():
    a, b = GPT(TINY, True, 5), GPT(replace(TINY, padded_vocab_size=padded_vocab(50, 512)), False, 5)
    other = GPT(TINY, True, 6)
    for (name, p), q, r in zip(a.named_parameters(), b.parameters(), other.parameters()):
        assert torch.equal(p, q[: len(p)]), name
        assert p.dim() == 1 or not torch.equal(p, r)
    assert (b.embed.weight[51:] == 0).all() and b.embed.weight[50].std() > 0.01


def test_initial_scale_is_megatrons():
    model = GPT(replace(TINY, hidden_size=128, num_attention_heads=8, kv_channels=16), True, 0)
    assert abs(model.blocks["1"].attention.qkv.weight.std() / 0.02 - 1) < 0.05
    assert abs(model.blocks["1"].mlp.down.weight.std() / (0.02 / math.sqrt(6)) - 1) < 0.05


def test_rotary_is_relative_and_keeps_length():
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))

    def at(x, place):
        cos, sin = rotary(torch.tensor([[place]]), 8, 10000.0, torch.float32)
        return rotate(x.view(1, 1, 1, 1, 8), cos, sin).flatten()

    torch.testing.assert_close(at(q, 3) @ at(k, 7), at(q, 103) @ at(k, 107), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at(q, 9).square().sum(), q.square().sum())


def test_bf16_computes_low_and_keeps_weights_fp32():
    model = GPT(TINY, True, 1, torch.bfloat16)
    loss, grads = gradients(model, batch())
    exact, _ = gradients(GPT(TINY, True, 1), batch())
    assert all(g.dtype == torch.float32 for g in grads.values())
    assert abs(loss / exact - 1) < 1e-2


def test_the_table_of_shapes_is_the_model():
    for tied, features in ((True, 0), (False, 0), (True, 32)):
        slots = Slots(condition=LevelFeatures()) if features else Slots()
        cfg = replace(TINY, untie_embeddings_and_output_weights=not tied)
        model = GPT(cfg, True, 0, slots=slots)
        shape = replace(cfg.shape(), condition_features=features)
        assert {name: (p.shape, model.declared[name].cut) for name, p in model.named_parameters()} == shape.tensors()
        assert shape.total() == sum(p.numel() for p in model.parameters())


def test_a_packed_document_sees_itself_alone():
    """Segments with positions of their own are rows of their own, under either attention; so is a pattern that says the same."""
    for causal, dropout in ((True, 0.0), (False, 0.0), (True, 0.2)):
        model = GPT(replace(TINY, attention_dropout=dropout), causal, 1).eval()
        whole = batch(1)
        segments = (torch.arange(whole.inputs.shape[1]) >= 5).long().expand(whole.inputs.shape)
        places = torch.where(segments == 0, whole.positions, whole.positions - 5)
        packed = model.hidden(replace(whole, segments=segments, positions=places))
        for rows in (slice(0, 5), slice(5, None)):
            cut = {"inputs": whole.inputs[:, rows], "positions": places[:, rows]}
            torch.testing.assert_close(packed[:, rows], model.hidden(replace(whole, **cut)), rtol=1e-5, atol=1e-6)
        pattern = segments[0][:, None] == segments[0][None]
        pattern = pattern.tril() if causal else pattern
        assert torch.equal(packed, model.hidden(replace(whole, attend=pattern, positions=places)))
