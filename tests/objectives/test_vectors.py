"""Text given a vector: where the vector stands, what is asked behind it, and that every layout poses and learns the same."""

from dataclasses import replace

import pytest
import torch

from megatron.batch import Clean, Noise
from megatron.config import parse
from megatron.core.transformer import GPT
from megatron.objectives import build, checked
from megatron.objectives.autoregressive import NextToken
from megatron.objectives.masked import MaskedDiffusion
from megatron.objectives.vectors import TextAndVector, TextGivenVector, VectorGivenText, levels
from tests import test_open
from tests.test_open import STEPS, close, job, tensors

MASK = 9


def told(text, **how):
    own = {"size": 3, "std": 0.02, "causal": text.causal, "exact": text.exact, "uses_mask": text.uses_mask}
    return checked(TextGivenVector(text=text, **own, **how))


def clean(rows, length):
    tokens = torch.arange(rows * (length + 1)).view(rows, -1) % MASK
    scored = torch.ones_like(tokens, dtype=torch.bool)
    scored[:, -1] = False
    return Clean(tokens=tokens, scored=scored, index=torch.arange(rows), vectors=torch.randn(rows, 3))


@pytest.mark.parametrize("text", [NextToken(), MaskedDiffusion(mask_id=MASK)])
def test_the_text_is_posed_as_alone_behind_the_place_of_its_vector(text):
    rows = clean(8, 5)
    alone, found = (one.pose(rows, Noise(1, rows.index), 0.0) for one in (text, told(text)))
    for name in ("inputs", "targets", "weights", "scored"):
        assert torch.equal(getattr(found, name)[:, 1:], getattr(alone, name))
    assert torch.equal(found.positions, torch.arange(6).expand(8, 6)) and torch.equal(found.latent, rows.vectors)
    if text.causal:  # the vector's place predicts the first token
        assert torch.equal(found.targets[:, 0], rows.tokens[:, 0]) and found.weights[:, 0].eq(1).all()
    else:
        assert not found.weights[:, 0].any() and not found.scored[:, 0].any()


def test_a_share_of_the_rows_is_told_nothing_and_validation_all():
    rows = clean(400, 2)
    found = told(NextToken(), dropped=0.3).pose(rows, Noise(1, rows.index), 0.0)
    nothing = found.latent_level == 1
    assert 0.22 < nothing.float().mean() < 0.38 and not found.latent[nothing].any()
    assert torch.equal(found.latent[~nothing], rows.vectors[~nothing])
    plain = told(NextToken(), dropped=0.3).reference()
    assert not plain.pose(rows, Noise(1, rows.index), 1.0).latent_level.any() and plain.given == "its vector"
    assert plain.untold().pose(rows, Noise(1, rows.index), 1.0).latent_level.all() and not plain.untold().given


def test_rows_without_vectors_are_refused():
    with pytest.raises(ValueError, match="rows have no vectors"):
        told(NextToken()).pose(replace(clean(2, 3), vectors=None), Noise(1, torch.arange(2)), 0.0)


# Vectors that are predicted


VECTOR = VectorGivenText(size=3, std=0.02, mask_id=MASK, strata=8)


def both(turns, drawn=False, **how):
    text = told(MaskedDiffusion(mask_id=MASK), **how)
    return checked(TextAndVector(text=text, vector=VECTOR, turns=turns, drawn=drawn, batch=4, weight=0.5))


def test_v_and_the_noised_vector_give_vector_and_noise_back():
    rows = clean(256, 4)
    batch = checked(VECTOR).pose(rows, Noise(1, rows.index), 0.0)
    a, s = (x[:, None] for x in levels(batch.latent_level))
    torch.testing.assert_close(a * batch.latent - s * batch.latent_target, rows.vectors)
    noise = s * batch.latent + a * batch.latent_target
    assert abs(noise.mean()) < 0.15 and abs(noise.std() - 1) < 0.1 and abs(float((noise * rows.vectors).mean())) < 0.15
    assert torch.equal(batch.inputs[:, 1:], rows.tokens[:, :-1]) and batch.asked.tolist() == list(range(0, 5 * 256, 5))
    assert batch.scored.sum() == 256 and batch.tokens_asked == 0
    assert sorted((batch.latent_level[:8] * 8).ceil().tolist()) == list(range(1, 9))  # strata
    hidden = replace(VECTOR, dropped=1.0).pose(rows, Noise(1, rows.index), 0.0).inputs[:, 1:]
    assert hidden.eq(MASK).all()


def test_a_row_that_fills_a_batch_asks_for_no_vector():
    rows = clean(4, 4)
    rows.scored[2:] = False
    for objective in (VECTOR, both((("joint", 1),))):
        batch = objective.pose(rows, Noise(1, rows.index), 0.0)
        assert batch.weights[:2, 0].all() and not batch.weights[2:].any() and not batch.scored[2:].any()


