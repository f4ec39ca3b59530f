"""The forecast against the engine's real tensors: state to the byte, the peak of a step within the stated 15 %."""

import weakref
from collections import Counter
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron.batch import Batch, asked_positions
from megatron.config import parse
from megatron.core import fused, transformer
from megatron.core.distributed import local
from megatron.core.mesh import all_to_all, build_mesh
from megatron.core.transformer import GPT
from megatron.engine import muon
from megatron.engine.native import NativeEngine
from megatron.forecast import CONTEXT_BYTES, forecast, in_flight, stage_shapes, state_bytes
from megatron.layout import make_stages

BASE = (
    "--num-layers 4 --hidden-size 24 --num-attention-heads 2 --kv-channels 6 --ffn-hidden-size 20 --seq-length 8 --lr 1e-3 "
    "--tokenizer-type ByteTokenizer --global-batch-size 12 --train-iters 1 --data-path none"
)


def config(words: str, world: int = 1):
    return parse(f"{BASE} {words}".split(), environ={"RANK": "0", "WORLD_SIZE": str(world)})


def batches(cfg) -> list[Batch]:
    """One replica's, of random tokens, all of which are asked."""
    b, s = cfg.train.micro_batch_size, cfg.model.seq_length
    ids, weights = torch.randint(0, cfg.model.vocab_size, (b, s)), torch.ones(b, s)
    one = Batch(
        inputs=ids,
        targets=ids,
        weights=weights,
        scored=weights.bool(),
        positions=torch.arange(s).expand(b, s),
        index=torch.arange(b),
        asked=asked_positions(weights),
    )
    return [one] * cfg.num_micro_batches


def held(words: str, world: int):
    """What the engine holds after a step.  -> (expected, found): weights, gradients, moments on the device, bytes on the CPU;
    what Muon's ranks send over the tensor and the data group: forecast of the one that sends most, this one's"""
    cfg = config(words, world)
    p = cfg.parallel
    mesh = build_mesh(p.tensor_model_parallel_size, p.pipeline_model_parallel_size, p.sequence_parallel)
    plan = p.stages(cfg.model.num_layers)
    stages = [GPT(cfg.model, True, 0, tp=mesh.tp, layers=plan.layers[n]) for n in plan.of_rank(mesh.pp.rank)]
    engine, gradients = NativeEngine(stages, cfg.optim, p, mesh), []
    parameters = list({id(q): q for stage in stages for q in stage.parameters()}.values())

    def update(lr, scale, really=engine.update):
        gradients.append(sum(local(q.grad).nbytes for q in parameters))
        really(lr, scale)

    sent = Counter()

    def counted(outgoing, shapes, like, group):
        others = [x.nbytes for rank, to_one in enumerate(outgoing) if rank != group.rank for x in to_one]
        sent["tensor" if group is mesh.tp else "data"] += sum(others)
        return all_to_all(outgoing, shapes, like, group)

    engine.update = update
    with patch.object(muon, "all_to_all", counted):
        engine.step(batches(cfg), 1e-3)
    weights = sum(local(q).nbytes for q in parameters)
    moments = sum(moment.nbytes for share in engine.shares for moment in engine.moments(share).values())
    moments += sum(kept.nbytes for kept in engine.average.kept)
    copies = sum(share.data.nbytes for share in engine.shares)
    state = state_bytes(stage_shapes(cfg, plan, mesh.pp.rank), cfg, mesh.dp.rank), (weights, *gradients, moments, copies)
    most = forecast(cfg).loads[mesh.pp.rank].muon
    return *state, ((most.tensor, most.data), (sent["tensor"], sent["data"]))


@pytest.mark.parametrize(
    "world, words",
    [
        (1, ""),
        (4, "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2"),
        (2, "--pipeline-model-parallel-size 2 --pipeline-schedule zero-bubble"),
        (2, "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1 --untie-embeddings-and-output-weights"),
        *((4, f"--tensor-model-parallel-size 2 --zero-stage {stage}") for stage in range(4)),
        (4, "--pipeline-model-parallel-size 2 --zero-stage 3"),
        (2, "--tensor-model-parallel-size 2 --group-query-attention --num-query-groups 2"),
        (3, "--zero-stage 1 --ema 0.9"),
        (3, "--zero-stage 2"),
        (4, "--tensor-model-parallel-size 2 --zero-stage 1 --optimizer muon --ema 0.9"),
        (8, "--zero-stage 3"),
    ],
)
def test_state_is_exact(pool, world, words):
    ranks = pool.run(world, held, words, world)
    for expected, found, _ in ranks:
        assert (*expected[:3], 0) == (*found[:3], 0)
    for group in range(2):
        assert ranks[0][2][0][group] == max(found[group] for _, _, (_, found) in ranks)
    assert bool(sum(ranks[0][2][0])) is ("muon" in words)


