"""Whatever the schedule, the mean of the training loss is one number on one model; what each choice changes, and what not."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch

from megatron.batch import Clean, Noise
from megatron.catalogue import OBJECTIVES
from megatron.config import declared, parse
from megatron.objectives import build
from megatron.objectives.masked import MaskedDiffusion
from megatron.objectives.schedules import SCHEDULES, Schedule
from megatron.proof import trial

MASK, LENGTH, ROWS = 9, 3, 8192
PATTERNS = torch.tensor(list(itertools.product((False, True), repeat=LENGTH)))
FLAGS = """--num-layers 1 --hidden-size 8 --num-attention-heads 1 --seq-length 8 --global-batch-size 8 --train-iters 10 --lr 1
    --data-path x --objective mdm""".split()


def clean(rows, length=LENGTH):
    tokens = torch.arange(rows * (length + 1)).view(rows, -1) % MASK
    return Clean(tokens=tokens, scored=torch.ones_like(tokens, dtype=torch.bool), index=torch.arange(rows))


def posed(objective, rows=ROWS, length=LENGTH, progress=0.0):
    data = clean(rows, length)
    return objective.pose(data, Noise(5, data.index), progress)


def nll(hidden):
    """An arbitrary tabular model: of each place, given which are visible.  [r, 3] -> [r, 3]"""
    seen, place = (~hidden).double(), torch.arange(hidden.shape[1])
    return 0.5 + 0.3 * place + 0.7 * seen.sum(1, keepdim=True) ** 1.5 / (1 + place) + 0.2 * (seen * place).sum(1, keepdim=True)


def hidden_loss(m):
    """The mean NLL of what is hidden with probability m, a token, by enumeration."""
    chance = torch.where(PATTERNS, m, 1 - m).prod(1)
    return float((chance * (nll(PATTERNS) * PATTERNS).sum(1)).sum()) / LENGTH


def bound(low, high):
    """The integral of hidden_loss(m) / m from `low` to `high`."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    levels = (nodes + 1) / 2 * (high - low) + low
    return sum(w / 2 * (high - low) * hidden_loss(m) / m for m, w in zip(levels, weights))


def estimate(objective):
    batch = posed(objective)
    values = (batch.weights * nll(batch.inputs == MASK)).sum(1) / LENGTH
    return float(values.mean()), float(values.std()) / math.sqrt(ROWS)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_moves_the_draws_and_not_their_mean(name):
    schedule = Schedule(name=name, power=3.0, sigma_min=1e-3, sigma_max=5.0)
    eps = 1e-3 if name == "importance" else 0.0
    t, step = torch.linspace(0.05, 0.95, 19, dtype=torch.float64), 1e-5
    m, slope = SCHEDULES[name](t, eps, schedule)
    above, below = (SCHEDULES[name](t + d, eps, schedule)[0] for d in (step, -step))
    torch.testing.assert_close((above - below) / (2 * step), slope, rtol=1e-6, atol=1e-9)
    (low, high), _ = SCHEDULES[name](torch.tensor([1e-16, 1.0], dtype=torch.float64), eps, schedule)
    value, error = estimate(MaskedDiffusion(mask_id=MASK, eps=eps, strata=64, schedule=schedule))
    assert error < 0.08 and abs(value - bound(float(low), float(high))) < 4 * error
    everything = bound(0.0, 1.0)
    assert abs(everything - bound(float(low), float(high))) < 0.01 * everything  # what a schedule leaves out at its ends


@pytest.mark.parametrize("name, steps", [("linear", 1), ("cosine", 4), ("geometric", 6)])
def test_discrete_time_sums_over_its_steps(name, steps):
    schedule, zero = Schedule(name=name, steps=steps), torch.zeros(1, dtype=torch.float64)
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    m = torch.cat((zero, SCHEDULES[name](times, 0.0, schedule)[0])).tolist()
    expected = sum((now - before) / now * hidden_loss(now) for before, now in zip(m, m[1:]))
    value, error = estimate(MaskedDiffusion(mask_id=MASK, eps=0.0, schedule=schedule))
    assert abs(value - expected) < 4 * error + 1e-6
    assert posed(MaskedDiffusion(mask_id=MASK, eps=0.0, schedule=Schedule(steps=1)), 4).inputs.eq(MASK).all()


