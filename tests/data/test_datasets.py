from dataclasses import replace

import numpy as np
import pytest

from megatron.config import Data
from megatron.data.datasets import SampleSpec, build_datasets
from megatron.data.indexed import IndexedWriter
from megatron.data.tokenizer import build_tokenizer
from megatron.errors import BadData, Mismatch
from tools import subset_data

SPEC = SampleSpec(seq_length=16, seed=1, eval_seed=2)


def test_split_cuts_contiguous_ranges(two):
    built = build_datasets(Data(data_path=[two[1]], split="80,10,10"), SPEC)
    assert [(c.start, c.stop) for d in built.values() for c in d.walks] == [(0, 2400), (2400, 2700), (2700, 3000)]
    for data, start, stop in zip(built.values(), (0, 2400, 2700), (2400, 2700, 3000), strict=True):
        ids = np.unique(data.rows(np.arange(data.rows_in_first_epoch)))
        assert start <= ids.min() and ids.max() < stop
    assert built["train"].seed == 1 and built["valid"].seed == built["test"].seed == 2


@pytest.mark.parametrize("split", ["100", "100,0,0", "1,0"])
def test_a_share_of_zero_gives_no_dataset(two, split):
    built = build_datasets(Data(data_path=["0.5", two[0], "0.5", two[1]], split=split), SPEC)
    assert built["train"].tokens_per_epoch == 4000 and built["valid"] is None and built["test"] is None


def test_a_share_too_small_is_refused(two):
    with pytest.raises(BadData, match=r"tokens 970:980: --seq-length 16 needs at least 17 tokens, has 10, the valid share of"):
        build_datasets(Data(data_path=[two[0]], split="97,1,2"), SPEC)
    with pytest.raises(BadData, match=r"tokens 0:1: --seq-length 16 needs"):  # one token, not the share 1 of all
        build_datasets(Data(data_path=[two[0]], split="1,999,0"), SPEC)


def test_the_default_splits_thousandth_may_hold_no_sample(two):
    built = build_datasets(Data(data_path=[two[0]]), SPEC)  # 969,30,1 of 1000 tokens
    assert built["valid"].tokens_per_epoch == 30 and built["test"] is None
    with pytest.raises(BadData, match=r"has 10, the test share of --split 80,19,1; give test a larger share"):  # asked for
        build_datasets(Data(data_path=[two[0]], split="80,19,1"), SPEC)


def test_subsets_of_the_training_corpus_do_not_validate_it(two, tmp_path):
    """By ranges of every ancestor: a subset of a subset, its parent under another name, and two subsets of one corpus."""
    for tokens, parent, name in (
        ("1000:2000", two[1], "part"),
        ("500:800", tmp_path / "part", "inner"),
        ("0:900", two[1], "head"),
    ):
        assert subset_data.main([str(parent), "--tokens", tokens, "--output-prefix", str(tmp_path / name)]) == 0
    inner, head = str(tmp_path / "inner"), str(tmp_path / "head")  # tokens 1500:1800 and 0:900 of the parent

    def build(train, valid):
        return build_datasets(Data(train_data_path=train, valid_data_path=valid), SPEC)

    for train, valid in (([two[1]], [inner]), ([inner], [two[1]]), (["1", "0:1600", two[1]], [inner])):
        with pytest.raises(BadData, match=r"tokens 15\d\d:1[68]00 .*both in the train and in the valid data"):
            build(train, valid)
    with pytest.raises(BadData, match=r"tokens 500:800 of part, which it was cut out of, are both"):
        build([str(tmp_path / "part")], [inner])
    build([head], [inner])
    build(["1", "0:1500", two[1]], [inner])


