"""Estimators on a table, against sums over everything."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron.batch import Noise
from megatron.core.mesh import Mesh
from megatron.flags import ConfigError
from megatron.likelihood.measure import compare, difference
from megatron.likelihood.orders import chain
from megatron.likelihood.scores import Estimators, posed_nll
from megatron.objectives.autoregressive import NextToken
from megatron.objectives.block import BlockDiffusion
from megatron.objectives.masked import MaskedDiffusion
from megatron.proof.sources import packed, sources

ORDERS = list(itertools.permutations((1, 2, 3)))
SCORES = [
    "nelbo",
    "nelbo:independent",
    "nelbo:bernoulli",
    "chain",
    "korder:4",
    "korder:16",
    "mixture",
    "tangent:16",
    "rule:entropy:2",
]
SCORES += ["chain/2", "korder:8/2", "mixture/2", "tangent:4/2"]


@pytest.fixture
def estimators(model, rows):
    return Estimators(model, MaskedDiffusion(mask_id=model.mask).reference(), rows, 1, 3)


class Fixed(Noise):
    """A row's uniforms have one given order, and its level is t."""

    def __init__(self, index, order, t):
        super().__init__(0, index)
        self.row, self.t = torch.tensor([0.5, *((order.index(place) + 0.5) / 3 for place in (1, 2, 3))]), t

    def uniform(self, purpose, *shape):
        return self.row.expand(len(self.index), -1)

    def stratified(self, strata):
        return torch.full((len(self.index),), self.t, dtype=torch.float64)


def test_the_count_form_is_the_mean_over_orders(estimators, model, rows):
    posed = [
        posed_nll(model, estimators.objective, rows, Fixed(rows.clean.index, order, k / 3)) for order in ORDERS for k in (1, 2, 3)
    ]
    chains = [chain(model, rows, torch.tensor([*order, 0]).expand(27, -1), model.mask) for order in ORDERS]
    assert torch.stack(posed).mean(0).sum(1).numpy() == pytest.approx(torch.stack(chains).mean(0).sum(1).numpy(), rel=1e-6)


def test_scores_agree_within_their_errors_and_lie_in_order(estimators):
    found = compare(estimators, SCORES, np.full(27, 3), 64)
    by_name = {entry["score"]: entry for entry in found["scores"]}
    exact = estimators.score("mixture").draw(0).nll.mean()
    assert by_name["mixture"]["nats_per_token"] == pytest.approx(exact / 3) and by_name["mixture"]["value"] == "exact"
    assert found["in_order"] and [pair["expected"] for pair in found["sandwich"]] == ["equal"] * 3 + ["not negative"] * 7
    assert [pair["above"] for pair in found["sandwich"]][3:] == ["chain", "korder:4", "korder:16", "mixture"] + SCORES[-4:-1]
    for name in SCORES[1:4]:
        apart = by_name[name]["nats_per_token"] - by_name["nelbo"]["nats_per_token"]
        assert abs(apart) < 4 * np.hypot(by_name[name]["se_noise"], by_name["nelbo"]["se_noise"])
    closed = by_name["korder:16"]["minus_mean_of_its_orders"]["nats_per_token"]
    assert closed < -0.1 and by_name["chain"]["draws"] == 64 == by_name["chain"]["num_orders"]
    predicted, gap = by_name["chain"]["predicted_gap_to_mixture"], by_name["mixture"]["minus_nelbo"]["nats_per_token"]
    assert predicted == pytest.approx(-gap, rel=0.5)
    assert (
        by_name["tangent:16"]["value"] == "lower bound"
        and by_name["rule:entropy:2"]["of"] == "sampler by entropy, 2 tokens a step"
    )
    names = ("nelbo", "chain", "korder:16", "mixture", "tangent:16", "rule:entropy:2", "mixture/2", "tangent:4/2")
    forwards = [64, 192, 48, 7, 51, 2, 4, 5 * 4]
    assert [by_name[n]["forwards_per_row"] for n in names] == forwards


