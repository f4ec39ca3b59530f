"""Who owns what: every number of every parameter once, wherever it is, and an update that reaches all copies."""

from dataclasses import replace

import pytest
import torch

from megatron.config import Model, Optim, Parallel
from megatron.core.distributed import buckets, data_parallel, gather_rows, local, make_shares
from megatron.core.mesh import build_mesh
from megatron.core.transformer import GPT
from megatron.engine.native import NativeEngine
from megatron.layout import split_evenly

MODEL = Model(
    num_layers=2,
    hidden_size=20,
    num_attention_heads=2,
    kv_channels=10,
    ffn_hidden_size=22,
    seq_length=8,
    vocab_size=50,
    padded_vocab_size=54,
    attention_dropout=0.0,
    hidden_dropout=0.0,
)


def boxes(tp, pp, zero_stage):
    mesh = build_mesh(tp, pp)
    plan = Parallel(pipeline_model_parallel_size=pp).stages(2)
    stages = [GPT(MODEL, True, 0, tp=mesh.tp, layers=plan.layers[number]) for number in plan.of_rank(mesh.pp.rank)]
    for stage in stages:
        data_parallel(stage, mesh, zero_stage, offload=False, overlap=False)
    shares = make_shares(stages, mesh, zero_stage)
    return [(s.name, s.shape, s.start, s.data.detach().clone()) for s in shares if s.owner]


@pytest.mark.parametrize(
    "world, tp, pp, zero_stage",
    [(2, 2, 1, 0), (2, 1, 2, 0), (3, 1, 1, 1), (3, 1, 1, 3), (4, 2, 1, 1), (4, 2, 1, 2), (4, 1, 2, 1), (8, 2, 2, 3)],
)
def test_owned_shares_tile_every_parameter(pool, world, tp, pp, zero_stage):
    whole = dict(GPT(MODEL, True, 0).named_parameters())
    count = {name: torch.zeros(p.shape) for name, p in whole.items()}
    for rank in pool.run(world, boxes, tp, pp, zero_stage):
        for name, shape, start, data in rank:
            box = tuple(slice(a, a + n) for a, n in zip(start, data.shape))
            assert shape == whole[name].shape and torch.equal(data, whole[name][box])
            count[name][box] += 1
    assert all((c == 1).all() for c in count.values())


def gathered_rows(shapes):
    dp = build_mesh().dp
    tensors = [torch.zeros(shape) for shape in shapes]
    for t in tensors:
        mine = split_evenly(len(t), dp.size)[dp.rank]
        t[mine.start : mine.stop] = dp.rank + 1.0
    gather_rows(tensors, dp)
    return [t.flatten().tolist() for t in tensors]


def test_rows_reach_every_rank_also_where_one_has_none(pool):
    expected = [[1, 1, 1, 1, 2, 2, 3, 3], [1, 2], [1, 1, 1, 2, 2, 2, 3, 3, 3]]
    assert all(found == expected for found in pool.run(3, gathered_rows, [(4, 2), (2,), (3, 3)]))


def test_buckets_keep_order_and_size():
    tensors = [torch.zeros(n) for n in (3 << 22, 3 << 22, 9 << 22, 1, 2)]
    assert [[len(t) for t in bucket] for bucket in buckets(tensors)] == [[3 << 22], [3 << 22], [9 << 22], [1, 2]]


def placement(zero_stage, flag):
    mesh = build_mesh()
    parallel = replace(Parallel(zero_stage=zero_stage), **{flag: True})
    engine = NativeEngine([GPT(MODEL, True, 0)], Optim(lr=1e-3), parallel, mesh)
    held = {share.data.data_ptr() for share in engine.shares}
    return (
        len(held & {local(share.parameter).data_ptr() for share in engine.shares}),
        len(engine.shares),
        sum(share.data.numel() for share in engine.shares),
        {share.data.device.type for share in engine.shares},
    )


def test_a_cpu_optimizer_has_its_own_copy_and_offloaded_weights_are_cut(pool):
    total = sum(p.numel() for p in GPT(MODEL, True, 0).parameters())
    assert all(found[0] == 0 and found[3] == {"cpu"} for found in pool.run(2, placement, 1, "cpu_optimizer"))
    offloaded = pool.run(2, placement, 3, "cpu_params")
    assert sum(found[2] for found in offloaded) == total and all(found[0] == found[1] for found in offloaded)
