"""Own re-creations of losses that are no bound, each caught, and of valid ones, tight and loose."""

import pytest
import torch

from megatron.errors import BadData
from megatron.objectives.autoregressive import NextToken
from megatron.objectives.masked import MaskedDiffusion
from megatron.objectives.schedules import Schedule
from megatron.proof.audit import BIASED, LOOSE, NOT_A_BOUND, TIGHT, audit
from megatron.proof.scoring import Posed, rule

MASK = 3  # of the three tokens that rules which draw are audited with


def cost(predict, tokens, hidden, vocab):
    """NLL of the hidden tokens, 0 elsewhere.  -> [r, n]"""
    return -predict(tokens.masked_fill(hidden, vocab)).gather(2, tokens[..., None])[..., 0] * hidden


def count(hidden):
    return hidden.sum(1).clamp(min=1)


def elbo(tokens, vocab, predict, t, uniform):
    return cost(predict, tokens, uniform < t[:, None], vocab).sum(1) / t


def no_weight(tokens, vocab, predict, t, uniform):
    return cost(predict, tokens, uniform < t[:, None], vocab).sum(1)


def empty_rows_as_zero(tokens, vocab, predict, t, uniform):
    hidden = uniform < t[:, None]
    return cost(predict, tokens, hidden, vocab).sum(1) * tokens.shape[1] / count(hidden)


def clipped_level(tokens, vocab, predict, t, uniform):
    return elbo(tokens, vocab, predict, t, uniform)


clipped_level.levels = (0.3, 0.8)


def pooled(tokens, vocab, predict, t, uniform):
    """The masked tokens of a large batch under one mean: every one counts 1 / E[t] = 2."""
    return 2 * cost(predict, tokens, uniform < t[:, None], vocab).sum(1)


def mean_per_token(tokens, vocab, predict, t, uniform):
    return elbo(tokens, vocab, predict, t, uniform) / tokens.shape[1]


def exponentiated(tokens, vocab, predict, t, uniform):
    return elbo(tokens, vocab, predict, t, uniform)


exponentiated.average = "likelihood"


def one_count_draw(tokens, vocab, predict, t, uniform):
    k = (t * tokens.shape[1]).ceil()[:, None]
    return cost(predict, tokens, uniform.argsort(1).argsort(1) < k, vocab).sum(1) * tokens.shape[1] / k[:, 0]


one_count_draw.average = "likelihood"


def chain(tokens, vocab, predict, order):
    """Reveal the places one by one in an order [r, n] -> [r] nats."""
    hidden, total = torch.ones_like(tokens, dtype=torch.bool), 0.0
    for place in order.T[..., None]:
        total = total + cost(predict, tokens, hidden, vocab).gather(1, place)[:, 0]
        hidden = hidden.scatter(1, place, False)
    return total


def one_order(tokens, vocab, predict):
    return chain(tokens, vocab, predict, torch.arange(tokens.shape[1]).flip(0).expand(tokens.shape))


def order_mixture(tokens, vocab, predict, uniform):
    return chain(tokens, vocab, predict, uniform.argsort(1))


order_mixture.average = "likelihood"


def best_first(tokens, vocab, predict):
    """Of the places that are left, the one whose true token is likeliest: the text chooses its order."""
    hidden, total = torch.ones_like(tokens, dtype=torch.bool), 0.0
    for _ in range(tokens.shape[1]):
        costs = cost(predict, tokens, hidden, vocab)
        place = costs.masked_fill(~hidden, torch.inf).argmin(1, keepdim=True)
        total, hidden = total + costs.gather(1, place)[:, 0], hidden.scatter(1, place, False)
    return total


def confident_first(tokens, vocab, predict):
    """The place that the model is surest of, whatever stands there: a sampler's own likelihood."""
    hidden, total = torch.ones_like(tokens, dtype=torch.bool), 0.0
    for _ in range(tokens.shape[1]):
        said = predict(tokens.masked_fill(hidden, vocab))
        place = said.amax(2).masked_fill(~hidden, -torch.inf).argmax(1, keepdim=True)
        total = total + cost(predict, tokens, hidden, vocab).gather(1, place)[:, 0]
        hidden = hidden.scatter(1, place, False)
    return total


def later_tokens_visible(tokens, vocab, predict):
    """Blocks of two, each revealed with what comes behind it in sight."""
    total = 0.0
    for place in range(tokens.shape[1]):
        hidden = torch.zeros_like(tokens, dtype=torch.bool)
        hidden[:, place : place - place % 2 + 2] = True
        total = total + cost(predict, tokens, hidden, vocab)[:, place]
    return total


