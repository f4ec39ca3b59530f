"""From flags to datasets: training, validation by name, test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from megatron.config import Data
from megatron.data.gpt_dataset import PackedDataset
from megatron.data.instruct import Instruct
from megatron.data.pairs import Pairs
from megatron.data.random_window import RandomWindow
from megatron.data.reference_order import ReferenceOrder, blended_samples, document_split
from megatron.data.samples import Samples
from megatron.data.sources import Source, open_corpus, parse_paths, read_path_file, take_first, token_range
from megatron.data.token_file import PaperFolder
from megatron.data.tokenizer import Tokenizer
from megatron.errors import BadData, Mismatch

SPLITS = ("train", "valid", "test")
RULES = {"strict": "core", "reference": "deepspeed", "megatron-core": "core"}  # whose arithmetic, by --epoch-order
SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "val"), "test": ("test",)}  # in a paper folder


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the datasets of a run depend on besides the data flags; `lengths` are the samples that Megatron would index."""

    seq_length: int
    seed: int
    eval_seed: int
    tokenizer: Tokenizer | None = None
    lengths: dict[str, int] | None = None

    @property
    def vocab_size(self) -> int | None:
        return self.tokenizer and self.tokenizer.vocab_size

    def seed_of(self, split: str, data: Data) -> int:
        """Megatron's order has one seed for all splits."""
        return self.seed if split == "train" or data.epoch_order != "strict" else self.eval_seed


def build_datasets(data: Data, plan: Plan) -> dict[str, Samples | None]:
    """{"train", "valid", "test"} -> dataset, None where the flags name none; further validation sets are "valid:NAME".

    Raises MissingInput, BadData, also when training and evaluation share tokens, or Mismatch when another tokenizer made a
    corpus.
    """
    if data.data_kind == "random-window":
        built = {split: windows(data, split, plan) for split in SPLITS}
    else:
        kind = {"packed": packed, "instruct": instruct, "pairs": pairs}[data.data_kind]
        built = {split: kind(data, split, sources, plan) if sources else None for split, sources in chosen(data, plan).items()}
    for split, found in built.items():
        if split != "train" and built["train"] and found:
            refuse_shared(built["train"], found, split)
    return built


# Which corpora each split names


def chosen(data: Data, plan: Plan) -> dict[str, list[Source]]:
    """The sources of every split, training cut to --unique-tokens."""
    if data.data_path:
        found = cut(parse_paths(data.data_path, "--data-path"), data)
        if sum(source.stop - source.start for source in found["test"]) <= plan.seq_length:
            found["test"] = []  # the default split's thousandth of a small corpus holds no sample
    else:
        found = {"train": named(data, "train"), **validation(data), "test": named(data, "test")}
    if data.unique_tokens and found["train"]:
        found["train"] = take_first(found["train"], data.unique_tokens)
    return found


def named(data: Data, split: str) -> list[Source]:
    """The sources of --SPLIT-data-path or --SPLIT-data-path-file; none without either flag."""
    words, path = getattr(data, f"{split}_data_path"), getattr(data, f"{split}_data_path_file")
    if words:
        return parse_paths(words, f"--{split}-data-path")
    return read_path_file(path) if path else []


def validation(data: Data) -> dict[str, list[Source]]:
    """The first set is "valid", which the best checkpoint is chosen by; the others are "valid:NAME"."""
    if data.valid_data_path or not data.valid_data_path_file:
        return {"valid": parse_paths(data.valid_data_path, "--valid-data-path") if data.valid_data_path else []}
    files = [read_path_file(path) for _, path in data.valid_sets()]
    names = ["valid", *(f"valid:{name}" for name, _ in data.valid_sets()[1:])]
    return dict(zip(names, files, strict=True))


def cut(sources: list[Source], data: Data) -> dict[str, list[Source]]:
    """--split: of each corpus the first tokens train, the next validate, the last test; a share of 0 gives none.

    In Megatron's order the cuts lie where Megatron has them, between documents.
    """
    shares = ([float(share) for share in data.split.split(",")] + [0.0, 0.0])[:3]
    edges = np.cumsum([0.0, *shares])
    found: dict[str, list[Source]] = {name: [] for name in SPLITS}
    for source in sources:
        corpus = open_corpus(source.prefix)
        start, stop = token_range(source, corpus.num_tokens)
        if data.epoch_order == "strict":
            marks = [start + round((stop - start) * edge) for edge in (edges / edges[-1]).tolist()]
            ranges = list(zip(marks, marks[1:]))
        else:
            ranges = document_split(corpus, shares, RULES[data.epoch_order])
        for name, share, (first, last) in zip(SPLITS, shares, ranges, strict=True):
            if share:
                found[name].append(replace(source, start=first, stop=last))
    return found


