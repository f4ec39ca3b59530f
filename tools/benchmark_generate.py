"""Sampling: next tokens with a cache against HF's `generate` on the same weights, and masked blocks with a cache against none."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import replace

from megatron.config import Model
from tools.benchmark_step import SMALL_VOCABULARY, config_of, objective_of, random_ids
from tools.benchmark_timing import Row, in_turn, median_ratio

WRITER = replace(SMALL_VOCABULARY, seq_length=128)  # 10M parameters
SHORT_WRITER = replace(
    WRITER, num_layers=4, hidden_size=192, num_attention_heads=3, ffn_hidden_size=512, vocab_size=257, padded_vocab_size=384
)  # 1.9M, of bytes
PROMPT = 16  # tokens
BLOCK = 32  # places


def generate(rounds: int, model: Model = WRITER, short: Model = SHORT_WRITER) -> list[Row]:
    """New tokens a CPU second, prompts not counted: AR at least as fast as HF, MDM in blocks three times as fast as without."""
    rows = [next_tokens(rounds, model, batch) for batch in (1, 32)]
    return rows + [blocks(rounds, shape, batch) for shape, batch in ((model, 1), (short, 32))]


def next_tokens(rounds: int, model: Model, batch: int) -> Row:
    what = f"AR, batch {batch}, {model.num_layers} layers of {model.hidden_size}, V {model.padded_vocab_size}, against HF"
    if not importlib.util.find_spec("transformers"):
        return Row(section="generate", what=what, gate=1.0, why="transformers is not installed: pip install transformers")
    seconds = in_turn({"ours": (our_samples, model, "ar", batch), "HF": (hf_samples, model, batch)}, rounds)
    return row(what, seconds, "HF", batch * (model.seq_length - PROMPT), 1.0)


def blocks(rounds: int, model: Model, batch: int) -> Row:
    what = f"MDM, batch {batch}, {model.num_layers} layers of {model.hidden_size}, blocks of {BLOCK} with a cache against none"
    variants = {name: (our_samples, model, "mdm", batch, kept) for name, kept in (("ours", "dual"), ("without", None))}
    return row(what, in_turn(variants, rounds), "without", batch * model.seq_length, 3.0)


def row(what: str, seconds: dict[str, list[float]], peer: str, tokens: int, gate: float) -> Row:
    rate = {name: f"{tokens / statistics.median(spent):.0f} tok/cpu-s" for name, spent in seconds.items()}
    ratio = median_ratio(seconds[peer], seconds["ours"])
    return Row(section="generate", what=what, ours=rate["ours"], peer=rate[peer], ratio=ratio, gate=gate)


def our_samples(model: Model, objective: str, batch: int, kept: str | None = None) -> Callable[[], object]:
    """A whole window: of AR what follows a prompt, of MDM all places by confidence, one a step."""
    import torch

    from megatron.sampling.draws import How, Rows
    from megatron.sampling.table import SAMPLERS

    engine, given = our_engine(model, objective), PROMPT if objective == "ar" else 0
    ids = random_ids(model, batch, model.seq_length)
    rows = Rows(
        ids=ids if given else torch.full_like(ids, model.vocab_size),
        open=torch.arange(model.seq_length).expand(ids.shape) >= given,
        numbers=list(range(batch)),
        seed=0,
        vocab_size=model.vocab_size,
    )
    sample = SAMPLERS["autoregressive" if given else "confidence"].load()
    how = How() if given else How(block_length=BLOCK, cache=kept)
    return lambda: sample(engine, rows, how)


def our_engine(model: Model, objective: str):
    from megatron.core.mesh import build_mesh
    from megatron.engine import build
    from megatron.training.device import setup

    cfg = config_of(model, "float32", objective)
    return build(cfg, objective_of(cfg), setup(cfg), build_mesh())


def hf_samples(model: Model, batch: int) -> Callable[[], object]:
    """LlamaForCausalLM with our weights, sampling from the whole distribution."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    stage = our_engine(model, "ar").stages[0]
    shape = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_attention_heads,
        head_dim=model.kv_channels,
        rms_norm_eps=model.norm_epsilon,
        max_position_embeddings=model.seq_length,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    llama = LlamaForCausalLM(shape).eval()
    llama.load_state_dict(hf_weights(model, dict(stage.named_parameters())), strict=False)
    ids = random_ids(model, batch, model.seq_length)[:, :PROMPT]
    with torch.no_grad():
        ours = stage.eval()(reading_all(ids), loss=False)
        torch.testing.assert_close(llama(ids).logits.flatten(0, 1), ours, rtol=0, atol=1e-4)
    new = model.seq_length - PROMPT
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
    return lambda: llama.generate(ids, attention_mask=torch.ones_like(ids), **settings)


def reading_all(ids):
    import torch

    from megatron.batch import reading

    return replace(reading(ids), asked=torch.arange(ids.numel()))


def hf_weights(model: Model, ours: dict) -> dict:
    """Ours by HF's names."""
    found = {"model.embed_tokens.weight": ours["embed.weight"][: model.vocab_size], "model.norm.weight": ours["norm.weight"]}
    found["lm_head.weight"] = found["model.embed_tokens.weight"]
    for i in range(model.num_layers):
        here, there = f"blocks.{i}.", f"model.layers.{i}."
        qkv = ours[here + "attention.qkv.weight"].view(model.num_attention_heads, 3, model.kv_channels, -1).transpose(0, 1)
        gate_up = ours[here + "mlp.up.weight"].view(model.ffn_hidden_size, 2, -1)
        names = {"q_proj": qkv[0], "k_proj": qkv[1], "v_proj": qkv[2]}
        found |= {f"{there}self_attn.{name}.weight": weight.flatten(0, 1) for name, weight in names.items()}
        found |= {
            there + "self_attn.o_proj.weight": ours[here + "attention.out.weight"],
            there + "mlp.gate_proj.weight": gate_up[:, 0],
            there + "mlp.up_proj.weight": gate_up[:, 1],
            there + "mlp.down_proj.weight": ours[here + "mlp.down.weight"],
            there + "input_layernorm.weight": ours[here + "norm1.weight"],
            there + "post_attention_layernorm.weight": ours[here + "norm2.weight"],
        }
    return found
