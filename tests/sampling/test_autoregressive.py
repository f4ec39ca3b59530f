import itertools

import numpy as np
import torch
from scipy.stats import chisquare

from megatron.sampling.autoregressive import autoregressive
from megatron.sampling.draws import How, Rows

VOCAB, DRAWS = 3, 2000


class Prefixes:
    """A next-token model that is nothing but a table, which depends on all that stands to the left."""

    def __init__(self):
        rng = np.random.default_rng(2)
        self.table = {
            prefix: rng.dirichlet(np.ones(VOCAB)) for n in range(1, 5) for prefix in itertools.product(range(VOCAB), repeat=n)
        }

    def logits(self, batches):
        (batch,) = batches
        found = [self.table[tuple(row[: i + 1])] for row in batch.inputs.tolist() for i in range(len(row))]
        p = torch.from_numpy(np.stack(found))[batch.asked]
        return [torch.cat([p.log().float(), torch.full((len(p), 2), 9.0)], 1)]


def rows(prompts, length, numbers):
    ids = torch.tensor([[*prompt, *[0] * (length - len(prompt))] for prompt in prompts])
    still = torch.tensor([[i >= len(prompt) for i in range(length)] for prompt in prompts])
    return Rows(ids=ids, open=still, numbers=list(numbers), seed=3, vocab_size=VOCAB)


def test_samples_follow_the_products_of_next_token_probabilities():
    model = Prefixes()
    drawn = autoregressive(model, rows([[1]] * DRAWS, 4, range(DRAWS)), How())
    exact = {
        ids: np.prod([model.table[(1, *ids[:i])][ids[i]] for i in range(3)]) for ids in itertools.product(range(VOCAB), repeat=3)
    }
    counts = dict.fromkeys(exact, 0)
    for row in drawn.tolist():
        counts[tuple(row[1:])] += 1
    assert chisquare(list(counts.values()), np.array(list(exact.values())) * DRAWS).pvalue > 0.01


def test_prompts_of_different_lengths_share_a_batch_and_change_nothing():
    prompts, model = [[1], [2, 0, 1], [0, 0]], Prefixes()
    together = autoregressive(model, rows(prompts, 4, range(3)), How())
    for number, prompt in enumerate(prompts):
        alone = autoregressive(model, rows([prompt], 4, [number]), How())
        assert together[number].tolist() == alone[0].tolist() and alone[0, : len(prompt)].tolist() == prompt


def test_a_row_ends_with_its_end_or_when_enough_is_drawn():
    model = Prefixes()
    for row in autoregressive(model, rows([[0]] * 50, 4, range(50)), How(end=2)).tolist():
        assert 2 not in row or set(row[row.index(2) :]) == {2}
    free = autoregressive(model, rows([[0]] * 50, 4, range(50)), How())
    for row, stopped in zip(
        free.tolist(), autoregressive(model, rows([[0]] * 50, 4, range(50)), How(stops=lambda ids: 1 in ids))
    ):
        length = row.index(1, 1) + 1 if 1 in row[1:] else 4
        assert stopped.tolist() == row[:length] + [0] * (4 - length)
