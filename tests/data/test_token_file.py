import json

import numpy as np
import pytest

from megatron.data.gpt_dataset import PackedDataset
from megatron.data.indexed import IndexedDataset
from megatron.data.sources import Source
from megatron.data.token_file import DTYPES, PaperFolder, TokenFile, token_chunks, write_paper_folder, write_token_folder
from megatron.errors import BadData, CannotWrite, MissingInput

IDS = np.random.default_rng(0).integers(0, 30000, 1000)


def raw(path, ids=IDS, dtype="int32", config=None):
    np.asarray(ids).astype(dtype).tofile(path)
    if config is not None:
        (path.parent / "config.json").write_text(json.dumps(config))
    return path


# Token files


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("told", ["given", "config"])
def test_ids_come_back_in_every_type(tmp_path, dtype, told):
    path = raw(tmp_path / "t.bin", dtype=dtype, config={"dtype": dtype} if told == "config" else None)
    file = TokenFile(path, dtype if told == "given" else None)
    assert (file.num_tokens, file.num_documents, file.dtype, file.meta) == (1000, 1, np.dtype(dtype), None)
    assert file.document_starts.tolist() == [0] and file.prefix == str(tmp_path / "t")
    assert np.array_equal(file.tokens(0, 1000), IDS) and np.array_equal(file.tokens(7, 9), IDS[7:9])
    assert file.tokens(0, 10).flags.owndata and file.tokens(3, 3).size == 0
    with pytest.raises(IndexError):
        file.tokens(990, 1001)


@pytest.mark.parametrize("dtype", ["int32", "uint16"])
def test_the_ids_tell_int32_from_uint16_when_the_vocabulary_is_known(tmp_path, dtype):
    file = TokenFile(raw(tmp_path / "t.bin", dtype=dtype, config={"vocab_size": 30000}))
    assert file.dtype == dtype and np.array_equal(file.tokens(0, 1000), IDS)


def test_the_name_may_leave_out_bin(tmp_path):
    raw(tmp_path / "t.bin")
    assert TokenFile(tmp_path / "t", "int32").path == TokenFile(tmp_path / "t.bin", "int32").path == tmp_path / "t.bin"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: raw(p), "type of its ids is not known"),
        (lambda p: raw(p, config={"dtype": "float32"}), "'float32', expected one of uint16"),
        (lambda p: raw(p, config={"vocab_size": 100}), "below the vocabulary size 100"),
        (lambda p: raw(p, dtype="int32", config={"dtype": "uint16"}), "a type twice as wide"),
        (lambda p: raw(p, dtype="int64", config={"dtype": "int32"}), "a type twice as wide"),
        (lambda p: raw(p, config={"dtype": "int32", "t": 1001}), "1000 tokens of int32, expected the 1001"),
        (
            lambda p: (raw(p, config={"dtype": "int32"}), p.write_bytes(p.read_bytes()[:-1])),
            "3999 bytes, expected a multiple of 4",
        ),
        (lambda p: raw(p, [], config={"dtype": "int32"}), "has 0 bytes"),
        (lambda p: (raw(p), (p.parent / "config.json").write_text("{")), "config.json: not JSON"),
        (lambda p: (raw(p), (p.parent / "config.json").write_text("[1]")), "config.json: found a list"),
        (lambda p: (raw(p), (p.parent / "config.json").write_bytes(b"\xff")), "config.json: not JSON .'utf-8'"),
    ],
)
def test_what_cannot_be_read_right_is_refused(tmp_path, make, said):
    make(tmp_path / "t.bin")
    with pytest.raises(BadData, match=said) as caught:
        TokenFile(tmp_path / "t.bin")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_is_missing_input(tmp_path):
    for path in (tmp_path / "none.bin", tmp_path):
        with pytest.raises(MissingInput, match="expected token ids"):
            TokenFile(path, "int32")


def test_the_fingerprint_names_content_and_type(tmp_path):
    prints = {
        TokenFile(raw(tmp_path / f"{n}.bin", ids, dtype), dtype).fingerprint()
        for n, (ids, dtype) in enumerate([(IDS, "int32"), (IDS, "int64"), (IDS[:-1], "int32"), (IDS[::-1], "int32")])
    }
    assert len(prints) == 4
    assert TokenFile(raw(tmp_path / "again.bin"), "int32").fingerprint() in prints


