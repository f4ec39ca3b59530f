import contextlib
import errno
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron.data import indexed
from megatron.data.indexed import IndexedDataset, IndexedWriter, best_dtype
from megatron.errors import BadData, CannotWrite, MissingInput

DOCUMENTS = [[5, 6, 7], [8], [9, 10]]


def write(prefix, documents=DOCUMENTS, dtype=np.uint16):
    with IndexedWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add_document(np.array(document, np.int64))
    return str(prefix)


def patch(prefix, suffix, at, content):
    with open(f"{prefix}.{suffix}", "r+b") as file:
        file.seek(at)
        file.write(content)


def test_files_are_megatrons_to_the_byte(tmp_path):
    prefix = write(tmp_path / "c")
    expected = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 3, 4)
    expected += struct.pack("<3i", 3, 1, 2) + struct.pack("<3q", 0, 6, 8) + struct.pack("<4q", 0, 1, 2, 3)
    assert open(f"{prefix}.idx", "rb").read() == expected
    assert open(f"{prefix}.bin", "rb").read() == struct.pack("<6H", 5, 6, 7, 8, 9, 10)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64])
def test_what_was_written_is_read(tmp_path, dtype):
    data = IndexedDataset(write(tmp_path / "c", dtype=dtype))
    assert (data.num_documents, data.num_tokens, data.dtype) == (3, 6, np.dtype(dtype))
    assert data.sizes.dtype == np.int32 and data.sizes.tolist() == [3, 1, 2]
    assert [data.document(i).tolist() for i in range(3)] == DOCUMENTS
    assert data.tokens(2, 5).tolist() == [7, 8, 9]


def test_documents_of_several_sequences(tmp_path):
    prefix = write(tmp_path / "c")
    os.unlink(f"{prefix}.meta.json")
    idx = open(f"{prefix}.idx", "rb").read()[: 34 + 12 * 3]
    (tmp_path / "c.idx").write_bytes(idx[:26] + struct.pack("<Q", 4) + idx[34:] + struct.pack("<4q", 0, 2, 3, 3))
    data = IndexedDataset(prefix)
    assert [data.document(i).tolist() for i in range(3)] == [[5, 6, 7, 8], [9, 10], []]
    assert [[part.tolist() for part in data.sequences(i)] for i in range(3)] == [[[5, 6, 7], [8]], [[9, 10]], []]
    assert (data.num_documents, data.num_sequences, data.document_starts.tolist()) == (3, 3, [0, 4, 6])


def test_empty_documents_are_kept(tmp_path):
    data = IndexedDataset(write(tmp_path / "c", [[], [1, 2], []]))
    assert [data.document(i).tolist() for i in range(3)] == [[], [1, 2], []]


def test_arrays_are_copies(tmp_path):
    data = IndexedDataset(write(tmp_path / "c"))
    for array in (data.tokens(0, 6), data.document(0), data.sizes):
        base = array
        while isinstance(base, np.ndarray):
            assert not isinstance(base, np.memmap)
            base = base.base
        assert base is None and array.flags.writeable


@pytest.mark.parametrize(
    "ask",
    [
        lambda d: d.tokens(-1, 2),
        lambda d: d.tokens(0, 7),
        lambda d: d.tokens(3, 2),
        lambda d: d.document(3),
        lambda d: d.document(-1),
    ],
)
def test_outside_is_an_index_error(tmp_path, ask):
    with pytest.raises(IndexError):
        ask(IndexedDataset(write(tmp_path / "c")))


