"""What each process of a layout holds and sends, by arithmetic alone: no device, no process group, no torch.

Weights, gradients and moments are fp32 and counted exactly, as the native engine shards them (core/distributed.py).
Activations are what autograd keeps of core/transformer.py and core/head.py on a GPU, uncompiled. T tokens of a micro-batch,
h hidden, a attention width, f SwiGLU width, V table rows, c bytes of the compute dtype, t tensor-parallel size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron.budget import count
from megatron.config import Config
from megatron.layout import Stages

BUCKET_BYTES = 64 << 20  # of one message that sums or gathers tensors
LOGIT_BYTES = 64 << 20  # the head's logits at once, and
CHUNK_BYTES = 26 << 20  # their fp32 probabilities, of which three copies live at a time
CONTEXT_BYTES = 1 << 30  # CUDA and NCCL themselves, which no allocator counts

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class MuonUpdate:
    """On the process that has most to do; nothing where AdamW updates all."""

    batches: int  # of matrices, one at most for each of the processes that share them out
    flops: float  # of the largest of each, for which the others wait
    tensor: int  # bytes that leave this process, over each group, so that matrices are whole somewhere, and back
    data: int


@dataclass(frozen=True, kw_only=True)
class Load:
    """One process, in bytes. `sent` is of one step: {group: bytes that leave this process}, as rings send them."""

    rank: int  # on the pipeline axis
    layers: tuple[range, ...]
    num_parameters: int  # after the tensor-parallel cut
    weights: int
    gradients: int
    moments: int
    host: int  # on the CPU
    offloaded: int  # of these, what an update there works on; the others are copies to save
    activations: int
    buffers: int  # gathered weights, received hidden states, messages, one block at work
    peak: int
    sent: dict[str, int]
    muon: MuonUpdate


@dataclass(frozen=True, kw_only=True)
class Forecast:
    loads: list[Load]  # one for each pipeline rank, of its process with the largest share

    @property
    def peak(self) -> int:
        """Of the process that holds most."""
        return max(load.peak for load in self.loads)


def forecast(cfg: Config) -> Forecast:
    """Of a config whose vocabulary is known."""
    plan = cfg.parallel.stages(cfg.model.num_layers)
    return Forecast(loads=[weigh(cfg, plan, rank) for rank in range(plan.num_ranks)])


def shapes(cfg: Config, layers: range) -> Shapes:
    """Every parameter of a stage on one tensor-parallel rank."""
    shape, t = cfg.model.shape(), cfg.parallel.tensor_model_parallel_size
    first, last = layers.start == 0, layers.stop == cfg.model.num_layers
    ends = {"embed.weight": first or (last and shape.tied), "reader.weight": first}
    ends |= {name: last for name in ("norm.weight", "head.weight", "readout.weight")}

    return {
        name: tuple(n // t if dim == p.cut else n for dim, n in enumerate(p.shape))
        for name, p in shape.tensors(layers).items()
        if name.startswith("blocks.") or ends.get(name, first)  # a reader is where rows come in
    }


def stage_shapes(cfg: Config, plan: Stages, rank: int) -> Shapes:
    """Every parameter of a pipeline rank; a tied table that its first and last stage share is there once."""
    return {name: shape for stage in plan.of_rank(rank) for name, shape in shapes(cfg, plan.layers[stage]).items()}


def zero_stage(cfg: Config) -> int:
    return cfg.parallel.zero_stage if cfg.parallel.data_parallel_size > 1 else 0


def share(rows: int, cfg: Config, replica: int) -> int:
    """How many rows of a parameter a data-parallel rank updates."""
    dp, stage = cfg.parallel.data_parallel_size, zero_stage(cfg)
    if stage == 0:
        return rows
    if stage == 1:
        return rows // dp + (replica < rows % dp)  # as split_evenly cuts
    chunk = -(-rows // dp)  # as torch.chunk, and with it FSDP2, cuts
    return min(rows, (replica + 1) * chunk) - min(rows, replica * chunk)


def state_bytes(found: Shapes, cfg: Config, replica: int = 0) -> tuple[int, int, int, int]:
    """Weights, gradients and moments on the device, and what lies on the CPU instead, of one data-parallel rank.

    The average of --ema is counted with the moments, beside which it lies.
    """
    p, average = cfg.parallel, bool(cfg.optim.ema)
    whole = 4 * sum(map(math.prod, found.values()))
    own = owned_bytes(found, cfg, replica)
    moments = 2 * own - owned_bytes(matrices(found, cfg), cfg, replica)
    held = own if zero_stage(cfg) >= 2 else whole
    if p.cpu_params and zero_stage(cfg) == 3:
        return 0, 0, 0, ((4 if p.cpu_optimizer else 2) + average) * own + moments
    if p.cpu_optimizer:
        return held, held, 0, (2 + average) * own + moments  # the update has copies of weights and gradients
    return held, held, average * own + moments, 0


def owned_bytes(found: Shapes, cfg: Config, replica: int) -> int:
    """Of what a data-parallel rank updates, in fp32."""
    return 4 * sum(share(shape[0], cfg, replica) * math.prod(shape[1:]) for shape in found.values())


def saved_bytes(found: Shapes, cfg: Config) -> int:
    """Weights, their average and moments of the data-parallel rank that saves most, which --async-save copies to the CPU."""
    copies = 3 + bool(cfg.optim.ema)
    return copies * owned_bytes(found, cfg, 0) - owned_bytes(matrices(found, cfg), cfg, 0)


def matrices(found: Shapes, cfg: Config) -> Shapes:
    """What Muon updates, with one moment instead of two."""
    if cfg.optim.optimizer != "muon":
        return {}
    inside = cfg.model.shape().block_matrices()
    return {
        name: shape for name, shape in found.items() if name.partition(".")[0] == "blocks" and name.split(".", 2)[2] in inside
    }


def orthogonalising_bytes(found: Shapes, cfg: Config) -> int:
    """The largest matrix whole, four times, and two products on its smaller side; as many parts of others as it has."""
    whole = cfg.model.shape().block_matrices() if matrices(found, cfg) else {}
    return max((4 * (5 * math.prod(p.shape) + 2 * min(p.shape) ** 2) for p in whole.values()), default=0)


def muon_update(cfg: Config, layers: int) -> MuonUpdate:
    """As engine/muon.py deals matrices, the largest first: a batch's first is put together and worked on by this process."""
    if cfg.optim.optimizer != "muon":
        return MuonUpdate(batches=0, flops=0.0, tensor=0, data=0)
    t, replicas = cfg.parallel.tensor_model_parallel_size, cfg.parallel.data_parallel_size if zero_stage(cfg) else 1
    shape, at_once = cfg.model.shape(), t * replicas
    flops, sizes = shape.block_orthogonalising_flops(), {n: 4 * math.prod(p.shape) for n, p in shape.block_matrices().items()}
    names = [name for name in sorted(sizes, key=lambda name: -sizes[name]) for _ in range(layers)]
    batches = [names[i : i + at_once] for i in range(0, len(names), at_once)]
    over_tensor = over_data = 0
    for batch in batches:
        whole = [sizes[name] for name in batch]
        first, rows = whole[0], sum(whole[::replicas])  # what this process and its tensor neighbours put together
        over_data += ((sum(whole) - rows) // replicas + rows * (replicas - 1) // replicas) // t
        over_tensor += (rows - first) // t + first * (t - 1) // t
    most = sum(max(flops[name] for name in batch) for batch in batches)
    return MuonUpdate(batches=len(batches), flops=most, tensor=over_tensor, data=over_data)


def beside_parameters(cfg: Config) -> int:
    """Of the network that learns beside the model, which every process holds whole, with its readout."""
    estimator = cfg.estimator()
    return estimator.total() + estimator.hidden_size if estimator else 0


def weigh(cfg: Config, plan: Stages, rank: int) -> Load:
    found, numbers, m = stage_shapes(cfg, plan, rank), plan.of_rank(rank), cfg.num_micro_batches
    weights, gradients, moments, offloaded = state_bytes(found, cfg)
    muon = muon_update(cfg, sum(len(plan.layers[n]) for n in numbers))
    beside = 4 * beside_parameters(cfg)
    weights, gradients, moments = weights + beside, gradients + beside, moments + 2 * beside
    flights = in_flight(plan, rank, m)
    activations = sum(count * kept_bytes(cfg, plan.layers[n]) for n, count in zip(numbers, flights))
    work = max(work_bytes(cfg, plan.layers[n]) for n in numbers)
    buffers = gathered_bytes(found, cfg) + message_bytes(found, cfg, plan, numbers)
    # Gradients that do not exist before the first backward pass, and the table's two at its end.
    table = max((math.prod(shape) * 4 for name, shape in found.items() if name == "embed.weight"), default=0)
    late = gradients if m == 1 and cfg.parallel.data_parallel_size == 1 else 0
    peak = weights + gradients + moments + buffers
    peak += max(activations + work - late, 2 * table, orthogonalising_bytes(found, cfg))
    context = 0 if cfg.train.device == "cpu" else CONTEXT_BYTES
    return Load(
        rank=rank,
        layers=tuple(plan.layers[n] for n in numbers),
        weights=weights,
        gradients=gradients,
        moments=moments,
        num_parameters=sum(map(math.prod, found.values())),
        host=offloaded + (saved_bytes(found, cfg) if cfg.train.async_save else 0),
        offloaded=offloaded,
        activations=activations,
        buffers=buffers + work,
        peak=peak + context,
        sent=sent_bytes(cfg, plan, rank, found, muon),
        muon=muon,
    )


def least_bytes(cfg: Config, plan: Stages) -> int:
    """Of the first pipeline rank's blocks alone, soon counted: its processes hold more."""
    p, numbers = cfg.parallel, plan.of_rank(0)
    if p.cpu_params:
        return 0
    stage, dp = zero_stage(cfg), p.data_parallel_size
    whole = (
        4 * sum(len(plan.layers[n]) for n in numbers) * count(cfg.model.shape().block_tensors()) // p.tensor_model_parallel_size
    )
    moments = (0 if p.cpu_optimizer else 1 if cfg.optim.optimizer == "muon" else 2) * whole
    state = (2 * whole // dp if stage >= 2 else 2 * whole) + (moments // dp if stage else moments)
    m = cfg.num_micro_batches
    if m == dp == 1:  # gradients come when activations go
        return state
    return state + sum(kept * kept_bytes(cfg, plan.layers[n]) for n, kept in zip(numbers, in_flight(plan, 0, m)))


def in_flight(plan: Stages, rank: int, m: int) -> list[int]:
    """How many micro-batches each stage of a rank keeps for its backward pass when most are kept."""
    p, chunks = plan.num_ranks, len(plan.of_rank(rank))
    if plan.v_shaped:
        return [min(m, 2 * p - rank - 1), min(m, rank + 1)]
    if chunks == 1:
        return [min(p - rank, m)]
    each = m // max(1, m // p)  # consecutive micro-batches of one stage
    forwards = min(m * chunks, (chunks - 1) * each + 2 * (p - 1 - rank) + 1)
    turns = [step // each % chunks for step in range(forwards)]
    return [turns.count(chunk) for chunk in range(chunks)]


@dataclass(frozen=True, kw_only=True)
class Micro:
    """One micro-batch on one tensor-parallel rank."""

    tokens: int  # T
    local: int  # those that this rank keeps where the sequence is cut, else T
    c: int
    t: int


def micro(cfg: Config) -> Micro:
    p, rows = cfg.parallel, -(-cfg.train.global_batch_size // cfg.parallel.data_parallel_size)
    tokens = -(-rows // cfg.num_micro_batches) * cfg.model.seq_length * cfg.objective.reads
    t = p.tensor_model_parallel_size
    return Micro(tokens=tokens, local=tokens // t if p.sequence_parallel else tokens, c=2 if cfg.train.bf16 else 4, t=t)


def attention_bytes(cfg: Config, x: Micro) -> int:
    """What attention itself keeps: queries, keys and log-sums, or its probabilities where they are dropped."""
    m = cfg.model
    pairs = m.num_attention_heads * m.seq_length * cfg.objective.reads // x.t
    kept = x.c * 2 * m.shape().attention_width // x.t
    return x.tokens * (kept + (pairs * (4 + 1 + x.c) if m.attention_dropout else 4 * m.num_attention_heads // x.t))


def block_bytes(cfg: Config, x: Micro) -> int:
    """What one block keeps when all is kept: five widths of h and a, four of f, and its weights in the dtype that computes."""
    m = cfg.model
    h, a, f = m.hidden_size, m.shape().attention_width, m.ffn_hidden_size
    hidden = x.local * (4 * h * x.c + 8 + (2 * h if m.hidden_dropout else 0))  # two norms' inputs, outputs and scales
    cast = 2 * f * h * x.c // x.t  # gate and up, laid out anew
    if x.c < 4 and zero_stage(cfg) < 2:
        cast += (4 * a + f) * h * x.c // x.t
    selective = cfg.train.recompute_granularity == "selective"
    return hidden + x.tokens * x.c * 4 * (a + f) // x.t + cast + (0 if selective else attention_bytes(cfg, x))


def kept_bytes(cfg: Config, layers: range) -> int:
    """What a stage keeps of one micro-batch for its backward pass."""
    m, x = cfg.model, micro(cfg)
    state = x.local * m.hidden_size * x.c  # one hidden state
    each = state if cfg.train.recompute_granularity == "full" else block_bytes(cfg, x)
    total = len(layers) * each + (0 if layers.start else reader_bytes(cfg, x))
    if layers.start:
        total -= state  # the receive buffer, which is counted as such
    if layers.stop < m.num_layers:
        return total + state  # its output, until its gradient comes
    # The head's gradients are made in its forward pass.
    head = x.tokens * m.hidden_size * x.c + 4 * m.padded_vocab_size * m.hidden_size // x.t
    return total + state + 4 * x.local + head


def reader_bytes(cfg: Config, x: Micro) -> int:
    """What attention among a position's candidates keeps: two hidden states and six narrow ones of each."""
    shape = cfg.model.shape()
    if not shape.candidate_features:
        return 0
    return x.local * (1 + max(cfg.objective.sdd_k or [0])) * x.c * (2 * shape.hidden_size + 6 * shape.candidate_features)


def work_bytes(cfg: Config, layers: range) -> int:
    """The most that passes through: a block's gradients, what it computes again, or the head's logits."""
    m, x, again = cfg.model, micro(cfg), cfg.train.recompute_granularity
    h, f = m.hidden_size, m.ffn_hidden_size
    block = x.tokens * x.c * (f // x.t + 2 * h) + 2 * f * h * (x.c + 4) // x.t
    block += {"full": block_bytes(cfg, x), "selective": attention_bytes(cfg, x), None: 0}[again]
    if m.attention_dropout:
        block += 8 * x.tokens * m.num_attention_heads * m.seq_length * cfg.objective.reads // x.t  # scores, and their gradient
    if layers.stop < m.num_layers:
        return block
    width = m.padded_vocab_size // x.t
    cast = width * h * x.c if x.c < 4 else 0
    logits = min(LOGIT_BYTES, x.tokens * width * x.c) + 3 * min(CHUNK_BYTES, x.tokens * width * 4)
    return max(block, cast + logits + 2 * x.tokens * h * x.c)


def gathered_bytes(found: Shapes, cfg: Config) -> int:
    """Weights, blocks in the dtype that computes, and gradients that FSDP2 puts together for a while."""
    stage, c = zero_stage(cfg), micro(cfg).c
    if stage < 2:
        return 0
    inside = sum(math.prod(shape) for name, shape in found.items() if name.startswith("blocks."))
    outside = 4 * (sum(map(math.prod, found.values())) - inside)
    block = inside // max(1, len({name.split(".")[1] for name in found if name.startswith("blocks.")}))
    return 2 * outside + (2 * c + 4) * block if stage == 3 else 2 * outside + c * inside + (c + 4) * block


def message_bytes(found: Shapes, cfg: Config, plan: Stages, numbers: list[int]) -> int:
    """Receive buffers, which torch's pipelines have for every micro-batch of a step, and messages that are laid out flat."""
    x, p = micro(cfg), cfg.parallel
    state, last = x.local * cfg.model.hidden_size * x.c, len(plan.layers) - 1
    sides = sum((n > 0 and plan.home(n - 1) != plan.home(n)) + (n < last and plan.home(n + 1) != plan.home(n)) for n in numbers)
    flat = 4 * max(BUCKET_BYTES // 4, *map(math.prod, found.values()))
    sums = p.data_parallel_size > 1 and (zero_stage(cfg) == 1 or (len(plan.layers) > 1 and zero_stage(cfg) == 0))
    return sides * cfg.num_micro_batches * state + (2 * flat if sums else 0)


def sent_bytes(cfg: Config, plan: Stages, rank: int, found: Shapes, muon: MuonUpdate) -> dict[str, int]:
    """What one process sends in a step. A ring sends (n - 1) / n of a tensor to gather or scatter it, twice that to sum it."""
    x, m, numbers = micro(cfg), cfg.num_micro_batches, plan.of_rank(rank)
    state, last = x.tokens * cfg.model.hidden_size * x.c, len(plan.layers) - 1
    ends = 0 in numbers, last in numbers
    rounds = tensor_rounds(cfg, sum(len(plan.layers[n]) for n in numbers), sum(ends))
    hops = sum((n > 0 and plan.home(n - 1) != rank) + (n < last and plan.home(n + 1) != rank) for n in numbers)
    sent = {
        "tensor": m * rounds * state * (x.t - 1) // x.t + muon.tensor,
        "data": replica_bytes(found, cfg) + muon.data,
        "pipeline": m * hops * x.local * cfg.model.hidden_size * x.c,
    }
    tied = not cfg.model.untie_embeddings_and_output_weights
    rows = cfg.model.padded_vocab_size // x.t
    table = 4 * (share(rows, cfg, 0) if zero_stage(cfg) >= 2 else rows) * cfg.model.hidden_size
    return sent | {"embedding": table if tied and ends[0] != ends[1] else 0}


def tensor_rounds(cfg: Config, layers: int, ends: int) -> int:
    """How often a micro-batch's hidden state goes around the tensor-parallel ring for so many blocks and ends of the model.

    Where the sequence is cut, gathers and scatters; else sums, of two rounds each.
    """
    again = cfg.train.recompute_granularity == "full"
    if cfg.parallel.sequence_parallel:
        return (13 if again else 10) * layers + 2 * ends
    return 2 * ((5 if again else 4) * layers + ends)


def replica_rounds(cfg: Config) -> tuple[int, int]:
    """How often a step gathers the weights, and scatters sums of the gradients. A sum is a scatter and a gather."""
    m, pipeline = cfg.num_micro_batches, cfg.parallel.pipeline_model_parallel_size > 1
    # With a pipeline, ZeRO 2 cuts the weights after every backward pass.
    return {0: (1, 1), 1: (2, 1), 2: (m if pipeline else 1, m), 3: (2 * m, m)}[zero_stage(cfg)]


def replica_bytes(found: Shapes, cfg: Config) -> int:
    """Gradients summed over replicas, and weights gathered from those that updated them."""
    dp, stage, (gathers, scatters) = cfg.parallel.data_parallel_size, zero_stage(cfg), replica_rounds(cfg)
    blocks = sum(math.prod(shape) for name, shape in found.items() if name.startswith("blocks."))
    total, width = sum(map(math.prod, found.values())), micro(cfg).c if stage >= 2 else 4  # FSDP2 gathers what computes
    return (gathers * (width * blocks + 4 * (total - blocks)) + scatters * 4 * total) * (dp - 1) // dp
