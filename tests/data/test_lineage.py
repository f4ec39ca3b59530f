import os

import numpy as np
import pytest

from megatron.data.indexed import IndexedDataset, IndexedWriter
from megatron.data.lineage import input_record, origin_of, shared, spans
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


def test_the_two_sides_of_one_split_share_nothing(tmp_path):
    def side(name, part, seed=0, bytes=7):
        split = {"valid_fraction": 0.05, "seed": seed}
        return corpus(tmp_path / name, len(name) * 1000, inputs=[{"path": "a.json", "bytes": bytes}], split=split, part=part)

    train, valid, again, other = side("t", "train"), side("va", "valid"), side("aga", "train"), side("othe", "valid", seed=1)
    part = corpus(tmp_path / "part", 0, 10, subset_of=origin_of(train, 0, 10))
    assert shared((train, 0, 9), (valid, 0, 9)) is None and shared((part, 0, 9), (valid, 0, 9)) is None
    assert shared((train, 0, 9), (other, 0, 9)) == shared((train, 0, 9), (again, 50, 60)) == "the documents of a.json"
    assert shared((part, 0, 9), (other, 0, 9)) == "the documents of a.json"


def test_an_input_is_known_by_any_name_and_a_pipe_by_none(tmp_path):
    long = b"".join(b"%07d\n" % i for i in range(20_000))
    for name, text in {"a": long, "copy": long, "other": long[:-8] + b"another\n"}.items():
        (tmp_path / name).write_bytes(text)
    (tmp_path / "link").symlink_to("a")
    one, copy, link, other = (
        corpus(tmp_path / f"{name}-made", 100 * i, inputs=[input_record(str(tmp_path / name))], json_key="text")
        for i, name in enumerate(("a", "copy", "link", "other"))
    )
    assert all(f"the documents of {tmp_path / 'a'}" == shared((one, 0, 9), (same, 50, 59)) for same in (copy, link))
    assert shared((one, 0, 9), (other, 0, 9)) is None
    end, _ = os.pipe()
    pipe = input_record(f"/dev/fd/{end}")
    first, second = (corpus(tmp_path / f"pipe-{i}", 500 + 100 * i, inputs=[pipe], json_key="text") for i in range(2))
    assert shared((first, 0, 9), (second, 0, 9)) is None


def test_a_record_of_another_shape_is_refused(tmp_path):
    odd = corpus(tmp_path / "odd-inputs", 0, inputs=[3], json_key="text")
    with pytest.raises(BadData, match=r"odd-inputs.meta.json: inputs is \[3\], expected a list of objects with path, bytes"):
        shared((odd, 0, 1), (corpus(tmp_path / "plain", 200), 0, 1))
    with pytest.raises(BadData, match="odd.meta.json: subset_of is 3, expected an object with name, fingerprint, start, stop"):
        spans(corpus(tmp_path / "odd", 0, subset_of=3), 0, 1)