def test_a_token_file_is_a_corpus(tmp_path):
    path = raw(tmp_path / "t.bin", np.arange(1000), config={"dtype": "int32"})
    data = PackedDataset([Source(1.0, 0, 1.0, str(path))], 10, 1)
    assert sorted(data.rows(np.arange(100))[:, :-1].ravel().tolist()) == list(range(1000))


# The token folder


def test_a_token_folder_is_written_and_read(tmp_path, counting):
    corpus = IndexedDataset(counting("c", 500))
    counts = write_token_folder(tmp_path / "f", token_chunks(corpus, 64), [IDS[:9], IDS[9:20]], 50000, b'{"model": 1}', eod=3)
    assert counts == {"train": 500, "val": 20}
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [
        "config.json",
        "tokenizer.json",
        "train_tokens.bin",
        "val_tokens.bin",
    ]
    assert np.array_equal(np.fromfile(tmp_path / "f" / "train_tokens.bin", "<i4"), np.arange(500))
    assert np.array_equal(TokenFile(tmp_path / "f" / "val_tokens.bin").tokens(0, 20), IDS[:20])
    config = json.loads((tmp_path / "f" / "config.json").read_text())
    assert config == {"dtype": "int32", "vocab_size": 50000, "train_tokens": 500, "val_tokens": 20, "eod": 3}
    (tmp_path / "f" / "train_tokens.bin").write_bytes(np.arange(400).astype("<i4").tobytes())
    with pytest.raises(BadData, match="400 tokens .* 500"):
        TokenFile(tmp_path / "f" / "train_tokens.bin")


@pytest.mark.parametrize(
    ("train", "valid", "vocab_size", "dtype", "said"),
    [
        ([IDS], [], 50000, "int32", "val_tokens.bin: would hold 0 tokens"),
        ([IDS], [IDS], 100, "int32", "below 100"),
        ([IDS], [np.array([70000])], 100000, "uint16", "70000, expected 0 or more and below 65536"),
        ([[-1]], [IDS], 100, "int32", "id -1"),
    ],
)
def test_a_folder_that_would_be_wrong_is_not_written(tmp_path, train, valid, vocab_size, dtype, said):
    with pytest.raises(BadData, match=said):
        write_token_folder(tmp_path / "f", train, valid, vocab_size, dtype=dtype)
    assert not (tmp_path / "f").exists()


def test_tokens_that_are_there_are_not_replaced(tmp_path):
    write_token_folder(tmp_path / "f", [IDS], [IDS], 50000)
    with pytest.raises(CannotWrite, match="exists"):
        write_token_folder(tmp_path / "f", [IDS], [IDS], 50000)


# The paper folder


def papers(n=6, length=10):
    return [
        ("train" if i % 3 else "test", f"p{i}", "cs.AI" if i % 2 else "math.ST", np.arange(length) + 100 * i) for i in range(n)
    ]


def test_papers_are_written_and_read(tmp_path):
    assert write_paper_folder(tmp_path / "f", papers(), 1000) == 6
    found = PaperFolder(tmp_path / "f")
    assert np.fromfile(tmp_path / "f" / "tokens.bin", "<u2").size == 60
    assert [json.loads(line) for line in (tmp_path / "f" / "index.jsonl").read_text().splitlines()][1] == {
        "paper_id": "p1",
        "cat": "cs.AI",
        "offset": 10,
        "length": 10,
    }
    assert json.loads((tmp_path / "f" / "splits.json").read_text()) == {"test": ["p0", "p3"], "train": ["p1", "p2", "p4", "p5"]}
    assert found.categories == ["cs.AI", "math.ST"] and [p.paper_id for p in found.split("train")] == ["p1", "p2", "p4", "p5"]
    assert np.array_equal(found.tokens(found.split("test")[1]), np.arange(10) + 300)
    (tmp_path / "f" / "config.json").unlink()  # the original has none
    assert np.array_equal(PaperFolder(tmp_path / "f").tokens(found.split("test")[1]), np.arange(10) + 300)


