import base64
import json
import os
import re

import numpy as np
import pytest

from megatron.data.indexed import IndexedDataset, IndexedWriter
from megatron.data.tokenizer import build_tokenizer
from tools import inspect_data

TEXTS = ["Hello, \u65e5\u672c!", "two\nlines", "", "x" * 300]


@pytest.fixture
def texts(tmp_path):
    """Four documents of bytes, each with its end."""
    tokenizer = build_tokenizer("ByteTokenizer")
    made = {"type": "ByteTokenizer", "fingerprint": tokenizer.fingerprint(), "vocab_size": 257, "eod": 256}
    with IndexedWriter(tmp_path / "texts", np.uint16, made, {"source": "a.jsonl"}) as writer:
        for text in TEXTS:
            writer.add_document([*text.encode(), 256])
    return str(tmp_path / "texts")


def inspect(capsys, *words, code=0):
    assert inspect_data.main([*map(str, words)]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def test_what_is_said_of_a_corpus(texts, capsys):
    found = json.loads(inspect(capsys, texts, "--json"))
    tokenizer = build_tokenizer("ByteTokenizer")
    assert found == {
        "prefix": texts,
        "documents": 4,
        "sequences": 4,
        "tokens": 327,
        "dtype": "uint16",
        "bytes": 654,
        "sidecar": True,
        "largest_id": 256,
        "extra": {"source": "a.jsonl"},
        "fingerprint": IndexedDataset(texts).fingerprint(),
        "tokenizer": {"type": "ByteTokenizer", "fingerprint": tokenizer.fingerprint(), "vocab_size": 257, "eod": 256},
        "document_lengths": {
            "mean": 81.75,
            "min": 1,
            "5%": 1,
            "25%": 1,
            "median": 10,
            "75%": 15,
            "95%": 301,
            "max": 301,
            "empty": 0,
        },
    }
    out = inspect(capsys, texts)
    for said in (
        "documents    4",
        "tokens       327",
        "uint16, 654 bytes",
        "largest id   256",
        "ByteTokenizer, 257 ids, end of document 256",
        "sidecar      yes\n",
        found["fingerprint"],
        "median 10",
    ):
        assert said in out


def test_several_corpora_by_any_of_their_files(texts, tmp_path, capsys):
    with IndexedWriter(tmp_path / "other", np.int32) as writer:
        writer.add_documents([1, 2, 3], [3, 0])
    out = inspect(capsys, f"{texts}.idx", tmp_path / "other.bin", texts, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["prefix"] for line in lines] == [texts, str(tmp_path / "other")]
    assert lines[1]["document_lengths"]["empty"] == 1 and lines[1]["tokenizer"] is None


@pytest.mark.parametrize(
    ("words", "unique", "epochs"),
    [
        (["--train-tokens", "3.27e4"], 327, 100.0),
        (["--train-tokens", "1e3", "--unique-tokens", "100"], 100, 10.0),
        (["--train-tokens", "164", "--unique-tokens", "0.25"], 82, 2.0),
        (["--unique-tokens", "50"], 50, None),
    ],
)
def test_epochs_of_a_plan(texts, capsys, words, unique, epochs):
    found = json.loads(inspect(capsys, texts, "--seq-length", 10, *words, "--json"))["plan"]
    assert found["unique_tokens"] == unique and found["samples_per_epoch"] == unique / 10 and found.get("epochs") == epochs
    assert epochs is None or found["samples"] == unique * epochs // 10
    line = inspect(capsys, texts, "--seq-length", 10, *words).split("  plan ")[1].strip()
    assert line.startswith(f"{unique} unique tokens are {unique / 10:.2f} samples of 10 an epoch")
    assert epochs is None or line.endswith(f", {epochs:.2f} epochs")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--unique-tokens", "1000"], "--unique-tokens 1000: .*texts has 327 tokens"),
        (["--train-tokens", "1e6"], "--seq-length 2048 needs at least 2049 tokens, has 327"),
    ],
)
def test_a_plan_that_the_corpus_is_too_small_for(texts, capsys, words, said):
    assert re.search(said, inspect(capsys, texts, *words, code=65))


@pytest.mark.parametrize(
    "words", [["--train-tokens", "0"], ["--decode", "1.5"], ["--seq-length", "x"], ["--unique-tokens", "7.5"]]
)
def test_what_is_no_number_is_usage(texts, words):
    with pytest.raises(SystemExit) as error:
        inspect_data.main([texts, *words])
    assert error.value.code == 2


def test_text_comes_back(texts, capsys):
    found = json.loads(inspect(capsys, texts, "--decode", 9, "--json"))["decoded"]
    assert [sample["document"] for sample in found] == [0, 1, 2, 3]
    out = inspect(capsys, texts, "--decode", 4)
    for text in ('"Hello, \u65e5\u672c!', '"two\\nlines', '(301 tokens): "' + "x" * 100 + ' ..."'):
        assert text in out
    assert [s["document"] for s in json.loads(inspect(capsys, texts, "--decode", 2, "--json"))["decoded"]] == [0, 2]


def test_another_tokenizer_is_refused_to_decode(texts, tmp_path, capsys):
    model = tmp_path / "few.tiktoken"
    model.write_text("".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256)))
    said = inspect(capsys, texts, "--decode", 1, "--tokenizer-type", "TikTokenizer", "--tokenizer-model", model, code=78)
    assert "texts was made by another tokenizer (ByteTokenizer, 257 ids" in said and said.count("\n") == 1


def test_ids_beyond_the_tokenizer_are_refused_to_decode(tmp_path, capsys):
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        writer.add_document([1, 300])
    said = inspect(capsys, tmp_path / "c", "--decode", 1, "--tokenizer-type", "ByteTokenizer", code=65)
    assert "document 0 holds ids from 1 to 300, expected 0 to 256" in said


def test_verify_reads_all_and_names_the_first_damaged_block(texts, capsys):
    assert "yes; the index and all 1 blocks of the .bin are intact" in inspect(capsys, texts, "--verify")
    assert json.loads(inspect(capsys, texts, "--verify", "--json"))["blocks_verified"] == 1
    with open(f"{texts}.bin", "r+b") as file:
        file.seek(500)
        file.write(b"\xff")
    said = inspect(capsys, texts, "--verify", code=65)
    assert "texts.bin: the crc32 of block 0 (bytes 0:654) is " in said and said.count("\n") == 1


def test_without_a_sidecar_verify_says_what_it_cannot_prove(tmp_path, capsys):
    with IndexedWriter(tmp_path / "c", np.int32) as writer:
        writer.add_document([7, 300])
    os.unlink(tmp_path / "c.meta.json")
    assert "not known without a sidecar" in inspect(capsys, tmp_path / "c")
    out = inspect(capsys, tmp_path / "c", "--verify")
    assert "largest id   300" in out and "none: only the structure is checked, and that no id is negative" in out
    with open(tmp_path / "c.bin", "r+b") as file:
        file.write(b"\xff" * 4)
    assert "c.bin: token 0 is -1, expected 0 or more" in inspect(capsys, tmp_path / "c", "--verify", code=65)


def test_what_is_not_there_is_missing_input(tmp_path, capsys):
    assert "nothing.bin: No such file" in inspect(capsys, tmp_path / "nothing", code=66)
