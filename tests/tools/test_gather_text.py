"""The gathered text is the same every time, is valid JSON Lines, and its two files share no document."""

import hashlib
import json
import sysconfig

import pytest

from tools import gather_text


@pytest.fixture(autouse=True)
def library(tmp_path, monkeypatch):
    """A small library with everything that must be left out."""
    folder = tmp_path / "lib"
    for n in range(40):
        path = folder / f"package{n % 4}" / f"module{n}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# module {n} caf\u00e9\n" * 100, encoding="utf-8")
    left_out = {
        "site-packages/other.py": b"# not the library",
        "__pycache__/x.py": b"# cached",
        "latin.py": b"# caf\xe9",
        "empty.py": b"",
        "copy.py": (folder / "package0" / "module0.py").read_bytes(),
        "data.txt": b"no source",
    }
    for name, data in left_out.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))


def gather(tmp_path, name="t.jsonl", *args):
    code = gather_text.main(["--output", str(tmp_path / "out" / name), *map(str, args)])
    return code, tmp_path / "out" / name


def texts(path):
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_all_sources_once_and_nothing_else(tmp_path, capsys):
    code, path = gather(tmp_path)
    assert code == 0 and sorted(texts(path)) == sorted({f"# module {n} caf\u00e9\n" * 100 for n in range(40)})
    said = capsys.readouterr().out
    assert "40 documents" in said and hashlib.sha256(path.read_bytes()).hexdigest() in said and "all there is" in said
    assert f"{sum(len(t.encode()) for t in texts(path)):,} bytes" in said and said.count("\n") == 1


def test_the_same_seed_gives_the_same_file_and_another_another_order(tmp_path):
    first, again, other = (gather(tmp_path, name, "--seed", seed)[1] for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    assert sorted(texts(first)) == sorted(texts(other)) and texts(first) != sorted(texts(first))


def test_megabytes_bound_the_text(tmp_path):
    _, path = gather(tmp_path, "t.jsonl", "--megabytes", 0.01)
    sizes = [len(text.encode()) for text in texts(path)]
    assert sum(sizes[:-1]) < 10_000 <= sum(sizes)


def test_every_kth_document_is_held_out(tmp_path):
    valid = tmp_path / "out" / "v.jsonl"
    _, train = gather(tmp_path, "t.jsonl", "--valid-output", valid, "--valid-every", 4)
    _, whole = gather(tmp_path, "w.jsonl")
    assert texts(valid) == texts(whole)[3::4] and len(texts(valid)) == 10
    assert texts(train) == [text for n, text in enumerate(texts(whole), 1) if n % 4]


def test_files_are_replaced_only_on_request_and_nothing_is_left_on_refusal(tmp_path, capsys):
    _, path = gather(tmp_path)
    before = path.read_bytes()
    assert gather(tmp_path, "t.jsonl", "--megabytes", 0.01)[0] == 73 and path.read_bytes() == before
    assert gather(tmp_path, "u.jsonl", "--valid-output", tmp_path / "out" / "v.jsonl", "--valid-every", 1000)[0] == 66
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["t.jsonl"]
    assert gather(tmp_path, "t.jsonl", "--megabytes", 0.01, "--overwrite")[0] == 0 and path.read_bytes() != before


@pytest.mark.parametrize("args", ["--megabytes 0", "--valid-every 5", "--valid-output v --valid-every 1", "--meg 1"])
def test_bad_flags_exit_2(tmp_path, args, capsys):
    with pytest.raises(SystemExit) as stop:
        gather(tmp_path, "t.jsonl", *args.split())
    assert stop.value.code == 2
