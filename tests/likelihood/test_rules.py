from dataclasses import replace

import pytest
import torch

from megatron.likelihood.rules import by_rule
from megatron.sampling.draws import GRID
from megatron.score_names import RULES


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("a_step", [1, 2, 3])
def test_a_sampler_by_rule_is_a_distribution(model, rows, rule, a_step):
    nll = by_rule(model, rows, rule, model.mask, a_step).sum(1)
    assert nll.neg().exp().sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_a_row_is_revealed_as_it_would_be_alone(model, rows, rule):
    """Of three hidden places all three at once, where another row has four and needs two steps; rows with two stay two."""
    scored = rows.clean.scored.clone()
    scored[::2, 1] = False  # their first token is given
    beside = replace(rows, clean=replace(rows.clean, scored=scored), steps=4)
    found = by_rule(model, beside, rule, model.mask, 3)
    for some, steps in ((torch.arange(1, 27, 2), 3), (torch.arange(0, 27, 2), 2)):
        assert found[some].equal(by_rule(model, replace(beside.take(some), steps=steps), rule, model.mask, 3))


@pytest.mark.parametrize("rule", RULES)
def test_a_sampler_of_blocks_is_a_distribution(model, rows, rule):
    parts, owner = rows.in_blocks(2)
    nll = torch.zeros(27, dtype=torch.float64).index_add_(0, owner, by_rule(model, parts, rule, model.mask).sum(1))
    assert nll.neg().exp().sum() == pytest.approx(1, abs=1e-12)
    assert (nll - by_rule(model, rows, rule, model.mask).sum(1)).abs().max().gt(1e-3) == (rule != "left-to-right")


def test_left_to_right_is_that_order_and_all_at_once_is_independent(model, rows):
    assert by_rule(model, rows, "left-to-right", model.mask).sum(1).numpy() == pytest.approx(
        model.nll(rows, (1, 2, 3)).numpy(), abs=1e-12
    )
    p = model.table[63].softmax(-1)  # 63: all three are masked
    product = torch.einsum("a,b,c->abc", *p).flatten()
    assert by_rule(model, rows, "margin", model.mask, 3).sum(1).neg().exp().numpy() == pytest.approx(product.numpy(), abs=1e-12)


def test_the_surest_place_comes_first(model, rows):
    first = 1 + int(model.table[63].softmax(-1).amax(-1).argmax())
    found, expected = by_rule(model, rows, "confidence", model.mask).sum(1), set()
    for order in ((first, *rest) for rest in ((a, b) for a in (1, 2, 3) for b in (1, 2, 3) if len({first, a, b}) == 3)):
        expected |= {(n, round(v, 9)) for n, v in enumerate(model.nll(rows, order).tolist())}
    assert {(n, round(v, 9)) for n, v in enumerate(found.tolist())} <= expected


def test_what_differs_by_less_than_the_grid_goes_to_the_left(model, rows):
    model.table[:] = 0.0
    model.table += 1e-9 * torch.randn(model.table.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model.table[:, :, 0] += 0.7  # nothing near a border of the grid
    assert 1e-9 < GRID
    for rule in ("confidence", "margin", "entropy", "uncertainty"):
        assert by_rule(model, rows, rule, model.mask).tolist() == by_rule(model, rows, "left-to-right", model.mask).tolist()
