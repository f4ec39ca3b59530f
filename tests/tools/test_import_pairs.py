"""Folders of token files and vectors become one corpus, in order, and every file that is not what it should be is named."""

import re

import numpy as np
import pytest

from megatron.data.indexed import IndexedDataset
from megatron.data.lineage import inputs
from megatron.data.pairs import Pairs
from tools import import_pairs

NAMES = ["text_1", "text_2", "text_10", "text_010", "b", "7"]
ORDER = ["7", "b", "text_1", "text_2", "text_010", "text_10"]


def ids_of(name):
    return np.arange(1, 4 + len(name)) + ORDER.index(name) * 100


def put(folder, name, ids=None, mask=None, vector=None, suffix="_tokens.npz"):
    """One pair: the text is padded with three zeros behind it."""
    for part in ("tokens", "vectors"):
        (folder / part).mkdir(exist_ok=True)
    ids = np.append(ids_of(name), [0, 0, 0]) if ids is None else ids
    mask = np.arange(len(ids)) < len(ids) - 3 if mask is None else mask
    np.savez(folder / "tokens" / f"{name}{suffix}", input_ids=ids, attention_mask=mask)
    np.save(folder / "vectors" / f"{name}.npy", np.full(4, ORDER.index(name), np.float32) if vector is None else vector)


@pytest.fixture
def pairs(tmp_path):
    for n, name in enumerate(NAMES):
        put(tmp_path, name, suffix=("_tokens.npz", ".npz")[n % 2])
    (tmp_path / "tokens" / "notes.txt").write_text("not a pair")
    return tmp_path


def run(folder, *more):
    return import_pairs.main(
        [
            "--tokens",
            str(folder / "tokens"),
            "--vectors",
            str(folder / "vectors"),
            "--vocab-size",
            "1000",
            "--output-prefix",
            str(folder / "out" / "p"),
            *more,
        ]
    )


def made(folder):
    return sorted(path.name for path in (folder / "out").iterdir()) if (folder / "out").exists() else []


def test_one_corpus_in_natural_order(pairs, capsys):
    assert run(pairs) == 0
    corpus, matrix = IndexedDataset(pairs / "out" / "p"), np.load(pairs / "out" / "p.vectors.npy")
    assert [corpus.document(n).tolist() for n in range(6)] == [ids_of(name).tolist() for name in ORDER]
    assert matrix.dtype == np.float32 and np.array_equal(matrix, np.repeat(np.arange(6)[:, None], 4, 1))
    assert "p: 6 pairs, " in capsys.readouterr().out and not [name for name in made(pairs) if name.startswith(".")]
    assert np.array_equal(Pairs(str(pairs / "out" / "p"), 9, 1, 1000, 1001).vectors(np.arange(6))[:, 0].sum(), 15)
    (pairs / "out").rename(pairs / "before")
    run(pairs)
    again, folders = IndexedDataset(pairs / "out" / "p"), sorted(inputs(corpus).values())
    assert folders == [str(pairs / "tokens"), str(pairs / "vectors")] and inputs(corpus).keys() == inputs(again).keys()
    put(pairs, "b", ids=ids_of("b")[::-1])
    (pairs / "out").rename(pairs / "between")
    run(pairs, "--on-bad", "skip")
    assert len(inputs(corpus).keys() & inputs(IndexedDataset(pairs / "out" / "p")).keys()) == 1  # the vectors alone


@pytest.mark.parametrize("shape", ["row", "left padded", "float64", "float16", "bool mask"])
def test_other_ways_to_say_the_same(pairs, shape):
    ids, name = ids_of("b"), "b"
    padded, mask = np.append(ids, [0, 0]), np.append(np.ones(len(ids), int), [0, 0])
    match shape:
        case "row":
            put(pairs, name, padded[None], mask[None], np.ones((1, 4), np.float32), ".npz")
        case "left padded":
            put(pairs, name, padded[::-1], mask[::-1], np.ones(4, np.float32), ".npz")
        case "bool mask":
            put(pairs, name, padded, mask.astype(bool), np.ones(4, np.float32), ".npz")
        case dtype:
            put(pairs, name, padded, mask, np.ones(4, dtype), ".npz")
    (pairs / "tokens" / f"{name}_tokens.npz").unlink()
    assert run(pairs) == 0
    found = IndexedDataset(pairs / "out" / "p").document(1).tolist()
    assert found == (ids[::-1].tolist() if shape == "left padded" else ids.tolist())
    assert np.load(pairs / "out" / "p.vectors.npy")[1].tolist() == [1, 1, 1, 1]


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