@pytest.mark.parametrize("words", ["--cpu-optimizer", "--zero-stage 1 --cpu-optimizer"])
def test_offloaded_state_is_exact(pool, words):
    """On a CPU both sides are one memory: weights and moments of the update lie beside the model's own."""
    for expected, (weights, gradients, moments, copies), _ in pool.run(2, held, words, 2):
        assert expected == (weights, gradients, 0, 2 * copies + moments)  # a gradient beside each copy


def test_offloaded_parameters_are_exact(pool):
    for expected, found, _ in pool.run(2, held, "--zero-stage 3 --cpu-params", 2):
        assert expected == (0, 0, 0, sum(found[:3]))


def test_rows_that_are_read_twice_weigh_as_rows_of_twice_the_length():
    blocks, long = (
        parse(f"{BASE} --objective mdm {more}".replace("--seq-length 8", f"--seq-length {length}").split(), environ={})
        for length, more in ((8, "--block-size 4"), (16, ""))
    )
    (ours,), (theirs,) = forecast(blocks).loads, forecast(long).loads
    assert (ours.activations, ours.buffers) == (theirs.activations, theirs.buffers)


def test_in_flight_micro_batches():
    assert [in_flight(make_stages(8, 4), rank, 8) for rank in range(4)] == [[4], [3], [2], [1]]
    assert in_flight(make_stages(8, 4), 0, 2) == [2]
    assert in_flight(make_stages(8, 4, 2), 0, 8) == [7, 4] and in_flight(make_stages(8, 4, 2), 3, 8) == [4, 1]
    zero_bubble = make_stages(8, 4, 2, v_shaped=True)
    assert [sum(in_flight(zero_bubble, rank, 8)) for rank in range(4)] == [8] * 4


def test_what_is_sent_in_a_step():
    tp = forecast(config("--tensor-model-parallel-size 2 --micro-batch-size 2", 2)).loads[0].sent
    state = 2 * 8 * 24 * 4
    assert tp == {"tensor": 6 * (4 * 4 + 2) * state, "data": 0, "pipeline": 0, "embedding": 0}  # a sum over 2 sends all of it
    first, last = (load.sent for load in forecast(config("--pipeline-model-parallel-size 2 --micro-batch-size 2", 2)).loads)
    assert first == last == {"tensor": 0, "data": 0, "pipeline": 6 * state, "embedding": 384 * 24 * 4}
    whole = 4 * config("").model.shape().total()
    sent = [forecast(config(f"--zero-stage {stage} --micro-batch-size 2", 2)).loads[0].sent["data"] for stage in range(4)]
    assert sent == [whole, 3 * whole // 2, 4 * whole // 2, 9 * whole // 2]


class Norm(torch.autograd.Function):
    """RMSNorm that keeps what a GPU's kernel keeps: its input and one scale a row."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, scale, weight)
        return x * scale.to(x.dtype) * weight

    @staticmethod
    def backward(ctx, d_y):
        x, scale, weight = ctx.saved_tensors
        normed = x * scale.to(x.dtype)
        along = (d_y * normed * weight).mean(-1, keepdim=True)
        return (d_y * weight - normed * along) * scale.to(x.dtype), (d_y * normed).flatten(0, -2).sum(0), None


class Memory(TorchDispatchMode):
    """Bytes of all storages that live, and the most there were."""

    def __init__(self):
        super().__init__()
        self.sizes, self.live, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf.untyped_storage())
        return out

    def count(self, storage):
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.drop, storage._cdata)

    def drop(self, key):
        self.live -= self.sizes.pop(key)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--bf16",
        "--recompute-activations",
        "--recompute-granularity full --bf16",
        "--global-batch-size 4",
        "--attention-dropout 0.1 --hidden-dropout 0.1 --bf16",
    ],
)
def test_the_peak_is_within_15_percent(monkeypatch, words):
    """Every storage of a step of the code that GPUs run, counted on the CPU."""
    monkeypatch.setattr(fused, "eager_on_cpu", lambda x: False)
    monkeypatch.setattr(transformer, "rms_norm", Norm.apply)
    flags = (
        f"--num-layers 4 --hidden-size 128 --num-attention-heads 4 --seq-length 256 --micro-batch-size 4 {words} --dry-run "
        "--tokenizer-type ByteTokenizer"
    )
    flags += "" if "global" in words else " --global-batch-size 8"
    flags += "" if "dropout" in words else " --attention-dropout 0 --hidden-dropout 0"
    cfg = parse(flags.split(), environ={})
    dtype = torch.bfloat16 if cfg.train.bf16 else torch.float32
    engine = NativeEngine([GPT(cfg.model, True, 0, dtype, cfg.train.recompute_granularity)], cfg.optim)
    posed = batches(cfg)
    with Memory() as memory:
        for p in engine.stages[0].parameters():
            memory.count(p.data.untyped_storage())
        engine.step(posed, 1e-3)
        memory.peak = 0
        engine.step(posed, 1e-3)
    assert forecast(cfg).loads[0].peak - CONTEXT_BYTES == pytest.approx(memory.peak, rel=0.15)