def test_one_corpus_with_a_weight_is_blended_as_megatron_does(two):
    """Ten whole epochs of a corpus named with a weight: both Megatrons ask it for 0.5 % more, and cross into an eleventh."""
    epochs = 10
    lengths = {"train": (epochs * 1000 - 1) // 16, "valid": 1, "test": 1}
    for order in ("reference", "megatron-core"):
        spec = replace(SPEC, lengths=lengths)
        found = [
            build_datasets(Data(data_path=words, split="100", epoch_order=order), spec)["train"].walks[0].num_epochs
            for words in ([two[0]], ["1.0", two[0]])
        ]
        assert found == [epochs, epochs + 1]
        with pytest.raises(Mismatch, match="2 corpora without weights"):
            build_datasets(Data(data_path=[two[0], two[1]], split="100", epoch_order=order), spec)


def test_apart_and_from_files(two, tmp_path):
    (tmp_path / "valid.txt").write_text(f'"1.0 {two[1]}"')
    built = build_datasets(Data(train_data_path=[two[0]], valid_data_path_file=[str(tmp_path / "valid.txt")]), SPEC)
    assert built["train"].tokens_per_epoch == 1000 and built["valid"].tokens_per_epoch == 3000 and built["test"] is None


@pytest.mark.parametrize("split", ["valid", "test"])
def test_training_on_evaluation_tokens_is_refused(two, split, tmp_path):
    again = tmp_path / "elsewhere"
    for suffix in (".bin", ".idx"):
        (tmp_path / f"elsewhere{suffix}").symlink_to(f"{two[0]}{suffix}")
    train = ["1", "0:0.9", two[0]]
    for prefix in (two[0], str(again)):
        with pytest.raises(BadData, match=rf"{prefix}: tokens 800:900 are both in the train and in the {split} data"):
            build_datasets(Data(**{"train_data_path": train, f"{split}_data_path": ["1", "0.8:1", prefix]}), SPEC)
    build_datasets(Data(**{"train_data_path": train, f"{split}_data_path": ["1", "0.9:1", two[0]]}), SPEC)


def test_unique_tokens_are_the_first_of_training_only(two):
    built = build_datasets(Data(train_data_path=[two[1]], valid_data_path=[two[0]], unique_tokens=500), SPEC)
    assert built["train"].tokens_per_epoch == 500 and built["valid"].tokens_per_epoch == 1000
    assert np.array_equal(np.unique(built["train"].rows(np.arange(100))), np.arange(500))
    share = build_datasets(Data(data_path=[two[1]], split="80,20,0", unique_tokens=0.25), SPEC)
    assert (share["train"].tokens_per_epoch, share["valid"].tokens_per_epoch) == (600, 600)


def test_seven_epoch_counts_from_one_file(two):
    """The sweep of 1, 2, 4, 10, 20, 50, 100 epochs over 1000 tokens: each visits its unique tokens exactly so often."""
    for epochs in (1, 2, 4, 10, 20, 50, 100):
        unique = 2000 // epochs
        data = build_datasets(Data(train_data_path=[two[1]], unique_tokens=unique), SPEC)["train"]
        visited = data.rows(np.arange(2000 // 16))[:, :-1].reshape(-1)
        ids, counts = np.unique(visited, return_counts=True)
        assert ids.max() < unique and len(ids) == unique and counts.min() >= epochs - 1 and counts.max() <= epochs


def test_validation_sets_by_name(two, tmp_path):
    for name, words in (("near", f"1 0:0.5 {two[1]}"), ("far", f"1 0.5:1 {two[1]}")):
        (tmp_path / f"{name}.txt").write_text(words)
    files = [f"{name}={tmp_path / name}.txt" for name in ("near", "far")]
    built = build_datasets(Data(train_data_path=[two[0]], valid_data_path_file=files), SPEC)
    assert list(built) == ["train", "valid", "valid:far", "test"]
    assert [built[name].walks[0].start for name in ("valid", "valid:far")] == [0, 1500]


def test_a_copy_of_the_training_data_is_no_validation(two, tmp_path):
    for suffix in (".bin", ".idx"):
        (tmp_path / f"copy{suffix}").write_bytes((tmp_path / f"b{suffix}").read_bytes())
    with pytest.raises(BadData, match=f"{tmp_path / 'copy'}: tokens 0:3000 are both in the train and in the valid data"):
        build_datasets(Data(train_data_path=[two[1]], valid_data_path=[str(tmp_path / "copy")]), SPEC)


def test_another_tokenizer_than_the_corpus_was_made_by_is_refused(tmp_path):
    tokenizer = build_tokenizer("ByteTokenizer")
    made = {"type": "ByteTokenizer", "fingerprint": tokenizer.fingerprint(), "vocab_size": 257, "eod": 256}
    plan = replace(SPEC, tokenizer=tokenizer)
    for name, said, largest in (("same", made, 256), ("other", made | {"fingerprint": "0" * 64}, 256), ("large", None, 300)):
        with IndexedWriter(tmp_path / name, np.uint16, tokenizer=said) as writer:
            writer.add_document(np.arange(200) % 100)
            writer.add_document([largest])
    build_datasets(Data(train_data_path=[str(tmp_path / "same")]), plan)
    with pytest.raises(Mismatch, match="other was made by another tokenizer"):
        build_datasets(Data(train_data_path=[str(tmp_path / "other")]), plan)
    with pytest.raises(BadData, match="large holds id 300, expected ids below the vocabulary size 257"):
        build_datasets(Data(train_data_path=[str(tmp_path / "large")]), plan)
