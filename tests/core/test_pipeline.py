"""Gradients through every schedule against the whole model, before and after an evaluation."""

from dataclasses import replace

import pytest
import torch

from megatron.batch import Batch, asked_positions
from megatron.config import Model, Parallel
from megatron.core.distributed import finish_gradients, make_shares
from megatron.core.mesh import build_mesh
from megatron.core.pipeline import Pipeline
from megatron.core.transformer import GPT

MODEL = Model(
    num_layers=5,
    hidden_size=16,
    num_attention_heads=2,
    kv_channels=8,
    ffn_hidden_size=32,
    seq_length=8,
    vocab_size=50,
    padded_vocab_size=64,
    attention_dropout=0.1,
    hidden_dropout=0.1,
)
SCHEDULES = {
    "1f1b": dict(),
    "uneven": dict(decoder_first_pipeline_num_layers=1),
    "zero-bubble": dict(pipeline_schedule="zero-bubble"),
    "interleaved": dict(pipeline_schedule="interleaved", num_layers_per_virtual_pipeline_stage=1),
}


def batch(seed, rows=2):
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (rows, 9), generator=rng)
    weights = torch.rand(rows, 8, generator=rng) * (torch.rand(rows, 8, generator=rng) < 0.5)
    return Batch(
        inputs=ids[:, :-1],
        targets=ids[:, 1:],
        weights=weights,
        scored=torch.ones(rows, 8, dtype=torch.bool),
        positions=torch.arange(8).expand(rows, 8),
        index=torch.arange(rows) + 10 * seed,
        asked=asked_positions(weights),
    )


BATCHES = [batch(seed) for seed in range(4)]


def whole(model):
    gpt = GPT(model, False, 1)
    with torch.no_grad():
        scores = [gpt.eval()(b)[1] for b in BATCHES]
    loss = sum(gpt.train()(b)[0] for b in BATCHES)
    (loss / 7).backward()
    return float(loss.detach()), {name: p.grad for name, p in gpt.named_parameters()}, scores


def staged(model, parallel):
    """Two steps with an evaluation between them.  -> loss, gradients of this rank's parameters, scores"""
    mesh = build_mesh(1, parallel.pipeline_model_parallel_size)
    plan = parallel.stages(model.num_layers)
    stages = [GPT(model, False, 1, layers=plan.layers[number]) for number in plan.of_rank(mesh.pp.rank)]
    if len(stages) > 1 and plan.v_shaped and stages[0].first:
        stages[-1].embed = stages[0].embed
    pipeline = Pipeline(stages, plan, mesh, parallel.pipeline_schedule, torch.device("cpu"))
    shares = make_shares(stages, mesh, zero_stage=0)
    for _ in range(2):
        for stage in stages:
            stage.zero_grad()
            stage.train()
        loss = sum(micro.double() for micro, _, _ in pipeline.run(BATCHES, 7))
        finish_gradients(shares, mesh, stages, over_dp=True)
        for stage in stages:
            stage.eval()
        scores = [nll for _, nll, _ in pipeline.forward([*BATCHES, batch(9, rows=1)])][: len(BATCHES)]
    return float(loss), {share.name: share.parameter.grad for share in shares}, scores


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_pipeline_is_the_whole_model(pool, name):
    model = replace(MODEL, num_layers=4) if name == "interleaved" else MODEL
    parallel = Parallel(**{"pipeline_schedule": "1f1b"} | SCHEDULES[name], pipeline_model_parallel_size=2, world_size=2)
    loss, grads, scores = whole(model)
    found = pool.run(2, staged, model, parallel)
    assert sum(one[0] for one in found) == pytest.approx(loss, rel=1e-6)
    assert {n for one in found for n in one[1]} == grads.keys()
    for one in found:
        for n, grad in one[1].items():
            torch.testing.assert_close(grad, grads[n], rtol=1e-5, atol=1e-6 * float(grads[n].abs().max()))
    last = next(one[2] for one in found if one[2])
    assert all(torch.equal(a, b) for a, b in zip(last, scores, strict=True)) and sum(bool(one[2]) for one in found) == 1
