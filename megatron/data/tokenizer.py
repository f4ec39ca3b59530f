"""Text to ids and back: five kinds of tokenizer behind one dataclass, and the ids that no tokenizer knows.

Corpus text never yields a special id: a literal `<|endoftext|>` in a document becomes ordinary tokens. Nothing here
opens the network; tools/fetch_tokenizer.py does.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from megatron.budget import RESERVED_IDS
from megatron.config import Data
from megatron.data.fast_bpe import Encode, Gigatoken, byte_level_spec, gigatoken_encoder, gpt2_kind
from megatron.errors import BadData, Mismatch, MissingInput
from megatron.flags import ConfigError

TYPES = get_args(get_type_hints(Data)["tokenizer_type"])
END_OF_TEXT = "<|endoftext|>"
MANY, SHORT = 1000, 200  # texts of so few characters each that a call for all of them is faster than one for each
FETCH = "python tools/fetch_tokenizer.py"
CHECKOUT_DATA = Path(__file__).resolve().parents[2] / "utils" / "data"

# How the larger OpenAI vocabularies cut text (tiktoken_ext.openai_public); a .tiktoken file does not say.
CL100K_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"""
    r"""\s*[\r\n]|\s+(?!\S)|\s"""
)
O200K_PATTERN = (
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"""
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"""
    r"""\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
PATTERNS = {100256: CL100K_PATTERN, 199998: O200K_PATTERN}


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A vocabulary and the two functions over it. `encode` returns integer ids [n], without eod; ids lie in [0, vocab_size)."""

    name: str
    eod: int
    tokens: list[bytes]  # the UTF-8 bytes each id stands for; none for specials
    encode: Callable[[str], np.ndarray]
    decode: Callable[[Sequence[int]], str]
    rules: bytes = b""  # whatever else decides the ids

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def encode_all(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of many texts back to back, and how many each has.  -> [n], int64 [len(texts)]"""
        if isinstance(self.encode, Gigatoken) and len(texts) >= MANY and sum(map(len, texts)) < SHORT * len(texts):
            return self.encode.many(texts)
        found = [self.encode(text) for text in texts]
        return np.concatenate([np.empty(0, np.uint16), *found]), np.array([len(ids) for ids in found], np.int64)

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes each id stands for, 0 for specials.  -> [vocab_size] int64"""
        return np.array([len(token) for token in self.tokens], dtype=np.int64)

    def facts(self) -> dict[str, str | int]:
        """What a corpus' sidecar says of the tokenizer that made it."""
        return {"type": self.name, "fingerprint": self.fingerprint(), "vocab_size": self.vocab_size, "eod": self.eod}

    def fingerprint(self) -> str:
        """sha256 over the type, the eod, the ordered vocabulary and the rules: equal means equal ids for equal text."""
        digest = hashlib.sha256(f"{self.name} {self.eod} {self.vocab_size}\n".encode())
        for token in (*self.tokens, self.rules):
            digest.update(len(token).to_bytes(8, "little") + token)
        return digest.hexdigest()


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer's ids [0, size) and the three that the model reserves after them, in a table of `padded_size` rows."""

    size: int
    padded_size: int

    def __post_init__(self):
        if self.size + RESERVED_IDS > self.padded_size:
            raise Mismatch(
                f"the embedding table has {self.padded_size} rows, but {self.size} ids of the tokenizer and "
                f"{RESERVED_IDS} reserved ones (mask, padding, ignore) need {self.size + RESERVED_IDS}: "
                f"use --pad-vocab fixed"
            )

    @property
    def mask(self) -> int:
        return self.size

    @property
    def padding(self) -> int:
        return self.size + 1

    @property
    def ignore(self) -> int:
        return self.size + 2


def add_flags(
    parser: argparse.ArgumentParser,
    default: str | None = "GPT2BPETokenizer",
    meaning: str = "as when training [GPT2BPETokenizer]",
) -> None:
    """The flags of a tool that name a tokenizer, with the trainer's names."""
    parser.add_argument("--tokenizer-type", default=default, choices=TYPES, help=meaning)
    parser.add_argument("--vocab-file", help="GPT-2 vocabulary (vocab.json) [found, see tools/fetch_tokenizer.py]")
    parser.add_argument("--merge-file", help="GPT-2 merges (merges.txt)")
    parser.add_argument("--tokenizer-model", help="file of TikTokenizer, SentencePieceTokenizer or HFTokenizer")


def flags_of(args: argparse.Namespace) -> dict[str, Any]:
    """What a tool was given by the flags of `add_flags`: the arguments of `build_tokenizer`."""
    return {name: getattr(args, name) for name in ("tokenizer_type", "vocab_file", "merge_file", "tokenizer_model")}


def refuse_unread(
    tokenizer_type: str,
    vocab_file: str | None,
    merge_file: str | None,
    tokenizer_model: str | None,
    bpe_backend: str | None = None,
) -> None:
    """Every flag that names something is read by this type of tokenizer.  Raises ConfigError."""
    given = {
        "--vocab-file": (vocab_file, ("GPT2BPETokenizer",)),
        "--merge-file": (merge_file, ("GPT2BPETokenizer",)),
        "--tokenizer-model": (tokenizer_model, ("TikTokenizer", "SentencePieceTokenizer", "HFTokenizer")),
        "--bpe-backend": (None if bpe_backend == "auto" else bpe_backend, ("GPT2BPETokenizer", "HFTokenizer")),
    }
    unread = [
        f"{flag} {value or repr(value)} is not read by --tokenizer-type {tokenizer_type}, but by {' or '.join(types)}: "
        "name that type, or leave the flag out"
        for flag, (value, types) in given.items()
        if value is not None and tokenizer_type not in types
    ]
    if unread:
        raise ConfigError(unread)


def build_tokenizer(
    tokenizer_type: str,
    vocab_file: str | None = None,
    merge_file: str | None = None,
    tokenizer_model: str | None = None,
    bpe_backend: str | None = None,
) -> Tokenizer:
    """The tokenizer of `--tokenizer-type`; MissingInput when a file is not there, BadData when it is not what it should be.

    `bpe_backend` says which library makes the ids of GPT-2-like tokenizers, which are the same: "tiktoken" (`tokenizers` for
    an HFTokenizer), as when it is not given, "gigatoken" (ten times as fast), or "auto": gigatoken where it is installed.
    Raises ConfigError for a file or backend that this type does not read.
    """
    refuse_unread(tokenizer_type, vocab_file, merge_file, tokenizer_model, bpe_backend)
    bpe_backend = bpe_backend or "tiktoken"
    match tokenizer_type:
        case "GPT2BPETokenizer":
            return gpt2_bpe(vocab_file, merge_file, bpe_backend)
        case "TikTokenizer":
            return tiktoken_ranks(model_path(tokenizer_type, tokenizer_model))
        case "SentencePieceTokenizer":
            return sentence_pieces(model_path(tokenizer_type, tokenizer_model))
        case "HFTokenizer":
            return hf_tokens(model_path(tokenizer_type, tokenizer_model), bpe_backend)
        case "ByteTokenizer":
            return utf8_bytes()
    raise Mismatch(f"--tokenizer-type {tokenizer_type} is unknown")


def model_path(tokenizer_type: str, tokenizer_model: str | None) -> Path:
    if not tokenizer_model:
        raise MissingInput(f"--tokenizer-type {tokenizer_type} needs --tokenizer-model FILE")
    if not Path(tokenizer_model).exists():
        raise MissingInput(f"--tokenizer-model {tokenizer_model} does not exist")
    return Path(tokenizer_model)


@contextmanager
def optional_package(package: str) -> Iterator[None]:
    """Turn the missing import of an optional library into a sentence."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingInput(f"this tokenizer needs the Python package {package}: pip install -e '.[tokenizers]'") from error


# ---- bytes


def utf8_bytes() -> Tokenizer:
    """One id a byte of UTF-8, eod 256; needs no file."""
    tokens = [bytes([byte]) for byte in range(256)] + [b""]
    return Tokenizer(
        name="ByteTokenizer",
        eod=256,
        tokens=tokens,
        encode=lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.uint16),
        decode=lambda ids: b"".join(tokens[i] for i in ids).decode(errors="replace"),
    )


# ---- GPT-2 and other rank files, through tiktoken


@dataclass(frozen=True)
class GPT2File:
    """One of the two files of GPT-2's vocabulary: its flag, its name here, in OpenAI's store and in a Hugging Face cache."""

    flag: str
    name: str
    url: str
    hub_name: str
    sha256: str

    def places(self) -> list[Path]:
        """Where the file may lie on this machine, in the order of trust."""
        folders = [Path(os.environ["MEGATRON_DATA_DIR"])] if os.environ.get("MEGATRON_DATA_DIR") else []
        key = hashlib.sha1(self.url.encode()).hexdigest()  # tiktoken names its cache entries so
        return [
            *(folder / self.name for folder in (*folders, CHECKOUT_DATA)),
            *(folder / key for folder in tiktoken_caches()),
            *(
                path
                for repository in ("gpt2", "openai-community--gpt2")
                for path in sorted(hub_cache().glob(f"models--{repository}/snapshots/*/{self.hub_name}"))
            ),
        ]

    def is_right(self, data: bytes) -> bool:
        return hashlib.sha256(data).hexdigest() == self.sha256


OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_VOCAB_FILE = GPT2File(
    "--vocab-file",
    "gpt2-vocab.json",
    OPENAI + "encoder.json",
    "vocab.json",
    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
)
GPT2_MERGE_FILE = GPT2File(
    "--merge-file",
    "gpt2-merges.txt",
    OPENAI + "vocab.bpe",
    "merges.txt",
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
)


def tiktoken_caches() -> list[Path]:
    named = [os.environ[name] for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR") if os.environ.get(name)]
    return [*map(Path, named), Path(tempfile.gettempdir()) / "data-gym-cache"]


def hub_cache() -> Path:
    """The Hugging Face hub's folder, by its own environment variables."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def find_gpt2(file: GPT2File) -> bytes:
    """The pinned bytes of a GPT-2 file found on this machine; never another file's."""
    for path in file.places():
        data = read_if_there(path)
        if data is not None and not file.is_right(data):
            raise BadData(
                f"{path} is not GPT-2's: sha256 {hashlib.sha256(data).hexdigest()}, expected {file.sha256}; "
                f"delete it and run `{FETCH}`, or name your own vocabulary with --vocab-file and --merge-file"
            )
        if data is not None:
            return data
    places = "\n  ".join(map(str, file.places()))
    variable = os.environ.get("MEGATRON_DATA_DIR") or "not set"
    raise MissingInput(
        f"{file.name} was not found; run `{FETCH}`, or give --vocab-file and --merge-file, or choose "
        f"--tokenizer-type ByteTokenizer, which needs no file. Looked at ($MEGATRON_DATA_DIR is {variable}):"
        f"\n  {places}\n  {hub_cache()}/models--{{gpt2,openai-community--gpt2}}/snapshots/*/{file.hub_name}"
    )


def read_if_there(path: Path) -> bytes | None:
    """A file's bytes; nothing where there is no such file, or one that another user keeps to himself."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def read_given(flag: str, path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise MissingInput(f"{flag} {path}: {error.strerror}") from error


def byte_symbols() -> dict[str, int]:
    """GPT-2's printable character for each byte: itself where it prints, else the next code point from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def spelled_bytes(word: str, symbols: dict[str, int]) -> bytes:
    return bytes(symbols[character] for character in word)


def merged_vocabulary(merges: str) -> dict[bytes, int]:
    """The vocabulary that a merge list implies: 256 bytes in symbol order, then one token a merge."""
    symbols = byte_symbols()
    ranks = {bytes([byte]): rank for rank, byte in enumerate(symbols.values())}
    lines = merges.splitlines()
    for line in lines[lines[0].startswith("#version") :]:
        first, second = line.split(" ")
        ranks[spelled_bytes(first + second, symbols)] = len(ranks)
    return ranks


def gpt2_ranks(vocab: bytes, merges: bytes, where: str) -> dict[bytes, int]:
    """Mergeable ranks of a vocab.json, which its merges must imply exactly: a mixed pair would train silently wrong."""
    symbols = byte_symbols()
    try:
        ids = json.loads(vocab)
        eod = ids.pop(END_OF_TEXT, None)
        ranks = {spelled_bytes(word, symbols): rank for word, rank in ids.items()}
        implied = merged_vocabulary(merges.decode())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadData(f"{where}: not a GPT-2 vocabulary (vocab.json) and merge list (merges.txt): {error!r}") from error
    if eod != len(ranks):
        raise BadData(
            f"{where}: the vocabulary must end with {END_OF_TEXT} as id {len(ranks)}, found {eod}; "
            f"other layouts are read by --tokenizer-type HFTokenizer"
        )
    if ranks != implied:
        raise BadData(
            f"{where}: vocabulary and merges do not belong together: {len(ranks)} tokens, of which the merges imply "
            f"{len(ranks.items() & implied.items())}; give the two files of one tokenizer"
        )
    return ranks


def gpt2_bpe(vocab_file: str | None, merge_file: str | None, backend: str = "tiktoken") -> Tokenizer:
    """GPT-2's byte-level BPE from the files given, or from GPT-2's own two where they are found."""
    if bool(vocab_file) != bool(merge_file):
        raise MissingInput("--vocab-file and --merge-file belong together: give both, or neither")
    if vocab_file and merge_file:
        where = f"--vocab-file {vocab_file}, --merge-file {merge_file}"
        vocab, merges = read_given("--vocab-file", vocab_file), read_given("--merge-file", merge_file)
    else:
        where, vocab, merges = "GPT-2's two files", find_gpt2(GPT2_VOCAB_FILE), find_gpt2(GPT2_MERGE_FILE)
    ranks = gpt2_ranks(vocab, merges, where)
    if backend == "tiktoken":
        return ranked("GPT2BPETokenizer", ranks)
    plain = None if is_gpt2(vocab, merges) else tiktoken_encoder("GPT2BPETokenizer", ranks)
    lines, words = merges.decode().splitlines(), {word: i for word, i in json.loads(vocab).items() if word != END_OF_TEXT}
    spec = byte_level_spec(words, lines[lines[0].startswith("#version") :])
    fast = gigatoken_encoder(spec, plain, list(ranks), backend)
    return ranked("GPT2BPETokenizer", ranks, fast)


def is_gpt2(vocab: bytes, merges: bytes) -> bool:
    """GPT-2's own two files, for which the tests compare both libraries over all of Unicode."""
    return GPT2_VOCAB_FILE.is_right(vocab) and GPT2_MERGE_FILE.is_right(merges)


def tiktoken_ranks(path: Path) -> Tokenizer:
    """A .tiktoken file: a base64 token and its rank a line; eod is the first id after the ranks."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_given("--tokenizer-model", path).splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise BadData(f"{path}:{number}: expected a base64 token and its rank, found {line[:60]!r}") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise BadData(f"{path}: the {len(ranks)} ranks must be 0 to {len(ranks) - 1}, each once")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise BadData(
            f"{path}: {len(missing)} single bytes have no rank, the first is {missing[0]:#04x}; some text could not be encoded"
        )
    return ranked("TikTokenizer", ranks)


def ranked(name: str, ranks: dict[bytes, int], encode: Encode | None = None) -> Tokenizer:
    """BPE over ranks 0 to n - 1, by tiktoken unless `encode` is given."""
    tokens = sorted(ranks, key=ranks.__getitem__)
    spelled = [*tokens, END_OF_TEXT.encode()]
    return Tokenizer(
        name=name,
        eod=len(ranks),
        tokens=[*tokens, b""],
        encode=encode or tiktoken_encoder(name, ranks),
        decode=lambda ids: b"".join(spelled[i] for i in ids).decode(errors="replace"),
    )


def tiktoken_encoder(name: str, ranks: dict[bytes, int]) -> Encode:
    """GPT-2's pattern unless the number of ranks names another. No special token is looked for."""
    with optional_package("tiktoken"):
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str
    pattern = PATTERNS.get(len(ranks), r50k_pat_str)
    encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})
    return lambda text: encoding.encode_to_numpy(text, disallowed_special=())


