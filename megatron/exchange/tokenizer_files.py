"""A run's tokenizer as the files that AutoTokenizer opens, and whether it gives the same ids."""

from __future__ import annotations

import json
from pathlib import Path

from megatron.data.tokenizer import Tokenizer
from megatron.data.tokenizer_json import tokenizer_json
from megatron.errors import Mismatch
from megatron.exchange.sentencepiece_json import sentencepiece_json, token
from megatron.exchange.transformers_library import open_tokenizer

MASK = "<|mask|>"
PROBES = (
    "",
    "Hello, world!",
    " a text  with   spaces\n\n\tand lines\r\n",
    "def f(x):\n    return x ** 2  # 1234567890",
    "na\u00efve caf\u00e9, \u4f60\u597d, \U0001f600",
    "it's 3.14 o'clock; WE'LL see...",
)


def tokenizer_files(tokenizer: Tokenizer, tokenizer_model: str | None, mask: int | None, window: int) -> dict[str, bytes]:
    """By name. `mask`: the id that stands for the mask, right behind those of the tokenizer; None where there is none."""
    found: dict[str, bytes] = {}
    if tokenizer.name == "SentencePieceTokenizer":
        found["tokenizer.model"] = tokenizer.rules
        spec = json.loads(sentencepiece_json(tokenizer.rules))
    else:
        spec = json.loads(tokenizer_json(tokenizer, tokenizer_model) or b"{}")
    words = {one["id"]: one["content"] for one in spec["added_tokens"]} | by_id(spec["model"]["vocab"])
    end = words[tokenizer.eod]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "model_max_length": window,
        "clean_up_tokenization_spaces": False,
    }
    if mask is not None and mask == len(words) and MASK not in words.values():
        spec["added_tokens"].append(token(mask, MASK, special=True))
        settings["mask_token"] = MASK
    found["tokenizer.json"] = json.dumps(spec).encode()
    found["tokenizer_config.json"] = json.dumps(settings, indent=1).encode()
    return found


def by_id(vocabulary: dict | list) -> dict[int, str]:
    """Of a BPE's or WordPiece's object, or a unigram model's list of pieces with scores."""
    if isinstance(vocabulary, dict):
        return {i: word for word, i in vocabulary.items()}
    return {i: word for i, (word, _) in enumerate(vocabulary)}


def check_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises Mismatch where AutoTokenizer makes other ids than ours, or another text of them, unless some stand for no text."""
    theirs = open_tokenizer(folder)
    for text in PROBES:
        ids = [int(i) for i in tokenizer.encode(text)]
        found = theirs.encode(text, add_special_tokens=False)
        back, expected = theirs.decode(found), tokenizer.decode(ids)
        if found != ids or (back != expected and all(tokenizer.tokens[i] for i in ids)):
            raise Mismatch(
                f"{folder}: AutoTokenizer makes {found[:12]} of {text!r} and {back!r} of that, the run's {tokenizer.name} "
                f"{ids[:12]} and {expected!r}: nothing was written; --no-tokenizer leaves the files out"
            )
