import itertools
import math

import numpy as np
import pytest

from megatron.data.synthetic.presets import PRESETS, build
from megatron.data.synthetic.process import bounded_rate, entropy_rate, hidden_markov, markov, mixture, side_by_side, token_nll
from megatron.errors import BadData

LN2 = math.log(2)
HIDDEN = [[[0.2, 0.1, 0.3], [0.0, 0.5, 0.1], [0.3, 0.3, 0.0]], [[0.1, 0.1, 0.2], [0.2, 0.1, 0.1], [0.1, 0.1, 0.2]]]


def words(symbols, n):
    return np.array(list(itertools.product(range(symbols), repeat=n)))


def by_paths(source, row):
    """P(row), summed over every path of hidden states."""
    n, total = len(source.start), 0.0
    for path in itertools.product(range(n), repeat=len(row) + 1):
        p = source.start[path[0]]
        for x, s, r in zip(row, path, path[1:]):
            p *= source.transitions[x, s, r]
        total += p
    return total


def probability(source, rows):
    return np.exp(-token_nll(source, rows).sum(1))


@pytest.mark.parametrize(
    "name, expected", [("coin", -0.3 * math.log(0.3) - 0.7 * math.log(0.7)), ("golden-mean", 2 / 3 * LN2), ("even", 2 / 3 * LN2)]
)
def test_closed_forms(name, expected):
    assert entropy_rate(build(name)) == pytest.approx((expected, expected), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_a_chain_has_the_entropy_of_its_rows_by_how_often_they_come(order):
    law = np.random.default_rng(order).dirichlet(np.ones(4), 4**order)
    context = np.full(4**order, 4.0**-order)
    for _ in range(300):  # the contexts' own chain, walked until it stands
        context = (context[:, None] * law).reshape(4, -1).sum(0) if order == 2 else context @ law
    expected = -float(context @ (law * np.log(law)).sum(1))
    assert entropy_rate(markov(law, order)) == pytest.approx((expected, expected), rel=1e-9)


def test_a_chain_of_order_two_scores_each_token_by_its_context():
    law = np.random.default_rng(5).dirichlet(np.ones(3), 9)
    row = np.array([[2, 0, 1, 1, 2, 0]])
    expected = [-math.log(law[3 * row[0, i - 2] + row[0, i - 1], row[0, i]]) for i in range(2, 6)]
    assert token_nll(markov(law, 2), row)[0, 2:] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("transitions", [HIDDEN, build("simple-nonunifilar").transitions, build("even").transitions])
def test_the_oracle_is_the_sum_over_all_hidden_paths(transitions):
    source = hidden_markov(transitions)
    rows = words(2, 5)
    assert probability(source, rows) == pytest.approx([by_paths(source, row) for row in rows], abs=1e-14)
    assert probability(source, rows).sum() == pytest.approx(1.0, abs=1e-12)


def test_what_cannot_be_has_an_infinite_nll():
    found = token_nll(build("golden-mean"), np.array([[0, 1, 1, 0]]))[0]
    assert np.isfinite(found[:2]).all() and found[2] == math.inf


def test_an_id_that_is_no_symbol_is_refused():
    with pytest.raises(BadData, match="id 2, expected a symbol of the source, 0 to 1"):
        token_nll(build("coin"), np.array([[0, 2]]))


@pytest.mark.parametrize("name", ["simple-nonunifilar", "noisy-golden-mean", "hidden"])
def test_bounds_of_hidden_sources_are_narrow_and_hold_those_of_plain_enumeration(name):
    source = build(name, symbols=3)
    low, high = entropy_rate(source)
    assert 0 <= high - low <= 1e-4
    n = 12 if source.num_symbols == 2 else 7
    rows = words(source.num_symbols, n)
    nll, p = token_nll(source, rows), probability(source, rows)
    above = float(p[p > 0] @ nll[p > 0, -1])  # H(X_n | X^{n-1})
    below = 0.0  # H(X_n | X^{n-1}, S_0)
    for s, weight in enumerate(source.start):
        known = type(source)(spec={}, transitions=source.transitions, start=np.eye(len(source.start))[s])
        nll, p = token_nll(known, rows), probability(known, rows)
        below += weight * float(p[p > 0] @ nll[p > 0, -1])
    assert below - 1e-12 <= high and low <= above + 1e-12
    assert above - below < 3e-3 and entropy_rate(source, 1e-6)[0] == pytest.approx((low + high) / 2, abs=6e-5)


def test_the_tree_agrees_with_the_closed_form():
    low, high = bounded_rate(build("golden-mean"), 1e-4)
    assert low <= 2 / 3 * LN2 + 1e-12 and 2 / 3 * LN2 <= high + 1e-12


def test_a_source_that_forgets_too_slowly_is_refused_with_what_is_known():
    slow = np.array([0.5, 0.5])[:, None, None] * np.array([[0.999, 0.001], [0.001, 0.999]])
    slow[0, 0] *= 1.1
    slow[1, 0] *= 0.9
    with pytest.raises(BadData, match=r"only known to lie in 0\.\d+\.\.0\.\d+ nats .* forgets its state too slowly"):
        entropy_rate(hidden_markov(slow))


@pytest.mark.parametrize(
    "transitions, said",
    [
        ([[[0.5, 0.4], [0.0, 1.0]]], "sum to 0.9..1"),
        ([[[1.5]], [[-0.5]]], "the smallest is -0.5"),
        ([[[math.nan]]], "no law"),
        ([[0.5, 0.5]], r"shape \[1, 2\]"),
        ([[[1.0, 0.0], [0.0, 1.0]]], "2 classes of states that never meet"),
    ],
)
def test_what_is_no_source_is_refused(transitions, said):
    with pytest.raises(BadData, match=said):
        hidden_markov(transitions)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: markov([[0.5, 0.5]], 1), r"shape \[1, 2\]"),
        (lambda: build("markov", symbols=64, order=2), "4096 states need"),
        (lambda: build("mixture", symbols=64, components=64), "65 symbols and 4096 states need 1090519040 transitions"),
        (lambda: mixture([build("coin")], [0.5], 10), "1 in all"),
        (lambda: mixture([build("coin")], [1.0], 1), "more than 1 token"),
    ],
)
def test_shapes_that_are_too_large_or_make_no_sense(make, said):
    with pytest.raises(BadData, match=said):
        make()


