#!/usr/bin/env python3
"""Speed and memory against peers written for the same shapes: `benchmark.py [NAME ...] [--check]`.

One thread, CPU seconds, variants in turn, and the median over rounds of the ratio peer / ours within a round: on a busy
machine times move, such ratios hardly do. A gate is the least ratio that counts as passed; a limit is turned into one.
Peers: a plain nanoGPT-style step, and LlamaForCausalLM where transformers is installed, each in its faster mode. Layouts of
several processes are measured in wall seconds, for what their ranks wait for is part of the cost: give them a core each.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.util
import itertools
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a checkout that is not installed

from megatron.budget import find_size  # noqa: E402
from megatron.config import Config, Data, Log, Model, Objective, Optim, Parallel, Train  # noqa: E402
from megatron.errors import exits  # noqa: E402
from megatron.layout import split_evenly  # noqa: E402
from tools.benchmark_data_peers import peak_mebibytes  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from megatron.batch import Batch
    from megatron.core.transformer import Block

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
LEARNING_RATE = 1e-4
ONE_PROCESS = Parallel()
TWO_RANKS = functools.partial(Parallel, world_size=2, pipeline_schedule="1f1b")
LAYOUTS = {
    "tp2": TWO_RANKS(tensor_model_parallel_size=2),
    "tp2+sp": TWO_RANKS(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2": TWO_RANKS(pipeline_model_parallel_size=2),
    "dp2": TWO_RANKS(),
    "dp2+zero1": TWO_RANKS(zero_stage=1),
    "dp2+zero3": TWO_RANKS(zero_stage=3),
}
PATIENCE = timedelta(minutes=5)  # for a rank that others wait for, so that a failure ends
NOISE_SEED = 41  # four stratified samples of which half of the tokens are hidden, as on average
GPU_SIZES, GPU_BATCHES, DATA_SHEET_FLOPS = ("117M", "425M", "1424M"), (64, 32, 16, 8, 4, 2, 1), 989e12
MISTAKES = ("--hiden-size 64", "--num-layers 2 --lr fast", "--num-attention-heads 12 --tensor-model-parallel-size 5")
TINY_RUN = """--num-layers 2 --hidden-size 64 --num-attention-heads 2 --seq-length 64 --micro-batch-size 4 --global-batch-size 4
    --train-iters 10 --lr 1e-3 --tokenizer-type ByteTokenizer --split 90,10,0 --eval-iters 1 --log-interval 1
    --device cpu --num-threads 1""".split()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: `ratio` is peer / ours in cost, and passes from `gate` on, if any; None: not measured, and `why`."""

    section: str
    what: str
    ours: str = ""
    peer: str = ""
    ratio: float | None = None
    gate: float | None = None
    why: str = ""

    def verdict(self) -> str:
        if self.ratio is None:
            return f"not measured: {self.why}"
        if self.gate is None:
            return "no gate"
        return "passed" if self.ratio >= self.gate else "FAILED"


# ---- measuring


class Spent(NamedTuple):
    """Seconds that a call took."""

    wall: float
    cpu: float  # of all threads
    computing: float  # CPU seconds of the calling thread, which stands still while it waits for other ranks