GOOD = np.append(ids_of("b"), [0, 0, 0])
BAD = {  # a kind, how a file becomes it, what is said; trailing spaces tell cases of a kind apart
    "no vector": (lambda f: (f / "vectors" / "b.npy").unlink(), "b_tokens.npz: has no vector, expected .*b.npy"),
    "no tokens": (lambda f: (f / "tokens" / "b_tokens.npz").unlink(), "b.npy: has no tokens, expected .*b_tokens.npz"),
    "damaged file": (lambda f: (f / "tokens" / "b_tokens.npz").write_bytes(b"PK\x03\x04 cut short"), "b_tokens.npz: cannot be"),
    "damaged file ": (lambda f: cut(f / "vectors" / "b.npy"), "b.npy: cannot be read"),
    "damaged file  ": (lambda f: put(f, "b", vector=np.array([{}])), "b.npy: cannot be read"),
    "damaged file   ": (lambda f: (f / "vectors" / "b.npy").write_bytes(b""), "b.npy: cannot be read"),
    "missing array": (lambda f: np.savez(f / "tokens" / "b_tokens.npz", input_ids=GOOD), "has no attention_mask among input_ids"),
    "wrong type": (lambda f: put(f, "b", ids=GOOD.astype(float)), "input_ids is float64, expected integers"),
    "wrong type ": (lambda f: put(f, "b", vector=np.ones(4, int)), "the vector is int64, expected floats"),
    "wrong shape": (lambda f: put(f, "b", mask=np.ones(3, int)), "input_ids has 7 entries and attention_mask 3"),
    "wrong shape ": (lambda f: put(f, "b", np.ones((2, 5), int), np.ones((2, 5), int)), r"input_ids has shape \[2, 5\]"),
    "wrong shape  ": (lambda f: put(f, "b", vector=np.ones(5, np.float32)), "b.npy: has 5 numbers, expected 4"),
    "empty text": (lambda f: put(f, "b", mask=np.zeros(7, int)), "leaves none of 7 ids"),
    "odd mask": (lambda f: put(f, "b", mask=np.array([1, 0, 1, 1, 1, 0, 0])), "has a hole"),
    "odd mask ": (lambda f: put(f, "b", mask=np.array([1, 2, 1, 1, 1, 0, 0])), "attention_mask holds 2"),
    "id outside": (lambda f: put(f, "b", ids=GOOD + 900), "has id 100., expected 0 or more and below --vocab-size 1000"),
    "id outside ": (lambda f: put(f, "b", ids=GOOD - 200), "has id -"),
    "not finite": (lambda f: put(f, "b", vector=np.array([0, np.nan, 0, 0])), "number 1 is nan"),
    "not finite ": (lambda f: put(f, "b", vector=np.array([0, 0, 1e300, 0])), r"number 2 is 1e\+300"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_pair_ends_it_by_name_or_is_skipped_and_counted(tmp_path, capsys, kind):
    for name in ORDER:
        put(tmp_path, name)
    change, said = BAD[kind]
    change(tmp_path)
    assert run(tmp_path) == 65
    message = capsys.readouterr().err
    assert re.search(said, message) and message.count("\n") == 1 and made(tmp_path) == []
    assert run(tmp_path, "--on-bad", "skip") == 0
    out, err = capsys.readouterr()
    assert (
        f"5 pairs, {sum(len(ids_of(name)) for name in ORDER if name != 'b'):,} tokens, vectors of 4, 1 pairs skipped (1 "
        f"{kind.strip()})"
        in out
        and "skipped: " in err
    )
    assert np.load(tmp_path / "out" / "p.vectors.npy")[:, 0].tolist() == [0, 2, 3, 4, 5]


def test_two_token_files_of_one_id_and_empty_folders_are_refused(pairs, capsys):
    put(pairs, "b", suffix=".npz")
    assert run(pairs) == 65 and "are both the tokens of b" in capsys.readouterr().err
    for path in (pairs / "vectors").iterdir():
        path.unlink()
    (pairs / "tokens" / "b.npz").unlink()
    assert run(pairs) == 66 and "has 6 .npz files and" in capsys.readouterr().err
    (pairs / "vectors").rmdir()
    assert run(pairs) == 66 and "--vectors" in capsys.readouterr().err


def test_nothing_is_replaced_without_overwrite_nor_by_nothing(pairs, capsys):
    assert run(pairs) == 0
    before = (pairs / "out" / "p.bin").read_bytes()
    np.save(pairs / "vectors" / "7.npy", np.full(4, np.inf))
    assert run(pairs) == 73 and run(pairs, "--overwrite") == 65 and (pairs / "out" / "p.bin").read_bytes() == before
    assert run(pairs, "--overwrite", "--on-bad", "skip") == 0 and len(np.load(pairs / "out" / "p.vectors.npy")) == 5
    for path in (pairs / "vectors").iterdir():
        np.save(path, np.full(4, np.nan))
    assert run(pairs, "--overwrite", "--on-bad", "skip") == 65 and "none of 6 pairs can be used" in capsys.readouterr().err
