"""How long a step of a layout takes on GPUs, by arithmetic alone: products, memory traffic, messages, and who waits for whom.

T tokens of a micro-batch, h hidden, a attention width, f SwiGLU width, t tensor-parallel size, c bytes of the compute dtype.
Times are seconds. What is counted is the native engine's own work (core/transformer.py, core/head.py, core/distributed.py);
bytes that processes send are forecast.py's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron.catalogue import OBJECTIVES
from megatron.config import Config
from megatron.forecast import (
    BUCKET_BYTES,
    LOGIT_BYTES,
    Forecast,
    Load,
    Micro,
    MuonUpdate,
    micro,
    muon_update,
    replica_rounds,
    tensor_rounds,
    zero_stage,
)
from megatron.layout import Ranks, Stages, over_hosts
from megatron.machines import GIGA, TERA, Machine

# The one number that was chosen on published steps, those of tests/test_step_time.py that say so: the share of what a kernel
# reaches alone that it reaches within a step, for clocks under load, gaps and other traffic.
BUSY = 0.85
TILE = 128  # rows and columns of a product that a multiprocessor computes at once
LEAD = 128  # of the inner dimension, that filling and emptying a tile's pipeline cost
DEEP = 2048  # inner dimension at which a machine's `matmul` was found
KERNEL = 5e-6  # that the host takes to start one; a block's forward pass has KERNELS of them, the backward pass twice as many
KERNELS = {True: 10, False: 22}  # compiled or not
LINK = 0.75  # share of a link that messages reach
HOP = {"nvlink": 2e-6, "network": 8e-6}  # from rank to rank, before the first byte arrives
OFFLOAD = 30.0  # GB/s, of PCIe and a GPU's share of the CPU's memory, for an update there
PARTS = ("compute", "tensor", "pipeline", "bubble", "data", "update")  # of a step's time


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One micro-batch on one pipeline rank: its forward pass, the two halves of its backward pass, and the messages between."""

    forward: float
    inputs: float  # gradients of activations, what is computed again included
    weights: float  # gradients of weights
    tensor: float = 0.0  # sums and gathers among tensor-parallel ranks, which all of the above wait for

    @property
    def seconds(self) -> float:
        return self.forward + self.inputs + self.weights + self.tensor


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step, by what the slowest pipeline rank spends them on. PARTS add up to `total`."""

    compute: float
    tensor: float
    pipeline: float  # hidden states between stages, and the copies of a table at both ends
    bubble: float  # waiting for other stages
    data: float  # gradients and weights between replicas, as far as computing does not hide it
    update: float  # with what Muon's ranks exchange
    total: float
    hidden: float  # of the messages between replicas, what computing hides
    tokens_per_second: float  # of the whole machine
    mfu: float  # share of the peak, of the model's FLOPs by the convention of the fits
    executed: float  # share of the peak, of the FLOPs that are computed


def step_time(cfg: Config, found: Forecast, machine: Machine) -> StepTime:
    """Of a config whose vocabulary is known, and its forecast of memory and messages."""
    p, m, plan = cfg.parallel, cfg.num_micro_batches, cfg.parallel.stages(cfg.model.num_layers)
    block = block_turn(cfg, machine)
    turns = [rank_turn(cfg, load.layers, machine, block) for load in found.loads]
    whole = passes_seconds(plan, m, turns)
    slowest = max(turns, key=lambda turn: turn.seconds)
    data, hidden = max(replicas_seconds(cfg, load, turn, machine) for load, turn in zip(found.loads, turns))
    pipeline = neighbours_seconds(cfg, found.loads, machine)
    update = max(update_seconds(cfg, load, machine) for load in found.loads)
    total = whole + pipeline + data + update
    rate = cfg.train.global_batch_size * cfg.model.seq_length / total
    peak = TERA * (machine.peak if cfg.train.bf16 else machine.fp32) * p.world_size
    return StepTime(
        compute=m * (slowest.seconds - slowest.tensor),
        tensor=m * slowest.tensor,
        pipeline=pipeline,
        bubble=whole - m * slowest.seconds,
        data=data,
        update=update,
        total=total,
        hidden=hidden,
        tokens_per_second=rate,
        mfu=rate * cfg.flops_per_token() / peak,
        executed=rate * executed_flops(cfg) / peak,
    )


def executed_flops(cfg: Config) -> float:
    """A token, attention halved where it is causal, the head on what is asked, recomputation and Muon's updates included."""
    o, granularity = cfg.objective, cfg.train.recompute_granularity
    causal, candidates = OBJECTIVES[o.objective].causal, o.candidates(cfg.train)
    shape = cfg.model.shape()
    done = shape.executed_flops_per_token(cfg.model.seq_length, asked_share(cfg), causal, granularity, o.reads, candidates)
    return done + cfg.estimating_flops() + cfg.orthogonalising_flops()


