import hashlib
import json
import zipfile

import pytest

from megatron.errors import BadData, CannotWrite, MissingInput, Untrusted
from megatron.scaling.table.archive import MANIFEST, check, pack


@pytest.fixture
def folders(run_folders, tmp_path):
    (run_folders / "ar-2e+11-4000" / "checkpoint.safetensors").write_bytes(b"x" * 1000)
    report = tmp_path / "report"
    report.mkdir()
    (report / "fit.json").write_text("{}")
    (report / "isoflop.png").write_bytes(b"\x89PNG")
    return [run_folders, report]


def make(folders, path):
    return pack(folders, path, "A sweep", "A. Nother")


def rewrite(archive, change):
    """The archive again, after `change` of its {name: content}."""
    with zipfile.ZipFile(archive) as packed:
        contents = {name: packed.read(name) for name in packed.namelist()}
    change(contents)
    with zipfile.ZipFile(archive, "w") as packed:
        for name, content in contents.items():
            packed.writestr(name, content)


def test_it_holds_records_fits_and_figures_but_no_checkpoints(folders, tmp_path):
    names = make(folders, tmp_path / "a.zip")
    assert {"README.md", "table.jsonl", MANIFEST, "report/fit.json", "report/isoflop.png"} <= set(names)
    assert {name.rsplit("/", 1)[1] for name in names if name.startswith("runs/")} == {
        "config.json",
        "run.json",
        "result.json",
        "metrics.jsonl",
    }
    with zipfile.ZipFile(tmp_path / "a.zip") as packed:
        readme, rows = packed.read("README.md").decode(), packed.read("table.jsonl").splitlines()
        stated = dict(line.split("  ")[::-1] for line in packed.read(MANIFEST).decode().splitlines())
        assert all(hashlib.sha256(packed.read(name)).hexdigest() == digest for name, digest in stated.items())
    assert "0123456789ab" in readme and "title = {A sweep}, author = {A. Nother}" in readme and "16 run(s)" in readme
    assert [json.loads(row)["run"] for row in rows] == sorted(path.name for path in folders[0].iterdir())
    assert check(tmp_path / "a.zip") == len(names) - 1


def test_the_same_files_give_the_same_bytes(folders, tmp_path):
    make(folders, tmp_path / "a.zip")
    for folder in folders:
        for path in folder.rglob("*"):
            path.touch()
    make(folders[::-1], tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_an_archive_is_never_replaced(folders, tmp_path):
    (tmp_path / "a.zip").write_text("mine")
    with pytest.raises(CannotWrite, match="never replaced"):
        make(folders, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_text() == "mine"


def test_links_are_not_followed_out_of_what_is_archived(folders, tmp_path):
    report = folders[1]
    (report / "loop").symlink_to(".")
    (report / "again.json").symlink_to("fit.json")
    assert "report/fit.json" in (names := make(folders, tmp_path / "a.zip")) and not any(
        "again" in n or "loop" in n for n in names
    )
    (tmp_path / "secret.txt").write_text("mine")
    (report / "b.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(Untrusted, match="b.txt is a link to .*secret.txt, outside"):
        make(folders, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_two_files_of_one_name_are_refused(folders, tmp_path):
    (tmp_path / "other" / "report").mkdir(parents=True)
    (tmp_path / "other" / "report" / "fit.json").write_text("[]")
    with pytest.raises(CannotWrite, match="report/fit.json would stand twice"):
        make([*folders, tmp_path / "other" / "report"], tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize("name", ["none", "empty"])
def test_a_path_without_anything_is_refused(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInput, match=name):
        make([tmp_path / name], tmp_path / "a.zip")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda files: files.update({"report/fit.json": b"[]"}), "report/fit.json has other contents"),
        (lambda files: files.pop("table.jsonl"), "table.jsonl is missing"),
        (lambda files: files.update(extra=b""), "extra is not in the manifest"),
        (lambda files: files.pop(MANIFEST), "no MANIFEST"),
        (lambda files: files.update({MANIFEST: b"words\n"}), "not a list of SHA-256"),
    ],
)
def test_check_names_what_is_wrong(change, words, folders, tmp_path):
    make(folders, tmp_path / "a.zip")
    rewrite(tmp_path / "a.zip", change)
    with pytest.raises(BadData, match=words):
        check(tmp_path / "a.zip")


def test_check_refuses_damage_absence_and_names_that_leave(folders, tmp_path):
    make(folders, tmp_path / "a.zip")
    whole = (tmp_path / "a.zip").read_bytes()
    for damaged in (whole[:-40], whole[:2000] + bytes(64) + whole[2064:], b"", b"no zip"):
        (tmp_path / "damaged.zip").write_bytes(damaged)
        with pytest.raises(BadData, match="damaged.zip"):
            check(tmp_path / "damaged.zip")
    with pytest.raises(MissingInput):
        check(tmp_path / "none.zip")
    rewrite(tmp_path / "a.zip", lambda files: files.update({"../up": b""}))
    with pytest.raises(Untrusted, match="leave the folder"):
        check(tmp_path / "a.zip")
