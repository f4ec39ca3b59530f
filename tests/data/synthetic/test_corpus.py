import json

import numpy as np
import pytest

from megatron.config import Data
from megatron.data.datasets import SampleSpec, build_datasets
from megatron.data.gpt_dataset import PackedDataset
from megatron.data.indexed import IndexedDataset
from megatron.data.sources import Source
from megatron.data.synthetic import corpus
from megatron.data.synthetic.corpus import BLOCK, FIRST, STREAM, contiguous, from_spec, read_source, stream, write_corpus
from megatron.data.synthetic.presets import PRESETS, build, uniforms
from megatron.data.synthetic.process import entropy_rate, token_nll
from megatron.errors import BadData, CannotWrite, MissingInput


def tokens(source, seed, n):
    return np.concatenate(list(stream(source, seed, n)))


def slowly(source, seed, n):
    """The same stream token by token, with the same uniform numbers."""
    state, found = int((uniforms(seed, FIRST, 0)[0] >= source.start.cumsum()).sum()), []
    for i in range(n):
        left = uniforms(seed, STREAM, i // BLOCK, i % BLOCK)[0]
        for x in reversed(range(source.num_symbols)):
            for r, p in enumerate(source.transitions[x, state]):
                if p > 0 and left >= 0:
                    left, last = left - p, (x, r)
        found.append(last[0])
        state = last[1]
    return found


@pytest.mark.parametrize("name", ["markov", "even", "noisy-golden-mean", "mixture"])
def test_the_stream_is_that_of_a_walk_token_by_token(name):
    source = build(name, symbols=3, components=2, document_length=40.0)
    assert tokens(source, 3, 2 * BLOCK + 700).tolist() == slowly(source, 3, 2 * BLOCK + 700)


def test_a_stream_is_the_beginning_of_a_longer_one_whatever_is_walked_at_once(monkeypatch):
    source = build("mixture", symbols=3, components=2)
    long = tokens(source, 3, 7 * BLOCK)
    monkeypatch.setattr(corpus, "LANES", 16)  # two blocks at once
    assert (tokens(source, 3, 3 * BLOCK + 5) == long[: 3 * BLOCK + 5]).all()
    assert (tokens(source, 4, BLOCK) != long[:BLOCK]).any()


def test_a_chain_moves_as_often_as_its_law_says():
    source = build("markov", symbols=5, seed=9)
    ids = tokens(source, 1, 400_000)
    counts = np.zeros((5, 5))
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    law, seen = source.emissions, counts.sum(1, keepdims=True)
    assert (abs(counts - seen * law) / np.sqrt(seen * law * (1 - law))).max() < 4.5


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_oracle_on_the_stream_comes_to_the_entropy_rate(name):
    source = build(name, symbols=6, components=3, document_length=200.0)
    nll = token_nll(source, tokens(source, 11, 300_000)[:299_520].reshape(-1, 520))[:, 260:].mean(1)
    error = nll.std(ddof=1) / len(nll) ** 0.5
    low, high = entropy_rate(source)
    # What a window's first half does not tell is worth far less than an error here; a mixture's windows differ by their part.
    assert low - 4 * error < nll.mean() < high + 4 * error and error < 0.005


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_source_comes_back_from_its_sidecar(name, tmp_path):
    source = build(name, symbols=4, components=2)
    said = write_corpus(tmp_path / "sub" / "c", source, 5000, 1)
    back, found = read_source(str(tmp_path / "sub" / "c")), IndexedDataset(tmp_path / "sub" / "c")
    assert (back.transitions == source.transitions).all() and (back.start == source.start).all()
    assert tuple(said["entropy_rate"]) == entropy_rate(back)
    assert found.tokens(0, 5000).tolist() == tokens(back, 1, 5000).tolist()
    assert found.verify() and json.loads((tmp_path / "sub" / "c.meta.json").read_text())["tokenizer"] is None


def test_a_mixtures_documents_end_with_its_last_symbol(tmp_path):
    source = build("mixture", symbols=4, components=2, document_length=100.0)
    write_corpus(tmp_path / "c", source, 50_000, 1)
    found = IndexedDataset(tmp_path / "c")
    documents = [found.document(n) for n in range(found.num_documents)]
    assert all(d[-1] == 4 and (d[:-1] < 4).all() for d in documents[:-1])
    assert 50_000 / len(documents) == pytest.approx(100, rel=4 / len(documents) ** 0.5)


def test_other_sources_are_cut_into_blocks(tmp_path):
    write_corpus(tmp_path / "c", build("even"), 2 * BLOCK + 7, 1)
    assert IndexedDataset(tmp_path / "c").sizes.tolist() == [BLOCK, BLOCK, 7]


def test_samples_that_are_one_stretch_are_told_from_those_that_are_not(tmp_path):
    write_corpus(tmp_path / "c", build("markov"), 4000, 1)
    data = PackedDataset([Source(1.0, 100, 1143, str(tmp_path / "c"))], 16, seed=5)
    stretch = IndexedDataset(tmp_path / "c").tokens(100, 1143)
    windows = {bytes(w) for w in np.lib.stride_tricks.sliding_window_view(stretch.astype(np.int64), 17)}
    numbers = np.arange(400)  # six epochs of 65.2 samples
    expected = [bytes(row) in windows for row in data.rows(numbers)]
    assert contiguous(data, numbers).tolist() == expected and 6 <= expected.count(False) <= 12


def test_megatrons_order_has_no_oracle(tmp_path):
    write_corpus(tmp_path / "c", build("markov"), 9000, 1)
    plan = SampleSpec(seq_length=16, seed=1, eval_seed=1, lengths={"train": 100, "valid": 8, "test": 8})
    data = build_datasets(Data(data_path=[str(tmp_path / "c")], split="50,50,0", epoch_order="reference"), plan)["valid"]
    with pytest.raises(BadData, match="leave out --epoch-order reference"):
        contiguous(data, np.arange(4))


def test_a_corpus_of_text_has_no_oracle(corpus):
    with pytest.raises(MissingInput, match="names no source, so there is no oracle"):
        read_source(corpus)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"kind": "hmm"},
        {"kind": "gas"},
        [1],
        {"kind": "markov", "order": "x", "conditionals": [[1]]},
        {"kind": "hmm", "transitions": [[["a"]]]},
        {"kind": "hmm", "transitions": [[[1], [1, 2]]]},
        {"kind": "mixture", "parts": [], "weights": [], "document_length": 9},
    ],
)
def test_a_description_that_is_none_is_refused(spec):
    with pytest.raises(BadData):
        from_spec(spec)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="choose another --output"):
        write_corpus(tmp_path / "file" / "c", build("coin"), 100, 1)