def test_a_steps_kind_follows_from_its_number():
    cycle = both((("l2t", 2), ("t2l", 1)))
    assert [cycle.kind(1, step) for step in range(6)] == ["l2t", "l2t", "t2l"] * 2
    drawn = both((("l2t", 3), ("joint", 1)), drawn=True)
    kinds = [drawn.kind(1, step) for step in range(400)]
    assert 0.68 < kinds.count("l2t") / 400 < 0.82 and kinds != [drawn.kind(2, step) for step in range(400)]
    rows = clean(8, 4)
    some = {name: x[:2] for name, x in vars(rows).items()}
    one = Clean(**some | {"index": rows.index[:2] + 8})  # of step 2, whichever rows a rank has
    assert cycle.pose(one, Noise(1, one.index), 0.0).latent_target is not None


def test_the_parts_of_a_joint_loss_are_told_apart():
    rows = clean(8, 4)
    objective = both((("joint", 1),))
    batch = objective.pose(rows, Noise(1, rows.index), 0.0)
    at = batch.asks_vector()
    nll = torch.where(at, 2.0, 3.0)
    (text, scored), (vector, count) = objective.split(batch, nll).tolist()
    weights = batch.weights.flatten()[batch.asked]
    assert (vector, count) == (16.0, 8) and scored == 32 and text == pytest.approx(float(3 * weights[~at].sum()))
    assert batch.weights[:, 0].tolist() == [2.0] * 8  # half of four tokens each
    nothing = both((("joint", 1),), dropped=1.0).pose(rows, Noise(1, rows.index), 0.0)
    assert not nothing.weights[:, 0].any() and not nothing.latent.any() and nothing.latent_level.eq(1).all()


@pytest.mark.parametrize(
    "name, flags",
    [("mdm", "--time-conditioning --latent-adaln"), ("mdm", "--latent-head"), ("ar", ""), ("t2l", ""), ("joint", "")],
)
def test_the_table_of_shapes_has_what_reads_and_predicts_vectors(name, flags):
    words = f"""--num-layers 2 --hidden-size 16 --num-attention-heads 2 --seq-length 10 --dry-run --data-kind pairs
        --latent-size 4 --tokenizer-type ByteTokenizer {flags}"""
    cfg = parse(words.split(), name, environ={})
    objective = build(cfg, 257)
    model = GPT(cfg.model, objective.causal, 1, slots=objective.slots(cfg.model))
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == {
        n: p.shape for n, p in cfg.model.shape().tensors().items()
    }
    assert cfg.model.shape().total() == sum(p.numel() for p in model.parameters())


# Every layout is one experiment

LAYOUTS = ["tp2", "tp2+sp", "pp2", "pp2+zero-bubble", "pp2xdp2+interleaved+zero3", "dp2", "dp2+zero1", "dp2+zero3"]
QUICK = ("tp2+sp", "pp2+zero-bubble")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    return job([], "vectors", save=str(folder))[0], folder


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS])
def test_turns_are_one_experiment_at_every_layout(pool, alone, tmp_path, name):
    logged, folder = alone
    world, flags = test_open.LAYOUTS[name]
    ranks = pool.run(world, job, flags.split(), "vectors", str(tmp_path))
    assert all(rank == ranks[0] for rank in ranks)
    close(ranks[0][0], logged)
    ours, theirs = tensors(tmp_path, STEPS), tensors(folder, STEPS)
    apart = {n: float((ours[n] - theirs[n]).abs().max()) for n in ours if "optimizer" not in n}
    assert {n: d for n, d in apart.items() if d > 2e-5} == {} and "model/readout.weight" in apart
    moved = pool.run(world, job, flags.split(), "vectors", None, str(folder / "step-00000002"))
    close(moved[0][0], logged[2:])
    close(job([], "vectors", load=str(tmp_path / "step-00000002"))[0], logged[2:])


def test_micro_batches_change_nothing(alone, monkeypatch):
    logged, _ = alone
    words = " ".join(test_open.FLAGS).replace("--micro-batch-size 2", "--micro-batch-size 3")
    monkeypatch.setattr(test_open, "FLAGS", words.split())
    close(job([], "vectors")[0], logged)


def test_each_turn_logs_its_own_loss(alone):
    logged, folder = alone
    said = [dict(step[3:]).keys() for step in logged]
    assert said == [{"text_loss"}, {"vector_loss"}, {"text_loss", "vector_loss"}, {"text_loss"}]
    assert job([], "vectors", load=str(folder / "step-00000002"))[0] == logged[2:]  # a restart, bit for bit
    first, last = tensors(folder, 1), tensors(folder, STEPS)
    for name in ("model/reader.weight", "model/readout.weight", "model/blocks.3.norm2.gate"):
        assert (first[name] != last[name]).any()
