"""One process's training step, and its head alone, against peers written for the same shapes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from megatron.config import Config, Data, Log, Model, Objective, Optim, Parallel, Train
from megatron.layout import split_evenly
from tools.benchmark_data_peers import peak_mebibytes
from tools.benchmark_plain import LEARNING_RATE, peer_step, plain_loss, plain_rope, plain_weights
from tools.benchmark_timing import Row, in_turn, limit_row, median_ratio, process, product

if TYPE_CHECKING:
    from torch import Tensor

    from megatron.batch import Batch

TEN_MILLION = Model(
    num_layers=6,
    hidden_size=384,
    num_attention_heads=6,
    kv_channels=64,
    ffn_hidden_size=1024,
    seq_length=1024,
    vocab_size=50257,
    padded_vocab_size=50304,
    attention_dropout=0.0,
    hidden_dropout=0.0,
)
SMALL_VOCABULARY = replace(TEN_MILLION, vocab_size=4093, padded_vocab_size=4096)
MINIATURE = replace(
    TEN_MILLION,
    num_layers=2,
    hidden_size=64,
    num_attention_heads=2,
    kv_channels=32,
    ffn_hidden_size=128,
    seq_length=128,
    vocab_size=509,
    padded_vocab_size=512,
)
MODES = {
    "float32": {"fp32": ("float32", False)},  # how a peer may compute: dtype of its weights, autocast
    "bfloat16": {"pure bf16": ("bfloat16", False), "autocast": ("float32", True)},
}
ONE_PROCESS = Parallel()
NOISE_SEED = 41  # four stratified samples of which half of the tokens are hidden, as on average


def step(rounds: int, model: Model = TEN_MILLION) -> list[Row]:
    """Eager bf16: at least 1.2 x each peer."""
    return [compare("step", rounds, model, "bfloat16", peer, 1.2) for peer in ("plain", "HF")]


def step_fp32(rounds: int, model: Model = SMALL_VOCABULARY) -> list[Row]:
    """Eager fp32 with a small vocabulary: at least equal."""
    return [compare("step-fp32", rounds, model, "float32", peer, 1.0) for peer in ("plain", "HF")]


def step_compiled(rounds: int, model: Model = TEN_MILLION) -> list[Row]:
    """Ours with its blocks compiled against a plain step compiled whole: at least equal."""
    return [compare("step-compiled", rounds, model, "bfloat16", "compiled plain", 1.0)]


def compare(section: str, rounds: int, model: Model, dtype: str, peer: str, gate: float) -> Row:
    """Our step against a peer's, in the mode in which the peer is fastest."""
    what = f"{dtype} step, V {model.padded_vocab_size}, S {model.seq_length}, against {peer}"
    compile = peer.startswith("compiled")
    if peer == "HF" and not importlib.util.find_spec("transformers"):
        return Row(section=section, what=what, gate=gate, why="transformers is not installed: pip install transformers")
    if compile and not shutil.which(os.environ.get("CXX", "g++")):
        return Row(section=section, what=what, gate=gate, why="torch.compile needs a C++ compiler and none is on PATH")
    build = hf_step if peer == "HF" else plain_step
    modes = MODES[dtype]
    variants = {"matmul": (product, dtype), "ours": (our_step, model, dtype, "ar", 1, 1, False, compile)}
    seconds = in_turn(variants | {mode: (build, model, *how, compile) for mode, how in modes.items()}, rounds)
    return fastest_row(section, what, list(modes), model, seconds, gate)


def fastest_row(section: str, what: str, modes: list[str], model: Model, seconds: dict[str, list[float]], gate: float) -> Row:
    ratios = {mode: median_ratio(seconds[mode], seconds["ours"]) for mode in modes}
    name = min(ratios, key=ratios.get)

    def rate(who: str) -> str:
        spent = statistics.median(seconds[who])
        done = model.shape().flops_per_token(model.seq_length) * model.seq_length / spent
        peak = 2 * 1024**3 / statistics.median(seconds["matmul"])
        return f"{model.seq_length / spent:.0f} tok/cpu-s, {done / peak:.0%} of the matmul's {peak / 1e9:.0f} GFLOP/s"

    return Row(section=section, what=f"{what}, {name}", ours=rate("ours"), peer=rate(name), ratio=ratios[name], gate=gate)


