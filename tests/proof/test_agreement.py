"""Whether two records agree, and what of a checkpoint is the same however it is cut."""

import torch

from megatron.core.checkpoint import Piece
from megatron.proof.agreement import away, joined, same, within
from megatron.proof.trial import Record, fingerprint, probes


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


def test_probes_of_pieces_measure_a_change_however_it_is_cut():
    rng = torch.Generator().manual_seed(0)
    before, step = torch.randn(40, 50, generator=rng), torch.randn(40, 50, generator=rng)

    def record(change, cuts):
        moved = {}
        for sign, tensor in ((-1, before), (1, before + change)):
            for a, b in cuts:
                one = probes([Piece(name="model/w", shape=(40, 50), start=(a, 0), tensor=tensor[a:b])])
                for name, sums in one.items():
                    moved[name] = moved.get(name, 0) + sign * sums
        return joined([Record(moved={name: sums.tolist() for name, sums in moved.items()})]).moved["model/w"]

    whole = record(step, [(0, 40)])
    assert away(record(step, [(0, 7), (7, 40)]), whole) < 1e-6
    assert 0.05 < away(record(1.1 * step, [(0, 40)]), whole) < 0.2
    assert away([0.0], [0.0]) == 0 and away([1.0], [0.0]) == float("inf")
