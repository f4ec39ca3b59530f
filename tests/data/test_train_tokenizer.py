"""A trained tokenizer is the same every time, loses nothing, and has its end of document."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.data.tokenizer import build_tokenizer
from megatron.data.train_tokenizer import train_byte_level_bpe
from megatron.errors import BadData, MissingInput

pytest.importorskip("tokenizers")

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    f"The {animal} sat on the {place}, {number} times.\n"
    for number in range(40)
    for animal, place in (("cat", "mat"), ("dog", "log"), ("frog", "bog"))
]


def build(folder, text):
    (folder / "tokenizer.json").write_text(text)
    return build_tokenizer("HFTokenizer", tokenizer_model=str(folder / "tokenizer.json"))


def test_every_text_comes_back_and_a_mark_in_it_is_text(tmp_path):
    tokenizer = build(tmp_path, train_byte_level_bpe(TEXTS, 300))
    assert tokenizer.vocab_size == 300 and tokenizer.tokens[tokenizer.eod] == b""
    for text in (TEXTS[0], "caf\u00e9 \U0001f600\r\n\t", "<|endoftext|> inside"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and tokenizer.eod not in ids
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) / 2
    assert tokenizer.token_bytes()[tokenizer.encode(TEXTS[0])].sum() == len(TEXTS[0])


def test_the_same_file_with_any_number_of_threads(tmp_path):
    code = (
        "import hashlib; from tests.data.test_train_tokenizer import TEXTS, train_byte_level_bpe; "
        "print(hashlib.sha256(train_byte_level_bpe(TEXTS * 50, 400).encode()).hexdigest())"
    )
    made = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={
                **os.environ,
                "RAYON_NUM_THREADS": threads,
                "TOKENIZERS_PARALLELISM": str(threads != "1").lower(),
                "PYTHONHASHSEED": threads,
            },
        ).stdout
        for threads in ("1", "2", "3")
    ]
    assert len(set(made)) == 1 and len(made[0]) == 65


def test_a_small_corpus_gives_a_smaller_vocabulary_and_none_is_refused():
    assert len(json.loads(train_byte_level_bpe(["ab ab"], 5000))["model"]["vocab"]) < 300
    for texts in ([], ["", ""]):
        with pytest.raises(BadData, match="no text"):
            train_byte_level_bpe(texts, 300)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingInput, match="tokenizers"):
        train_byte_level_bpe(["a"], 300)
