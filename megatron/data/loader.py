"""Samples as tensors, addressed by number: a resumed run asks for the numbers that come next."""
from __future__ import annotations

import numpy as np
import torch

from megatron.batch import Clean
from megatron.data.gpt_dataset import PackedDataset


def micro_batches(dataset: PackedDataset, first_sample: int, num_samples: int, micro_batch_size: int) -> list[Clean]:
    """Samples [first_sample, first_sample + num_samples), `micro_batch_size` at a time; the last batch may be smaller.

    Raises BadData when a token id does not belong to the dataset's vocabulary.
    """
    numbers = np.arange(first_sample, first_sample + num_samples)
    rows = dataset.rows(numbers)
    dataset.check_ids(rows, numbers)
    tokens, index = torch.from_numpy(rows), torch.from_numpy(numbers)
    scored = torch.ones_like(tokens, dtype=torch.bool)
    parts = zip(*(whole.split(micro_batch_size) for whole in (tokens, scored, index)), strict=True)
    return [Clean(tokens=t, scored=s, index=i) for t, s, i in parts]