def in_turn(variants: dict[str, tuple], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant (a builder of a step, and its arguments) in each round."""
    found = side_by_side({name: [variant] for name, variant in variants.items()}, rounds)
    return {name: [spent.cpu for (spent,) in each] for name, each in found.items()}


def side_by_side(teams: dict[str, list[tuple]], rounds: int) -> dict[str, list[list[Spent]]]:
    """What each member of a team spends in each round, after two that are not counted: teams in turn, members at once.

    Each has a process of its own, as in use: allocator, threads and torch's global switches are not shared.
    """
    found: dict[str, list[list[Spent]]] = {name: [] for name in teams}
    with ExitStack() as stack:
        homes = {name: [stack.enter_context(process()) for _ in members] for name, members in teams.items()}
        for number in range(-2, rounds):
            for name, members in teams.items():
                calls = [home.submit(timed_call, *member) for home, member in zip(homes[name], members, strict=True)]
                spent = [call.result() for call in calls]
                if number >= 0:
                    found[name].append(spent)
    return found


def process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def timed_call(build: Callable, *given) -> Spent:
    """One call of the step that `build` makes, once in this process."""
    run = built(build, *given)
    began = clocks()
    run()
    return Spent(*(after - before for before, after in zip(began, clocks(), strict=True)))


def clocks() -> Spent:
    return Spent(wall=time.perf_counter(), cpu=time.process_time(), computing=time.thread_time())


@functools.cache
def built(build: Callable, *given) -> Callable[[], object]:
    import torch

    torch.set_num_threads(1)
    return build(*given)


def median_ratio(peer: list[float], ours: list[float]) -> float:
    return statistics.median(p / o for p, o in zip(peer, ours, strict=True))


def limit_row(section: str, what: str, found: float, limit: float, unit: str) -> Row:
    """A cost that must stay at or below a limit."""
    return Row(
        section=section,
        what=what,
        ours=f"{found:.3g} {unit}",
        peer=f"limit {limit:g} {unit}",
        ratio=limit / max(found, 1e-12),
        gate=1.0,
    )


def product(dtype: str, size: int = 1024) -> Callable[[], Tensor]:
    """The matmul that stands for what this machine can do: 2 size^3 FLOPs."""
    import torch

    a = torch.randn(size, size).to(getattr(torch, dtype))
    return lambda: a @ a


# ---- ours


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


def ranked_step(parallel: Parallel, rank: int, store: str, *given) -> Callable[[], object]:
    """Our step as one rank of a layout, whose processes meet over a file."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=parallel.world_size, timeout=PATIENCE)
    return our_step(*given, parallel=parallel)


def team(parallel: Parallel, store: str, *given) -> list[tuple]:
    """Every rank of a layout, with the arguments of our step."""
    return [(ranked_step, parallel, rank, store, *given) for rank in range(parallel.world_size)]


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


# ---- peers


def peer_step(parameters: list, loss: Callable[[], Tensor], autocast: bool) -> Callable[[], None]:
    """What a training script does around a loss: backward, clip to 1, fused AdamW."""
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_step(model: Model, dtype: str, autocast: bool, compile: bool = False) -> Callable[[], None]:
    """A nanoGPT-style step: fused qkv and gate/up, F.rms_norm, SDPA, tied embeddings, logits in fp32."""
    import torch

    ids = random_ids(model, 1, model.seq_length + 1)
    weights = plain_weights(model, getattr(torch, dtype))
    d = model.kv_channels
    angle = torch.outer(torch.arange(model.seq_length), 1e4 ** (-torch.arange(0, d, 2) / d))
    rope = [t.to(torch.bfloat16 if autocast else weights["table"].dtype) for t in (angle.cos(), angle.sin())]
    forward = torch.compile(plain_loss) if compile else plain_loss
    return peer_step(list(weights.values()), lambda: forward(weights, ids[:, :-1], ids[:, 1:], rope, model, autocast), autocast)


def plain_weights(model: Model, dtype) -> dict[str, Tensor]:
    import torch

    h, f = model.hidden_size, model.ffn_hidden_size
    block = {"norm1": (h,), "qkv": (3 * h, h), "out": (h, h), "norm2": (h,), "gate_up": (2 * f, h), "down": (h, f)}
    shapes = {"table": (model.padded_vocab_size, h), "norm": (h,)}
    shapes |= {f"{name}{i}": shape for i in range(model.num_layers) for name, shape in block.items()}
    start = {name: 0.02 * torch.randn(shape) if len(shape) > 1 else torch.ones(shape) for name, shape in shapes.items()}
    return {name: value.to(dtype).requires_grad_() for name, value in start.items()}


def plain_loss(w: dict[str, Tensor], inputs: Tensor, targets: Tensor, rope: list[Tensor], model: Model, autocast: bool) -> Tensor:
    import torch
    import torch.nn.functional as F

    n, d = model.num_attention_heads, model.kv_channels
    cos, sin = rope

    def norm(x, weight):
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), 1e-5)

    def rotate(x):
        low, high = x.chunk(2, -1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)

    x = F.embedding(inputs, w["table"])
    x = x.bfloat16() if autocast else x
    for i in range(model.num_layers):
        q, k, v = F.linear(norm(x, w[f"norm1{i}"]), w[f"qkv{i}"]).unflatten(-1, (3, n, d)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + F.linear(y.transpose(1, 2).flatten(2), w[f"out{i}"])
        gate, up = F.linear(norm(x, w[f"norm2{i}"]), w[f"gate_up{i}"]).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, w[f"down{i}"])
    logits = F.linear(norm(x, w["norm"]), w["table"])
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def hf_step(model: Model, dtype: str, autocast: bool, compile: bool = False) -> Callable[[], None]:
    """LlamaForCausalLM's step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = (
        LlamaForCausalLM(
            LlamaConfig(
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
        )
        .to(getattr(torch, dtype))
        .train()
    )
    ids = random_ids(model, 1, model.seq_length)
    forward = torch.compile(llama) if compile else llama
    return peer_step(list(llama.parameters()), lambda: forward(input_ids=ids, labels=ids).loss, autocast)


# ---- sections: each gives its rows


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


def dp(rounds: int, model: Model = TEN_MILLION, micro_batches: int = 4) -> list[Row]:
    """Two replicas against two processes that know nothing of each other, all with as many micro-batches: tokens of both."""
    with tempfile.TemporaryDirectory() as folder:
        found = side_by_side(
            {
                "ours": team(LAYOUTS["dp2"], f"{folder}/store", model, "bfloat16", "ar", 2 * micro_batches),
                "apart": [(our_step, model, "bfloat16", "ar", micro_batches)] * 2,
            },
            rounds,
        )
    tokens = micro_batches * model.seq_length
    rates = {name: [sum(tokens / spent.wall for spent in members) for members in each] for name, each in found.items()}
    ours, peer = (f"{statistics.median(rates[name]):.0f} tok/s" for name in ("ours", "apart"))
    return [
        Row(
            section="dp",
            what=f"dp2, {micro_batches} micro-batches each, against two independent processes",
            ours=ours,
            peer=peer,
            ratio=median_ratio(rates["ours"], rates["apart"]),
            gate=0.8,
        )
    ]


def communication(rounds: int, model: Model = TEN_MILLION, micro_batches: int = 8) -> list[Row]:
    """The exposed communication of each layout: the share of a step's wall time in which a rank's main thread does not run.

    That thread computes forward, backward and update; what gloo's threads do meanwhile is hidden. Waiting for other ranks,
    with a pipeline its bubble, counts; so does, on a busy machine, waiting for a core, as two processes apart show.
    """
    ours = (model, "bfloat16", "ar", micro_batches)
    rows = [exposed_row("two processes apart", [(our_step, model, "bfloat16", "ar", micro_batches // 2)] * 2, rounds)]
    for name, parallel in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(exposed_row(name, team(parallel, f"{folder}/store", *ours), rounds))
    return rows


def exposed_row(name: str, members: list[tuple], rounds: int) -> Row:
    """The fastest round of a layout, averaged over its ranks: what else the machine does only makes a round slower."""
    each = min(side_by_side({name: members}, rounds)[name], key=lambda each: max(spent.wall for spent in each))
    wall, computing = (statistics.mean(seconds) for seconds in zip(*((s.wall, s.computing) for s in each), strict=True))
    return Row(
        section="communication",
        what=f"{name}, {1 - computing / wall:.0%} of the step exposed",
        ours=f"step {wall:.2f} s",
        peer=f"computing {computing:.2f} s",
        ratio=computing / wall,
    )


def layers(rounds: int, model: Model = SMALL_VOCABULARY) -> list[Row]:
    """Our column and row linears at tensor-parallel size 1 against nn.Linear: eager on a CPU, compiled and gated on a GPU."""
    import torch

    on_cpu = layers_row(model, 1, rounds, "cpu", None)
    if torch.cuda.is_available():
        return [on_cpu, layers_row(gpu_model("425M", 2048), 8, rounds, "cuda", 0.98)]
    what = "compiled blocks on a GPU, against nn.Linear"
    return [on_cpu, Row(section="layers", what=what, gate=0.98, why="torch sees no GPU here")]


def layers_row(model: Model, batch: int, rounds: int, device: str, gate: float | None) -> Row:
    given = (model, batch, device)
    found = side_by_side({"ours": [(blocks_step, *given, False)], "plain": [(blocks_step, *given, True)]}, rounds)
    seconds = {name: [spent.cpu if device == "cpu" else spent.wall for (spent,) in each] for name, each in found.items()}
    what = f"{'eager' if device == 'cpu' else 'compiled'} blocks on {device}, width {model.hidden_size}, against nn.Linear"
    ours, plain = (f"{statistics.median(seconds[name]):.3g} s" for name in ("ours", "plain"))
    ratio = median_ratio(seconds["plain"], seconds["ours"])
    return Row(section="layers", what=what, ours=ours, peer=plain, ratio=ratio, gate=gate)


def blocks_step(model: Model, batch: int, device: str, plain: bool) -> Callable[[], None]:
    """Forward and backward of a model's blocks in bf16; on a GPU compiled, and over when the device is done."""
    import torch

    from megatron.core.mesh import Group
    from megatron.core.transformer import Block, rotary

    blocks = torch.nn.ModuleList(Block(model, True, Group(), False) for _ in range(model.num_layers))
    for block in blocks:
        if plain:
            use_plain_linears(block)
        if device == "cuda":
            block.compile(dynamic=False)
    for p in blocks.to(device).parameters():
        torch.nn.init.normal_(p, std=0.02)
    x = torch.randn(batch, model.seq_length, model.hidden_size, dtype=torch.bfloat16, device=device)
    rope = rotary(torch.arange(model.seq_length, device=device)[None], model.kv_channels, 1e4, x.dtype)

    def run():
        y = x
        for block in blocks:
            y = block(y, rope, None)
        y.sum().backward()
        blocks.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def use_plain_linears(block: Block) -> None:
    """torch's own linear in each place, its fp32 weight cast where it is used, as ours are."""
    import torch

    class Plain(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, self.weight.to(x.dtype))

    for parent, name in ((block.attention, "qkv"), (block.attention, "out"), (block.mlp, "up"), (block.mlp, "down")):
        width_out, width_in = getattr(parent, name).weight.shape
        setattr(parent, name, Plain(width_in, width_out, bias=False))


