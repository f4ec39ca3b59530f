"""The gradient noise scale against a known one, and micro-batch by micro-batch; at layouts that have the same ones."""

from dataclasses import replace

import pytest
import torch

from megatron.batch import Batch, asked_positions
from megatron.config import ConfigError, Optim, Parallel, parse
from megatron.core.mesh import build_mesh
from megatron.core.transformer import GPT
from megatron.engine.native import NativeEngine
from megatron.engine.noise_scale import estimate, noise_scale, smoothed
from tests.engine.test_native import MODEL, batch, same, state

OPTIM = Optim(lr=1e-2, clip_grad=0.1)


def test_ragged_micro_batches_find_the_known_noise_and_signal():
    """Gradients of samples G + e, e normal with trace 80, in micro-batches of 1, 2, 5 and 8 samples."""
    rng = torch.Generator().manual_seed(0)
    true, deviation, sizes = torch.full((20,), 0.5), 2.0, [1, 2, 5, 8]
    kept, ratios, found = (0.0, 0.0), [], []
    for _ in range(4000):
        each = [true + deviation / n**0.5 * torch.randn(20, generator=rng) for n in sizes]
        whole = sum(g * n / 16 for g, n in zip(each, sizes))
        weighted = sum(float(g @ g) * n / 16 for g, n in zip(each, sizes))
        found.append(estimate([weighted, 4, 16], float(whole @ whole)))
        kept = smoothed(kept, found[-1])
        ratios.append(found[-1][0] / found[-1][1])
    noise, signal = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
    assert noise == pytest.approx(80, rel=0.02) and signal == pytest.approx(5, rel=0.02)
    assert noise_scale(*kept)["gradient_noise_scale"] == pytest.approx(16, rel=0.15)
    assert noise_scale(*smoothed((0.0, 0.0), (3.0, 2.0))) == {"gradient_noise_scale": pytest.approx(1.5)}
    assert estimate([1.0, 1, 4], 1.0) is None and noise_scale(1.0, -1.0) == {}


def ragged() -> list[Batch]:
    """Four micro-batches of two rows; of the third only some positions count, of the last only one row."""
    found = [batch(i, rows=2) for i in range(4)]
    for i, (row, columns) in {2: (slice(0, 2), slice(3, 8)), 3: (slice(1, 2), slice(0, 8))}.items():
        weights = found[i].weights.clone()
        weights[row, columns] = 0
        found[i] = replace(found[i], weights=weights, scored=weights.bool(), asked=asked_positions(weights))
    return found


def engine(parallel: Parallel, mesh, noise_scale=True) -> NativeEngine:
    return NativeEngine([GPT(MODEL, True, 0, tp=mesh.tp, live_rows=50)], OPTIM, parallel, mesh, noise_scale)


def test_equals_gradients_of_micro_batches_one_by_one_and_leaves_training_alone():
    parallel, mesh, parts = Parallel(), build_mesh(), ragged()
    e, plain = engine(parallel, mesh), engine(parallel, mesh, noise_scale=False)
    sizes, gradients = [int(b.scored.sum()) for b in parts], []
    for b, n in zip(parts, sizes):
        model = GPT(MODEL, True, 0, live_rows=50).train()
        (model(b)[0] / n).backward()
        gradients.append(torch.cat([p.grad.flatten().double() for p in model.parameters()]))
    rows, whole = 7, sum(g * n for g, n in zip(gradients, sizes)) / sum(sizes)
    scatter = sum(n / sum(sizes) * float((g - whole) @ (g - whole)) for g, n in zip(gradients, sizes))
    noise = scatter * rows / 3
    step = e.step(parts, 1e-2)
    assert step.spread == pytest.approx((noise, float(whole @ whole) - noise / rows), rel=1e-5)
    assert replace(step, spread=None) == plain.step(parts, 1e-2) and same(state(e), state(plain))


def spread_at(tp: int, dp: int, sequence: bool, zero_stage: int) -> tuple[float, float]:
    mesh = build_mesh(tp, 1, sequence)
    parallel = Parallel(tensor_model_parallel_size=tp, sequence_parallel=sequence, zero_stage=zero_stage, world_size=tp * dp)
    e, parts = engine(parallel, mesh), ragged()
    mine = parts[mesh.dp.rank * 4 // dp : (mesh.dp.rank + 1) * 4 // dp]
    e.step(mine, 1e-2)
    return e.step(mine, 1e-2).spread


@pytest.mark.parametrize("tp, dp, sequence, zero_stage", [(1, 2, False, 0), (2, 2, True, 1)])
def test_layouts_with_the_same_micro_batches_say_the_same(pool, tp, dp, sequence, zero_stage):
    [alone] = pool.run(1, spread_at, 1, 1, False, 0)
    for found in pool.run(tp * dp, spread_at, tp, dp, sequence, zero_stage):
        assert found == pytest.approx(alone, rel=1e-4)


def test_where_it_cannot_be_it_is_refused():
    words = """--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 8 --train-iters 3 --lr 1e-3
        --train-data-path x --tokenizer-type ByteTokenizer --log-gradient-noise-scale --global-batch-size 4""".split()
    assert parse([*words, "--micro-batch-size", "2"]).log.log_gradient_noise_scale
    with pytest.raises(ConfigError, match="compares micro-batches, and a step of 4 samples is one: give a smaller"):
        parse([*words, "--micro-batch-size", "4"])
    with pytest.raises(ConfigError, match="sees each micro-batch's gradient whole, which a pipeline"):
        parse([*words, "--deepspeed"])
