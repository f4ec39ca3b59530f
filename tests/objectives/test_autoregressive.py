"""Next tokens, and what perturbs them in training: each changes what it says and nothing else, and validation stays plain."""

import pytest
import torch

from megatron.batch import Clean, Noise
from megatron.config import parse
from megatron.objectives import build, checked
from megatron.objectives.autoregressive import NextToken, Orders, TokenMasking
from megatron.proof import trial
from tests.objectives.test_schedules import LAYOUTS, words

MASK = 99


def posed(objective, rows=64, length=24, seed=1):
    tokens = torch.arange(rows * (length + 1)).view(rows, -1) % 90
    clean = Clean(tokens=tokens, scored=torch.ones_like(tokens, dtype=torch.bool), index=torch.arange(rows))
    return objective.pose(clean, Noise(seed, clean.index), 0.0)


def test_predicts_the_next_token_everywhere_it_is_scored():
    clean = Clean(tokens=torch.tensor([[1, 2, 3, 4]]), scored=torch.tensor([[False, True, True, False]]), index=torch.tensor([0]))
    batch = NextToken().pose(clean, Noise(0, clean.index), 0.0)
    assert batch.inputs.tolist() == [[1, 2, 3]] and batch.targets.tolist() == [[2, 3, 4]]
    assert batch.weights.tolist() == [[1.0, 1.0, 0.0]] and batch.asked.tolist() == [0, 1]
    assert int(batch.scored.sum()) == 2


@pytest.mark.parametrize("kind", ["edges", "tokens", "inputs"])
def test_token_masking_hides_what_it_says_and_asks_the_same(kind):
    plain, batch = posed(NextToken()), posed(TokenMasking(ratio=0.4, kind=kind, mask_id=MASK, uses_mask=kind == "inputs"))
    for name in ("targets", "weights", "scored", "positions", "asked"):
        assert torch.equal(getattr(batch, name), getattr(plain, name))
    if kind == "inputs":
        hidden = batch.inputs == MASK
        assert torch.equal(batch.inputs[~hidden], plain.inputs[~hidden]) and batch.attend is None
        assert float(hidden.float().mean()) == pytest.approx(0.4, abs=0.03)
        return
    seen, causal = batch.attend, torch.ones(24, 24, dtype=torch.bool).tril()
    assert torch.equal(batch.inputs, plain.inputs) and not (seen & ~causal).any() and seen.diagonal(dim1=1, dim2=2).all()
    lost = causal & ~seen  # [b, s, s]
    if kind == "tokens":
        whole = torch.stack([lost[:, j + 1 :, j].float().mean(1) for j in range(23)], 1)
        assert set(whole.unique().tolist()) == {0.0, 1.0} and float(whole.mean()) == pytest.approx(0.4, abs=0.03)
    else:
        rows = lost[:, 8:].any(2)  # of enough earlier positions
        assert float(rows.float().mean()) == pytest.approx(0.4, abs=0.06)
        share = lost[:, 8:].sum(2)[rows] / (causal[8:].sum(1) - 1).expand(64, -1)[rows]
        assert 0.4 < float(share.mean()) < 0.6 and float(share.std()) > 0.2  # a level of its own each


def test_an_order_moves_tokens_with_their_positions():
    """The worked example of the paper: T = 6 and the order 2 0 1 4 5 3."""

    class Given(Orders):
        def order(self, seed, number, length):
            return torch.tensor([2, 0, 1, 4, 5, 3])

    clean = Clean(tokens=torch.arange(10, 17)[None], scored=torch.ones(1, 7, dtype=torch.bool), index=torch.tensor([0]))
    batch = Given(number=2, predefined=False).pose(clean, Noise(0, clean.index), 0.0)
    assert batch.positions.tolist() == [[0, 3, 1, 2, 5, 6]]
    assert (batch.inputs - 10).tolist() == [[0, 3, 1, 2, 5, 6]] and (batch.targets - 10).tolist() == [[3, 1, 2, 5, 6, 4]]


@pytest.mark.parametrize("predefined", [False, True])
def test_orders_are_few_the_same_for_all_rows_and_the_first_is_left_to_right(predefined):
    batch = posed(Orders(number=4, predefined=predefined), rows=256)
    found = {tuple(row) for row in batch.positions.tolist()}
    assert len(found) == 4 and tuple(range(24)) in found
    again = posed(Orders(number=4, predefined=predefined), rows=8)
    assert torch.equal(again.positions, batch.positions[:8])
    assert {tuple(row) for row in posed(Orders(number=4, predefined=predefined), 256, seed=2).positions.tolist()} != found
    objective, place = Orders(number=400, predefined=predefined), torch.arange(400)
    apart = [float((objective.order(1, i, 400) - place).abs().double().mean()) for i in (1, 3, 399)]
    assert apart[0] < 1.5 < apart[1] < 0.2 * apart[2] if predefined else min(apart) > 100


BUILT = {
    "": NextToken(),
    "--num-order-list 1": NextToken(),
    "--num-order-list 16": Orders(number=16, predefined=False),
    "--num-order-list 2 --use-predefined-order": Orders(number=2, predefined=True),
    "--randmask-ratio 0.5": TokenMasking(ratio=0.5, kind="edges", mask_id=MASK),
    "--randmask-ratio 0.5 --randmask-kind inputs": TokenMasking(ratio=0.5, kind="inputs", mask_id=MASK, uses_mask=True),
}


@pytest.mark.parametrize("said", BUILT)
def test_flags_build_it_and_validation_is_plain(said):
    found = checked(build(parse([*words("x"), *said.split()]), MASK))
    assert found == BUILT[said] and found.reference() == NextToken() and found.causal


PERTURBED = {
    "tp2+sp": "--randmask-ratio 0.5",
    "pp2": "--randmask-ratio 0.5 --randmask-kind inputs",
    "dp2+zero3": "--num-order-list 4 --use-predefined-order",
}


@pytest.mark.parametrize("layout", PERTURBED)
def test_it_is_one_experiment_at_every_layout(pool, corpus, layout):
    argv = [*words(corpus), *PERTURBED[layout].split()]
    alone, plain = trial.train(argv, 3), trial.train(words(corpus), 3)
    found = pool.run(2, trial.train, [*argv, *LAYOUTS[layout].split()], 3)
    assert found[0].losses == pytest.approx(alone.losses, abs=5e-6) and found[0].norms == pytest.approx(alone.norms, rel=1e-4)
    assert found[0].validation == pytest.approx(alone.validation, abs=5e-6)
    assert abs(alone.losses[0] - plain.losses[0]) > 1e-4
