"""A masked model that is a table, on all rows of a tiny vocabulary: what it should say is a sum over everything, by hand."""

import itertools

import numpy as np
import pytest
import torch

from megatron.batch import Clean
from megatron.core.mesh import Mesh
from megatron.likelihood.rows import Rows

VOCABULARY, MASK = 3, 3


class Table:
    """Random conditionals: logits of each place for every partly masked row behind a first token, which is given."""

    mesh, mask = Mesh(), MASK

    def __init__(self, length, seed=0):
        shape = ((VOCABULARY + 1) ** length, length, VOCABULARY)
        self.table = 1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def code(self, inputs):
        return (inputs[:, 1:] * (VOCABULARY + 1) ** torch.arange(inputs.shape[1] - 1)).sum(1)

    def logits(self, batches):
        whole = [torch.nn.functional.pad(self.table[self.code(batch.inputs)], (0, 0, 1, 0)) for batch in batches]
        return [logits.flatten(0, 1)[batch.asked] for logits, batch in zip(whole, batches)]

    def nll(self, rows, order):
        """The chain rule in one order of the places 1, 2, ...: product of p(row[place] | what came before in it)."""
        found, hidden = torch.zeros(len(rows.tokens), dtype=torch.float64), list(order)
        for place in order:
            inputs = rows.tokens.clone()
            inputs[:, hidden] = MASK
            p = self.table[self.code(inputs), place - 1].softmax(-1)
            found -= p[torch.arange(len(p)), rows.tokens[:, place]].log()
            hidden.remove(place)
        return found


@pytest.fixture
def model():
    return Table(3)


@pytest.fixture
def rows():
    """All texts of three places behind a first token, and one token more that nobody reads."""
    texts = np.array(list(itertools.product(range(VOCABULARY), repeat=3)))
    tokens = torch.from_numpy(np.pad(texts, ((0, 0), (1, 1))))
    scored = torch.zeros_like(tokens, dtype=torch.bool)
    scored[:, 1:-1] = True
    return Rows(clean=Clean(tokens=tokens, scored=scored, index=torch.arange(len(texts))), steps=3)
