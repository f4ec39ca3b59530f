"""Every order of three places, by hand: six of them."""

import itertools

import pytest
import torch

from megatron.batch import Clean
from megatron.likelihood.orders import chain, draw_order, hidden_sets, k_order, mixture, tangent
from megatron.likelihood.rows import Rows

ORDERS = list(itertools.permutations((1, 2, 3)))


def by_hand(model, rows):
    return torch.stack([model.nll(rows, order) for order in ORDERS])  # [6, b]


def test_the_chain_rule_is_that_of_its_order_and_a_distribution(model, rows):
    for order, expected in zip(ORDERS, by_hand(model, rows)):
        found = chain(model, rows, torch.tensor([*order, 0]).expand(27, -1), model.mask).sum(1)
        assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-12)
        assert found.neg().exp().sum() == pytest.approx(1, abs=1e-12)


def test_the_mixture_by_subsets_is_the_mean_over_all_orders(model, rows):
    found = mixture(model, rows, model.mask)
    assert found.numpy() == pytest.approx(-by_hand(model, rows).neg().exp().mean(0).log().numpy(), abs=1e-12)
    assert found.neg().exp().sum() == pytest.approx(1, abs=1e-12)


def test_k_orders_lie_between_the_nelbo_and_the_mixture(model, rows):
    nll, exact = by_hand(model, rows), mixture(model, rows, model.mask)
    means = [torch.stack([k_order(nll[list(some)]) for some in itertools.product(range(6), repeat=k)]).mean(0) for k in (1, 2, 3)]
    assert means[0].numpy() == pytest.approx(nll.mean(0).numpy(), abs=1e-12)
    assert (means[0] > means[1]).all() and (means[1] > means[2]).all() and (means[2] > exact).all()
    assert k_order(nll).numpy() == pytest.approx(exact.numpy(), abs=1e-12)  # each order once is the mixture
    sums = [mean.neg().exp().sum().item() for mean in means]
    assert sums[0] < sums[1] < sums[2] < 1


def test_orders_are_uniform_and_named_by_the_sample(rows):
    drawn = torch.cat([draw_order(rows, 1, 32 * n) for n in range(200)])[:, :3]
    counts = torch.tensor([(drawn == torch.tensor(order)).all(1).sum() for order in ORDERS])
    assert counts.sum() == len(drawn) and (counts - 900).abs().max() < 4 * 900**0.5
    assert draw_order(rows.take(torch.tensor([5])), 1)[0].tolist() == draw_order(rows, 1)[5].tolist()


def test_tangents_lie_below_the_mixture_and_rise_to_it(model, rows):
    """The mean over all ways to draw K + 1 of the six orders."""
    nll, exact = by_hand(model, rows), mixture(model, rows, model.mask)
    means = [
        torch.stack([tangent(nll[list(some)]) for some in itertools.product(range(6), repeat=k + 1)]).mean(0) for k in (1, 2)
    ]
    assert (means[0] < means[1]).all() and (means[1] < exact).all()


def ending():
    """All texts of two letters that end within three places, and those that are cut; 2 ends a text and fills what is behind."""
    texts = [text for n in range(3) for text in itertools.product((0, 1), repeat=n)]
    tokens = torch.tensor(
        [[0, *text, *[2] * (4 - len(text))] for text in texts] + [[0, *t, 2] for t in itertools.product((0, 1), repeat=3)]
    )
    places = torch.arange(5)
    scored = torch.stack([(places > 0) & (places <= min(len(text) + 1, 3)) for text in texts] + [(places > 0) & (places < 4)] * 8)
    return Rows(clean=Clean(tokens=tokens, scored=scored, index=torch.arange(len(tokens))), steps=3)


def test_rows_that_end_are_gone_through_without_what_their_end_tells(model):
    """15 events that exclude each other: of each the mean over the six orders of its places, padding that is told included."""
    rows, found, sets = ending(), [], set()
    for row in range(len(rows.tokens)):
        one = rows.take(torch.tensor([row]))
        found.append(mixture(model, one, model.mask))
        sets.add((int(one.scored.sum()), len(hidden_sets(one))))
    orders = [chain(model, rows, torch.tensor([*order, 0]).expand(15, -1), model.mask).sum(1) for order in ORDERS]
    assert torch.cat(found).numpy() == pytest.approx(k_order(torch.stack(orders)).numpy(), abs=1e-12)
    assert torch.cat(found).neg().exp().sum() < 1 and sets == {(1, 4), (2, 6), (3, 8)}


def test_blocks_are_filled_from_left_to_right(model, rows):
    """Of blocks of two the first is a mixture of two orders with the last place hidden, the second is what is left."""
    parts, owner = rows.in_blocks(2)
    found = torch.zeros(27, dtype=torch.float64)
    for numbers in ((owner >= 0) & (parts.block[:, 1]), parts.block[:, 3]):
        some = numbers.nonzero()[:, 0]
        found.index_add_(0, owner[some], mixture(model, parts.take(some), model.mask))
    orders = [model.nll(rows, order) for order in ((1, 2, 3), (2, 1, 3))]
    assert found.numpy() == pytest.approx(k_order(torch.stack(orders)).numpy(), abs=1e-12)
    assert found.neg().exp().sum() == pytest.approx(1, abs=1e-12)
