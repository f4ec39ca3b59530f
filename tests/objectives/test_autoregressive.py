import torch

from megatron.batch import Clean, Noise
from megatron.objectives.autoregressive import NextToken


def test_predicts_the_next_token_everywhere_it_is_scored():
    clean = Clean(tokens=torch.tensor([[1, 2, 3, 4]]), scored=torch.tensor([[False, True, True, False]]), index=torch.tensor([0]))
    batch = NextToken().pose(clean, Noise(0, clean.index), 0.0)
    assert batch.inputs.tolist() == [[1, 2, 3]] and batch.targets.tolist() == [[2, 3, 4]]
    assert batch.weights.tolist() == [[1.0, 1.0, 0.0]] and batch.asked.tolist() == [0, 1]
    assert int(batch.scored.sum()) == 2
