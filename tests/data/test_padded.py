import numpy as np
import pytest

from megatron.data.indexed import IndexedWriter
from megatron.data.padded import Padded
from megatron.errors import BadData

PADDING = 999


@pytest.fixture
def prefix(tmp_path):
    """Document n is n + 1 tokens of value n, 11 of them."""
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        for n in range(11):
            writer.add_document(np.full(n + 1, n))
    return str(tmp_path / "c")


def test_every_document_once_an_epoch_in_fresh_orders(prefix):
    data = Padded(prefix, 8, 1, 100, PADDING)
    epochs = data.rows(np.arange(110)).reshape(10, 11, 9)[:, :, 0]
    assert (np.sort(epochs, 1) == np.arange(11)).all() and len({tuple(epoch) for epoch in epochs.tolist()}) == 10
    assert len({Padded(prefix, 8, seed, 100, PADDING).rows(np.arange(11)).tobytes() for seed in range(5)}) == 5
    assert data.extents() == [(data.corpus, 0, 66)]
    assert (data.tokens_per_epoch, data.rows_in_first_epoch, data.samples_per_epoch) == (88, 11, 11)


def test_rows_are_cut_to_s_and_padded_behind(prefix):
    data = Padded(prefix, 8, 1, 100, PADDING)
    for row, scored in zip(data.rows(np.arange(11)), data.scored(np.arange(11)), strict=True):
        length = min(row[0] + 1, 8)  # the last column never holds a token
        assert row.tolist() == [row[0]] * length + [PADDING] * (9 - length)
        assert scored.tolist() == [True] * length + [False] * (9 - length)


def test_a_row_is_a_function_of_seed_and_number(prefix):
    data, order = Padded(prefix, 8, 1, 100, PADDING), np.random.default_rng(0).permutation(200)
    assert np.array_equal(Padded(prefix, 8, 1, 100, PADDING).rows(order), data.rows(np.arange(200))[order])
    assert np.array_equal(np.concatenate([data.rows([n]) for n in range(200)]), data.rows(np.arange(200)))


def test_padding_is_no_id_of_the_tokenizer_and_no_mistake(prefix):
    numbers = np.arange(11)
    data = Padded(prefix, 8, 1, 11, PADDING)
    data.check_ids(data.rows(numbers), numbers)
    data = Padded(prefix, 8, 1, 10, 10)  # document 10's own ids equal the padding
    with pytest.raises(BadData, match=f"{prefix}, document 10: sample .* id 10, .* vocabulary size 10"):
        data.check_ids(data.rows(numbers), numbers)
