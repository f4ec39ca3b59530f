import numpy as np
import pytest

from megatron.data.indexed import IndexedDataset, IndexedWriter
from megatron.data.prepare import subset as room
from tools import subset_data

TOKENIZER = {"type": "ByteTokenizer", "fingerprint": "f" * 64, "vocab_size": 257, "eod": 256}


@pytest.fixture
def big(tmp_path):
    """Documents of 0 to 9 tokens, each token its own position: 4500 tokens."""
    with IndexedWriter(tmp_path / "big", np.int32, TOKENIZER) as writer:
        writer.add_documents(np.arange(4500), np.tile(np.arange(10), 100))
    return str(tmp_path / "big")


def subset(prefix, tokens, output, *more):
    return subset_data.main([prefix, "--tokens", tokens, "--output-prefix", str(output), *more])


def documents(prefix):
    data = IndexedDataset(prefix)
    return [data.document(number).tolist() for number in range(data.num_documents)]


@pytest.mark.parametrize("chunk", [1 << 21, 20, 1])
@pytest.mark.parametrize(
    ("tokens", "start", "stop"),
    [
        ("1", 0, 4500),
        ("2", 0, 2),
        ("0.25", 0, 1125),
        ("1e3", 0, 1000),
        ("100:2.5k", 100, 2500),
        ("0.5:1", 2250, 4500),
        ("45:90", 45, 90),
    ],
)
def test_exactly_that_many_tokens_in_their_documents(tmp_path, big, capsys, monkeypatch, tokens, start, stop, chunk):
    monkeypatch.setattr(room, "CHUNK", chunk)
    assert subset(big, tokens, tmp_path / "o" / "small") == 0
    small = IndexedDataset(tmp_path / "o" / "small")
    assert small.tokens(0, small.num_tokens).tolist() == list(range(start, stop))
    whole = [document for document in documents(big) if not document or start <= document[0] and document[-1] < stop]
    found = documents(tmp_path / "o" / "small")
    inner = [d for d in found if d]
    assert [d for d in inner if d in whole] == [d for d in whole if d] and len(inner) - len([d for d in whole if d]) <= 2
    assert all(d == list(range(d[0], d[-1] + 1)) for d in inner)
    assert small.meta["tokenizer"] == TOKENIZER and small.dtype == np.int32 and small.verify() == 1
    assert small.meta["extra"]["subset_of"] == {
        "name": "big",
        "fingerprint": IndexedDataset(big).fingerprint(),
        "start": start,
        "stop": stop,
    }
    assert f"{stop - start:,} tokens (tokens {start}:{stop} of {big})" in capsys.readouterr().out


def test_empty_documents_inside_are_kept(tmp_path, big):
    subset(big, "100", tmp_path / "small")
    assert [len(document) for document in documents(tmp_path / "small")] == [*range(10), *range(10), 0, 1, 2, 3, 4]


def test_smaller_ones_lie_inside_larger_ones(tmp_path, big):
    for count in ("500", "1000", "2k"):
        subset(big, count, tmp_path / count)
    half, one, two = (IndexedDataset(tmp_path / name) for name in ("500", "1000", "2k"))
    assert np.array_equal(half.tokens(0, 500), one.tokens(0, 500)) and np.array_equal(one.tokens(0, 1000), two.tokens(0, 1000))
    assert subset(str(tmp_path / "2k"), "1000", tmp_path / "again") == 0
    for end in (".bin", ".idx"):
        assert (tmp_path / f"again{end}").read_bytes() == (tmp_path / f"1000{end}").read_bytes()


def test_all_of_it_is_a_copy(tmp_path, big):
    with IndexedWriter(tmp_path / "cut") as writer:
        for ids, lengths in (([], []), ([], [0]), ([1, 2, 3], [1, 2]), ([], []), ([4], [0, 1, 0]), ([], [0])):
            writer.add_document(ids, lengths)
    with IndexedWriter(tmp_path / "holes") as writer:
        writer.add_documents([1, 2, 3], [0, 0, 1, 0, 2, 0])
    for prefix in (big, tmp_path / "cut", tmp_path / "holes"):
        assert subset(str(prefix), "1", tmp_path / "copy", "--overwrite") == 0
        for end in (".bin", ".idx"):
            assert (tmp_path / f"copy{end}").read_bytes() == open(f"{prefix}{end}", "rb").read()


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("0:9", [[[0, 1, 2], [3]], [[4, 5]], [], [[6, 7, 8]]]),
        ("0:7", [[[0, 1, 2], [3]], [[4, 5]], [], [[6]]]),
        ("2:9", [[[2], [3]], [[4, 5]], [], [[6, 7, 8]]]),
        ("3:10", [[[3]], [[4, 5]], [], [[6, 7, 8], [9]]]),
        ("0:2", [[[0, 1]]]),
    ],
)
def test_sequences_of_documents_are_kept(tmp_path, tokens, expected):
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        for ids, lengths in (([0, 1, 2, 3], [3, 1]), ([4, 5], [2]), ([], []), ([6, 7, 8, 9, 10], [3, 2])):
            writer.add_document(ids, lengths)
    assert subset(str(tmp_path / "c"), tokens, tmp_path / "small") == 0
    data = IndexedDataset(tmp_path / "small")
    assert [[part.tolist() for part in data.sequences(number)] for number in range(data.num_documents)] == expected


@pytest.mark.parametrize(
    ("tokens", "code", "said"),
    [
        ("5k", 65, "the range 0:5000 ends behind the last of 4500 tokens"),
        ("0", 65, "is not two shares"),
        ("x", 65, "is not two shares"),
        ("1:2:3", 65, "--tokens 1:2:3 is no count such as 100M"),
        ("1e-9", 65, "which has 4500 tokens, is none: ask for more"),
        ("2.5", 65, "is not two shares"),
    ],
)
def test_what_cannot_be_taken_is_one_sentence(tmp_path, big, capsys, tokens, code, said):
    assert subset(big, tokens, tmp_path / "small") == code
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "small.bin").exists()


def test_nothing_is_overwritten_unasked_and_the_source_never(tmp_path, big, capsys):
    assert subset(big, "100", tmp_path / "small") == 0
    assert subset(big, "200", tmp_path / "small") == 73 and "pass --overwrite" in capsys.readouterr().err
    assert subset(big, "200", tmp_path / "small", "--overwrite") == 0 and IndexedDataset(tmp_path / "small").num_tokens == 200
    assert subset(big, "200", f"{tmp_path}/./big", "--overwrite") == 73 and "is the corpus itself" in capsys.readouterr().err
    assert IndexedDataset(big).num_tokens == 4500


def test_a_damaged_source_leaves_nothing(tmp_path, big, capsys):
    with open(f"{big}.bin", "r+b") as file:
        file.seek(8000)
        file.write(b"\xff")
    assert subset(big, "3000", tmp_path / "small") == 65
    assert "big.bin: the crc32 of block 0" in capsys.readouterr().err and not list(tmp_path.glob("small*"))


def test_a_source_without_a_sidecar_is_copied_and_said(tmp_path, big, capsys):
    (tmp_path / "big.meta.json").unlink()
    assert subset(big, "100", tmp_path / "small") == 0 and "has no .meta.json" in capsys.readouterr().out
    assert IndexedDataset(tmp_path / "small").meta["tokenizer"] is None
