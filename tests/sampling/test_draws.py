import numpy as np
import pytest
import torch

from megatron.sampling.draws import How, Rows, cut, drawn, exponentials, reveal_times

P = [0.1, 0.4, 0.05, 0.2, 0.25]


@pytest.mark.parametrize(
    "how, left",
    [
        ({}, P),
        ({"top_k": 2}, [0, 0.4 / 0.65, 0, 0, 0.25 / 0.65]),
        ({"top_k": 9}, P),
        ({"top_p": 0.65}, [0, 0.4 / 0.65, 0, 0, 0.25 / 0.65]),  # reached exactly: the third is not needed
        ({"top_p": 0.66}, [0, 0.4 / 0.85, 0, 0.2 / 0.85, 0.25 / 0.85]),
        ({"top_p": 0.01}, [0, 1, 0, 0, 0]),
        ({"top_p": 1.0}, P),
        ({"min_p": 0.5}, [0, 0.4 / 0.85, 0, 0.2 / 0.85, 0.25 / 0.85]),  # 0.2 is half of 0.4
        ({"min_p": 0.51}, [0, 0.4 / 0.65, 0, 0, 0.25 / 0.65]),
        ({"temperature": 0.5}, np.square(P) / np.square(P).sum()),
        ({"top_k": 3, "top_p": 0.7}, [0, 0.4 / 0.65, 0, 0, 0.25 / 0.65]),  # of what top-k left: 0.47, 0.76
        ({"temperature": 0.5, "top_p": 0.6}, [0, 0.16 / 0.2225, 0, 0, 0.0625 / 0.2225]),  # 0.16 of 0.275 is 0.58
    ],
)
def test_cuts_by_hand(how, left):
    assert cut(torch.tensor([P]).double().log(), How(**how)).exp()[0].tolist() == pytest.approx(list(left), abs=1e-7)


def test_ties_go_to_the_lower_id():
    even = torch.zeros(1, 5).double() + torch.tensor([0, 0, 1e-6, 0, 2e-6])
    assert cut(even.log_softmax(-1), How(top_k=2)).exp()[0].tolist() == pytest.approx([0.5, 0.5, 0, 0, 0], abs=1e-5)
    rows = Rows(ids=torch.zeros(1, 1), open=torch.ones(1, 1, dtype=torch.bool), numbers=[0], seed=0, vocab_size=5)
    assert drawn(even.float(), torch.tensor([[0, 0]]), rows, How(temperature=0)).tolist() == [0]


def test_a_random_number_is_a_function_of_its_address():
    assert exponentials(1, 2, 3, 4).tolist() == exponentials(1, 2, 3, 9)[:4].tolist()
    seen = {float(exponentials(seed, number, place, 1)[0]) for seed in (1, 2) for number in (1, 2) for place in (1, 2)}
    assert len(seen) == 8
    rows = [Rows(ids=torch.zeros(1, 3), open=torch.zeros(1, 3), numbers=n, seed=4, vocab_size=2) for n in ([6, 7], [7])]
    assert torch.equal(reveal_times(rows[0])[1:], reveal_times(rows[1]))