def test_weights_are_finite_at_the_ends_of_time():
    ends = torch.tensor([2.0**-53, 1e-9, 1.0], dtype=torch.float64)
    for name, steps in itertools.product(SCHEDULES, (None, 1000)):
        m, inverse = Schedule(name=name, steps=steps).rates(ends, 1e-3)
        assert (m >= 0).all() and (m <= 1).all() and (inverse > 0).all(), name
        assert (m / inverse.float() < 1e3 * 20).all() and not inverse.isnan().any(), name


def test_names_of_flag_and_table_are_one():
    assert get_args(declared()["noise_schedule"][2]) == tuple(SCHEDULES)


def test_antithetic_times_are_opposite_in_pairs_and_belong_to_the_sample():
    t = Noise(3, torch.arange(64)).antithetic()
    assert torch.allclose(t[::2] + t[1::2], torch.ones(32, dtype=torch.float64)) and len(t.unique()) == 64
    assert torch.equal(Noise(3, torch.arange(5, 9)).antithetic(), t[5:9])
    assert not torch.equal(t, Noise(3, torch.arange(64)).independent())


def test_low_noise_start_ends():
    plain = posed(MaskedDiffusion(mask_id=MASK), 64, 32)
    started = MaskedDiffusion(mask_id=MASK, low_noise_until=0.25, low_noise_ratio=0.5)
    early, late = (posed(started, 64, 32, progress) for progress in (0.2499, 0.25))
    assert torch.equal(late.inputs, plain.inputs) and torch.equal(late.weights, plain.weights)
    hidden, fewer = plain.inputs == MASK, early.inputs == MASK
    assert (hidden | ~fewer).all() and int(fewer.sum()) == pytest.approx(0.5 * int(hidden.sum()), rel=0.1)


def test_left_to_right_rows_hide_their_last_tokens_and_as_many():
    plain = posed(MaskedDiffusion(mask_id=MASK, eps=0.0), 256, 32)
    hidden = plain.inputs == MASK
    for share in (0.5, 1.0):
        batch = posed(MaskedDiffusion(mask_id=MASK, eps=0.0, left_to_right=share), 256, 32)
        now = batch.inputs == MASK
        at_end = (now.long().diff(dim=1) >= 0).all(1)
        assert torch.equal(now.sum(1), hidden.sum(1)) and float(at_end.float().mean()) == pytest.approx(share, abs=0.1)
        torch.testing.assert_close(batch.weights.sum(1), plain.weights.sum(1))
        assert torch.equal(now[~at_end], hidden[~at_end])
    nothing = MaskedDiffusion(mask_id=MASK, eps=0.0, left_to_right=1.0, low_noise_until=1.0, low_noise_ratio=1e-9)
    assert posed(nothing, 64).weights.sum() == 0  # and not every token of the row


def test_rows_of_random_length_see_and_ask_nothing_behind_it_and_keep_their_weight():
    objective = MaskedDiffusion(mask_id=MASK, eps=0.0, random_length=0.5)
    batch, plain = posed(objective, 512, 32), posed(MaskedDiffusion(mask_id=MASK, eps=0.0), 512, 32)
    length = 32 - batch.segments.sum(1)
    cut = length < 32
    assert float(cut.float().mean()) == pytest.approx(0.5, abs=0.08) and set(length.tolist()) == set(range(1, 33))
    assert torch.equal(batch.inputs, plain.inputs) and torch.equal(batch.scored, plain.scored)
    assert torch.equal(batch.weights[~cut], plain.weights[~cut]) and (batch.weights[batch.segments == 1] == 0).all()
    kept = batch.segments == 0
    torch.testing.assert_close(batch.weights[kept], (plain.weights * (32 / length)[:, None])[kept])
    torch.testing.assert_close(batch.level, ((batch.inputs == MASK) & kept).sum(1) / length)
    assert posed(MaskedDiffusion(mask_id=MASK, random_length=1e-9), 8).segments is None


