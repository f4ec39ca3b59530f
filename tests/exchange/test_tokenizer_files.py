"""Each kind of tokenizer as files for AutoTokenizer: the same ids, the same text, the mask where it was in training."""

import io
import json

import pytest

from megatron.data.tokenizer import build_tokenizer
from megatron.errors import Mismatch
from megatron.exchange.tokenizer_files import PROBES, check_tokenizer, tokenizer_files

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[hf]'")

TEXT = "\n".join(
    f"the {a} {b} of {c}, and {n} more: it's naive"
    for n, (a, b, c) in enumerate(zip("abcdefgh" * 9, "stuvwxyz" * 9, "mnopqr" * 12))
)


def pieces(folder, **how):
    """A SentencePiece model, trained here."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    file = io.BytesIO()
    trainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=file,
        minloglevel=2,
        **({"vocab_size": 60, "hard_vocab_limit": False} | how),
    )
    (folder / "spm.model").write_bytes(file.getvalue())
    return build_tokenizer("SentencePieceTokenizer", tokenizer_model=str(folder / "spm.model"))


def json_tokenizer(folder, tokenizer):
    """As an HFTokenizer would be given one: what another export wrote."""
    for name, data in tokenizer_files(tokenizer, None, None, 64).items():
        (folder / name).write_bytes(data)
    return build_tokenizer("HFTokenizer", tokenizer_model=str(folder / "tokenizer.json"))


KINDS = {
    "bytes": lambda folder: build_tokenizer("ByteTokenizer"),
    "hf": lambda folder: json_tokenizer(folder, build_tokenizer("ByteTokenizer")),
    "unigram": lambda folder: pieces(folder),
    "unigram, text as it is": lambda folder: pieces(folder, normalization_rule_name="identity"),
    "unigram with bytes": lambda folder: pieces(folder, vocab_size=330, byte_fallback=True, add_dummy_prefix=False),
    "bpe": lambda folder: pieces(folder, model_type="bpe"),
    "bpe with bytes": lambda folder: pieces(
        folder,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_are_the_same(tmp_path, kind):
    tokenizer = KINDS[kind](tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    for name, data in tokenizer_files(tokenizer, str(tmp_path / "tokenizer.json"), tokenizer.vocab_size, 64).items():
        (out / name).write_bytes(data)
    check_tokenizer(out, tokenizer)
    found = transformers.AutoTokenizer.from_pretrained(out)
    assert (found.eos_token_id, found.mask_token_id, len(found)) == (
        tokenizer.eod,
        tokenizer.vocab_size,
        tokenizer.vocab_size + 1,
    )
    for text in (TEXT, *PROBES):
        assert found.encode(text, add_special_tokens=False) == [int(i) for i in tokenizer.encode(text)], text


def test_files_that_make_other_ids_are_refused(tmp_path):
    tokenizer = build_tokenizer("ByteTokenizer")
    for name, data in tokenizer_files(tokenizer, None, None, 64).items():
        (tmp_path / name).write_bytes(data)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(Mismatch, match="AutoTokenizer makes"):
        check_tokenizer(tmp_path, tokenizer)
