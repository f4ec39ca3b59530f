"""Our byte-level tokenizers as a tokenizer.json, for the trainers that read one beside the tokens."""

from __future__ import annotations

import json
from pathlib import Path

from megatron.data.tokenizer import END_OF_TEXT, PATTERNS, Tokenizer, byte_symbols


def tokenizer_json(tokenizer: Tokenizer, tokenizer_model: str | Path | None = None) -> bytes | None:
    """A file that the `tokenizers` library makes the same ids with; none for SentencePiece, whose .model it does not spell.

    `tokenizer_model` is the file of a HFTokenizer, which is handed on as it is.
    """
    if tokenizer.name == "HFTokenizer":
        if tokenizer_model is None:
            raise TypeError("a HFTokenizer's file is needed: give tokenizer_model")
        path = Path(tokenizer_model)
        return (path / "tokenizer.json" if path.is_dir() else path).read_bytes()
    if tokenizer.name == "SentencePieceTokenizer":
        return None
    symbol = {byte: character for character, byte in byte_symbols().items()}
    words = ["".join(symbol[byte] for byte in token) for token in tokenizer.tokens[: tokenizer.eod]]
    merges = [f"{words[a]} {words[b]}" for a, b in merges_of(tokenizer.tokens[: tokenizer.eod])]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": tokenizer.eod not in PATTERNS}
    end = {
        "id": tokenizer.eod,
        "content": END_OF_TEXT,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    vocabulary = {word: rank for rank, word in enumerate([*words, END_OF_TEXT])}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [end],
            "normalizer": None,
            "pre_tokenizer": cut_first(level, tokenizer.eod),
            "post_processor": None,
            "decoder": level,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
        }
    ).encode()


def cut_first(level: dict, num_ranks: int) -> dict:
    """Larger vocabularies cut text by a pattern of their own. That library reads `{1,3}+` as a repetition: without the plus."""
    if num_ranks not in PATTERNS:
        return level
    cut = {"type": "Split", "pattern": {"Regex": PATTERNS[num_ranks].replace("}+", "}")}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, level]}


def merges_of(tokens: list[bytes]) -> list[tuple[int, int]]:
    """The two ranks that each token longer than a byte is merged from: what the merges before it leave of its bytes."""
    ranks, found = {token: rank for rank, token in enumerate(tokens)}, []
    for rank, token in enumerate(tokens):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:])]
            best = min(pairs)
            if best >= rank:
                break
            at = pairs.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            found.append((ranks[parts[0]], ranks[parts[1]]))
    return found