def startup(rounds: int) -> list[Row]:
    """Help and refusals without torch; a short run from a cold start, which also makes its own corpus."""
    rows = [answer_row(words, code, rounds) for words, code in [("--help", 0), *((words, 2) for words in MISTAKES)]]
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(f"{folder}/corpus")
        began = time.monotonic()
        trainer([*TINY_RUN, "--data-path", f"{folder}/corpus", "--run-dir", f"{folder}/run"], 0)
        return [*rows, limit_row("startup", "10 steps of a tiny model, wall", time.monotonic() - began, 10, "s")]


def answer_row(words: str, code: int, rounds: int) -> Row:
    """CPU time of an answer that comes before any training, and that torch was not imported for it."""
    what = f"pretrain_gpt.py {words}"
    if "| torch\n" in trainer(words.split(), code, "-X", "importtime"):
        return Row(section="startup", what=f"{what}, torch was imported", ratio=0.0, gate=1.0)
    began = children_seconds()
    for _ in range(rounds):
        trainer(words.split(), code)
    return limit_row("startup", f"{what}, CPU", (children_seconds() - began) / rounds, 0.3, "s")


def trainer(words: list[str], code: int, *interpreter: str) -> str:
    """Run pretrain_gpt.py; its standard error. Raises RuntimeError on another exit code than `code`."""
    done = subprocess.run([sys.executable, *interpreter, str(ROOT / "pretrain_gpt.py"), *words], capture_output=True, text=True)
    if done.returncode != code:
        said = f"pretrain_gpt.py {' '.join(words)} left with {done.returncode}, expected {code}"
        raise RuntimeError(f"{said}:\n{done.stderr[-2000:]}")
    return done.stderr


