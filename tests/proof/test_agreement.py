"""Whether two records agree, and what of a checkpoint is the same however it is cut."""

import torch

from megatron.core.checkpoint import Piece
from megatron.proof.agreement import joined, same, within
from megatron.proof.trial import Record, fingerprint


def test_fingerprint_of_pieces_adds_up_to_that_of_the_whole():
    whole = torch.randn(6, 5)
    total = fingerprint(Piece(name="w", shape=(6, 5), start=(0, 0), tensor=whole))
    cut = [Piece(name="w", shape=(6, 5), start=(a, b), tensor=whole[a : a + 3, b : b + 2]) for a in (0, 3) for b in (0, 2, 4)]
    assert sum(map(fingerprint, cut)) % 2**64 == total
    swapped = whole[torch.tensor([1, 0, 2, 3, 4, 5])]
    assert fingerprint(Piece(name="w", shape=(6, 5), start=(0, 0), tensor=swapped)) != total
    scalar = torch.tensor(3.0)
    assert fingerprint(Piece(name="step", shape=(), start=(), tensor=scalar)) != fingerprint(
        Piece(name="step", shape=(), start=(), tensor=scalar + 1)
    )


def test_ranks_that_disagree_agree_with_nobody():
    records = [Record(losses=[loss], samples={0: sample}) for loss, sample in ((1.0, "a"), (2.0, "b"))]
    whole = joined(records)
    assert not within([whole.losses[0] - 1.0], 10.0).passed
    assert not same(whole.samples, {0: "a"}).passed and not same(whole.samples, {0: "b"}).passed
