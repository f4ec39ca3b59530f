from dataclasses import replace

import pytest
import torch

from megatron.batch import Batch, asked_positions
from megatron.config import Model, Optim, Parallel
from megatron.core import checkpoint
from megatron.core.mesh import build_mesh
from megatron.core.transformer import GPT
from megatron.engine.native import NativeEngine
from megatron.errors import Mismatch

MODEL = Model(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=2,
    kv_channels=16,
    ffn_hidden_size=64,
    seq_length=8,
    vocab_size=50,
    padded_vocab_size=128,
    attention_dropout=0.0,
    hidden_dropout=0.0,
)
OPTIM = Optim(lr=1e-2, weight_decay=0.1, clip_grad=0.5)


def engine(seed=0, optim=OPTIM, model=MODEL):
    return NativeEngine([GPT(model, True, seed, live_rows=50)], optim)


def batch(seed=0, rows=4):
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (rows, 9), generator=rng)
    weights = torch.ones(rows, 8)
    return Batch(
        inputs=ids[:, :-1],
        targets=ids[:, 1:],
        weights=weights,
        scored=weights.bool(),
        positions=torch.arange(8).expand(rows, 8),
        index=torch.arange(rows),
        asked=asked_positions(weights),
    )


def poisoned(x):
    return replace(x, weights=torch.full_like(x.weights, torch.nan))


def state(e):
    return {p.name: p.tensor.clone() for p in e.pieces()}


def kept(e, folder, without=""):
    """The engine's checkpoint, but for one tensor."""
    return checkpoint.load(checkpoint.Saving(folder, 1, [p for p in e.pieces() if p.name != without], {}).finish())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_equals_plain_torch():
    """Clip and AdamW by torch itself on the same model, except for the decay of vectors, which is Megatron's: none."""
    ours, plain = engine(), GPT(MODEL, True, 0)
    matrices, vectors = [p for p in plain.parameters() if p.dim() > 1], [p for p in plain.parameters() if p.dim() == 1]
    adam = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, 0.999), weight_decay=0.1
    )
    for i in range(4):
        step = ours.step([batch(i)], 1e-2)
        loss = plain.train()(batch(i))[0] / 32
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        adam.step()
        adam.zero_grad()
        assert step.loss == pytest.approx(loss.item(), rel=1e-6) and step.grad_norm == pytest.approx(norm.item(), rel=1e-5)
        assert step.clipped_norm == pytest.approx(min(0.5, norm.item()), rel=1e-4)
    for p, q in zip(ours.stages[0].parameters(), plain.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_micro_batches_add_up_to_the_global_batch():
    whole, parts = engine(), engine()
    big = batch(rows=4)
    rows = {name: value for name, value in big.tensors().items() if name != "asked"}
    halves = [Batch(**{name: value[i : i + 2] for name, value in rows.items()}, asked=torch.arange(16)) for i in (0, 2)]
    a, b = whole.step([big], 1e-2), parts.step(halves, 1e-2)
    assert a.loss == pytest.approx(b.loss, abs=2e-6) and a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)


@pytest.mark.parametrize("bad", [0, 1])
def test_a_non_finite_step_touches_nothing(bad):
    e = engine()
    e.step([batch()], 1e-2)
    before = state(e)
    batches = [batch(1), batch(2)]
    batches[bad] = poisoned(batches[bad])
    assert e.step(batches, 1e-2).skipped and same(before, state(e))
    other = engine()
    other.step([batch()], 1e-2)
    assert e.step([batch(3)], 1e-2) == other.step([batch(3)], 1e-2) and same(state(e), state(other))


def test_save_and_load_are_bit_exact(tmp_path):
    a, b = engine(), engine(seed=9)
    for i in range(3):
        a.step([batch(i)], 1e-2)
    b.load(kept(a, tmp_path))
    assert same(state(a), state(b)) and a.step([batch(5)], 1e-2) == b.step([batch(5)], 1e-2) and same(state(a), state(b))


def test_weights_only_starts_the_optimizer_afresh(tmp_path):
    a, b = engine(), engine(seed=9)
    a.step([batch()], 1e-2)
    b.load(kept(a, tmp_path), weights_only=True)
    assert not [n for n in state(b) if "exp_avg" in n] and torch.equal(b.stages[0].embed.weight, a.stages[0].embed.weight)


