import numpy as np
import torch

from megatron.batch import Noise, Purpose, asked_positions, stream


def test_uniforms_are_addressed_by_seed_purpose_and_sample():
    whole = Noise(7, torch.tensor([3, 2**40, 5])).uniform(Purpose.MASK, 4, 2)
    assert whole.shape == (3, 4, 2) and whole.dtype == torch.float32 and 0 <= whole.min() and whole.max() < 1
    assert torch.equal(whole[2], Noise(7, torch.tensor([5])).uniform(Purpose.MASK, 4, 2)[0])
    for other in (
        Noise(8, torch.tensor([5])).uniform(Purpose.MASK, 4, 2),
        Noise(7, torch.tensor([5])).uniform(Purpose.RATE, 4, 2),
    ):
        assert not torch.equal(whole[2], other[0])


def test_neighbouring_addresses_are_independent():
    draws = np.stack([stream(1, 0, i).random(1000) for i in range(64)])
    assert np.abs(np.corrcoef(draws) - np.eye(64)).max() < 0.15


def test_a_generator_that_is_moved_draws_what_one_made_there_draws():
    noise = Noise(2**40, torch.tensor([5, 2**40, 5, 0]))
    for purpose in (Purpose.RATE, Purpose.MASK):  # an odd number of floats leaves half a word and a part of a block behind
        moved = [(rng.random(3, np.float32), rng.permutation(7)) for rng in noise.at(purpose, noise.index)]
        for number, (floats, order) in zip(noise.index, moved):
            made = stream(2**40, purpose, number)
            assert np.array_equal(floats, made.random(3, np.float32)) and np.array_equal(order, made.permutation(7))


def test_large_seeds_are_told_apart():
    assert stream(2**24, 0, 0).random() != stream(2**25, 0, 0).random() != stream(2**63, 0, 0).random()


def test_noise_levels_lie_in_the_half_open_interval():
    index = torch.arange(4096)
    for t in (Noise(0, index).independent(), Noise(0, index).stratified(64)):
        assert 0 < t.min() and t.max() <= 1 and abs(t.mean() - 0.5) < 0.02


def test_asked_positions():
    assert asked_positions(torch.tensor([[0.0, 2.0], [1.0, 0.0]])).tolist() == [1, 2]
