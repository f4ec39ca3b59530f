"""The factors of muP and CompleteP, against the published table, and what they leave alone."""

import math
from dataclasses import replace

import torch

from megatron.config import Optim, parse
from megatron.core.transformer import GPT
from megatron.engine.native import adamw, set_rate
from tests.core.test_transformer import TINY, batch

WIDE = replace(TINY, num_layers=4, hidden_size=128, num_attention_heads=16, ffn_hidden_size=256)
FOUR_TIMES = {"parametrization": "completep", "mup_base_hidden_size": 32, "mup_base_num_layers": 2}


def test_factors_are_those_of_the_table():
    """Megatron-LM's mup and CompleteP's table at width x4 and depth x2: std, lr, decay, eps; gradients of all fall with width."""
    model = GPT(replace(WIDE, **FOUR_TIMES, untie_embeddings_and_output_weights=True), True, 0)
    s = 0.02
    expected = {
        "embed.weight": (s, 1, 1, 1 / 4),
        "head.weight": (s, 1, 1, 1 / 4),
        "norm.weight": (1, 1, 0, 1 / 4),
        "blocks.3.norm1.weight": (1, 1, 0, 1 / 8),
        "blocks.3.attention.qkv.weight": (s / 2, 1 / 4, 4, 1 / 8),
        "blocks.3.mlp.up.weight": (s / 2, 1 / 4, 4, 1 / 8),
        "blocks.3.attention.out.weight": (s / 2 / math.sqrt(2 * 2), 1 / 4, 4, 1 / 8),
        "blocks.3.mlp.down.weight": (s / 2 / math.sqrt(2 * 2), 1 / 4, 4, 1 / 8),
    }
    optimizer = adamw(dict(model.named_parameters()), model.declared, Optim(weight_decay=0.5, adam_eps=1e-6))
    set_rate(optimizer, 3e-3)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, (std, lr, decay, eps) in expected.items():
        p, spec = model.get_parameter(name), model.declared[name]
        group = groups[id(p)]
        assert math.isclose(spec.std, std) and math.isclose(group["lr"], 3e-3 * lr), name
        assert math.isclose(group["weight_decay"], 0.5 * decay) and math.isclose(group["eps"], 1e-6 * eps), name
        if p.dim() == 2:
            assert abs(float(p.detach()[: WIDE.vocab_size].std()) / std - 1) < 0.05, name


def test_the_base_model_is_the_standard_one_bit_for_bit():
    base = {"mup_base_hidden_size": TINY.hidden_size, "mup_base_num_layers": TINY.num_layers}
    plain, scaled = (GPT(m, True, 0) for m in (TINY, replace(TINY, parametrization="completep", **base)))
    assert plain.declared == scaled.declared
    for model in (plain, scaled):
        model(batch())[0].backward()
    for (name, p), q in zip(plain.named_parameters(), scaled.parameters()):
        assert torch.equal(p, q) and torch.equal(p.grad, q.grad), name


def test_decay_by_role_reaches_what_has_the_role():
    words = (
        "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --lr 1 --train-iters 1 --train-data-path x --weight-decay 0.5"
    )
    cfg = parse([*words.split(), "--weight-decay-by", "matrix=3, embedding=0"])
    assert cfg.optim.weight_decay_by == "embedding=0,matrix=3"  # one spelling, so that equal runs are equal
    model = GPT(replace(TINY, untie_embeddings_and_output_weights=True), True, 0)
    optimizer = adamw(dict(model.named_parameters()), model.declared, cfg.optim)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert found["embed.weight"] == 0 and found["head.weight"] == 0.5 and found["norm.weight"] == 0
    assert found["blocks.0.attention.qkv.weight"] == found["blocks.2.mlp.down.weight"] == 3