def children_seconds() -> float:
    spent = os.times()
    return spent.children_user + spent.children_system


def make_corpus(prefix: str, documents: int = 64) -> None:
    import numpy as np

    from megatron.data.indexed import IndexedWriter
    from megatron.data.tokenizer import build_tokenizer

    tokenizer = build_tokenizer("ByteTokenizer")
    with IndexedWriter(prefix, np.uint16) as writer:
        for number in range(documents):
            text = f"Document {number} of a corpus for measuring. " * 10
            writer.add_document(np.append(tokenizer.encode(text), tokenizer.eod).astype(np.uint16))


# ---- the GPU table


def gpu(rounds: int, sizes: tuple[str, ...] = GPU_SIZES, seq_length: int = 2048) -> list[Row]:
    """Print the README's table: tokens/s, MFU and peak memory of a bf16 step. It has no gate."""
    import torch

    rate = gpu_matmul_flops() if torch.cuda.is_available() else None
    beside = f"of the matmul's {rate / 1e12:.0f} TFLOP/s" if rate else "of the matmul"
    heads = ["model", "objective", "compile", "micro-batch", "tokens/s", "MFU of 989 TFLOP/s", beside, "peak memory"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for size, objective, compile in itertools.product(sizes, ("ar", "mdm"), (False, True)):
        cells = gpu_cells(gpu_model(size, seq_length), objective, compile, rate, rounds) if rate else ["not measured"] * 5
        print(f"| {size} | {objective.upper()} | {'on' if compile else 'off'} | {' | '.join(cells)} |", flush=True)
    where = f"{torch.cuda.get_device_name()}, torch {torch.__version__}" if rate else "not measured: torch sees no GPU here"
    print(f"bf16, sequence {seq_length}, {where}")
    return []


def gpu_model(size: str, seq_length: int) -> Model:
    _, s = find_size(size)
    return replace(
        TEN_MILLION,
        num_layers=s.num_layers,
        hidden_size=s.hidden_size,
        num_attention_heads=s.num_attention_heads,
        kv_channels=s.kv_channels,
        ffn_hidden_size=s.ffn_hidden_size,
        seq_length=seq_length,
    )


def gpu_matmul_flops(size: int = 8192) -> float:
    import torch

    from megatron.training.device import timed_product

    a = torch.randn(size, size, device="cuda").bfloat16()
    return 2 * size**3 / min(timed_product(a) for _ in range(10))


def gpu_cells(model: Model, objective: str, compile: bool, matmul: float, rounds: int) -> list[str]:
    """The largest micro-batch that fits, and what one step with it takes."""
    import torch

    for batch in GPU_BATCHES:
        try:
            seconds, memory = gpu_seconds(rounds, model, "bfloat16", objective, batch, batch, False, compile, "cuda")
        except torch.OutOfMemoryError:
            continue
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        rate = batch * model.seq_length / seconds
        flops = rate * model.shape().flops_per_token(model.seq_length)
        shares = [f"{flops / peak:.1%}" for peak in (DATA_SHEET_FLOPS, matmul)]
        return [str(batch), f"{rate:,.0f}", *shares, f"{memory / 2**30:.1f} GiB"]
    return ["not measured: not even one sample fits"] * 5


def gpu_seconds(rounds: int, *given) -> tuple[float, int]:
    """Median seconds of a step, and the allocator's peak in bytes."""
    import torch

    torch.compiler.reset()
    run = our_step(*given)
    for _ in range(3):
        run()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), torch.cuda.max_memory_allocated()


