import numpy as np
import pytest

from megatron.data.indexed import IndexedDataset, IndexedWriter
from megatron.data.lineage import origin_of, shared, spans
from megatron.errors import BadData


def corpus(prefix, first, count=100, **extra):
    with IndexedWriter(prefix, np.int32, None, extra) as writer:
        writer.add_documents(np.arange(first, first + count), [count])
    return IndexedDataset(prefix)


def test_a_range_is_followed_to_every_ancestor(tmp_path):
    whole = corpus(tmp_path / "whole", 0)
    part = corpus(tmp_path / "part", 20, 60, subset_of=origin_of(whole, 20, 80))
    inner = corpus(tmp_path / "inner", 30, 10, subset_of=origin_of(part, 10, 20))
    assert [(span.start, span.stop) for span in spans(inner, 2, 7)] == [(2, 7), (12, 17), (32, 37)]
    assert shared((inner, 0, 10), (whole, 0, 30)) is None and "tokens 30:31" in shared((inner, 0, 10), (whole, 0, 31))


def test_two_corpora_of_the_same_files_share_their_documents(tmp_path):
    """Shuffled, or made of more files, they have other fingerprints: no range tells, the record of the inputs does."""
    file = {"path": "a.jsonl", "bytes": 7}
    one = corpus(tmp_path / "one", 0, inputs=[file], json_key="text")
    more = corpus(tmp_path / "more", 50, inputs=[file, {"path": "b.jsonl", "bytes": 9}], json_key="text")
    title = corpus(tmp_path / "title", 70, inputs=[file], json_key="title")
    part = corpus(tmp_path / "part", 0, 10, subset_of=origin_of(one, 0, 10))
    assert shared((one, 0, 9), (more, 90, 99)) == shared((part, 0, 1), (more, 0, 1)) == "the documents of a.jsonl"
    assert shared((one, 0, 9), (title, 0, 9)) is None and shared((part, 0, 5), (one, 10, 100)) is None


def test_a_record_of_another_shape_is_refused(tmp_path):
    with pytest.raises(BadData, match="odd.meta.json: subset_of is 3, expected an object with name, fingerprint, start, stop"):
        spans(corpus(tmp_path / "odd", 0, subset_of=3), 0, 1)