@pytest.mark.parametrize(
    ("suffix", "at", "content", "field", "found", "expected"),
    [
        ("idx", 0, b"X", "magic", "XMIDIDX", "MMIDIDX"),
        ("idx", 0, b"TNTIDX\0\0", "magic", "lazy or cached", "MMIDIDX"),
        ("idx", 9, b"\2", "version", "2", "1"),
        ("idx", 17, b"\7", "dtype code", "7", "integer"),
        ("idx", 18, b"\4", "file size", "102", "114"),
        ("idx", 18, b"\xff" * 8, "file size", "102", str(34 + 12 * (2**64 - 1) + 32)),
        ("idx", 18, b"\0", "corpus", "empty", "at least 1"),
        ("idx", 26, b"\5", "file size", "102", "110"),
        ("idx", 34 + 4, struct.pack("<i", -1), "size of sequence 1", "-1", "0 or more"),
        ("idx", 34, struct.pack("<i", 2), "byte offset of sequence 1", "6", "4"),
        ("idx", 46 + 16, struct.pack("<q", 7), "byte offset of sequence 2", "7", "8"),
        ("idx", 46 + 12 + 12, struct.pack("<q", 1), "entry 0 of the document index", "1", "0"),
        ("idx", 70 + 24, struct.pack("<q", 9), "entry 3 of the document index", "9", "3"),
        ("idx", 70 + 8, struct.pack("<q", 3), "entry 2 of the document index", "2", "at least 3"),
        ("idx", 102, b"\0", "file size", "103", "102"),
        ("bin", 12, b"\0", "file size", "13", "12"),
    ],
)
def test_damage_is_named(tmp_path, suffix, at, content, field, found, expected):
    prefix = write(tmp_path / "c")
    patch(prefix, suffix, at, content)
    with pytest.raises(BadData) as error:
        IndexedDataset(prefix)
    said = str(error.value)
    assert said.startswith(f"{prefix}.{suffix}: ") and field in said
    assert found in said.split(" is ", 1)[1] and expected in said.split("expected", 1)[1]


def test_every_truncation_is_refused(tmp_path):
    prefix = write(tmp_path / "c")
    for suffix in ("idx", "bin"):
        whole = open(f"{prefix}.{suffix}", "rb").read()
        for length in range(len(whole)):
            (tmp_path / f"c.{suffix}").write_bytes(whole[:length])
            with pytest.raises(BadData):
                IndexedDataset(prefix)
        (tmp_path / f"c.{suffix}").write_bytes(whole)
    assert IndexedDataset(prefix).num_tokens == 6


def test_checks_reach_past_the_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr(indexed, "BLOCK", 4)
    prefix = write(tmp_path / "c", [[1, 2]] * 11)
    assert IndexedDataset(prefix).num_tokens == 22
    patch(prefix, "idx", 34 + 12 * 11 + 8 * 9, struct.pack("<q", 7))
    with pytest.raises(BadData, match="entry 9 of the document index is 7, expected at least 8"):
        IndexedDataset(prefix)


@pytest.mark.parametrize("at", [3, 4, 5, 7, 8])
@pytest.mark.parametrize("part", ["offset", "document"])
def test_checks_join_at_the_borders_of_blocks(tmp_path, monkeypatch, part, at):
    """Everything from entry `at` on is shifted; or one entry falls below the one before it. No sidecar helps."""
    monkeypatch.setattr(indexed, "BLOCK", 4)
    prefix = write(tmp_path / "c", [[1, 2]] * 11)
    os.unlink(f"{prefix}.meta.json")
    if part == "offset":
        patch(prefix, "idx", 34 + 4 * 11 + 8 * at, (4 * np.arange(at, 11) + 2).tobytes())
    else:
        patch(prefix, "idx", 34 + 12 * 11 + 8 * at, struct.pack("<q", at - 2))
    with pytest.raises(
        BadData,
        match=f"{part} of sequence {at} is {4 * at + 2}, expected {4 * at}"
        if part == "offset"
        else f"entry {at} of the document index is {at - 2}, expected at least {at - 1}",
    ):
        IndexedDataset(prefix)


@pytest.mark.parametrize("suffix", ["idx", "bin"])
def test_absent_files_are_missing_input(tmp_path, suffix):
    prefix = write(tmp_path / "c")
    os.unlink(f"{prefix}.{suffix}")
    with pytest.raises(MissingInput, match=f"c.{suffix}: No such file.*without .bin and .idx"):
        IndexedDataset(prefix)