def head(rounds: int, rows: int = 4096, columns: int = 50304, width: int = 384) -> list[Row]:
    """Head and cross-entropy, forward and backward in bf16, each in a process of its own."""
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "plain": []}
    for _ in range(rounds):
        for name, measured in found.items():
            with process() as home:
                measured.append(home.submit(measure_head, name, rows, columns, width).result())
    (ours, our_memory), (plain, plain_memory) = (zip(*found[name], strict=True) for name in ("ours", "plain"))
    what, taken = f"head {rows} x {columns} x {width}", statistics.median(plain_memory)
    return [
        limit_row("head", f"{what}, extra memory (plain {taken:.0f} MiB)", statistics.median(our_memory), 400, "MiB"),
        Row(
            section="head",
            what=f"{what}, CPU time against plain",
            ours=f"{statistics.median(ours):.2f} s",
            peer=f"{statistics.median(plain):.2f} s",
            ratio=median_ratio(plain, ours),
            gate=1.0,
        ),
    ]


def measure_head(name: str, rows: int, columns: int, width: int) -> tuple[float, float]:
    """CPU seconds of the second forward and backward, and by how many MiB the peak of both rises above what was there."""
    import torch
    import torch.nn.functional as F

    from megatron.core.head import weighted_nll

    torch.set_num_threads(1)
    dtype = torch.float32 if name == "ours" else torch.bfloat16  # ours casts its fp32 master weights itself
    x, targets = torch.randn(rows, width, dtype=torch.bfloat16, requires_grad=True), torch.randint(0, columns, (rows,))
    table, weights = (0.02 * torch.randn(columns, width)).to(dtype).requires_grad_(), torch.full((rows,), 1 / rows)
    x.grad, table.grad = torch.zeros_like(x), torch.zeros_like(table)
    product("bfloat16", 64)()
    before = peak_mebibytes()
    for _ in range(2):
        began = time.process_time()
        if name == "ours":
            weighted_nll(x, table, targets, weights, columns)[0].backward()
        else:
            F.cross_entropy(F.linear(x, table).float(), targets).backward()
        seconds = time.process_time() - began
    return seconds, peak_mebibytes() - before


def mdm(rounds: int, model: Model = TEN_MILLION, small: Model = MINIATURE, samples: int = 4) -> list[Row]:
    """The masked-diffusion step, head only where it is asked, against our own step with the head everywhere."""
    ours = (our_step, model, "bfloat16", "mdm", samples)
    seconds = in_turn({"ours": ours, "full": (*ours, 1, True)}, rounds)
    cfg = config_of(model, "bfloat16", "mdm", samples)
    share = sum(len(b.asked) for b in pose(cfg, objective_of(cfg), 1)) / (samples * model.seq_length)
    rate = {name: f"{samples * model.seq_length / statistics.median(s):.0f} tok/cpu-s" for name, s in seconds.items()}
    return [
        Row(
            section="mdm",
            what=f"bfloat16 step, head on the {share:.0%} asked, against head everywhere",
            ours=rate["ours"],
            peer=rate["full"],
            ratio=median_ratio(seconds["full"], seconds["ours"]),
            gate=1.25,
        ),
        limit_row("mdm", "loss and gradients, largest relative difference in fp32", largest_difference(small), 1e-6, ""),
    ]


def largest_difference(model: Model, rows: int = 4) -> float:
    """Between asked-only and full-head loss and gradients: the norm of the difference over the norm, the worst tensor's."""
    import torch

    from megatron.core.norm import global_norm
    from megatron.core.transformer import GPT

    cfg = config_of(model, "float32", "mdm", rows)
    (batch,) = pose(cfg, objective_of(cfg), rows)
    network = GPT(model, causal=False, seed=0)

    def results(batch: Batch) -> list[Tensor]:
        loss, _, _ = network(batch)
        return [loss.detach(), *torch.autograd.grad(loss, list(network.parameters()))]

    pairs = zip(results(batch), results(ask_all(batch)), strict=True)
    return max(float(global_norm([a - b]) / global_norm([b])) for a, b in pairs)


