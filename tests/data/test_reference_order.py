"""Megatron's order against a transcription of its rules in plain Python, and against arrays that megatron-core 0.16.1 built."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from megatron.data import reference_order
from megatron.data.indexed import IndexedDataset, IndexedWriter
from megatron.data.reference_order import PARTS, ReferenceOrder, blended_samples, build_indices, document_split, sequence_split
from megatron.errors import BadData, CannotWrite, Mismatch

ROOT = Path(__file__).resolve().parents[2]


def transcribed(sizes, documents, s, seed, num_samples):
    """Epochs, document, sample and shuffle index, token by token. An empty document is read through."""
    tokens = sum(sizes[d] for d in documents)
    epochs = 1
    while (epochs * tokens - 1) // s < num_samples:
        epochs += 1
    before, per_epoch = ((epochs - 1) * tokens - 1) // s, (tokens - 1) // s
    apart = epochs > 1 and num_samples - before < int(0.80 * per_epoch)
    rng = np.random.RandomState(seed)
    order = []
    for copies in (epochs - 1, 1) if apart else (epochs,):
        part = np.array(list(documents) * copies, np.int32)
        rng.shuffle(part)
        order += part.tolist()
    places = [(d, offset) for d, document in enumerate(order) for offset in range(sizes[document])]
    total = (epochs * tokens - 1) // s
    samples = [(0, 0)] + [places[k * s] for k in range(1, total + 1)]
    shuffle = []
    for first, last in ((0, before), (before, total)) if apart else ((0, total),):
        part = np.arange(first, last)
        rng.shuffle(part)
        shuffle += part.tolist()
    return epochs, order, samples, shuffle


def corpus_of(prefix, sizes):
    """A corpus whose every token is its position."""
    with IndexedWriter(prefix, np.int32) as writer:
        writer.add_documents(np.arange(sum(sizes)), np.array(sizes))
    return IndexedDataset(prefix)


def random_sizes(rng):
    sizes = rng.integers(0, rng.choice([2, 9, 40]), rng.integers(1, 25))
    sizes[rng.integers(len(sizes))] += 2
    return sizes.astype(np.int32)


@pytest.fixture(params=["compiled", "python"])
def either(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr(reference_order, "compiled", lambda name: None)


# The indices


def test_indices_are_the_transcription_s(either):
    rng, apart = np.random.default_rng(0), 0
    for _ in range(200):
        sizes, s, seed = random_sizes(rng), int(rng.integers(1, 12)), int(rng.integers(2**32))
        per_epoch = int(sizes.sum() - 1) // s
        num_samples = int(rng.integers(0, 6 * per_epoch + 2))
        documents = np.arange(len(sizes), dtype=np.int32)
        found = build_indices(sizes, documents, s, seed, num_samples)
        epochs, *right = transcribed(sizes.tolist(), documents.tolist(), s, seed, num_samples)
        assert [found[part].tolist() for part in PARTS] == [right[0], [list(at) for at in right[1]], right[2]]
        assert [found[part].dtype for part in PARTS] == [np.int32, np.int32, np.uint32]
        apart += reference_order.separate_from(int(sizes.sum()), s, num_samples) is not None
    assert 20 < apart < 180


BUILT_BY_MEGATRON_CORE = {  # (s, seed, samples): sha256 of the bytes of document, sample and shuffle index
    (16, 1234, 50): ["67816c2ba0301148", "4d57aac8d92d4a6e", "7cf9dbfa94ced22b"],
    (16, 1234, 337): ["0c60460559215151", "5cec57e3d5141224", "bb62aef6944af3b2"],  # the last below 80 % ...
    (16, 1234, 338): ["5a75ab091cacfd30", "821a8ea8d838346f", "e80233cee8b62ef8"],  # ... and the first that is not
    (7, 5, 2000): ["87cdf036a87a94b3", "5d12e0ca8c9e751d", "4ec04a970feed305"],
    (33, 2**31, 61): ["99608c19d0fd95b0", "9735d3d4e7f35add", "01a7dca67282a963"],
}


@pytest.mark.parametrize("case", BUILT_BY_MEGATRON_CORE)
def test_indices_are_those_of_megatron_core(case, either):
    sizes = (np.arange(100) * 7919 % 41).astype(np.int32)  # three of them empty, the first one too
    found = build_indices(sizes, np.arange(100, dtype=np.int32), *case)
    assert [hashlib.sha256(found[part].tobytes()).hexdigest()[:16] for part in PARTS] == BUILT_BY_MEGATRON_CORE[case]


def test_wide_types_where_megatron_takes_them():
    assert reference_order.sample_index_dtype(2**31 - 1) is np.int32
    assert reference_order.sample_index_dtype(2**31) is np.int64
    assert reference_order.num_epochs(2**33, 2048, 2**24) == 5
    assert reference_order.num_epochs(2**40, 1, 2**40 - 1) == 1 and reference_order.num_epochs(2**40, 1, 2**40) == 2


def test_long_indices_are_left_to_numpy(monkeypatch):
    """Eight bytes an entry: the C++ loop shuffles words of four."""
    monkeypatch.setattr(reference_order, "compiled", lambda name: pytest.fail(name))
    one, other = np.arange(50), np.arange(50)
    reference_order.shuffle(one, np.random.RandomState(3))
    np.random.RandomState(3).shuffle(other)
    assert np.array_equal(one, other)


# What is asked of each corpus


def test_samples_of_a_blend():
    assert blended_samples(1000, [3.0], "deepspeed") == blended_samples(1000, [3.0], "core") == [1000]
    assert blended_samples(1000, [3.0], "deepspeed", True) == blended_samples(1000, [3.0], "core", True) == [1005]
    assert blended_samples(1001, [0.5, 0.3, 0.2], "deepspeed") == [504, 302, 202]  # ceil(1001 x 0.2 x 1.005) = ceil(201.2)
    assert blended_samples(1001, [0.5, 0.3, 0.2], "core") == [504, 303, 203]  # ceil(201 x 1.005) = ceil(202.005)


@pytest.mark.parametrize(
    ("num", "shares", "core", "deepspeed"),
    [
        (1000, [969, 30, 1], [0, 969, 999, 1000], [0, 969, 999, 1000]),
        (49, [969, 30, 1], [0, 47, 49, 49], [0, 48, 49, 49]),
        (10, [1, 1, 1], [0, 3, 7, 10], [0, 4, 7, 10]),
        (25, [98, 2, 0], [0, 24, 25, 25], [0, 25, 25, 25]),
        (7, [1.0, 0.0, 0.0], [0, 7, 7, 7], [0, 7, 7, 7]),
    ],
)
def test_cuts_between_documents(num, shares, core, deepspeed):
    assert (sequence_split(num, shares, "core"), sequence_split(num, shares, "deepspeed")) == (core, deepspeed)


def test_a_split_gives_each_range_the_documents_of_its_cut(tmp_path):
    sizes = [5, 3, 0, 4, 6, 2, 0, 7, 1, 8]
    corpus = corpus_of(tmp_path / "a", sizes)
    assert document_split(corpus, [5, 3, 2], "core") == [(0, 18), (18, 27), (27, 36)]
    for (start, stop), documents in zip(document_split(corpus, [5, 3, 2], "core"), ([0, 5], [5, 8], [8, 10]), strict=True):
        order = ReferenceOrder(corpus, start, stop, 2, 7, 30)
        expected = transcribed(sizes, list(range(*documents)), 2, 7, 30)
        assert (order.num_epochs, order.documents.tolist(), order.shuffle.tolist()) == (expected[0], expected[1], expected[3])


@pytest.mark.parametrize("shares", [[3, 5, 2], [8, 1, 1], [1, 4, 5]])
def test_a_cut_that_tokens_cannot_say_is_refused(tmp_path, shares):
    corpus = corpus_of(tmp_path / "a", [0, 3, 0, 4, 6, 2, 7, 1, 0, 0])
    with pytest.raises(BadData, match="--split cuts beside an empty sequence"):
        document_split(corpus, shares, "core")


# Rows


def rows_by_token(corpus, sizes, s, seed, num_samples):
    """The s + 1 tokens of each sample, read off the stream of all documents in their order."""
    _, order, _, shuffle = transcribed(sizes, list(range(len(sizes))), s, seed, num_samples)
    starts = np.cumsum([0, *sizes])
    stream = np.concatenate([corpus.tokens(int(starts[d]), int(starts[d + 1])) for d in order])
    return [stream[k * s : k * s + s + 1].tolist() for k in shuffle]


def test_rows_are_the_stream_s(tmp_path):
    rng = np.random.default_rng(1)
    for case in range(10):
        sizes = random_sizes(rng).tolist()
        corpus = corpus_of(tmp_path / str(case), sizes)
        order = ReferenceOrder(corpus, 0, corpus.num_tokens, 5, case, 40)
        numbers = rng.permutation(order.num_samples)
        expected = rows_by_token(corpus, sizes, 5, case, 40)
        assert order.num_samples == len(expected) >= 40 and order.num_tokens == sum(sizes)
        rows = order.rows(numbers)
        assert rows.dtype == np.int64 and rows.tolist() == [expected[n] for n in numbers]


def test_a_range_is_the_corpus_of_its_tokens(tmp_path):
    """A clipped range has the order of a corpus that was cut there, with the sequences at its ends shortened."""
    sizes = [4, 0, 9, 1, 0, 0, 7, 3, 0]
    whole = corpus_of(tmp_path / "whole", sizes)
    clipped = {
        (0, 24): sizes,
        (2, 10): [2, 0, 6],
        (4, 13): [0, 9],
        (5, 9): [4],
        (13, 20): [1, 0, 0, 6],
        (14, 24): [0, 0, 7, 3, 0],
        (21, 22): [1],
        (23, 24): [1, 0],
    }
    for (start, stop), parts in clipped.items():
        alone = corpus_of(tmp_path / f"{start}-{stop}", parts)
        order, other = ReferenceOrder(whole, start, stop, 3, 1, 20), ReferenceOrder(alone, 0, stop - start, 3, 1, 20)
        assert np.array_equal(order.rows(np.arange(20)), other.rows(np.arange(20)) + start), (start, stop)


def test_no_samples_beyond_the_plan(tmp_path):
    order = ReferenceOrder(corpus_of(tmp_path / "a", [10, 20]), 0, 30, 4, 1, 7)
    assert order.num_samples == 7 and order.rows(np.arange(0)).shape == (0, 5)
    with pytest.raises(Mismatch, match="sample 7 is asked for.*planned for 7"):
        order.rows(np.array([7]))


def test_a_range_without_tokens_is_refused(tmp_path):
    with pytest.raises(BadData, match="tokens 5:5: there is none"):
        ReferenceOrder(corpus_of(tmp_path / "a", [10]), 5, 5, 4, 1, 7)


class Endless:
    prefix, sizes = "a.bin", np.array([2**31])


def test_a_sequence_beyond_32_bits_is_refused():
    with pytest.raises(BadData, match="2147483648 tokens"):
        ReferenceOrder(Endless(), 0, 2**31, 4, 1, 7)


def test_identity_tells_orders_apart(tmp_path):
    corpus = corpus_of(tmp_path / "a", [30, 40])
    given = [(0, 70, 4, 1, 7), (0, 69, 4, 1, 7), (1, 70, 4, 1, 7), (0, 70, 5, 1, 7), (0, 70, 4, 2, 7), (0, 70, 4, 1, 8)]
    assert len({ReferenceOrder(corpus, *one).key() for one in given}) == len(given)


# The cache


@pytest.fixture
def corpus(tmp_path):
    return corpus_of(tmp_path / "a", [30, 0, 40, 7])


def order_of(corpus, cache=None, num_samples=50):
    return ReferenceOrder(corpus, 0, corpus.num_tokens, 4, 1, num_samples, cache)


def built(monkeypatch):
    """Counts what is built from here on."""
    calls, build = [], reference_order.build_indices
    monkeypatch.setattr(reference_order, "build_indices", lambda *given: calls.append(1) or build(*given))
    return calls


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("documents", "samples", "shuffle"))


def test_cached_indices_are_mapped_and_not_built_again(corpus, tmp_path, monkeypatch, capsys):
    first = order_of(corpus, tmp_path / "cache")
    calls = built(monkeypatch)
    again = order_of(corpus, tmp_path / "cache")
    assert same(first, again) and isinstance(again.shuffle, np.memmap) and isinstance(first.shuffle, np.memmap) and not calls
    assert same(order_of(corpus, tmp_path / "cache", 51), order_of(corpus, None, 51)) and len(calls) == 2
    assert capsys.readouterr().err == ""


DAMAGE = {
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("part", [*(f"{part}.npy" for part in PARTS), "sums.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_indices_are_built_again(corpus, tmp_path, monkeypatch, capsys, part, damage):
    order_of(corpus, tmp_path / "cache")
    victim = next((tmp_path / "cache").glob(f"*.{part}"))
    DAMAGE[damage](victim)
    calls = built(monkeypatch)
    assert same(order_of(corpus, tmp_path / "cache"), order_of(corpus)) and len(calls) == 2
    said = capsys.readouterr().err.splitlines()
    if (part, damage) == ("sums.json", "gone"):
        assert said == []
    else:
        assert "is damaged" in said[0] and len(said) == 1 + (damage == "a folder")  # which cannot be replaced
    if damage != "a folder":
        assert same(order_of(corpus, tmp_path / "cache"), order_of(corpus)) and len(calls) == 3


def test_sums_of_something_else_are_damage(corpus, tmp_path, capsys):
    order_of(corpus, tmp_path / "cache")
    sums = next((tmp_path / "cache").glob("*.sums.json"))
    for text in ("[]", "7", '{"document": 1}', "null", "\xff", "[" * 5000):
        sums.write_text(text, encoding="latin-1")
        assert same(order_of(corpus, tmp_path / "cache"), order_of(corpus))
        assert "is damaged" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_said_and_does_not_matter(corpus, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    assert same(order_of(corpus, tmp_path / "file" / "cache"), order_of(corpus))
    assert "held in memory" in capsys.readouterr().err

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert same(order_of(corpus, tmp_path / "full"), order_of(corpus))
    assert "No space left on device" in capsys.readouterr().err and not (tmp_path / "full").exists()


@pytest.mark.parametrize("moved", range(4))
def test_a_builder_killed_between_its_renames_leaves_nothing_wrong(corpus, tmp_path, monkeypatch, capsys, moved):
    replace, calls = os.replace, []

    def killed(*given):
        calls.append(given)
        if len(calls) > moved:
            raise KeyboardInterrupt
        replace(*given)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        order_of(corpus, tmp_path / "cache")
    monkeypatch.setattr(os, "replace", replace)
    assert same(order_of(corpus, tmp_path / "cache"), order_of(corpus)) and capsys.readouterr().err == ""


BUILDER = """
import sys
from megatron.data.indexed import IndexedDataset
from megatron.data.reference_order import ReferenceOrder
corpus = IndexedDataset(sys.argv[1])
order = ReferenceOrder(corpus, 0, corpus.num_tokens, 4, 1, 400_000, sys.argv[2])
print(int(order.documents.sum()), int(order.samples.sum()), int(order.shuffle[:9].sum()))
"""


def builder(corpus, cache):
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, corpus.prefix, cache], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_builders_at_once_and_killed_ones_leave_good_indices(corpus, tmp_path):
    cache = tmp_path / "cache"
    for patience in (0.15, 0.3, 0.45):
        victim = builder(corpus, cache)
        time.sleep(patience)
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
    done = [one.communicate() for one in [builder(corpus, cache), builder(corpus, cache)]]
    right = order_of(corpus, None, 400_000)
    expected = f"{right.documents.sum()} {right.samples.sum()} {right.shuffle[:9].sum()}\n"
    assert done == [(expected, "")] * 2
    assert same(order_of(corpus, cache, 400_000), right)


def test_nothing_is_left_aside(corpus, tmp_path):
    with pytest.raises(CannotWrite), reference_order.staged(tmp_path / "a.bin" / "x"):
        pass
    order_of(corpus, tmp_path / "cache")
    names = sorted(path.name.split(".", 1)[1] for path in (tmp_path / "cache").iterdir())
    assert names == ["document.npy", "sample.npy", "shuffle.npy", "sums.json"]