def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_changes(tmp_path):
    e = engine()
    before = state(e)
    wrong = kept(engine(model=replace(MODEL, ffn_hidden_size=96)), tmp_path / "wide")
    with pytest.raises(Mismatch, match=r"model/blocks.0.mlp.up.weight has shape \[192, 32\], expected \[128, 32\]"):
        e.load(wrong)
    with pytest.raises(Mismatch, match="model/norm.weight is missing"):
        e.load(kept(e, tmp_path / "short", without="model/norm.weight"))
    assert same(before, state(e))


def test_rows_that_no_id_names_do_not_count_in_norms():
    e, padded = engine(), engine(model=replace(MODEL, padded_vocab_size=256))
    with torch.no_grad():
        padded.stages[0].embed.weight[60:] = 100.0
    assert e.params_norm() == padded.params_norm()
    assert e.step([batch()], 1e-2).grad_norm == padded.step([batch()], 1e-2).grad_norm


def test_score_gives_each_row_its_own_sums():
    e, x = engine(), batch()
    weights = x.weights.clone()
    weights[1, 3:] = 0
    x = replace(x, weights=weights, asked=asked_positions(weights))
    scores = e.score([x])[0]
    assert scores.asked.tolist() == [8, 3, 8, 8] and scores.scored.tolist() == [8] * 4
    with torch.no_grad():
        total, nll, hit = e.stages[0].eval()(x)
    assert scores.loss.sum() == pytest.approx(float(total), rel=1e-6)
    assert scores.loss[1] == pytest.approx(float(nll[8:11].sum()), rel=1e-6)
    assert scores.hits.sum() == float(hit.sum())


LAYOUTS = {
    "dp2": {},
    "zero1": {"zero_stage": 1},
    "zero3": {"zero_stage": 3},
    "tp2": {"tensor_model_parallel_size": 2},
    "pp2": {"pipeline_model_parallel_size": 2},
}


def engine_at(flags, seed=0, optim=OPTIM):
    parallel = Parallel(**{"pipeline_schedule": "1f1b", "world_size": 2} | flags)
    mesh = build_mesh(parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size)
    plan = parallel.stages(MODEL.num_layers)
    layers = [plan.layers[number] for number in plan.of_rank(mesh.pp.rank)]
    stages = [GPT(MODEL, True, seed, tp=mesh.tp, layers=each, live_rows=50) for each in layers]
    return NativeEngine(stages, optim, parallel, mesh)


def part_of(seed, mesh):
    """This replica's rows of a batch of four."""
    rows = slice(mesh.dp.rank * 4 // mesh.dp.size, (mesh.dp.rank + 1) * 4 // mesh.dp.size)
    found = {name: value[rows] for name, value in batch(seed).tensors().items() if name != "asked"}
    return Batch(**found, asked=asked_positions(found["weights"]))


def skip_and_resume(flags, folder):
    """A step that is not finite on the last replica alone, and a restart; what each rank saw of both."""
    e = engine_at(flags)
    e.step([part_of(0, e.mesh), part_of(1, e.mesh)], 1e-2)
    before, poison = state(e), part_of(2, e.mesh)
    poison = poisoned(poison) if e.mesh.dp.rank == e.mesh.dp.size - 1 else poison
    skipped = e.step([part_of(3, e.mesh), poison], 1e-2).skipped
    untouched = same(before, state(e))
    path = checkpoint.Saving(folder, 1, e.pieces(), {}, group=e.mesh.control, say=lambda line: None).finish()
    other = engine_at(flags, seed=9)
    other.load(checkpoint.load(path, group=e.mesh.control))
    again = [one.step([part_of(4, e.mesh), part_of(5, e.mesh)], 1e-2) for one in (e, other)]
    return skipped, untouched, again[0] == again[1] and same(state(e), state(other)), again[0].loss


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_skip_together_and_restart_bit_for_bit(pool, tmp_path, layout):
    found = pool.run(2, skip_and_resume, LAYOUTS[layout], tmp_path)
    alone = engine()
    for seeds in ((0, 1), (4, 5)):
        last = alone.step([batch(seed) for seed in seeds], 1e-2)
    assert all(one[:3] == (True, True, True) for one in found)
    assert len({one[3] for one in found}) == 1 and found[0][3] == pytest.approx(last.loss, abs=2e-6)