# ---- the command

SECTIONS: dict[str, Callable[[int], list[Row]]] = {
    "step": step,
    "step-fp32": step_fp32,
    "step-compiled": step_compiled,
    "head": head,
    "mdm": mdm,
    "dp": dp,
    "communication": communication,
    "layers": layers,
    "startup": startup,
    "gpu": gpu,
}


def print_rows(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "ours", "peer", "ratio", "gate", "verdict")
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        gate = "-" if row.gate is None else f">= {row.gate:g}"
        table.add_row(f"{row.section}: {row.what}", row.ours or "-", row.peer or "-", ratio, gate, row.verdict())
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark.py", allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"sections to run, of {', '.join(SECTIONS)} [all]")
    parser.add_argument("--check", action="store_true", help="leave with exit code 1 when a gate fails")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison [5]")
    given = parser.parse_args(argv)
    unknown = [name for name in given.names if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {' or '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    if given.rounds < 1:
        parser.error(f"--rounds {given.rounds} must be at least 1")
    return given


@exits
def main(argv: list[str] | None = None) -> int:
    given = parse(argv)
    rows = []
    for name in given.names or SECTIONS:
        found = SECTIONS[name](given.rounds)
        if found:
            print_rows(found)
        rows += found
    failed = [row for row in rows if row.verdict() == "FAILED"]
    for row in failed:
        print(f"gate failed: {row.section}: {row.what}: {row.ratio:.3f}, expected at least {row.gate:g}", file=sys.stderr)
    return int(given.check and bool(failed))


if __name__ == "__main__":
    sys.exit(main())
