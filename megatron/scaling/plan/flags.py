"""The flags of a planned run, as the recipes of examples/ give them at either scale."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from megatron.budget import GPT2_VOCAB, Shape, epoch_tokens
from megatron.config import BUDGETS, CORPORA, EXCLUSIVE, SAVING, Data, declared
from megatron.flags import find, split_words
from megatron.rundir.index import count_tokens

SUBSET_SLACK = 0.01  # a prepared subset stands for so many unique tokens, give or take this share
DATA = {name for group in CORPORA for name in group}  # the flags that name corpora
MARK = re.compile(r"[\d.]+(e[+-]?\d+)?|[\d.]*(e\d+)?[kMBGT]?:[\d.]*(e\d+)?[kMBGT]?", re.IGNORECASE)  # a weight, a range
ON_SAVE = {name for name, (_, f, _) in declared().items() if f.metadata["needs"] is SAVING}
# And those that an evaluation has no use for: how long, by which optimizer and on what a run trains.
TRAINING = {name for name, (section, _, _) in declared().items() if section == "optim"}.union(BUDGETS, ON_SAVE, CORPORA[0])
TRAINING |= {"unique_tokens"}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What the recipes set for published sizes, and for a laptop."""

    seq_length: int
    lr: float
    batch_size: int
    params: str  # which count budgets are divided by
    vocab_size: int
    precision: tuple[str, ...]
    tokenizer: tuple[str, ...]
    train_data: str
    valid_data: str
    log_interval: int


WEIGHT_DECAY = 0.1  # of the recipes, at either scale
SCALES = {
    "gpu": Scale(
        seq_length=2048,
        lr=2e-4,
        batch_size=256,
        params="published",
        vocab_size=GPT2_VOCAB,
        precision=("--bf16",),
        tokenizer=(
            "--tokenizer-type",
            "GPT2BPETokenizer",
            "--vocab-file",
            "utils/data/gpt2-vocab.json",
            "--merge-file",
            "utils/data/gpt2-merges.txt",
        ),
        train_data="utils/datapaths/train_c4_full.txt",
        valid_data="utils/datapaths/val_c4.txt",
        log_interval=10,
    ),
    "cpu": Scale(
        seq_length=128,
        lr=3e-3,
        batch_size=8,
        params="total",
        vocab_size=257,
        precision=("--device", "cpu"),
        tokenizer=("--tokenizer-type", "ByteTokenizer"),
        train_data="data/python/train_text_document",
        valid_data="data/python/valid_text_document",
        log_interval=50,
    ),
}


def model_flags(shape: Shape, seq_length: int, precision: tuple[str, ...], seed: int, batch_size: int) -> list[str]:
    words = {
        "--num-layers": shape.num_layers,
        "--hidden-size": shape.hidden_size,
        "--num-attention-heads": shape.num_attention_heads,
        "--kv-channels": shape.kv_channels,
        "--seq-length": seq_length,
        "--max-position-embeddings": seq_length,
        "--normalization": "rmsnorm",
        "--attention-dropout": 0,
        "--hidden-dropout": 0,
        "--seed": seed,
        "--micro-batch-size": min(16, batch_size),
        "--global-batch-size": batch_size,
    }
    return [*spell_flags(words), "--use-rotary-position-embeddings", "--swiglu", "--disable-bias-linear", *precision]


def optim_flags(samples: int, warmup: int, lr: float, decay: float, schedule: Mapping[str, object]) -> list[str]:
    """`schedule`: the decay's style and what belongs to it."""
    words = {
        "--train-samples": samples,
        "--lr-decay-samples": samples,
        "--lr-warmup-samples": warmup,
        "--optimizer": "adam",
        "--adam-beta1": 0.9,
        "--adam-beta2": 0.95,
        "--adam-eps": 1e-8,
        "--weight-decay": f"{decay:g}",
        "--clip-grad": 1.0,
        "--lr": f"{lr:g}",
        "--min-lr": f"{lr / 10:g}",
    }
    return spell_flags({**words, **schedule})


def data_flags(train: tuple[str, ...], valid: tuple[str, ...], tokenizer: tuple[str, ...], first: int | None = None) -> list[str]:
    """`first`: how many tokens of the training data are used; None for all."""
    part = {} if first is None else {"--unique-tokens": first}
    return [*tokenizer, "--data-impl", "mmap", *corpus_flags("valid", valid), *corpus_flags("train", train), *spell_flags(part)]