# Mixtures

PARTS = [build("markov", symbols=2, seed=1), build("golden-mean"), build("simple-nonunifilar")]
WEIGHTS = np.array([0.5, 0.2, 0.3])


def bayes(row):
    return sum(w * probability(part, row[None])[0] for w, part in zip(WEIGHTS, PARTS)) if len(row) else 1.0


def test_within_a_document_the_oracle_is_bayes_rule_over_parts():
    rows = words(2, 6)
    assert probability(side_by_side(PARTS, WEIGHTS), rows) == pytest.approx([bayes(row) for row in rows], abs=1e-14)


def test_across_documents_every_stretch_between_ends_is_a_draw_of_its_own():
    source, q = mixture(PARTS, WEIGHTS, 4.0), 0.25
    rows = words(3, 6)
    expected = []
    for row in rows:
        ends = np.flatnonzero(row == 2)
        stretches = [part[part != 2] for part in np.split(row, ends)]
        expected.append(q ** len(ends) * (1 - q) ** (6 - len(ends)) * np.prod([bayes(part) for part in stretches]))
    assert probability(source, rows) == pytest.approx(expected, abs=1e-14) and sum(expected) == pytest.approx(1.0)


def test_the_bounds_of_a_mixture_hold_its_conditional_entropy():
    source = mixture(PARTS, WEIGHTS, 3.0)
    low, high = entropy_rate(source)
    rows = words(3, 9)
    nll, p = token_nll(source, rows), probability(source, rows)
    last = float(p[p > 0] @ nll[p > 0, -1])
    assert low < last < high and high - low == pytest.approx(-(1 / 3) * float(source.start @ np.log(source.start)), abs=1e-3)


def test_every_preset_is_a_stationary_law():
    for name in PRESETS:
        source = build(name)
        assert source.start @ source.transitions.sum(0) == pytest.approx(source.start, abs=1e-12), name
        assert source.start.sum() == pytest.approx(1.0)
