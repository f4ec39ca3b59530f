"""The words of a run: what replaces what, and where the first tokens of a corpus come from."""

import pytest

from megatron.errors import BadData
from megatron.scaling.plan.flags import corpus_tokens, first_tokens, overlaid, prepared_subset, without


def test_later_flags_replace_earlier_ones_however_they_are_spelled():
    flags = ["--lr", "1e-3", "--swiglu", "--train-samples", "100", "--eval_iters", "3", "--train-data-path", "1.0", "x"]
    assert overlaid(flags, ["--eval-iters", "5"]) == [
        "--lr",
        "1e-3",
        "--swiglu",
        "--train-samples",
        "100",
        "--train-data-path",
        "1.0",
        "x",
        "--eval-iters",
        "5",
    ]
    assert overlaid(flags, ["--max-steps", "7", "--learning-rate=2e-3"]) == [
        "--swiglu",
        "--eval_iters",
        "3",
        "--train-data-path",
        "1.0",
        "x",
        "--max-steps",
        "7",
        "--learning-rate=2e-3",
    ]
    assert without(flags, {"train_data_path", "lr"}) == ["--swiglu", "--train-samples", "100", "--eval_iters", "3"]


def test_tokens_of_a_corpus_are_counted(corpus, tmp_path):
    assert corpus_tokens((corpus,)) == 8192
    assert corpus_tokens((str(tmp_path / "none"),)) is None and corpus_tokens(("list.txt",)) is None
    assert corpus_tokens(("0.5", corpus)) is None
    (tmp_path / "bad.idx").write_bytes(b"no index")
    (tmp_path / "bad.bin").write_bytes(b"")
    with pytest.raises(BadData, match="no index"):
        corpus_tokens((str(tmp_path / "bad"),))


def test_first_tokens_of_a_corpus(corpus):
    assert first_tokens((corpus,), 1000) == ((corpus,), 1000, 1000)
    assert first_tokens((corpus,), 10_000) == ((corpus,), 8192, 8192)
    for words in (("list.txt",), ("0.5", "a", "0.5", "b")):  # of several, the trainer deals them out
        assert first_tokens(words, 1000) == (words, 1000, 1000)


@pytest.mark.parametrize(
    "unique, name, count",
    [(99952399, "100M", 99952399), (7_663_000_000 // 10, "7B6_10ep", 765785518), (13_490_000_000, "13B5", 13483058828)],
)
def test_prepared_subsets_stand_for_their_tokens(unique, name, count):
    assert first_tokens(("c4_{subset}_document",), unique) == ((f"c4_{name}_document",), None, count)


def test_other_counts_are_cut_from_the_next_larger_subset():
    assert first_tokens(("c4_{subset}",), 38_313_629) == (("c4_50M",), 38_313_629, 38_313_629)
    with pytest.raises(ValueError, match="the largest has 39984781511"):
        prepared_subset(50_000_000_000)