def corpus_flags(split: str, words: tuple[str, ...]) -> list[str]:
    """One word that ends in .txt is a file of corpora; all else are corpora."""
    return [f"--{split}-data-path{'-file' if is_list(words) else ''}", *words]


def is_list(words: tuple[str, ...]) -> bool:
    return len(words) == 1 and words[0].endswith(".txt")


def cadence_flags(log_interval: int, save: Mapping[str, object]) -> list[str]:
    return spell_flags({"--log-interval": log_interval, "--eval-interval": 1000, "--eval-iters": 100, **save})


def spell_flags(words: Mapping[str, object]) -> list[str]:
    return [str(word) for name, value in words.items() for word in (name, *(value if isinstance(value, list) else [value]))]


def without(flags: list[str], names: Set[str | None]) -> list[str]:
    """The flags that set none of these fields."""
    table = declared()
    kept = [(spelled, words) for spelled, words in split_words(flags, []) if find(spelled, table)[0] not in names]
    return [word for spelled, words in kept for word in (spelled, *words)]


def fields_of(words: Iterable[str]) -> set[str]:
    """The fields that these flags set; a flag that does not exist sets none."""
    table = declared()
    found = (find(spelled, table)[0] for spelled, _ in split_words(list(words), []))
    return {name for name in found if name is not None}


def overlaid(flags: list[str], over: list[str]) -> list[str]:
    """`over` replaces what `flags` says of the same, also in another way (--eval-interval, --lr-warmup-iters)."""
    names = fields_of(over)
    names |= {name for group in EXCLUSIVE if names & set(group) for name in group}
    return [*without(flags, names), *over]


def first_tokens(words: tuple[str, ...], unique: int) -> tuple[tuple[str, ...], int | None, int]:
    """Where the first `unique` tokens are: the data, --unique-tokens or None for all of it, and how many there are.

    They are fewer where the corpus is known to be smaller. `{subset}` in a prefix becomes the prepared subset of
    utils/epoch_tokens.sh with as many tokens, else the next larger one.  Raises ValueError.
    """
    if "{subset}" in words[0]:
        name, count = prepared_subset(unique)
        words = (words[0].replace("{subset}", name),)
        if abs(count - unique) <= unique * SUBSET_SLACK:
            return words, None, min(count, corpus_tokens(words) or count)
    unique = min(unique, corpus_tokens(words) or unique)
    return words, unique, unique


def prepared_subset(unique: int) -> tuple[str, int]:
    """The subset of C4 with about that many tokens, else the next larger one. Raises ValueError where all are smaller."""
    table = {name: count for name, count in epoch_tokens().items() if name[0].isdigit()}
    enough = [name for name in table if table[name] >= unique * (1 - SUBSET_SLACK)]
    if not enough:
        raise ValueError(
            f"no prepared subset has {unique} tokens, the largest has {max(table.values())}: "
            "give --train-data PREFIX, of which the first tokens are taken"
        )
    name = min(enough, key=lambda n: abs(table[n] - unique))
    return name, table[name]


def missing_data(data: Data) -> list[str]:
    """A sentence for every corpus, and for every file that lists some, that a run's flags name and that is not here."""
    found = []
    for name in sorted(DATA):
        lists = [getattr(data, name)] if not name.endswith("_file") else []
        for path in files_of(data, name):
            try:
                lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError as error:
                found.append(
                    f"{path} cannot be read ({error.strerror}): it should list corpora, `weight [start:end] prefix` a line"
                )
                continue
            lists.append([word for line in lines for word in re.sub(r"(^|\s)#.*", "", line).replace('"', " ").split()])
        for prefix in (word for words in filter(None, lists) for word in words if not MARK.fullmatch(word)):
            if not (Path(f"{prefix}.idx").is_file() or Path(prefix).is_file() or Path(prefix, "tokens.bin").is_file()):
                found.append(
                    f"{prefix}.idx is missing: prepare the corpus with python tools/preprocess_data.py --input TEXT.jsonl "
                    f"--output-prefix {prefix.removesuffix('_text_document')} --append-eod --workers 16, or name another"
                )
    return found


def files_of(data: Data, name: str) -> list[str]:
    """The files of corpora that a flag names."""
    if name.startswith("valid"):
        return [path for _, path in data.valid_sets()] if name.endswith("_file") else []
    return [getattr(data, name)] if name.endswith("_file") and getattr(data, name) else []


def corpus_tokens(words: tuple[str, ...]) -> int | None:
    """Tokens of one whole corpus that is here already; None for what cannot be counted. Raises BadData."""
    return None if len(words) != 1 or is_list(words) else count_tokens(words[0])
