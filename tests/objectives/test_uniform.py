"""Uniform-state diffusion: its loss is the bound by brute force over all noise and all texts, whatever the schedule."""

import itertools
import math

import numpy as np
import pytest
import torch

from megatron.batch import Clean, Noise, Redrawn
from megatron.config import parse
from megatron.core.head import chunk_divergence
from megatron.flags import ConfigError
from megatron.likelihood.rows import Rows
from megatron.likelihood.scores import Estimators, posed_nll
from megatron.objectives import build, checked
from megatron.objectives.masked import MaskedDiffusion
from megatron.objectives.schedules import Schedule
from megatron.objectives.uniform import UniformDiffusion
from megatron.proof import trial
from megatron.proof.scoring import Posed
from megatron.proof.sources import ending, packed
from tests.objectives.test_schedules import FLAGS as OF_MASKS
from tests.objectives.test_schedules import LAYOUTS, words
from tests.test_bound import MASK, engine

V = 3
FLAGS = [*OF_MASKS[:-1], "udm"]


def law(share):
    """Of what replaces a token: the ids, then the mask."""
    return np.append(np.full(V, share / V), 1 - share)


def predicted(seen, seed=0):
    """A network: any distribution over the ids at each place, by all that is seen.  -> [n, V]"""
    rng = np.random.default_rng([seed, *seen])
    p = rng.random((len(seen), V)) ** 3 + 0.01
    return p / p.sum(1, keepdims=True)


def kl(q, p):
    there = q > 0
    return float((q[there] * np.log(q[there] / p[there])).sum())


def posterior(z, token, a_t, a_s, noise):
    """q(z_s | z_t = z, token), the token as a distribution over ids: by Bayes' rule from the two noise laws."""
    at_s = a_s * np.append(token, 0.0) + (1 - a_s) * noise
    step = (a_t / a_s) * (np.arange(V + 1) == z) + (1 - a_t / a_s) * noise[z]
    return at_s * step / (at_s * step).sum()


def in_steps(x, share, steps):
    """The bound of a process with so many steps, as in D3PM (Austin et al., arXiv:2107.03006), by sums over all noisy rows."""
    noise, total, n = law(share), 0.0, len(x)
    for k in range(1, steps + 1):
        a_t, a_s = 1 - k / steps, 1 - (k - 1) / steps
        for z in itertools.product(range(V + 1), repeat=n):
            chance = math.prod(a_t * (z[i] == x[i]) + (1 - a_t) * noise[z[i]] for i in range(n))
            if chance:
                p = predicted(z)
                each = (
                    kl(posterior(z[i], np.eye(V)[x[i]], a_t, a_s, noise), posterior(z[i], p[i], a_t, a_s, noise))
                    for i in range(n)
                )
                total += chance * sum(each)
    return total


def uniform(share=1.0, vocab=V, schedule="linear", **plain):
    return UniformDiffusion(plain=MaskedDiffusion(mask_id=vocab, eps=0.0, schedule=Schedule(name=schedule), **plain), share=share)


class Network:
    """`predicted` of rows."""

    def predict(self, seen):
        return torch.from_numpy(np.stack([predicted(row) for row in seen.tolist()])).log()


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_the_loss_is_the_limit_of_many_steps_and_a_bound_whatever_the_schedule(share):
    rows = packed(V, 2)
    losses = {
        name: Posed(name=name, objective=uniform(share, schedule=name)).on(rows)(Network()) for name in ("linear", "cosine")
    }
    row = 5
    coarse, fine = (in_steps(rows.tokens[row].tolist(), share, steps) for steps in (60, 120))
    for loss in losses.values():
        assert float(loss[row]) == pytest.approx(2 * fine - coarse, abs=2e-3) and 0.2 < float((-loss).exp().sum()) < 1
    torch.testing.assert_close(losses["linear"], losses["cosine"], rtol=0, atol=2e-4)
    padded = Posed(name="ending", objective=uniform(share)).on(ending(V, 2))(Network())
    assert float((-padded).exp().sum()) < 1


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_one_token_costs_its_entropy_where_the_network_says_how_likely_it_is_before_anything_is_seen(share):
    law = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    class Prior:
        def predict(self, seen):
            return law.log().expand(*seen.shape, V)

    loss = Posed(name="", objective=uniform(share)).on(packed(V, 1))(Prior())
    assert float((law * loss).sum()) == pytest.approx(float(-(law * law.log()).sum()), abs=1e-5)


