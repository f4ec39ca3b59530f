import os

import pytest

from megatron.errors import CannotWrite
from megatron.files import open_lock, own_folder, replace_file, staged, write_synced


def test_replace_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"newer")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.json"]


def test_write_synced_never_overwrites(tmp_path):
    write_synced(tmp_path / "a", b"1")
    with pytest.raises(FileExistsError):
        write_synced(tmp_path / "a", b"2")


def test_staged_files_appear_together_or_not_at_all(tmp_path):
    with staged(tmp_path / "out") as stage:
        (stage / "a").write_text("1")
        (stage / "b").write_text("2")
        assert not (tmp_path / "out" / "a").exists()
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b"]
    with pytest.raises(RuntimeError), staged(tmp_path / "out") as stage:
        (stage / "c").write_text("3")
        raise RuntimeError
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="file"), staged(tmp_path / "file" / "sub"):
        pass


def test_a_folder_of_ones_own_is_no_link_and_nobody_elses(tmp_path, monkeypatch):
    made = own_folder(tmp_path / "a" / "b")
    assert own_folder(made).stat().st_mode & 0o777 == 0o700
    made.chmod(0o777)
    assert own_folder(made).stat().st_mode & 0o777 == 0o755
    (tmp_path / "planted").symlink_to(made)
    (tmp_path / "file").touch()
    for name, said in (("planted", "is a symbolic link"), ("file", "is no folder")):
        with pytest.raises(CannotWrite, match=said):
            own_folder(tmp_path / name)
    with pytest.raises(OSError):
        open_lock(tmp_path / "planted")
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(CannotWrite, match="belongs to user"):
        own_folder(made)
