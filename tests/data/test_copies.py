"""Folders at URLs: whole or not there, checked, and gone on with; on memory:// and, where moto is installed, a local S3."""

import json
import socket

import pytest

from megatron.data.copies import ARRIVED, LISTING, receive, send
from megatron.errors import BadData, CannotWrite, MissingInput, Untrusted
from megatron.locks import held

fsspec = pytest.importorskip("fsspec")
URL = "memory://bucket/runs/a"
FILES = {"result.json": b"{}", "step-00000002/manifest.json": b"{}", "step-00000002/tensors.bin": b"\x01" * 100_000}


@pytest.fixture
def store():
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    return files


@pytest.fixture
def run(tmp_path):
    return made(tmp_path / "a", FILES)


def made(folder, files):
    for name, data in (files | {".lock": b""}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_there_and_back(run, tmp_path, store, capsys):
    send(run, URL + "/")
    listed = json.loads(store.cat_file("/bucket/runs/a/" + LISTING))["files"]
    assert set(listed) == set(FILES) and listed["step-00000002/tensors.bin"]["bytes"] == 100_000
    receive(URL, tmp_path / "b")
    assert contents(tmp_path / "b") == FILES and [path.name for path in tmp_path.glob(".*")] == []
    send(run, URL)
    receive(URL, tmp_path / "b")
    assert capsys.readouterr().out.count("already there") == 2


def test_what_an_earlier_copy_had_goes_even_after_a_line_that_is_cut(run, store, monkeypatch):
    send(made(run, {"old.bin": b"old"}), URL)
    (run / "old.bin").unlink()
    made(run, {"result.json": b"[1]"})
    put = type(store).put_file
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "put_file", lambda *_, **__: (_ for _ in ()).throw(OSError("the line is cut")))
        with pytest.raises(CannotWrite):
            send(run, URL)
    assert type(store).put_file is put and store.exists("/bucket/runs/a/old.bin")
    send(run, URL)
    assert not store.exists("/bucket/runs/a/old.bin") and store.cat_file("/bucket/runs/a/result.json") == b"[1]"
    store.pipe_file("/bucket/runs/a/" + LISTING, b'{"files": {}}')
    with pytest.raises(BadData, match="lists no files"):
        receive(URL, run.parent / "c")


def test_an_interrupted_copy_counts_for_nothing_and_goes_on(run, tmp_path, store, monkeypatch):
    put, sent = type(store).put_file, []

    def failing(self, local, path, *args, **named):
        if path.endswith("tensors.bin") and "tensors.bin" not in sent:
            sent.append("tensors.bin")
            raise OSError("the line is cut")
        sent.append(path.rsplit("/", 1)[-1])
        return put(self, local, path, *args, **named)

    monkeypatch.setattr(type(store), "put_file", failing)
    with pytest.raises(CannotWrite, match="memory://bucket/runs/a.*the line is cut"):
        send(run, URL)
    with pytest.raises(MissingInput, match="holds no whole copy"):
        receive(URL, tmp_path / "b")
    send(run, URL)
    assert sent == ["result.json", "manifest.json", "tensors.bin", "tensors.bin"]
    assert not store.exists("/bucket/runs/a/" + ARRIVED)
    made(run, {"result.json": b"[]"})  # of the same size
    (run / "step-00000002/manifest.json").unlink()
    send(run, URL)
    assert sent[4:] == ["result.json"] and not store.exists("/bucket/runs/a/step-00000002/manifest.json")
    get, fetched = type(store).get_file, []

    def stopping(self, name, to, *args, **named):
        fetched.append(name.rpartition("/")[2])
        if fetched.count("tensors.bin") == 1 and name.endswith("tensors.bin"):
            raise OSError("the line is cut")
        return get(self, name, to, *args, **named)

    monkeypatch.setattr(type(store), "get_file", stopping)
    with pytest.raises(MissingInput, match="the line is cut"):
        receive(URL, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    receive(URL, tmp_path / "b")
    assert fetched == ["result.json", "tensors.bin", "tensors.bin"] and set(contents(tmp_path / "b")) == {
        "result.json",
        "step-00000002/tensors.bin",
    }


def test_what_arrived_damaged_is_refused(run, tmp_path, store):
    send(run, URL)
    store.pipe_file("/bucket/runs/a/step-00000002/tensors.bin", b"\x02" * 100_000)
    with pytest.raises(BadData, match="tensors.bin: 100000 bytes with sha256"):
        receive(URL, tmp_path / "b")
    store.rm_file("/bucket/runs/a/step-00000002/tensors.bin")
    with pytest.raises(BadData, match="is missing, though files.json lists it"):
        receive(URL, tmp_path / "b")
    for listed, kind in ((b"[]", BadData), (b'{"files": {"../x": {"bytes": 1, "sha256": "0"}}}', Untrusted)):
        store.pipe_file("/bucket/runs/a/" + LISTING, listed)
        with pytest.raises(kind, match=LISTING):
            receive(URL, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_folders_that_are_in_the_way_or_in_use(run, tmp_path, store):
    send(run, URL)
    made(tmp_path / "b", {"other": b"1"})
    with pytest.raises(CannotWrite, match="holds something else"):
        receive(URL, tmp_path / "b")
    with held(run), pytest.raises(CannotWrite, match="a run that is on"):
        send(run, URL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInput, match="no file to copy"):
        send(tmp_path / "empty", URL)


@pytest.mark.slow
def test_a_local_s3(run, tmp_path, monkeypatch):
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    s3 = server.ThreadedMotoServer(ip_address="127.0.0.1", port=port)
    s3.start()
    try:
        given = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        for name, value in (given | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        send(run, "s3://bucket/runs/a")
        receive("s3://bucket/runs/a", tmp_path / "b")
        assert contents(tmp_path / "b") == FILES
        with pytest.raises(MissingInput, match="holds no whole copy"):
            receive("s3://bucket/runs/none", tmp_path / "c")
    finally:
        s3.stop()