# ---- SentencePiece


def sentence_pieces(path: Path) -> Tokenizer:
    """A SentencePiece .model; eod is its end-of-sentence piece."""
    with optional_package("sentencepiece"):
        from sentencepiece import SentencePieceProcessor
    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise BadData(f"--tokenizer-model {path} is not a SentencePiece model: {error}") from error
    if model.eos_id() < 0:
        raise BadData(
            f"--tokenizer-model {path} has no end-of-sentence piece, which separates documents: train it with eos_id >= 0"
        )
    special = [model.is_control(i) or model.is_unknown(i) or model.is_unused(i) for i in range(model.get_piece_size())]
    tokens = [b"" if special[i] else piece_bytes(model.id_to_piece(i)) for i in range(model.get_piece_size())]
    return Tokenizer(
        name="SentencePieceTokenizer",
        eod=model.eos_id(),
        tokens=tokens,
        rules=model.serialized_model_proto(),
        encode=lambda text: np.array(model.encode(text), dtype=np.uint32),
        decode=lambda ids: model.decode([int(i) for i in ids]),
    )


def piece_bytes(piece: str) -> bytes:
    """What a SentencePiece piece stands for: <0x41> is one byte, the meta symbol a space."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace("\u2581", " ").encode()


# ---- Hugging Face tokenizers


def hf_tokens(path: Path, backend: str = "tiktoken") -> Tokenizer:
    """A tokenizer.json, or the folder that holds it. Special tokens in text are encoded as text."""
    with optional_package("tokenizers"):
        import tokenizers
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise MissingInput(f"--tokenizer-model {path} holds no tokenizer.json")
    try:
        text = file.read_text(encoding="utf-8")
        model = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise BadData(f"{file} is not a tokenizer of the `tokenizers` library: {error}") from error
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True
    tokens = hf_vocabulary(model)

    def encode(document: str) -> np.ndarray:
        return np.array(model.encode(document, add_special_tokens=False).ids, dtype=np.uint32)

    fast = None if backend == "tiktoken" else gigatoken_encoder(gpt2_kind(json.loads(text)), encode, tokens, backend)
    return Tokenizer(
        name="HFTokenizer",
        eod=hf_eod(model, file),
        tokens=tokens,
        rules=hf_rules(text),
        encode=fast or encode,
        decode=lambda ids: model.decode([int(i) for i in ids], skip_special_tokens=False),
    )


def hf_rules(text: str) -> bytes:
    spec = json.loads(text)
    return json.dumps([spec.get(key) for key in ("normalizer", "pre_tokenizer", "model")], sort_keys=True).encode()


def hf_vocabulary(model: Any) -> list[bytes]:
    """The bytes of each id: byte-level vocabularies spell each byte as one symbol, others write text as SentencePiece does."""
    words, added = model.get_vocab(with_added_tokens=True), model.get_added_tokens_decoder()
    byte_level = "ByteLevel" in repr(model.decoder)
    symbols, tokens = byte_symbols(), [b""] * (max(words.values()) + 1)
    for word, i in words.items():
        if i in added:
            tokens[i] = b"" if added[i].special else added[i].content.encode()
        elif byte_level and set(word) <= symbols.keys():
            tokens[i] = spelled_bytes(word, symbols)
        else:
            tokens[i] = piece_bytes(word)
    return tokens


def hf_eod(model: Any, file: Path) -> int:
    """The id that ends a document: <|endoftext|>, </s>, or the eos of the tokenizer_config.json beside the file."""
    names = [END_OF_TEXT, "</s>", *configured_eos(file.with_name("tokenizer_config.json"))]
    found = [model.token_to_id(name) for name in names if model.token_to_id(name) is not None]
    if not found:
        raise BadData(
            f"{file} has none of {', '.join(names)}, and an end-of-document id is needed: "
            f'put a tokenizer_config.json with "eos_token" beside it'
        )
    return found[0]


def configured_eos(path: Path) -> list[str]:
    """The eos_token of a tokenizer_config.json, a string or an object with "content"; none where there is no file."""
    try:
        eos = json.loads(read_if_there(path) or b"{}").get("eos_token")
        eos = eos["content"] if isinstance(eos, dict) else eos
    except (ValueError, KeyError, AttributeError) as error:
        raise BadData(f"{path} is not a tokenizer configuration: {error!r}") from error
    return [eos] if isinstance(eos, str) else []