def config_of(
    model: Model,
    dtype: str,
    objective: str = "ar",
    batch: int = 1,
    compile: bool = False,
    device: str = "cpu",
    parallel: Parallel = ONE_PROCESS,
) -> Config:
    """A configuration that only the builders of a step read."""
    train = Train(
        global_batch_size=batch, bf16=dtype == "bfloat16", device=device, num_threads=1, compile="on" if compile else "off"
    )
    return Config(
        model=model,
        parallel=parallel,
        data=Data(),
        objective=Objective(objective=objective),
        optim=Optim(lr=LEARNING_RATE, adam_beta2=0.95, weight_decay=0.1),
        train=train,
        log=Log(),
    )


def our_step(
    model: Model,
    dtype: str,
    objective: str = "ar",
    batch: int = 1,
    rows: int = 1,
    all_asked: bool = False,
    compile: bool = False,
    device: str = "cpu",
    parallel: Parallel = ONE_PROCESS,
) -> Callable[[], object]:
    """The trainer's own step on random samples, with its engine and its global switches; a replica takes its part of them."""
    from megatron.core.mesh import build_mesh
    from megatron.engine import build
    from megatron.training.device import setup

    cfg = config_of(model, dtype, objective, batch, compile, device, parallel)
    where = setup(cfg)
    posed = objective_of(cfg)
    mesh = build_mesh(parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, parallel.sequence_parallel)
    engine, batches = build(cfg, posed, where, mesh), pose(cfg, posed, rows)
    if all_asked:
        batches = [ask_all(b) for b in batches]
    mine = split_evenly(len(batches), mesh.dp.size)[mesh.dp.rank]
    return lambda: engine.step(batches[mine.start : mine.stop], LEARNING_RATE)


def objective_of(cfg: Config):
    from megatron import objectives

    return objectives.build(cfg, cfg.model.vocab_size)


def pose(cfg: Config, objective, rows: int) -> list[Batch]:
    """A global batch of random samples as micro-batches of `rows`."""
    import torch

    from megatron.batch import Clean, Noise

    tokens = random_ids(cfg.model, cfg.train.global_batch_size, cfg.model.seq_length + 1)
    parts = zip(tokens.split(rows), torch.arange(len(tokens)).split(rows), strict=True)
    cleans = [Clean(tokens=t, scored=torch.ones_like(t, dtype=torch.bool), index=i) for t, i in parts]
    return [objective.pose(clean, Noise(NOISE_SEED, clean.index), 0.0) for clean in cleans]


def ask_all(batch: Batch) -> Batch:
    """The same problem with the head at every position."""
    import torch

    return replace(batch, asked=torch.arange(batch.inputs.numel()))


def random_ids(model: Model, rows: int, length: int) -> Tensor:
    import torch

    return torch.randint(0, model.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))


def plain_step(model: Model, dtype: str, autocast: bool, compile: bool = False) -> Callable[[], object]:
    """A nanoGPT-style step: fused qkv and gate/up, F.rms_norm, SDPA, tied embeddings, logits in fp32."""
    import torch

    ids = random_ids(model, 1, model.seq_length + 1)
    weights = plain_weights(model, getattr(torch, dtype))
    rope = plain_rope(model, torch.bfloat16 if autocast else weights["table"].dtype)
    forward = torch.compile(plain_loss) if compile else plain_loss
    return peer_step(list(weights.values()), lambda: forward(weights, ids[:, :-1], ids[:, 1:], rope, model, autocast), autocast)


def hf_step(model: Model, dtype: str, autocast: bool, compile: bool = False) -> Callable[[], object]:
    """LlamaForCausalLM's step."""
    import torch

    from megatron.exchange.transformers_library import random_llama

    llama = (
        random_llama(
            vocab_size=model.padded_vocab_size,
            hidden_size=model.hidden_size,
            intermediate_size=model.ffn_hidden_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_attention_heads,
            num_key_value_heads=model.num_attention_heads,
            max_position_embeddings=model.seq_length,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            use_cache=False,
        )
        .to(getattr(torch, dtype))
        .train()
    )
    ids = random_ids(model, 1, model.seq_length)
    forward = torch.compile(llama) if compile else llama
    return peer_step(list(llama.parameters()), lambda: forward(input_ids=ids, labels=ids).loss, autocast)