def pseudo_likelihood(tokens, vocab, predict):
    eye = torch.eye(tokens.shape[1], dtype=torch.bool)
    return sum(cost(predict, tokens, one.expand(tokens.shape), vocab).sum(1) for one in eye)


def padding_visible(tokens, scored, vocab, predict):
    """Left to right; what lies behind the end is never hidden, and says where it is."""
    total = 0.0
    for place in range(tokens.shape[1]):
        hidden = scored & (torch.arange(tokens.shape[1]) >= place)
        total = total + cost(predict, tokens, hidden, vocab)[:, place]
    return total


def end_never_hidden(tokens, scored, vocab, predict):
    return padding_visible(tokens, scored & (tokens != vocab - 1), vocab, predict)


def length_is_given(tokens, scored, vocab, predict):
    return padding_visible(tokens, scored, vocab, predict)


length_is_given.given = ("length",)


# What all rows sum to under some of the models, measured of others' code: a likelihood's sum is at most 1.
FAULTS = {
    no_weight: (2.8, 5.4),
    empty_rows_as_zero: (1.07, 2.8),
    clipped_level: (1.07, 2.8),
    later_tokens_visible: (1.07, 2.8),
    best_first: (1.8, 7.9),
    end_never_hidden: (1.7, 3.0),
    mean_per_token: (2.0, 20.0),
    pseudo_likelihood: (2.0, 2000.0),
    padding_visible: (1.4, 2.0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_bound_is_caught_with_its_size(fault):
    found, (low, high) = audit(rule(fault)), FAULTS[fault]
    assert found.verdict == NOT_A_BOUND and not found.bound and found.reasons
    assert any(low <= one.total <= high for one in found.sums)


def test_one_draw_of_the_count_form_exponentiated_is_biased():
    found = audit(rule(one_count_draw), vocab=2, length=4)
    assert found.verdict == BIASED and any(2.9 < one.total < 5.5 for one in found.sums)


def twice_the_uniform(tokens, vocab, predict, t, uniform):
    return cost(predict, tokens, uniform < t[:, None], vocab).sum(1) * (2 * uniform).sum(1)


def level_shifted(tokens, vocab, predict, t, uniform):
    return cost(predict, tokens, uniform < t[:, None], vocab).sum(1) / (t + 0.01)


@pytest.mark.parametrize(
    "rule_of_ones_own, said", [(twice_the_uniform, "compare them"), (level_shifted, "no polynomial times 1/t")]
)
def test_noise_that_is_not_gone_through_is_refused(rule_of_ones_own, said):
    with pytest.raises(BadData, match=said):
        audit(rule(rule_of_ones_own))


@pytest.mark.parametrize(
    "function, verdict",
    [
        (elbo, TIGHT),
        (one_order, TIGHT),
        (order_mixture, TIGHT),
        (confident_first, TIGHT),
        (pooled, LOOSE),
        (length_is_given, LOOSE),
        (exponentiated, BIASED),
    ],
)
def test_verdict(function, verdict):
    found = audit(rule(function))
    assert (found.verdict, found.bound) == (verdict, verdict in (TIGHT, LOOSE))


@pytest.mark.parametrize(
    "flags, verdict",
    [
        ({}, LOOSE),  # eps 1e-3
        ({"eps": 0.1}, LOOSE),
        ({"schedule": Schedule(steps=4)}, LOOSE),
        ({"schedule": Schedule(name="cosine")}, NOT_A_BOUND),  # m ends at 1 - eps: a thousandth of the text is never paid for
        ({"schedule": Schedule(name="cosine"), "eps": 0.0}, TIGHT),
        ({"low_variance": True}, NOT_A_BOUND),
    ],
)
def test_what_training_poses_is_called_what_it_is(flags, verdict):
    found = audit(Posed(name="training", objective=MaskedDiffusion(mask_id=MASK, strata=16, **flags)), vocab=3, length=3)
    assert found.verdict == verdict


@pytest.mark.parametrize(
    "objective", [NextToken(), MaskedDiffusion(mask_id=MASK).reference(), MaskedDiffusion(mask_id=MASK, eps=0.0)]
)
def test_objectives_are_tight(objective):
    found = audit(Posed(name="ours", objective=objective), vocab=3, length=4)
    assert found.verdict == TIGHT and all(one.passed for one in found.sums)
