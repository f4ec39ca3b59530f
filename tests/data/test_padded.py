import numpy as np
import pytest

from megatron.data.indexed import IndexedWriter
from megatron.data.padded import Padded
from megatron.errors import BadData

END = 99


class Rows(Padded):
    """The least that a kind of padded rows adds."""

    def describe(self) -> str:
        return ""

    def fingerprint(self) -> str:
        return ""


@pytest.fixture
def prefix(tmp_path):
    """Document n is n + 1 tokens of value n, 11 of them."""
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        for n in range(11):
            writer.add_document(np.full(n + 1, n))
    return str(tmp_path / "c")


def test_every_document_once_an_epoch_in_fresh_orders(prefix):
    data = Rows(prefix, 8, 1, 100, END)
    epochs = data.rows(np.arange(110)).reshape(10, 11, 9)[:, :, 0]
    assert (np.sort(epochs, 1) == np.arange(11)).all() and len({tuple(epoch) for epoch in epochs.tolist()}) == 10
    assert len({Rows(prefix, 8, seed, 100, END).rows(np.arange(11)).tobytes() for seed in range(5)}) == 5
    assert data.extents() == [(data.corpus, 0, 66)]
    assert (data.tokens_per_epoch, data.rows_in_first_epoch, data.samples_per_epoch) == (88, 11, 11)


def test_rows_are_cut_to_s_and_padded_behind(prefix):
    data = Rows(prefix, 8, 1, 100, END)
    for row, scored in zip(data.rows(np.arange(11)), data.scored(np.arange(11)), strict=True):
        length = min(row[0] + 1, 8)  # the last column never holds a token
        assert row.tolist() == [row[0]] * length + [END] * (9 - length)
        closed = min(length + 1, 8)  # the end that a document lacks is scored where there is room
        assert scored.tolist() == [True] * closed + [False] * (9 - closed)


def test_a_row_is_a_function_of_seed_and_number(prefix):
    data, order = Rows(prefix, 8, 1, 100, END), np.random.default_rng(0).permutation(200)
    assert np.array_equal(Rows(prefix, 8, 1, 100, END).rows(order), data.rows(np.arange(200))[order])
    assert np.array_equal(np.concatenate([data.rows([n]) for n in range(200)]), data.rows(np.arange(200)))


def test_a_document_ends_with_its_first_end_token(tmp_path):
    texts = [[1, 2, END], [1, END, 3, 4], [END], [5, 6], [7] * 8, [*[7] * 7, END], []]
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        for text in texts:
            writer.add_document(text)
    data = Rows(str(tmp_path / "c"), 8, 1, 100, END)
    numbers = np.arange(len(texts))
    documents, rows, scored = data.documents(numbers), data.rows(numbers), data.scored(numbers)
    found = {int(document): row[mask].tolist() for document, row, mask in zip(documents, rows, scored)}
    assert found == dict(enumerate([[1, 2, END], [1, END], [END], [5, 6, END], [7] * 8, [*[7] * 7, END], [END]]))
    assert (rows[~scored] == END).all() and data.said_of_ends("texts") == "1 texts cut, 1 at an end token inside"


def test_ids_beyond_the_vocabulary_are_refused(prefix):
    numbers = np.arange(11)
    data = Rows(prefix, 8, 1, 10, 9)
    with pytest.raises(BadData, match=f"{prefix}, document 10: sample .* id 10, .* vocabulary size 10"):
        data.check_ids(data.rows(numbers), numbers)
