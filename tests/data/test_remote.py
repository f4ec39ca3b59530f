"""Folders at URLs, with fsspec's own memory:// as the store."""

import sys

import pytest

from megatron.data import remote
from megatron.errors import CannotWrite, MissingInput

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def store():
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    return files


def test_what_is_a_url():
    assert [remote.is_url(place) for place in ("s3://b/a", "memory://a", "a/b", "C:\\a", "train=a.jsonl", "/a")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_a_folder_there_and_back(tmp_path, store):
    (tmp_path / "a").mkdir()
    for name, data in (("x.bin", b"1" * 1000), ("last.json", b"{}")):
        (tmp_path / "a" / name).write_bytes(data)
    remote.store_folder(tmp_path / "a", ["x.bin", "last.json"], "memory://place/deep")
    assert remote.read("memory://place/deep/last.json") == b"{}" and remote.read("memory://place/deep/other") is None
    assert remote.sizes("memory://place/deep") == [("last.json", 2), ("x.bin", 1000)]
    found = remote.fetch("memory://place", tmp_path / "b")
    assert [path.relative_to(tmp_path / "b").as_posix() for path in found] == ["deep/last.json", "deep/x.bin"]
    assert (tmp_path / "b" / "deep" / "x.bin").read_bytes() == b"1" * 1000
    assert [path.name for path in remote.fetch("memory://place/deep/x.bin", tmp_path / "c")] == ["x.bin"]


def test_the_announcing_file_goes_first_and_comes_last(tmp_path, store, monkeypatch):
    for name in ("x.bin", "x.idx", "last.json"):
        (tmp_path / name).write_bytes(name.encode())
    remote.store_folder(tmp_path, ["x.bin", "x.idx", "last.json"], "memory://place")
    put, order = type(store).put_file, []

    def failing(self, local, path, *args, **named):
        order.append(path.rsplit("/", 1)[-1])
        if path.endswith(".idx"):
            raise OSError("the line is cut")
        return put(self, local, path, *args, **named)

    monkeypatch.setattr(type(store), "put_file", failing)
    with pytest.raises(CannotWrite, match="memory://place.*the line is cut"):
        remote.store_folder(tmp_path, ["x.bin", "x.idx", "last.json"], "memory://place")
    assert order == ["x.bin", "x.idx"] and remote.read("memory://place/last.json") is None


def test_what_has_arrived_whole_is_not_fetched_again(tmp_path, store, monkeypatch):
    store.pipe_file("/place/a.jsonl", b"one\n")
    store.pipe_file("/place/b.jsonl", b"three\n")
    remote.fetch("memory://place/a.jsonl", tmp_path)
    (tmp_path / "b.jsonl").write_bytes(b"th")
    fetched, get = [], type(store).get_file
    monkeypatch.setattr(type(store), "get_file", lambda self, name, to: fetched.append(name) or get(self, name, to))
    remote.fetch("memory://place", tmp_path)
    assert fetched == ["/place/b.jsonl"] and (tmp_path / "b.jsonl").read_bytes() == b"three\n"


def test_nothing_at_a_url_and_no_library_for_it_are_sentences(tmp_path, monkeypatch):
    for act in (lambda: remote.fetch("memory://nowhere", tmp_path), lambda: remote.sizes("memory://nowhere")):
        with pytest.raises(MissingInput, match="memory://nowhere: no such file"):
            act()
    with pytest.raises(MissingInput, match="nonsense"):
        remote.read("nonsense://a/b")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingInput, match="s3fs"):
        remote.read("s3://bucket/a")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingInput, match="the Python package fsspec"):
        remote.read("memory://a/b")