def spoil(folder, name, change):
    rows = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    splits = json.loads((folder / "splits.json").read_text())
    change(rows if name == "index" else splits)
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "splits.json").write_text(json.dumps(splits))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("index", lambda rows: rows[5].update(length=11), r"index.jsonl:6: paper 'p5' is tokens 50:61, expected .* 60"),
        ("index", lambda rows: rows[2].update(offset=-1), "index.jsonl:3: paper 'p2' is tokens -1:9"),
        ("index", lambda rows: rows[2].update(length=-1), "index.jsonl:3"),
        ("index", lambda rows: rows[2].update(offset=15), "'p1' and 'p2' share token 15"),
        ("index", lambda rows: rows[2].update(offset="20"), "index.jsonl:3: offset is '20'"),
        ("index", lambda rows: rows[2].update(offset=True), "index.jsonl:3: offset is True"),
        ("index", lambda rows: rows[2].update(cat=None), "index.jsonl:3: cat is None"),
        ("index", lambda rows: rows[2].update(paper_id="\ud800"), r"index.jsonl:3: paper_id is '\\ud800'"),
        ("index", lambda rows: rows[2].pop("paper_id"), "index.jsonl:3: paper_id is missing"),
        ("index", lambda rows: rows[2].update(paper_id="p0"), "index.jsonl:3: paper_id 'p0' stands in line 1"),
        ("index", lambda rows: rows.insert(1, 7), "index.jsonl:2: holds a int"),
        ("index", lambda rows: rows.clear(), "names no paper"),
        ("splits", lambda splits: splits["test"].append("p9"), "'test' names 'p9', which index.jsonl does not have"),
        ("splits", lambda splits: splits["test"].append("p1"), "'p1' is in split 'test' and again in 'train'"),
        ("splits", lambda splits: splits.update(test="p0"), "'test' is not a list"),
        ("splits", lambda splits: splits.clear(), "names no split"),
    ],
)
def test_a_damaged_paper_folder_is_refused_with_its_place(tmp_path, name, change, said):
    write_paper_folder(tmp_path, papers(), 1000)
    spoil(tmp_path, name, change)
    with pytest.raises(BadData, match=said) as caught:
        PaperFolder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("index.jsonl", b'{"paper_id": "a", "cat"\n', "index.jsonl:1: is not JSON"),
        ("index.jsonl", b"\xff\n", "not UTF-8"),
        ("splits.json", b"{", "splits.json: not JSON"),
        ("splits.json", b"[]", "splits.json: found a list"),
        ("tokens.bin", b"abc", "3 bytes"),
        ("tokens.bin", bytes(100), "50 tokens of uint16, expected the 60"),
        ("index.jsonl", None, "index.jsonl: No such"),
        ("splits.json", None, "splits.json: No such"),
        ("tokens.bin", None, "tokens.bin"),
    ],
)
def test_files_that_are_damaged_or_absent(tmp_path, name, data, said):
    write_paper_folder(tmp_path, papers(), 1000)
    (tmp_path / name).unlink() if data is None else (tmp_path / name).write_bytes(data)
    with pytest.raises(MissingInput if data is None else BadData, match=said):
        PaperFolder(tmp_path)


def test_a_truncated_token_file_is_refused_without_a_config(tmp_path):
    write_paper_folder(tmp_path, papers(), 1000)
    (tmp_path / "config.json").unlink()
    (tmp_path / "tokens.bin").write_bytes((tmp_path / "tokens.bin").read_bytes()[:-2])
    with pytest.raises(BadData, match="inside the 59"):
        PaperFolder(tmp_path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*papers(), papers()[0]], "'p0' comes twice"),
        ([("train", "a", "c", np.array([1000]))], "'a': has id 1000"),
        ([("train", "a", "c", np.array([], int))], "0 tokens"),
    ],
)
def test_papers_that_would_be_wrong_are_not_written(tmp_path, rows, said):
    with pytest.raises(BadData, match=said):
        write_paper_folder(tmp_path / "f", rows, 1000)
    assert not (tmp_path / "f").exists()


def test_an_unknown_split_is_refused(tmp_path):
    write_paper_folder(tmp_path, papers(), 1000)
    with pytest.raises(BadData, match="no split 'valid', only 'test', 'train'"):
        PaperFolder(tmp_path).split("valid")