def test_a_pilot_takes_the_estimator_with_the_least_noise_a_pass(estimators):
    """Where all orders of a text are alike, one of them is exact, and the noise level is all the noise of the count form."""
    estimators.model.table[:] = torch.randn(1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (entry,) = compare(estimators, ["nelbo:pilot"], np.full(27, 3), 2)["scores"]
    costs = entry["pilot"]["candidates"]
    assert entry["pilot"]["chosen"] == "chain" and costs["chain"]["sd"] < 1e-12 < costs["nelbo"]["sd"]
    assert entry["score"] == "nelbo:pilot" and entry["forwards_per_row"] == 6
    assert costs["nelbo"]["sd"] < costs["nelbo:bernoulli"]["sd"]


class Posterior:
    """A model that knows the law of all texts of three places, and draws every conclusion from what it sees."""

    mesh = Mesh()

    def __init__(self, law):
        self.law = law

    def logits(self, batches):
        whole = [torch.nn.functional.pad(self.law.predict(batch.inputs[:, 1:]), (0, 0, 1, 0)) for batch in batches]
        return [logits.flatten(0, 1)[batch.asked] for logits, batch in zip(whole, batches)]


def test_no_score_is_below_the_floor_and_the_best_are_at_it(model, rows):
    """Texts of a Markov chain, whose probability is known: revealed one by one in any order they cost just that."""
    law = next(source for source in sources(packed(3, 3)) if source.name == "markov")
    drawn = torch.multinomial(law.law, 512, replacement=True, generator=torch.Generator().manual_seed(0))
    texts = replace(rows.take(drawn), clean=replace(rows.take(drawn).clean, index=torch.arange(512)))
    estimators = Estimators(Posterior(law), MaskedDiffusion(mask_id=model.mask).reference(), texts, 1, 3)
    scored, floor = np.full(512, 3), -law.law[drawn].log().numpy()
    at_it = ["chain", "korder:4", "mixture", "tangent:4", "rule:confidence", "rule:entropy/2", "mixture/2"]
    for name in [*at_it, "nelbo", "nelbo:bernoulli", "rule:margin:2", "rule:confidence:3"]:
        draws = [estimators.score(name).draw(number).nll for number in range(4)]
        above = difference(np.mean(draws, 0), floor, scored)
        assert above["nats_per_token"] > -3 * above["se"] - 1e-9, name
        assert name not in at_it or above["nats_per_token"] == pytest.approx(0, abs=1e-9), name
        assert ":2" not in name and ":3" not in name or above["nats_per_token"] > 3 * above["se"], name


def test_draws_go_on_until_the_noise_is_small(estimators, monkeypatch):
    (entry,) = compare(estimators, ["nelbo"], np.full(27, 3), 2, tolerance=0.02)["scores"]
    assert entry["draws"] > 8 and entry["se_noise"] <= 0.02
    monkeypatch.setattr("megatron.likelihood.scores.MOST_DRAWS", 8)
    with pytest.raises(ConfigError, match="--nll-tolerance: not reached after 8 draws of nelbo"):
        compare(estimators, ["nelbo"], np.full(27, 3), 2, tolerance=1e-9)


@pytest.mark.parametrize(
    "name, said",
    [
        ("elbo", "expected nelbo, nelbo:bernoulli"),
        ("exact", "give nelbo, korder:K, rule:NAME"),
        ("korder:0", "expected nelbo"),
        ("tangent:2", "its slack explodes; give tangent:4 or more"),
        ("nelbo/4", "give nelbo without it, or chain/4"),
        ("rule:luck", "with NAME one of left-to-right, confidence, margin, entropy"),
        ("rule:margin:0", "rule:NAME"),
    ],
)
def test_scores_that_do_not_exist(estimators, name, said):
    with pytest.raises(ConfigError, match=said):
        estimators.score(name)


def test_of_block_diffusion_the_bound_alone_is_computed(model, rows):
    block = BlockDiffusion(mask_id=model.mask, block=2).reference()
    with pytest.raises(ConfigError, match="--score chain: of a run with --block-size"):
        Estimators(model, block, rows, 1, 3).score("chain")
    assert Estimators(model, block, rows, 1, 3).score("nelbo").random


def test_an_autoregressive_model_has_one(model, rows):
    with pytest.raises(ConfigError, match="one order, and its NLL is exact; give exact"):
        Estimators(model, NextToken(), rows, 1, 3).score("nelbo")