def test_the_low_variance_loss_counts_each_hidden_token_once():
    bounded, plain = (posed(MaskedDiffusion(mask_id=MASK, low_variance=low), 64, 32) for low in (False, True))
    assert torch.equal(plain.weights, (bounded.inputs == MASK).float()) and torch.equal(plain.inputs, bounded.inputs)


TRAINING_ONLY = [
    "--noise-schedule cosine --mdm-t-sampling antithetic",
    "--noise-schedule polynomial --noise-power 3 --noise-steps 8",
    "--noise-schedule geometric --noise-sigma-min 1e-3 --noise-sigma-max 10 --mdm-loss low-variance",
    "--low-noise-start --low-noise-iter 5 --ar-ratio 0.5 --random-length-prob 0.01",
]


@pytest.mark.parametrize("words", TRAINING_ONLY)
def test_training_poses_what_flags_say_and_validation_the_plain_bound(words):
    objective = build(parse([*FLAGS, *words.split()]), MASK)
    assert objective != build(parse(FLAGS), MASK)
    assert objective.reference() == build(parse(FLAGS), MASK).reference()
    data = clean(16, 8)
    given, plain = (o.pose(data, Noise(1, data.index), 0.0) for o in (objective, build(parse(FLAGS), MASK)))
    assert not torch.equal(given.weights, plain.weights)


def test_build_reads_all_flags():
    assert build(parse([*FLAGS, *TRAINING_ONLY[3].split()]), MASK).low_noise_until == 0.5
    assert build(parse([*FLAGS, *"--low-noise-start --low-noise-fraction 0.2".split()]), MASK).low_noise_until == 0.2
    assert build(parse([*FLAGS, *TRAINING_ONLY[1].split()]), MASK).schedule == Schedule(name="polynomial", power=3.0, steps=8)
    told = build(parse([*FLAGS, "--time-conditioning"]), MASK)
    assert told.told and told.reference().told and told.slots(None).condition.mask_id == MASK
    assert build(parse(FLAGS), MASK).slots(None).condition is None and OBJECTIVES["mdm"].uses_mask


LAYOUTS = {
    "tp2+sp": "--tensor-model-parallel-size 2 --sequence-parallel",
    "pp2": "--pipeline-model-parallel-size 2",
    "dp2+zero3": "--zero-stage 3",
}
EVERYTHING = """--objective mdm --noise-schedule cosine --mdm-t-sampling antithetic --time-conditioning --ar-ratio 0.3
    --random-length-prob 0.4 --low-noise-start --low-noise-iter 2"""


def words(corpus):
    return f"""--num-layers 2 --hidden-size 32 --num-attention-heads 2 --ffn-hidden-size 64 --seq-length 16 --lr 1e-2
        --global-batch-size 8 --micro-batch-size 2 --train-iters 4 --attention-dropout 0 --hidden-dropout 0.1 --eval-iters 2
        --data-path {corpus} --tokenizer-type ByteTokenizer --log-interval 1 --device cpu --num-threads 1""".split()


def test_all_of_it_is_one_experiment_at_every_layout(pool, corpus):
    argv = [*words(corpus), *EVERYTHING.split()]
    alone = trial.train(argv, 4)
    for layout in LAYOUTS.values():
        found = pool.run(2, trial.train, [*argv, *layout.split()], 4)
        assert all(rank.losses == found[0].losses for rank in found)
        assert found[0].losses == pytest.approx(alone.losses, abs=5e-6) and found[0].norms == pytest.approx(alone.norms, rel=1e-4)
        assert found[0].validation == pytest.approx(alone.validation, abs=5e-6)
        assert {number: row for rank in found for number, row in rank.samples.items()} == alone.samples
