import math

import numpy as np
import pytest

from megatron.sampling.quality import distinct, entropies, repeats, self_bleu

ROWS = [[1, 2, 3, 1, 2, 3], [1, 2, 3, 4, 5, 6], [7, 7, 7, 7, 7, 7]]


def test_by_hand():
    assert [distinct(ROWS, n) for n in (1, 3)] == pytest.approx([7 / 18, (3 + 3 + 1) / 12])
    assert entropies(ROWS).tolist() == pytest.approx([math.log(3), math.log(6), 0])
    assert repeats(ROWS) == pytest.approx(5 / 15)
    assert math.isnan(distinct([[1]], 2)) and math.isnan(repeats([[1]]))


def test_self_bleu_by_hand():
    """Matches of the first row in the others: 1 2 3 once each, (1 2) and (2 3) once each, (1 2 3) once, no four."""
    first = (3 / 6 * 2 / 5 * 1 / 4 * 0.1 / 3) ** 0.25
    assert self_bleu(ROWS)[0] == pytest.approx(first) and self_bleu([ROWS[1]] * 2).tolist() == pytest.approx([1, 1])
    short = self_bleu([[1, 2, 3, 4], [1, 2, 3, 4, 5]])
    assert short[0] == pytest.approx(math.exp(1 - 5 / 4)) and short[1] < 1
    rng = np.random.default_rng(0)
    assert self_bleu(rng.integers(0, 10**6, (4, 32)).tolist()).max() < 0.05
