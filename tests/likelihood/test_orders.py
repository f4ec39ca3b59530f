"""Every order of three places, by hand: six of them."""

import itertools

import pytest
import torch

from megatron.likelihood.orders import chain, draw_order, k_order, mixture

ORDERS = list(itertools.permutations((1, 2, 3)))


def by_hand(model, rows):
    return torch.stack([model.nll(rows, order) for order in ORDERS])  # [6, b]


def test_the_chain_rule_is_that_of_its_order_and_a_distribution(model, rows):
    for order, expected in zip(ORDERS, by_hand(model, rows)):
        found = chain(model, rows, torch.tensor([*order, 0]).expand(27, -1), model.mask)
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