def case(kept, share, vocab=11, rows=40, dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(rows, vocab, generator=draw, dtype=dtype)
    targets, seen = (torch.randint(vocab + more, (rows,), generator=draw) for more in (0, share < 1))
    seen[:10] = targets[:10]
    a = torch.full((rows,), kept, dtype=dtype)
    return logits, targets, Redrawn(seen, a, (1 - a) * share / vocab)


@pytest.mark.parametrize("kept", [1e-3, 0.3, 0.999])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_the_divergence_and_its_gradient_are_those_of_its_formula(kept, share):
    logits, targets, redrawn = case(kept, share)
    own = logits.clone().requires_grad_()
    z, a, b = redrawn.seen, redrawn.kept[:, None], redrawn.each[:, None]
    q, p = a * torch.nn.functional.one_hot(targets, 11) + b, a * own.softmax(-1) + b
    at = z.clamp(max=10)[:, None]
    ratio = torch.where(z < 11, (q.gather(1, at) / p.gather(1, at))[:, 0], 1.0)
    expected = (q * (q / p).log()).sum(1) + ratio - ratio.log() - 1
    (slope,) = torch.autograd.grad(expected.sum(), own)
    found, _, ours = chunk_divergence(logits.clone(), targets, redrawn, 11)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(ours, slope, rtol=1e-8, atol=1e-12)
    single, _, rough = chunk_divergence(logits.float(), targets, Redrawn(z, a[:, 0].float(), b[:, 0].float()), 11)
    assert float((single - found).abs().max()) < 1e-5 * float(found.max()) + 2e-6 * kept
    assert float((rough - slope).abs().max()) < 1e-5 * float(slope.abs().max())


def test_with_ids_alone_it_is_the_published_loss_of_uniform_state_diffusion():
    """Sahoo et al., arXiv:2506.10892, with their x-bar and theta-bar, at a linear schedule."""
    data = Clean(tokens=torch.arange(60).view(12, 5) % 7, scored=torch.ones(12, 5, dtype=torch.bool), index=torch.arange(12))
    batch = uniform(vocab=7, strata=12).pose(data, Noise(3, data.index), 0.0)
    logits = torch.randn(48, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, z, a = batch.targets.flatten(), batch.inputs.flatten(), batch.uniform[:, 0].double().repeat_interleave(4)[:, None]
    bar, theta = 7 * a * torch.nn.functional.one_hot(x, 7) + 1 - a, 7 * a * logits.softmax(-1) + 1 - a
    bar_z, theta_z = bar.gather(1, z[:, None]), theta.gather(1, z[:, None])
    inner = 7 / bar_z - 7 / theta_z - (bar / bar_z * (theta_z * bar / (theta * bar_z)).log()).sum(1, keepdim=True)
    published = (-1 / (7 * a) * inner)[:, 0]
    ours = chunk_divergence(logits, x, batch.known(), 7)[0] * batch.weights.flatten()
    torch.testing.assert_close(ours, published, rtol=1e-5, atol=1e-6)


def test_what_is_noised_and_how_often():
    tokens = torch.full((400, 51), 4)
    scored = torch.ones(400, 51, dtype=torch.bool)
    scored[:, :3], scored[200:, 30:] = False, False
    data = Clean(tokens=tokens, scored=scored, index=torch.arange(400))
    batch = uniform(0.4, vocab=10, strata=400, told=True).pose(data, Noise(3, data.index), 0.0)
    noised = torch.ones(400, 50, dtype=torch.bool)
    noised[:, :3] = False
    assert (
        (batch.inputs[:, :3] == 4).all() and torch.equal(batch.weights > 0, noised) and torch.equal(batch.scored, scored[:, :-1])
    )
    seen = batch.inputs[noised]
    counts = torch.bincount(seen, minlength=11) / len(seen)
    assert counts[10] == pytest.approx(0.6 * 0.5, abs=0.02) and counts[4] == pytest.approx(0.5 + 0.2 / 10, abs=0.02)
    assert torch.allclose(counts[[0, 1, 2, 3, 5, 6, 7, 8, 9]], torch.tensor(0.02), atol=0.005)
    t = uniform(0.4, vocab=10, strata=400).levels(Noise(3, data.index))
    assert torch.allclose(batch.level.double(), t, atol=1e-6) and torch.allclose(batch.uniform[:, 0].double(), 1 - t, atol=1e-6)


def test_no_share_of_ids_is_masked_diffusion():
    argv = [*FLAGS, "--noise-schedule", "cosine"]
    assert build(parse([*argv, "--uniform-share", "0"]), 9) == build(parse([*OF_MASKS, "--noise-schedule", "cosine"]), 9)
    known = checked(build(parse([*argv, "--uniform-share", "0.25", "--time-conditioning"]), 9))
    assert known.share == 0.25 and known.plain.schedule.name == "cosine" and known.reference().plain.schedule.name == "linear"
    assert known.slots(None).condition is not None


@pytest.mark.parametrize(
    "given, said",
    [
        ("--predict-reserved", "--predict-reserved predicts ids"),
        ("--eod-mask-loss", "--eod-mask-loss shows the ends"),
        ("--final-scores mixture --save x", "--final-scores mixture: of --objective udm"),
        ("--block-size 4", "--block-size would do nothing here"),
    ],
)
def test_what_it_does_not_go_with(given, said):
    with pytest.raises(ConfigError, match=said):
        parse([*FLAGS, *given.split()])


def test_a_score_is_what_validation_measures():
    network, objective = engine(False), uniform(0.5, vocab=MASK, strata=16)
    tokens = torch.arange(48).view(8, 6) % MASK
    scored = torch.ones_like(tokens, dtype=torch.bool)
    scored[:, -1] = False
    data = Clean(tokens=tokens, scored=scored, index=torch.arange(8))
    (found,) = network.score([objective.pose(data, Noise(2, data.index), 1.0)])
    rows = Rows(clean=data, steps=5)
    nll = posed_nll(network, objective, rows, Noise(2, data.index))
    assert nll.sum(1).numpy() == pytest.approx(found.loss, rel=1e-4)
    scores = Estimators(network, objective, rows, 2, 16)
    assert scores.score("nelbo").name.of == "reverse process" and scores.score("nelbo").draw(0).nll == pytest.approx(
        found.loss, rel=1e-4
    )
    with pytest.raises(ConfigError, match="the bound alone"):
        scores.score("chain")


@pytest.mark.slow
def test_one_experiment_at_every_layout(pool, corpus):
    argv = [*words(corpus), *"--objective udm --uniform-share 0.5 --noise-schedule cosine --time-conditioning".split()]
    alone = trial.train(argv, 4)
    for layout in LAYOUTS.values():
        found = pool.run(2, trial.train, [*argv, *layout.split()], 4)
        assert found[0].losses == pytest.approx(alone.losses, abs=5e-6) and found[0].norms == pytest.approx(alone.norms, rel=1e-4)
        assert found[0].validation == pytest.approx(alone.validation, abs=5e-6)
        assert {number: row for rank in found for number, row in rank.samples.items()} == alone.samples
