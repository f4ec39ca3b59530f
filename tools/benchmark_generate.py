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
    """New tokens a CPU second, prompts not counted: AR at least as fast as HF, MDM in blocks with a `delayed` cache three times
    as fast as without one; at batch 1 the weights are read from memory for few places, which saves less."""
    rows = [next_tokens(rounds, model, batch) for batch in (1, 32)]
    rows += blocks(rounds, model, 1, {"dual": 1.5, "delayed": 1.5})
    return rows + blocks(rounds, short, 32, {"dual": 2.5, "delayed": 3.0})


def next_tokens(rounds: int, model: Model, batch: int) -> Row:
    what = f"AR, batch {batch}, {shape_of(model)}, against HF generate with the same weights"
    if not importlib.util.find_spec("transformers"):
        return Row(section="generate", what=what, gate=1.0, why="transformers is not installed: pip install transformers")
    seconds = in_turn({"ours": (our_samples, model, "ar", batch), "HF": (hf_samples, model, batch)}, rounds)
    return row(what, seconds, "HF", batch * (model.seq_length - PROMPT), 1.0)


def blocks(rounds: int, model: Model, batch: int, gates: dict[str, float]) -> list[Row]:
    """One place a step by confidence; `dual` and `delayed` read 32 and about 18 of 128 places a pass."""
    seconds = in_turn({str(kept): (our_samples, model, "mdm", batch, kept) for kept in (*gates, None)}, rounds)
    what = f"MDM, batch {batch}, {shape_of(model)}, blocks of {BLOCK}, one token a step, cache"
    return [
        row(
            f"{what} {kept} against none",
            {"ours": seconds[kept], "none": seconds["None"]},
            "none",
            batch * model.seq_length,
            gate,
        )
        for kept, gate in gates.items()
    ]


def row(what: str, seconds: dict[str, list[float]], peer: str, tokens: int, gate: float) -> Row:
    rate = {name: f"{tokens / statistics.median(spent):.0f} tok/cpu-s" for name, spent in seconds.items()}
    ratio = median_ratio(seconds[peer], seconds["ours"])
    return Row(section="generate", what=what, ours=rate["ours"], peer=rate[peer], ratio=ratio, gate=gate)


def shape_of(model: Model) -> str:
    return f"{model.num_layers} x {model.hidden_size}, V {model.vocab_size}, S {model.seq_length}"


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
        mask=model.vocab_size,
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

    from megatron.batch import reading
    from megatron.exchange.llama import llama_config, to_llama
    from megatron.exchange.transformers_library import random_llama

    stage = our_engine(model, "ar").stages[0].eval()
    llama = random_llama(**llama_config(model, model.vocab_size, "float32", 0)).eval()
    llama.load_state_dict(to_llama(dict(stage.named_parameters()), model, model.vocab_size), strict=False)
    llama.tie_weights()
    ids, new = random_ids(model, batch, model.seq_length)[:, :PROMPT], model.seq_length - PROMPT
    with torch.no_grad():
        ours = stage(replace(reading(ids), asked=torch.arange(ids.numel())), loss=False)
        torch.testing.assert_close(llama(ids).logits.flatten(0, 1), ours, rtol=0, atol=1e-4)
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
    return lambda: llama.generate(ids, attention_mask=torch.ones_like(ids), **settings)
