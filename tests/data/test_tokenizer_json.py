"""The tokenizer.json that we write makes the ids that we make."""

import base64
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import regex

from megatron.data import tokenizer as tokenizers
from megatron.data.tokenizer import PATTERNS, build_tokenizer
from megatron.data.tokenizer_json import cut_first, merges_of, tokenizer_json

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tokenizers"
TEXTS = ["Hello world, it's 12345 o'clock\n\n\t x", "caf\u00e9 \u4f60\u597d \U0001f600  ", "a<|endoftext|>b", " \n", "bbabab"]

pytest.importorskip("tokenizers")


def read_back(tmp_path, data):
    (tmp_path / "tokenizer.json").write_bytes(data)
    return build_tokenizer("HFTokenizer", tokenizer_model=str(tmp_path / "tokenizer.json"))


def same(ours, theirs, texts):
    assert (theirs.eod, theirs.vocab_size, theirs.tokens) == (ours.eod, ours.vocab_size, ours.tokens)
    for text in texts:
        assert theirs.encode(text).tolist() == ours.encode(text).tolist(), text


def test_bytes(tmp_path):
    ours = build_tokenizer("ByteTokenizer")
    same(ours, read_back(tmp_path, tokenizer_json(ours)), TEXTS)


def test_ranks(tmp_path):
    """A small vocabulary in which tokens are merged from merged ones."""
    words = [bytes([byte]) for byte in range(256)] + [b"ab", b"aa", b"abab", b" b", b" bb", b"aab", b"\xc3\xa9"]
    (tmp_path / "t.tiktoken").write_text("".join(f"{base64.b64encode(w).decode()} {n}\n" for n, w in enumerate(words)))
    ours = build_tokenizer("TikTokenizer", tokenizer_model=str(tmp_path / "t.tiktoken"))
    assert merges_of(words) == [(97, 98), (97, 97), (256, 256), (32, 98), (259, 98), (97, 256), (0xC3, 0xA9)]
    generator = random.Random(0)
    same(ours, read_back(tmp_path, tokenizer_json(ours)), TEXTS + ["".join(generator.choices("ab ", k=30)) for _ in range(100)])


@pytest.mark.parametrize("num_ranks", PATTERNS)
def test_larger_patterns_cut_alike(num_ranks):
    """Their ranks are not here: the cut alone, by the pattern as tiktoken understands it."""
    from tokenizers import Regex, pre_tokenizers

    texts = TEXTS + ["I'LL 1234567 HelloWORLD x\u0301 don't/\n/ \r\n  end  ", "\u00dcber\u00dcBER's"]
    cut = cut_first({}, num_ranks)["pretokenizers"][0]
    split = pre_tokenizers.Split(Regex(cut["pattern"]["Regex"]), "isolated")
    for text in texts:
        assert [piece for piece, _ in split.pre_tokenize_str(text)] == regex.findall(PATTERNS[num_ranks], text)


def test_gpt2(tmp_path):
    vocab, merges = SHARED / "gpt2-vocab.json", SHARED / "gpt2-merges.txt"
    if not (vocab.exists() and merges.exists()):
        pytest.skip("needs gpt2-vocab.json and gpt2-merges.txt in ../shared/data/tokenizers beside the repository")
    ours = build_tokenizer("GPT2BPETokenizer", str(vocab), str(merges))
    data = tokenizer_json(ours)
    lines = merges.read_text(encoding="utf-8").splitlines()[1:]
    assert json.loads(data)["model"]["merges"] == lines
    texts = [path.read_text(encoding="utf-8")[:20000] for path in sorted(Path(tokenizers.__file__).parent.glob("*.py"))]
    same(ours, read_back(tmp_path, data), TEXTS + texts)


def test_a_file_is_handed_on_and_sentencepiece_has_none(tmp_path):
    hf = read_back(tmp_path, tokenizer_json(build_tokenizer("ByteTokenizer")))
    for model in (tmp_path, tmp_path / "tokenizer.json"):
        assert tokenizer_json(hf, model) == (tmp_path / "tokenizer.json").read_bytes()
    assert tokenizer_json(replace(hf, name="SentencePieceTokenizer")) is None
