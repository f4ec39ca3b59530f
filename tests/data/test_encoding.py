"""Ids of blocks: those of each text alone, whatever the blocks; what is no document is told, never guessed."""

import json

import numpy as np
import pytest

from megatron.data import text_files
from megatron.data.encoding import Recipe, encode_all, encode_block, joined_ids, tokenizer_of
from megatron.data.text_files import Block, Mark, Reading, read_blocks
from megatron.data.tokenizer import build_tokenizer
from megatron.data.train_tokenizer import train_byte_level_bpe

BYTES = Recipe("ByteTokenizer", append_eod=True)


def block_of(*lines, **more):
    return Block("a.jsonl", 1, Mark(), 0, b"\n".join(lines), **more)


def test_documents_are_joined_with_their_lengths():
    lines = [json.dumps({"text": text}).encode() for text in ("ab", "", "\u00e9")]
    out = encode_block(BYTES, block_of(*lines))
    assert out.ids[0].tolist() == [97, 98, 256, 195, 169, 256] and out.lengths[0].tolist() == [3, 3]
    assert out.ids[0].dtype == np.uint16 and (out.text_bytes, out.rejects) == (4, [])
    bare = encode_block(Recipe("ByteTokenizer"), block_of(*lines))
    assert bare.ids[0].tolist() == [97, 98, 195, 169] and bare.lengths[0].tolist() == [2, 2]


def test_a_block_without_documents_has_no_ids():
    out = encode_block(Recipe("ByteTokenizer", keys=("a", "b")), block_of(b"", b" \r"))
    assert [len(ids) for ids in out.ids] == [0, 0] and [len(lengths) for lengths in out.lengths] == [0, 0]


@pytest.mark.parametrize(
    "line, kind, reason",
    [
        (b'{"text": "a', "bad JSON", "column"),
        (b'{"text": "a\nb"}', "bad JSON", "column"),
        (b"\x00" * 50, "bad JSON", "column"),
        (b'{"text": "\x00"}', "bad JSON", "control character"),
        (b'{"text": null}', "not a string", "NoneType"),
        (b'{"text": "\xed\xa0\x80"}', "invalid UTF-8", "0xed at column 11"),
        (b'{"text": "\\udc00"}', "invalid UTF-8", "surrogate"),
        (b'{"text": "' + b"x" * 200 + b'"}', "too long", "212 bytes, more than the 100 of --max-line-bytes"),
        (b'{"\\ud800": 1}', "missing key", "no 'text' among '\\ud800'"),
        (b'{"text": "a"} {"text": "b"}', "bad JSON", "Extra data"),
    ],
)
def test_bad_lines_say_what_they_are(line, kind, reason):
    first = encode_block(Recipe("ByteTokenizer", max_line_bytes=100), block_of(b'{"text": "good"}', line)).rejects[0]
    assert (first.line, first.kind) == (2, kind) and reason in first.reason
    first.reason.encode()  # can be printed and written


def test_values_of_parquet_are_checked_as_lines_are():
    rows = ((b"good",), (None,), (b"\xff",), (b"x" * 200,))
    out = encode_block(Recipe("ByteTokenizer", max_line_bytes=100), Block("a.parquet", 7, Mark(), 0, rows=rows))
    assert [(bad.line, bad.kind) for bad in out.rejects] == [(8, "not a string"), (9, "invalid UTF-8"), (10, "too long")]
    assert out.lengths[0].tolist() == [4]


def gpt2_like(tmp_path):
    """Letters, digits, spaces and line feeds merge with each other wherever they may, so that a wrong cut shows."""
    from megatron.data.tokenizer import byte_symbols

    space, feed = "\u0120", "\u010a"
    pairs = [(a, b) for a in "abc" + space + feed + "." for b in "abc" + space + feed + "."]
    (tmp_path / "m.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs), encoding="utf-8")
    words = [*byte_symbols(), *(a + b for a, b in pairs), "<|endoftext|>"]
    (tmp_path / "v.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    return Recipe("GPT2BPETokenizer", str(tmp_path / "v.json"), str(tmp_path / "m.txt"), bpe_backend="tiktoken", append_eod=True)


def test_a_plain_text_in_parts_has_the_ids_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 40)
    rng, recipe = np.random.default_rng(0), gpt2_like(tmp_path)
    for _ in range(100):
        text = "".join(rng.choice([*"abc  \n\n.1"], 400))
        (tmp_path / "t.txt").write_text(text)
        blocks = list(read_blocks([str(tmp_path / "t.txt")]))
        (out,) = encode_all(recipe, blocks, 1)
        assert len(blocks) > 3 and not out.more
        assert out.ids[0].tolist() == [*tokenizer_of(recipe).encode(text), tokenizer_of(recipe).eod]
        assert out.lengths[0].tolist() == [len(out.ids[0])]


def test_a_plain_text_with_a_bad_part_is_one_reject(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 40)
    (tmp_path / "t.txt").write_bytes(b"fine words\n" * 20 + b"\xff\n" + b"fine words\n" * 20 + b"\xfe\n")
    (tmp_path / "u.txt").write_bytes(b"good")
    bad, good = encode_all(BYTES, read_blocks([str(tmp_path / "t.txt"), str(tmp_path / "u.txt")]), 1)
    assert [(r.line, r.kind, r.reason) for r in bad.rejects] == [(0, "invalid UTF-8", "byte 0xff at column 221")]
    assert not len(bad.ids[0]) and good.ids[0].tolist() == [*b"good", 256] and good.rejects == []


def test_an_empty_plain_text_is_no_document(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"")
    (out,) = encode_all(BYTES, read_blocks([str(tmp_path / "t.txt")], how=Reading(whole_texts=True)), 1)
    assert not len(out.ids[0]) and not len(out.lengths[0])


def test_many_short_texts_at_once_have_the_ids_of_each_alone(tmp_path):
    """gigatoken encodes them in one call; empty ones have no ids and no end."""
    pytest.importorskip("gigatoken")
    texts = [f"{a}{b}" for a in ("", "the", " of", "\u65e5", "<|endoftext|>", "\n\n") for b in ("", "x", " ")] * 60
    (tmp_path / "tokenizer.json").write_text(train_byte_level_bpe(texts, 300))
    tokenizer = build_tokenizer("HFTokenizer", tokenizer_model=str(tmp_path), bpe_backend="gigatoken")
    calls = []
    many = tokenizer.encode.many
    tokenizer.encode.many = lambda given: calls.append(len(given)) or many(given)
    ids, lengths = joined_ids(tokenizer, texts, True)
    alone = [[*tokenizer.encode(text).tolist(), tokenizer.eod] for text in texts if text]
    assert calls == [len(texts)] and ids.tolist() == sum(alone, []) and lengths.tolist() == list(map(len, alone))
