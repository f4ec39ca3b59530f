"""Samples as tensors, addressed by number: a resumed run asks for the numbers that come next."""

from __future__ import annotations

import numpy as np
import torch

from megatron.batch import Clean
from megatron.data.samples import Samples
from megatron.layout import split_evenly


def micro_batches(
    dataset: Samples, first_sample: int, num_samples: int, micro_batch_size: int, num_rows: int | None = None
) -> list[Clean]:
    """Samples [first_sample, first_sample + num_samples), `micro_batch_size` at a time; the last batch may be smaller.

    With `num_rows`, rows that are not scored fill up to so many. Raises BadData when a token id does not belong to the
    dataset's vocabulary.
    """
    numbers = first_sample + np.arange(num_rows or num_samples).clip(max=num_samples - 1)
    rows = dataset.rows(numbers)
    dataset.check_ids(rows, numbers)
    scored = dataset.scored(numbers)
    scored = np.ones(rows.shape, bool) if scored is None else scored
    scored[num_samples:] = False
    cuts = [slice(at, at + micro_batch_size) for at in range(0, len(rows), micro_batch_size)]
    whole = {"tokens": rows, "scored": scored, "index": numbers}
    vectors = dataset.vectors(numbers)
    whole |= {} if vectors is None else {"vectors": vectors}
    return [Clean(**{name: torch.from_numpy(array[cut]) for name, array in whole.items()}) for cut in cuts]


def replica_batches(
    dataset: Samples, first_sample: int, num_samples: int, micro_batch_size: int, replica: int, num_replicas: int
) -> list[Clean]:
    """One replica's consecutive samples of a global batch.

    All micro-batches of all replicas are alike, of at most `micro_batch_size` rows, and there is the same number everywhere.
    """
    mine = split_evenly(num_samples, num_replicas)[replica]
    longest = -(-num_samples // num_replicas)
    count = -(-longest // micro_batch_size)
    height = -(-longest // count)
    return micro_batches(dataset, first_sample + mine.start, len(mine), height, num_rows=count * height)
