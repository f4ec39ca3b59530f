"""Weights of a scaled parametrization, folded: the same function as a standard model."""

from dataclasses import replace

import torch

from megatron.config import Model
from megatron.core.transformer import GPT
from megatron.exchange.agreement import our_model, questions
from megatron.exchange.llama import folded

SCALED = Model(
    num_layers=4,
    hidden_size=48,
    num_attention_heads=6,
    num_query_groups=3,
    kv_channels=16,
    ffn_hidden_size=64,
    seq_length=12,
    vocab_size=50,
    padded_vocab_size=64,
    init_method_std=0.5,
    parametrization="completep",
    mup_base_hidden_size=16,
    mup_base_num_layers=2,
    mup_base_kv_channels=6,
)


def test_a_scaled_network_is_a_standard_one_with_other_weights():
    for tied in (True, False):
        model = replace(SCALED, untie_embeddings_and_output_weights=not tied)
        tensors = {name: p.detach() for name, p in GPT(model, True, 3).named_parameters()}
        plain, standard = folded(tensors, model)
        assert standard.parametrization == "standard" and standard.width_factor == standard.depth_factor == 1
        ids = questions(model, None)
        ours, theirs = our_model(tensors, model, True)(ids), our_model(plain, standard, True)(ids)
        assert float(ours.std()) > 0.1  # so that a factor that is lost is seen
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # the weights are fp32
        unfolded = our_model(tensors, standard, True)(ids)
        assert float((ours - unfolded).abs().max()) > 0.1
