import numpy as np
import pytest

from megatron.data.indexed import IndexedWriter
from megatron.data.pairs import Pairs, Vectors, checksums, vectors_path
from megatron.errors import BadData, MissingInput

END = 101


@pytest.fixture
def prefix(tmp_path):
    """Text n is tokens n; its vector is n, n, n. Text 3 is empty."""
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        for n in range(7):
            writer.add_document(np.full(0 if n == 3 else n + 1, n))
    vectors(tmp_path / "c", np.repeat(np.arange(7, dtype=np.float32)[:, None], 3, 1))
    return str(tmp_path / "c")


def vectors(prefix, found):
    np.save(f"{prefix}.vectors.npy", found)


def test_texts_and_vectors_stay_together(prefix):
    data, numbers = Pairs(prefix, 5, 1, 100, END), np.arange(60)
    rows, found, scored = data.rows(numbers), data.vectors(numbers), data.scored(numbers)
    assert found.shape == (60, 3) and found.dtype == np.float32 and data.width == 3
    assert np.array_equal(found, np.repeat(rows[:, :1], 3, 1))
    assert (rows[~scored] == END).all() and np.array_equal(scored.sum(1), np.minimum(rows[:, 0] + 2, 5))  # with its end
    assert (np.sort(rows.reshape(10, 6, 6)[:, :, 0], 1) == [0, 1, 2, 4, 5, 6]).all()
    assert data.describe().endswith("6 texts of 7 with vectors of 3, 24 tokens in rows of 5; 3 texts cut, 1 empty ones left out")


def test_fingerprints_name_the_vectors_too(prefix):
    first = Pairs(prefix, 5, 1, 100, END).fingerprint()
    vectors(prefix, np.ones((7, 3), np.float32))
    assert Pairs(prefix, 5, 1, 100, END).fingerprint() != first


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (np.ones((6, 3), np.float32), "has 6 vectors, expected 7"),
        (np.ones((7, 3)), r"float64 \[7, 3\], expected float32"),
        (np.ones(7, np.float32), r"float32 \[7\]"),
        (np.ones((7, 0), np.float32), r"float32 \[7, 0\]"),
        (np.array([{}] * 7), r"object \[7\], expected float32"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(prefix, found, said):
    vectors(prefix, found)
    with pytest.raises(BadData, match=said):
        Pairs(prefix, 5, 1, 100, END)


def test_damaged_and_absent_vectors_are_refused(prefix):
    path = f"{prefix}.vectors.npy"
    with open(path, "rb") as file:
        whole = file.read()
    strange = "does not begin like a .npy"
    for damage, said in (
        (whole[:-1], "211 bytes, expected 212"),
        (whole + b"x", "213 bytes"),
        (whole[:60], strange),
        (b"", strange),
        (whole.replace(b"(7", b"\x837"), strange),
        (b"PK\x03\x04" * 50, strange),
    ):
        with open(path, "wb") as file:
            file.write(damage)
        with pytest.raises(BadData, match=said):
            Pairs(prefix, 5, 1, 100, END)
    with pytest.raises(MissingInput, match="import_pairs"):
        Pairs(corpus_alone(prefix), 5, 1, 100, END)


def corpus_alone(prefix):
    with IndexedWriter(f"{prefix}2", np.uint16) as writer:
        writer.add_document(np.arange(4))
    return f"{prefix}2"


def test_a_vector_that_is_not_finite_never_reaches_a_batch(prefix):
    found = np.ones((7, 3), np.float32)
    found[4, 1] = np.nan
    vectors(prefix, found)
    data = Pairs(prefix, 5, 1, 100, END)
    with pytest.raises(BadData, match="vector 4 is not finite"):
        data.vectors(np.arange(6))


def test_the_sidecars_checksums_are_tested_when_a_block_is_first_read(tmp_path):
    prefix, width = str(tmp_path / "c"), 1 << 17  # two vectors a MiB, but for the header
    vectors(prefix, np.random.default_rng(0).random((6, width), np.float32))
    with IndexedWriter(prefix, np.uint16) as writer:
        for n in range(6):
            writer.add_document([n])
        writer.extra = {"vectors": {"block_crc32": checksums(vectors_path(prefix))}}
    data = Vectors(prefix, 6, Pairs(prefix, 5, 1, 100, END).corpus.meta["extra"]["vectors"]["block_crc32"])
    with open(vectors_path(prefix), "r+b") as file:
        file.seek(-5, 2)
        file.write(b"!")
    assert data.rows(np.arange(4)).shape == (4, width)
    with pytest.raises(BadData, match="crc32 of bytes 3145728:3145856"):
        data.rows(np.array([5]))
    data = Pairs(prefix, 5, 1, 100, END)
    with pytest.raises(BadData, match="crc32 of bytes"):
        data.vectors(np.arange(6))
    with pytest.raises(BadData, match="vouches for 3 MiB"):
        Vectors(prefix, 6, [1, 2, 3])
