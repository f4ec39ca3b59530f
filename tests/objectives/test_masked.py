"""The bound: on a tabular model the mean of the estimator over t and masks equals its closed form, by enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch

from megatron.batch import Clean, Noise
from megatron.config import parse
from megatron.objectives import Objective, build, checked
from megatron.objectives.autoregressive import NextToken
from megatron.objectives.masked import MaskedDiffusion

MASK = 9


def clean(rows, length, first=0):
    tokens = torch.arange(rows * (length + 1)).view(rows, -1) % MASK
    return Clean(tokens=tokens, scored=torch.ones_like(tokens, dtype=torch.bool), index=torch.arange(first, first + rows))


def table(visible: frozenset, place: int) -> float:
    """An arbitrary tabular model: the NLL of the token at `place` given which places are visible."""
    return 0.5 + 0.3 * place + 0.7 * len(visible) ** 1.5 / (1 + place) + 0.2 * sum(visible)


def exact_bound(length: int, eps: float) -> float:
    """The integral over t of E_mask[sum of table / p] / length, by enumeration of masks and Gauss-Legendre quadrature in t."""
    nodes, gauss = np.polynomial.legendre.leggauss(60)
    total = 0.0
    for t, w in zip((nodes + 1) / 2, gauss / 2):
        p = (1 - eps) * t + eps
        for hidden in itertools.product((0, 1), repeat=length):
            chance = math.prod(p if h else 1 - p for h in hidden)
            visible = frozenset(i for i in range(length) if not hidden[i])
            total += w * chance * sum(table(visible, i) / p for i in range(length) if hidden[i]) / length
    return total


def any_order_nll(length: int) -> float:
    """The mean over all orders of the chain rule: what the bound equals at eps 0."""
    orders = list(itertools.permutations(range(length)))
    return sum(table(frozenset(order[:i]), place) for order in orders for i, place in enumerate(order)) / len(orders) / length


def estimate(objective, rows, length, seed=1):
    batch = objective.pose(clean(rows, length), Noise(seed, torch.arange(rows)), 0.0)
    hidden = batch.inputs == MASK
    visible = [frozenset(i for i in range(length) if not row[i]) for row in hidden.tolist()]
    nll = torch.tensor([[table(seen, place) for place in range(length)] for seen in visible])
    values = (batch.weights * nll).sum(1) / length
    return float(values.mean()), float(values.std()) / math.sqrt(rows)


def test_enumeration_agrees_with_the_any_order_chain_rule():
    assert abs(exact_bound(3, 0.0) - any_order_nll(3)) < 1e-9


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.2])
@pytest.mark.parametrize("strata", [None, 64])
def test_loss_is_the_bound(eps, strata):
    value, error = estimate(MaskedDiffusion(mask_id=MASK, eps=eps, strata=strata), 16384, 3)
    assert abs(value - exact_bound(3, eps)) < 4 * error


def test_the_count_form_is_the_same_bound_with_less_noise():
    value, error = estimate(MaskedDiffusion(mask_id=MASK, eps=0.0, count=True, strata=64), 16384, 3)
    _, bernoulli = estimate(MaskedDiffusion(mask_id=MASK, eps=0.0, strata=64), 16384, 3)
    assert abs(value - exact_bound(3, 0.0)) < 4 * error and error < 0.7 * bernoulli


def test_the_count_form_hides_k_of_the_scored_tokens():
    data = clean(64, 20)
    data.scored[:, 0] = data.scored[:, 5] = data.scored[:, -1] = False
    batch = MaskedDiffusion(mask_id=MASK, eps=0.0, count=True, strata=64).pose(data, Noise(1, data.index), 0.0)
    k = (batch.inputs == MASK).sum(1)
    assert set(k.tolist()) == set(range(1, 19)) and not ((batch.inputs == MASK) & ~batch.scored).any()
    torch.testing.assert_close(batch.weights.sum(1), torch.full((64,), 18.0))


def test_stratified_t_fills_each_stratum_of_the_global_batch_once():
    micro_batches = [torch.arange(first, first + 4) for first in range(32, 48, 4)]  # four, of one global batch
    t = torch.cat([Noise(3, index).stratified(16) for index in micro_batches])
    ordered = t.sort().values
    assert torch.allclose(ordered.diff(), torch.full((15,), 1 / 16, dtype=torch.float64)) and 0 < ordered[0] and ordered[-1] <= 1
    assert not torch.equal(t, Noise(3, torch.arange(48, 64)).stratified(16))


def test_noise_belongs_to_the_sample():
    for strata in (None, 8):
        objective, data = MaskedDiffusion(mask_id=MASK, strata=strata), clean(8, 20)
        whole = objective.pose(data, Noise(1, data.index), 0.0)
        for i in range(8):
            alone = Clean(tokens=data.tokens[i : i + 1], scored=data.scored[i : i + 1], index=data.index[i : i + 1])
            one = objective.pose(alone, Noise(1, alone.index), 0.0)
            assert torch.equal(one.inputs[0], whole.inputs[i]) and torch.equal(one.weights[0], whole.weights[i])
    assert not torch.equal(whole.inputs, objective.pose(data, Noise(2, data.index), 0.0).inputs)


def test_unscored_positions_are_never_hidden_and_token_zero_can_be_conditioned_on():
    data = clean(64, 20)
    data.scored[:, 0] = False
    batch = MaskedDiffusion(mask_id=MASK, eps=0.5).pose(data, Noise(1, data.index), 0.0)
    assert (batch.inputs[:, 0] == data.tokens[:, 0]).all() and (batch.weights[:, 0] == 0).all() and (batch.inputs == MASK).any()


def test_a_row_with_nothing_hidden_contributes_zero():
    data = clean(4, 6)
    clear = type("Clear", (Noise,), {"uniform": lambda self, p, *s: torch.full((4, *s), 0.9999999)})
    batch = MaskedDiffusion(mask_id=MASK, eps=0.0).pose(data, clear(1, data.index), 0.0)
    assert (batch.weights.sum(1) == 0).any() and torch.isfinite(batch.weights).all() and int(batch.scored.sum()) == 24


def test_ar_and_mdm_score_the_same_tokens():
    data = clean(5, 12)
    data.scored[:, 0] = data.scored[:, -1] = False  # what validation sets
    ar = NextToken().pose(data, Noise(1, data.index), 1.0)
    mdm = MaskedDiffusion(mask_id=MASK, eps=0.0).pose(data, Noise(1, data.index), 1.0)
    assert ar.targets[ar.scored].tolist() == mdm.targets[mdm.scored].tolist()


def test_build():
    def built(*words):
        size = (
            "--num-layers 1 --hidden-size 8 --num-attention-heads 1 --seq-length 8 --global-batch-size 8 --train-iters 1 --lr 1"
        )
        return build(parse([*size.split(), "--lr", "1", "--data-path", "x", *words]), 5)

    assert built("--objective", "mdm", "--mdm-t-sampling", "iid").strata is None
    mdm = built("--objective", "mdm")
    assert mdm == MaskedDiffusion(mask_id=5, eps=1e-3, strata=8)
    assert mdm.reference() == mdm.reference().reference() == MaskedDiffusion(mask_id=5, eps=0.0, count=True, strata=16)
    assert built() == built().reference() == NextToken()


def test_an_objective_that_is_not_whole_is_refused_by_name():
    class Silent(Objective):
        causal, exact, uses_mask = True, True, False

        def pose(self, clean, noise, progress): ...

    class Crossed(NextToken):
        def reference(self):
            return MaskedDiffusion(mask_id=MASK)

    with pytest.raises(TypeError, match="Silent.* reference"):
        Silent()
    with pytest.raises(TypeError, match=r"Crossed .*test_masked.py.* causal and its reference is not alike"):
        checked(Crossed())
    with pytest.raises(TypeError, match="has no causal: derive it from megatron.objectives.Objective"):
        checked(object())
