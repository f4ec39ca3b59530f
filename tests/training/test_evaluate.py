import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron.batch import Noise
from megatron.config import Data, Model, Optim
from megatron.core.transformer import GPT
from megatron.data.datasets import SampleSpec, build_datasets
from megatron.engine.native import NativeEngine
from megatron.objectives.autoregressive import NextToken
from megatron.objectives.masked import MaskedDiffusion
from megatron.standard_errors import combined, half_width
from megatron.training.evaluate import Slice, bytes_per_token, cleans, data_error, evaluate, noise_error

MODEL = Model(
    num_layers=1,
    hidden_size=32,
    num_attention_heads=2,
    kv_channels=16,
    ffn_hidden_size=64,
    seq_length=16,
    vocab_size=257,
    padded_vocab_size=384,
    attention_dropout=0.0,
    hidden_dropout=0.0,
)


@pytest.fixture
def data(corpus):
    found = build_datasets(Data(data_path=[corpus], split="50,50,0"), SampleSpec(seq_length=16, seed=1, eval_seed=2))["valid"]
    return Slice(dataset=found, rows=40, seq_length=16, num_mc=2, seed=4321, score_first_token=False, bytes_per_token=1.0)


def engine(causal):
    return NativeEngine([GPT(MODEL, causal, 3, live_rows=258)], Optim(lr=1e-3))


def objective(name):
    return (NextToken() if name == "ar" else MaskedDiffusion(mask_id=257)).reference()


def scored_tokens(data, reference):
    batches = [reference.pose(clean, Noise(1, clean.index), 1.0) for clean in cleans(data, 0)]
    return [b.targets[b.scored].tolist() for b in batches]


def test_both_objectives_score_the_same_tokens_and_see_token_zero(data):
    assert scored_tokens(data, objective("ar")) == scored_tokens(data, objective("mdm"))
    assert sum(map(len, scored_tokens(data, objective("ar")))) == 40 * 15


def test_ar_is_exact_and_repeatable(data):
    first, second = (evaluate(engine(True), objective("ar"), data) for _ in range(2))
    assert first == second and first["bound"] == "exact" and first["loss_se_noise"] == 0.0
    assert first["loss"] == pytest.approx(math.log(257), abs=0.05)
    assert first["bits_per_byte"] == pytest.approx(first["loss"] / math.log(2))


def test_the_curve_moves_only_with_the_model(data):
    mdm = engine(False)
    assert evaluate(mdm, objective("mdm"), data) == evaluate(mdm, objective("mdm"), data)


def test_an_untrained_bound_is_the_log_of_the_vocabulary_within_its_error(data):
    """With a head that says nothing every token costs ln V, so the bound is ln V times sum(weights) / L.

    In the count form that is exactly ln V.
    """
    mdm = engine(False)
    with torch.no_grad():
        mdm.stages[0].embed.weight.zero_()
    found = evaluate(mdm, objective("mdm"), data)
    assert found["loss"] == pytest.approx(math.log(257), rel=1e-6) and found["loss_se_noise"] < 1e-5
    assert found["accuracy"] == pytest.approx(1 / 257)


def test_noise_error_predicts_the_scatter_of_independent_draws(data):
    mdm = engine(False)
    with torch.no_grad():  # losses that differ between tokens, so that the masks matter
        mdm.stages[0].embed.weight.mul_(60)
    found = [evaluate(mdm, objective("mdm"), replace(data, seed=s)) for s in range(60)]
    scatter = np.std([f["loss"] for f in found], ddof=1)
    assert np.sqrt(np.mean([f["loss_se_noise"] ** 2 for f in found])) == pytest.approx(scatter, rel=0.35)


def test_one_draw_has_no_noise_error():
    assert noise_error(np.ones((1, 40)), np.full(40, 15)) == (None, None)


@pytest.mark.parametrize("num_rows, num_draws", [(16, 2), (64, 2), (40, 4)])
def test_intervals_of_few_draws_cover_what_they_say(num_rows, num_draws):
    rng, scored = np.random.default_rng(0), np.full(num_rows, 10)
    found = [
        (l.sum() / l.shape[0] / scored.sum(), *noise_error(l, scored)) for l in rng.normal(0, 1, (2000, num_draws, num_rows))
    ]
    covered = np.mean([abs(mean) < half_width(error, df) for mean, error, df in found])
    assert covered == pytest.approx(0.95, abs=0.025)
    assert np.mean([abs(mean) < 1.96 * error for mean, error, _ in found]) < (0.75 if num_rows == 16 else 0.94)


def test_data_error_takes_the_noise_off():
    rng = np.random.default_rng(0)
    rows, noise = rng.normal(3, 0.3, 4000), rng.normal(0, 1.0, (4, 4000))
    loss = (rows + noise) * 15
    assert data_error(loss, np.full(4000, 15)) == pytest.approx(0.3 / math.sqrt(4000), rel=0.15)
    assert data_error(loss[:1], np.full(4000, 15)) == pytest.approx(math.sqrt(1.09) / math.sqrt(4000), rel=0.1)


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0])
def test_data_error_of_ragged_rows_is_that_of_the_reported_value(power):
    """Rows of 1 to 400 tokens whose nats per token fall with their length, do not depend on it, or rise with it."""
    rng, value, error = np.random.default_rng(0), [], []
    for _ in range(1500):
        scored = np.exp(rng.uniform(0, 6, 200)).round()
        loss = scored * (2 * (scored / 60) ** power + rng.normal(0, 0.3, 200)) + rng.normal(0, 4, (2, 200))
        value.append(loss.mean(0).sum() / scored.sum())
        error.append(data_error(loss, scored))
    noise = math.sqrt(4**2 / 2 * 200) / np.mean([np.exp(rng.uniform(0, 6, 200)).sum() for _ in range(200)])
    true = math.sqrt(np.var(value) - noise**2)
    assert math.sqrt(np.mean(np.square(error))) == pytest.approx(true, rel=0.06)
    center = np.mean(value)
    covered = np.mean([abs(v - center) < half_width(*combined((noise, None), (e, 199))) for v, e in zip(value, error)])
    assert covered == pytest.approx(0.95, abs=0.025)


def test_bytes_behind_the_scored_tokens(data):
    widths = np.arange(257) % 4 + 1
    expected = np.mean([widths[i] for row in scored_tokens(data, objective("ar")) for i in row])
    assert bytes_per_token(data, objective("ar"), widths) == pytest.approx(expected)


def test_slice_and_convention_are_named(data):
    assert data.fingerprint() != replace(data, rows=39).fingerprint() != replace(data, seed=1).fingerprint()
    assert data.convention(objective("mdm"))["scored_tokens"] == "1..15 of each row"
    assert data.convention(objective("ar"))["scored_tokens"] == "1..15 of each row"
    parity = replace(data, score_first_token=True)
    assert parity.convention(objective("mdm"))["scored_tokens"] == "0..15 of each row"
    assert parity.convention(objective("ar"))["scored_tokens"] == "1..16 of each row"
    assert sum(map(len, scored_tokens(parity, objective("mdm")))) == 40 * 16