# The kinds of dataset


def packed(data: Data, split: str, sources: list[Source], plan: Plan) -> PackedDataset:
    seed = plan.seed_of(split, data)
    order = None if data.epoch_order == "strict" else reference(data, split, sources, plan)
    return checked(PackedDataset(sources, plan.seq_length, seed, plan.vocab_size, order, RULES[data.epoch_order]), plan)


def reference(data: Data, split: str, sources: list[Source], plan: Plan) -> Callable[[Source, int], ReferenceOrder]:
    """Megatron's order of each source, for as many samples as Megatron would ask it for."""
    requests = blended_samples(
        plan.lengths[split.partition(":")[0]], [source.weight for source in sources if source.weight], RULES[data.epoch_order]
    )

    def order(source: Source, place: int) -> ReferenceOrder:
        corpus = open_corpus(source.prefix)
        return ReferenceOrder(
            corpus,
            *token_range(source, corpus.num_tokens),
            plan.seq_length,
            plan.seed,
            requests[place],
            cache=data.data_cache_path,
        )

    return order


def windows(data: Data, split: str, plan: Plan) -> RandomWindow | None:
    """Windows of the papers in the folder of --data-path; None where it has no such split."""
    folder = data.data_path[0]
    name = next((name for name in SPLIT_NAMES[split] if name in PaperFolder(folder).splits), None)
    if name is None:
        return None
    return RandomWindow(
        folder,
        name,
        plan.seq_length,
        plan.seed_of(split, data),
        categories=data.categories,
        num_categories=data.num_categories,
        category_seed=plan.seed,
        vocab_size=plan.vocab_size,
        tokens_per_category=data.tokens_per_category if split == "train" else None,
    )


def instruct(data: Data, split: str, sources: list[Source], plan: Plan) -> Instruct:
    return checked(
        Instruct(alone(sources, split), plan.seq_length, plan.seed_of(split, data), plan.vocab_size, plan.tokenizer.eod), plan
    )


def pairs(data: Data, split: str, sources: list[Source], plan: Plan) -> Pairs:
    return checked(
        Pairs(alone(sources, split), plan.seq_length, plan.seed_of(split, data), plan.vocab_size, plan.tokenizer.eod), plan
    )


def alone(sources: list[Source], split: str) -> str:
    """The one prefix that a kind which does not blend is given.  Raises BadData."""
    if len(sources) != 1 or (sources[0].start, sources[0].stop) != (0, 1.0):
        raise BadData(
            f"the {split} data name {len(sources)} corpora or a range, expected one whole prefix: "
            "this --data-kind neither blends nor cuts"
        )
    return sources[0].prefix


# What is refused


def checked(found: Samples, plan: Plan) -> Samples:
    """The dataset, once each of its corpora is known to be the tokenizer's.  Raises Mismatch or BadData."""
    for corpus, _, _ in found.extents():
        check_origin(corpus, plan.tokenizer)
    return found


def check_origin(corpus, tokenizer: Tokenizer | None) -> None:
    """The corpus was made by this tokenizer, by the word of its sidecar.  Raises Mismatch, or BadData for ids beyond it."""
    if tokenizer is None or not corpus.meta:
        return
    made = corpus.meta["tokenizer"]
    if made and made["fingerprint"] != tokenizer.fingerprint():
        raise Mismatch(
            f"{corpus.prefix} was made by another tokenizer ({made['type']}, {made['vocab_size']} ids, "
            f"{made['fingerprint'][:16]}) than the run's ({tokenizer.name}, {tokenizer.vocab_size} ids, "
            f"{tokenizer.fingerprint()[:16]}): give that one, or tokenize the text again"
        )
    if corpus.meta["largest_id"] >= tokenizer.vocab_size:
        raise BadData(
            f"{corpus.prefix} holds id {corpus.meta['largest_id']}, expected ids below the vocabulary size "
            f"{tokenizer.vocab_size}; give the tokenizer that made the corpus"
        )


def refuse_shared(train: Samples, other: Samples, split: str) -> None:
    """No token of evaluation is trained on, by whatever name its file goes.  Raises BadData."""
    for corpus, start, stop in train.extents():
        for twin, twin_start, twin_stop in other.extents():
            overlap = start < twin_stop and twin_start < stop and corpus.num_tokens == twin.num_tokens
            if overlap and corpus.fingerprint() == twin.fingerprint():
                shared = f"{max(start, twin_start)}:{min(stop, twin_stop)}"
                raise BadData(
                    f"{twin.prefix}: tokens {shared} are both in the train and in the {split.replace(':', ' ')} data; "
                    "give ranges that do not overlap, such as 0:0.9 and 0.9:1"
                )