@pytest.mark.parametrize(("dtype", "wrong"), [(np.uint16, 65536), (np.uint16, -1), (np.int32, 2**31), (np.uint8, 300)])
def test_an_id_that_does_not_fit_is_refused(tmp_path, dtype, wrong):
    with pytest.raises(BadData, match=f"document 1 has id {wrong}, expected 0 to {np.iinfo(dtype).max}"):
        write(tmp_path / "c", [[1], [2, wrong]], dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ids", [np.array([1.5]), np.ones((2, 2), int)])
def test_only_rows_of_integers_are_documents(tmp_path, ids):
    with pytest.raises(TypeError), IndexedWriter(tmp_path / "c", np.uint16) as writer:
        writer.add_document(ids)


def test_the_largest_id_fits(tmp_path):
    assert IndexedDataset(write(tmp_path / "c", [[65535, 0]])).tokens(0, 2).tolist() == [65535, 0]


def test_a_corpus_without_tokens_is_not_written(tmp_path):
    with pytest.raises(BadData, match="2 documents have 0 tokens"):
        write(tmp_path / "c", [[], []])
    assert not list(tmp_path.iterdir())


def test_an_exception_leaves_the_old_corpus(tmp_path):
    prefix = write(tmp_path / "c")
    with pytest.raises(RuntimeError), IndexedWriter(prefix, np.uint16) as writer:
        writer.add_document(np.array([1]))
        raise RuntimeError
    assert sorted(os.listdir(tmp_path)) == ["c.bin", "c.idx", "c.meta.json"]
    assert IndexedDataset(prefix).num_tokens == 6


def test_writing_again_replaces(tmp_path):
    write(tmp_path / "c")
    assert IndexedDataset(write(tmp_path / "c", [[1]])).num_tokens == 1


@pytest.fixture
def small_disk():
    """Files end at 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("documents", "file", "num_bytes"),
    [
        ([[1] * (1 << 20)], "c.bin", 1 << 21),  # fails in write
        ([[1] * 40000], "c.bin", 80000),  # fails when the buffer is flushed
        ([[1]] * 20000, "c.idx", 40000),  # fails in the index
    ],
)
def test_a_full_disk_is_cannot_write(tmp_path, small_disk, documents, file, num_bytes):
    with pytest.raises(CannotWrite, match=f"{file}: {os.strerror(errno.EFBIG)} while writing {num_bytes} bytes"):
        write(tmp_path / "c", documents)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_cannot_write(tmp_path):
    with pytest.raises(CannotWrite, match="No such file or directory"):
        write(tmp_path / "nowhere" / "c")


def test_all_files_are_synced_before_they_appear_the_index_last(tmp_path, monkeypatch):
    order = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(str(b)[-4:]), replace(a, b)))
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("sync"), fsync(descriptor)))
    write(tmp_path / "c")
    assert order == ["sync"] * 4 + [".bin", "json", ".idx", "sync"]  # the fourth: the old corpus is gone


@pytest.mark.parametrize("killed_at", range(6))
def test_a_killed_overwrite_leaves_the_old_the_new_or_nothing(tmp_path, monkeypatch, killed_at):
    """Never the .bin of one beside the .idx or the sidecar of the other."""
    prefix, steps = write(tmp_path / "c"), iter(range(6))

    def die_at(step):
        def one(*args, **named):
            if next(steps) == killed_at:
                raise KeyboardInterrupt
            return step(*args, **named)

        return one

    unlink, replace = os.unlink, os.replace
    with pytest.raises(KeyboardInterrupt) if killed_at < 5 else contextlib.nullcontext(), IndexedWriter(prefix) as writer:
        writer.add_documents([5, 6, 7, 8, 9, 11], [1, 3, 2])
        monkeypatch.setattr(
            indexed.Path,
            "unlink",
            lambda path, missing_ok=False: (
                unlink(path) if str(path).endswith("tmp") and path.exists() else die_at(unlink)(path) if path.exists() else None
            ),
        )
        monkeypatch.setattr(os, "replace", die_at(replace))
    try:
        data = IndexedDataset(prefix)
    except (BadData, MissingInput):
        assert 1 < killed_at < 5
    else:
        assert data.tokens(0, 6)[-1] == (11 if killed_at == 5 else 10) and data.sizes[0] == (1 if killed_at == 5 else 3)
        assert (data.meta is None) == (killed_at == 1)


def test_many_documents_at_once_are_the_same_files(tmp_path):
    one = write(tmp_path / "one", [*DOCUMENTS, [], [4]])
    with IndexedWriter(tmp_path / "many") as writer:
        writer.add_documents(np.array([5, 6, 7, 8], np.uint16), [3, 1])
        writer.add_documents([9, 10, 4], np.array([2, 0, 1]))
        writer.add_documents([], [])
        assert (writer.num_documents, writer.num_sequences, writer.num_tokens, writer.largest_id) == (5, 5, 7, 10)
    for suffix in ("bin", "idx", "meta.json"):
        assert open(f"{one}.{suffix}", "rb").read() == open(tmp_path / f"many.{suffix}", "rb").read()


def test_documents_are_cut_into_sequences(tmp_path):
    with IndexedWriter(tmp_path / "c") as writer:
        writer.add_document([1])
        writer.add_document([2, 3, 4], [1, 2])
        writer.add_documents([5, 6, 7], [2, 1])
        writer.add_document([], [])
        writer.add_document([8, 9], [0, 2])
    expected = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 7, 7) + struct.pack("<7i", 1, 1, 2, 2, 1, 0, 2)
    expected += struct.pack("<7q", 0, 2, 4, 8, 12, 14, 14) + struct.pack("<7q", 0, 1, 3, 4, 5, 5, 7)
    assert (tmp_path / "c.idx").read_bytes() == expected
    data = IndexedDataset(tmp_path / "c")
    assert [[part.tolist() for part in data.sequences(i)] for i in range(6)] == [
        [[1]],
        [[2], [3, 4]],
        [[5, 6]],
        [[7]],
        [],
        [[], [8, 9]],
    ]
    assert (data.num_documents, data.num_sequences, data.document_starts.tolist()) == (6, 7, [0, 1, 4, 6, 7, 7])
    assert data.meta["documents"] == 6 and data.meta["sequences"] == 7


@pytest.mark.parametrize(
    ("ids", "lengths", "error", "said"),
    [
        ([1, 2], [1], ValueError, "lengths sum to 1, but there are 2 ids"),
        ([1, 2], [3, -1], BadData, "document 2 has -1 tokens"),
        ([1, 2], [[2]], TypeError, "lengths must be a one-dimensional array of integers"),
        ([1, 70000, 3], [1, 0, 2], BadData, "document 3 has id 70000, expected 0 to 65535"),
    ],
)
def test_what_many_documents_refuse(tmp_path, ids, lengths, error, said):
    with pytest.raises(error, match=said), IndexedWriter(tmp_path / "c") as writer:
        writer.add_document([1])
        writer.add_documents(ids, lengths)
    assert not list(tmp_path.iterdir())


def test_a_file_cut_short_under_an_open_corpus_is_a_sentence(tmp_path):
    data = IndexedDataset(write(tmp_path / "c"))
    os.truncate(tmp_path / "c.bin", 5)
    os.unlink(tmp_path / "c.meta.json")
    with pytest.raises(BadData, match="c.bin: the file size is 5 bytes, expected at least 12"):
        data.tokens(0, 6)


@pytest.mark.parametrize("suffix", ["idx", "bin"])
def test_what_is_no_file_is_refused(tmp_path, suffix):
    prefix = write(tmp_path / "c")
    for make in (os.mkdir, os.mkfifo):
        (tmp_path / f"c.{suffix}").rename(tmp_path / "kept")
        make(tmp_path / f"c.{suffix}")
        with pytest.raises(BadData, match=f"c.{suffix}: is not a regular file"):
            IndexedDataset(prefix)
        (tmp_path / f"c.{suffix}").rename(tmp_path / make.__name__)
        (tmp_path / "kept").rename(tmp_path / f"c.{suffix}")


OPENED = """
import resource, sys, time
from megatron.data.indexed import IndexedDataset
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
memory, cpu = used(), time.process_time()
data = IndexedDataset(sys.argv[1])
data.tokens(data.num_tokens - 2049, data.num_tokens)
print(time.process_time() - cpu, used() - memory)
"""


def test_opening_two_million_documents_takes_little_time_and_no_memory(tmp_path):
    with IndexedWriter(tmp_path / "c", np.uint8) as writer:
        for _ in range(20):
            writer.add_documents(np.ones(200_000, np.uint8), np.tile([0, 1, 2, 1], 50_000))
        writer.add_document(np.ones(4000, np.uint8))
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", OPENED, tmp_path / "c"], cwd=root, capture_output=True, text=True, check=True)
    seconds, mebibytes = map(float, done.stdout.split())
    assert seconds < 0.16 and mebibytes < 8


def test_fingerprint_names_the_content(tmp_path, monkeypatch):
    monkeypatch.setattr(indexed, "EDGE_BYTES", 4)
    same = {IndexedDataset(write(tmp_path / name)).fingerprint() for name in ("a", "b")}
    assert len(same) == 1
    others = [[[5, 6, 7], [8], [9, 11]], [[4, 6, 7], [8], [9, 10]], [[5, 6], [7, 8], [9, 10]]]
    assert len(same | {IndexedDataset(write(tmp_path / "o", o)).fingerprint() for o in others}) == 4


def test_best_dtype():
    assert [best_dtype(v) for v in (50257, 65499, 65500)] == [np.uint16, np.uint16, np.int32]


def test_sizes_of_a_real_corpus(corpus):
    data = IndexedDataset(corpus)
    assert data.sizes.sum() == data.num_tokens == 8192
    assert np.array_equal(np.concatenate([data.document(i) for i in range(64)]), data.tokens(0, 8192))