def asked_share(cfg: Config) -> float:
    """Of the positions, those that the head reads: all, or half in the mean over noise levels."""
    return 0.5 if OBJECTIVES[cfg.objective.objective].uses_mask else 1.0


def flop_rate(cfg: Config, machine: Machine) -> float:
    """Of large products within a step, FLOP/s."""
    return TERA * (machine.matmul if cfg.train.bf16 else machine.fp32) * BUSY


def product(m: int, k: int, n: int, cfg: Config, machine: Machine) -> float:
    """An [m, k] x [k, n] product: whole waves of tiles over the multiprocessors, or its bytes where they take longer."""
    units, c = int(machine.units), 2 if cfg.train.bf16 else 4
    waves = -(-(-(-m // TILE) * -(-n // TILE)) // units)
    tiles = waves * units * 2 * TILE * TILE * (k + LEAD) / (flop_rate(cfg, machine) * (1 + LEAD / DEEP))
    return max(tiles, moved(c * (m * k + k * n + m * n), machine))


def moved(bytes_: float, machine: Machine) -> float:
    return bytes_ / (GIGA * machine.bandwidth * BUSY)


def block_turn(cfg: Config, machine: Machine) -> Turn:
    """One block of one micro-batch."""
    m, x, compiled = cfg.model, micro(cfg), cfg.may_compile
    h, a, f, t, c = m.hidden_size, m.shape().attention_width, m.ffn_hidden_size, x.t, x.c
    shapes = [(h, (a + 2 * m.shape().key_width) // t), (a // t, h), (h, 2 * f // t), (f // t, h)]
    forward = sum(product(x.tokens, k, n, cfg, machine) for k, n in shapes)
    inputs = sum(product(x.tokens, n, k, cfg, machine) for k, n in shapes)
    weights = sum(product(k, x.tokens, n, cfg, machine) for k, n in shapes)
    cast = sum(k * n for k, n in shapes) * (c < 4)  # weights to the dtype that computes, and their gradients back
    # Reads and writes between the products: norms, rotation, SwiGLU, sums of branches; fewer where they are compiled together.
    whole, cut = (8 * h, 4 * a + 3 * f) if compiled else (10 * h, 6 * a + 5 * f)
    passed = moved(c * (x.local * (whole + 6 * h * bool(m.hidden_dropout)) + x.tokens * cut / t), machine)
    seen = attention_seconds(cfg, x, machine)
    forward += passed + seen + moved(6 * cast, machine)
    inputs += 2 * passed + 2.5 * seen  # five products where the forward pass has two
    inputs += {None: 0.0, "selective": seen, "full": forward}[cfg.train.recompute_granularity]
    weights += moved(10 * cast, machine)
    least = KERNEL * KERNELS[compiled]
    return Turn(
        forward=max(forward, least),
        inputs=max(inputs, 1.5 * least),
        weights=max(weights, least / 2),
        tensor=tensor_seconds(cfg, 1, 0, machine),
    )


def tensor_seconds(cfg: Config, blocks: int, ends: int, machine: Machine) -> float:
    """Hidden states of a micro-batch around the tensor-parallel ring, for so many blocks and ends of the model."""
    x, rounds = micro(cfg), tensor_rounds(cfg, blocks, ends)
    bytes_ = rounds * x.tokens * cfg.model.hidden_size * x.c * (x.t - 1) // x.t
    return ring_seconds(bytes_, rounds, cfg.parallel.groups["tensor"], machine, sums=not cfg.parallel.sequence_parallel)


def attention_seconds(cfg: Config, x: Micro, machine: Machine) -> float:
    """Of a block's forward pass."""
    m, length = cfg.model, cfg.model.seq_length * cfg.objective.reads
    flops = 4 * x.tokens * length * m.shape().attention_width // x.t
    if m.attention_dropout:  # no fused form: two products, and scores that are written and read in fp32 and c
        scores = x.tokens * length * m.num_attention_heads // x.t
        return flops / flop_rate(cfg, machine) + moved(scores * (8 + 3 * x.c), machine)
    rate = machine.attention if x.c == 2 else machine.fp32 / 2
    return flops * (0.5 if OBJECTIVES[cfg.objective.objective].causal else 1.0) / (TERA * rate * BUSY)


def head_seconds(cfg: Config, machine: Machine) -> float:
    """Logits of the asked positions, their softmax, and both gradients, made at once; and what learns beside."""
    x, h = micro(cfg), cfg.model.hidden_size
    tokens = x.tokens // cfg.objective.reads
    rows, width = math.ceil(asked_share(cfg) * tokens), cfg.model.padded_vocab_size // x.t
    sides = [(rows, h, width), (rows, width, h), (width, rows, h)]
    pieces = max(1, rows * width * x.c // LOGIT_BYTES)  # each adds to the table's gradient
    bytes_ = rows * width * (6 * x.c + 8) + (pieces * (x.c + 8) + 6) * width * h
    beside = tokens * cfg.estimating_flops() / flop_rate(cfg, machine)
    return sum(product(*side, cfg, machine) for side in sides) + moved(bytes_, machine) + beside


def rank_turn(cfg: Config, spans: Sequence[range], machine: Machine, block: Turn) -> Turn:
    """Of all stages of a pipeline rank."""
    x, layers = micro(cfg), sum(map(len, spans))
    first, last = any(r.start == 0 for r in spans), any(r.stop == cfg.model.num_layers for r in spans)
    outside = head_seconds(cfg, machine) if last else 0.0
    if first:  # what mixes a position's candidates, and its backward pass
        mixed = cfg.model.shape().mixing_flops(cfg.objective.candidates(cfg.train))
        outside += 3 * mixed * x.tokens / flop_rate(cfg, machine)
    return Turn(
        forward=layers * block.forward + outside,
        inputs=layers * block.inputs,
        weights=layers * block.weights,
        tensor=layers * block.tensor + tensor_seconds(cfg, 0, first + last, machine),
    )


def link_of(ranks: Ranks, machine: Machine) -> str:
    """The slowest that a group needs."""
    return "nvlink" if over_hosts(ranks, int(machine.host))[0] == 1 else "network"


def ring_seconds(bytes_: float, rounds: float, ranks: Ranks, machine: Machine, sums: bool) -> float:
    """What a process sends in so many rounds around its group, one host after the other.

    A round is n - 1 hops and (n - 1) / n of a tensor; a sum has two, and where that is sooner goes down and up a tree instead.
    A ring leaves a host by a network link of each of its members there: those where they are fewest, or NVLink, are the slowest.
    """
    if ranks.size == 1:
        return 0.0
    hosts, fewest = over_hosts(ranks, int(machine.host))
    rate = machine.nvlink if hosts == 1 else min(machine.nvlink, machine.network * fewest)
    inside = -(-ranks.size // hosts)
    hops = (math.ceil(math.log2(inside)), math.ceil(math.log2(hosts))) if sums else (ranks.size - hosts, hosts - 1)
    return bytes_ / (GIGA * rate * LINK) + rounds * (hops[0] * HOP["nvlink"] + hops[1] * HOP["network"])


def exchange_seconds(bytes_: float, rounds: float, ranks: Ranks, machine: Machine) -> float:
    """What a process sends to all of its group at once: what leaves the host by a link of its own, the rest by NVLink."""
    if ranks.size == 1:
        return 0.0
    hosts, fewest = over_hosts(ranks, int(machine.host))
    outside = bytes_ * (ranks.size - fewest) / (ranks.size - 1) if hosts > 1 else 0.0
    slowest = max((bytes_ - outside) / machine.nvlink, outside / machine.network)
    return slowest / (GIGA * LINK) + rounds * HOP[link_of(ranks, machine)]


def passes_seconds(plan: Stages, m: int, turns: Sequence[Turn]) -> float:
    """From the first forward pass to the last backward pass: the slowest rank's work, and what the others do before and after.

    Of equal ranks, p of them with v stages each, that is (m + (p - 1) / v) turns (Narayanan et al., arXiv:2104.04473, 2.2).
    """
    slowest = max(turn.seconds for turn in turns)
    if plan.v_shaped:  # what ZB-V waits where its three kinds of work differ (Qi et al., arXiv:2401.10241), by estimate
        return m * slowest + sum(max(0.0, turn.seconds - 3 * turn.weights) for turn in turns[1:]) / 2
    chunks = len(plan.layers) // plan.num_ranks
    return m * slowest + (sum(turn.seconds for turn in turns) - slowest) / chunks


def neighbours_seconds(cfg: Config, loads: Sequence[Load], machine: Machine) -> float:
    """Hidden states from stage to stage, each process's by a link of its own; a table's gradients between both ends."""
    most = sum(max(load.sent[group] for load in loads) for group in ("pipeline", "embedding"))
    ranks = cfg.parallel.groups["pipeline"]
    if ranks.size == 1:
        return 0.0
    link = link_of(ranks, machine)
    rate, stages = machine.nvlink if link == "nvlink" else machine.network, max(len(load.layers) for load in loads)
    return most / (GIGA * rate * LINK) + 2 * cfg.num_micro_batches * stages * HOP[link]


def replicas_seconds(cfg: Config, load: Load, turn: Turn, machine: Machine) -> tuple[float, float]:
    """Messages between replicas.  -> what a step waits for, and what computing hides

    DDP sums a bucket, and FSDP2 gathers and scatters a block, while others are computed. The first gather and the last sum have
    nothing to hide behind, ZeRO 1 gathers after its update, and with a pipeline ZeRO 0 and 1 sum when all is computed.
    """
    p, stage, m = cfg.parallel, zero_stage(cfg), cfg.num_micro_batches
    blocks, rounds = sum(map(len, load.layers)), sum(replica_rounds(cfg))
    messages = blocks + 1 if stage >= 2 else math.ceil(4 * load.num_parameters / BUCKET_BYTES)
    summed = 2 if stage < 2 else 0  # rounds that are a sum; the others gather or scatter
    other, each = rounds - summed, (load.sent["data"] - load.muon.data) / rounds
    sums = ring_seconds(each * summed, messages * summed, p.groups["data"], machine, sums=True)
    others = ring_seconds(each * other, messages * other, p.groups["data"], machine, sums=False)
    if stage < 2 and p.pipeline_model_parallel_size > 1:
        return sums + others, 0.0
    # DDP's are of the last micro-batch.
    free, passed = (others, m * turn.seconds) if stage >= 2 else (sums, turn.inputs + turn.weights)
    hidden = min(free, passed) * (1 - 1 / (blocks + 1))
    return sums + others - hidden, hidden


def update_seconds(cfg: Config, load: Load, machine: Machine) -> float:
    """AdamW on what this process owns, eight reads and writes of a parameter's size; the gradient's norm; Muon's products, and
    the messages before and after them."""
    seconds = orthogonalising_seconds(cfg, load.muon, machine) + moved(4 * load.moments + load.gradients, machine)
    for name, bytes_ in (("tensor", load.muon.tensor), ("data", load.muon.data)):
        seconds += exchange_seconds(bytes_, 2 * load.muon.batches * (bytes_ > 0), cfg.parallel.groups[name], machine)
    return seconds + load.offloaded / (GIGA * OFFLOAD)


def orthogonalising_seconds(cfg: Config, muon: MuonUpdate, machine: Machine) -> float:
    return muon.flops / (TERA * (machine.matmul if cfg.optim.muon_bf16 else machine.fp32) * BUSY)


def least_seconds(cfg: Config, machine: Machine, block: Turn) -> float:
    """No step of this layout is faster: its blocks alone, what their pipeline waits, and Muon. `block`: of block_turn."""
    plan = cfg.parallel.stages(cfg.model.num_layers)
    counts = [sum(len(plan.layers[n]) for n in plan.of_rank(rank)) for rank in range(plan.num_ranks)]
    turns = [Turn(forward=layers * block.seconds, inputs=0.0, weights=0.0) for layers in counts]
    update = orthogonalising_seconds(cfg, muon_update(cfg, max(counts)), machine)
    if plan.v_shaped:
        return cfg.num_micro_batches * max(turn.seconds for turn in turns) + update
    return passes_seconds(plan, cfg.num_micro_batches, turns) + update
