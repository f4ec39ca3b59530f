"""From flags to datasets: training, validation by name, test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from megatron.config import Data
from megatron.data.blend import Rule
from megatron.data.borders import Borders
from megatron.data.gpt_dataset import PackedDataset
from megatron.data.instruct import Instruct
from megatron.data.lineage import shared
from megatron.data.pairs import Pairs, Standard
from megatron.data.random_window import RandomWindow
from megatron.data.reference_order import ReferenceOrder, blended_samples, document_split
from megatron.data.samples import Samples
from megatron.data.sources import Source, open_corpus, parse_paths, read_path_file, take_first, token_range
from megatron.data.token_file import PaperFolder
from megatron.data.tokenizer import Tokenizer
from megatron.errors import BadData, Mismatch

Kind = TypeVar("Kind", bound=Samples)
SPLITS = ("train", "valid", "test")
# whose arithmetic, by --epoch-order
RULES: dict[str, Rule] = {"strict": "core", "reference": "deepspeed", "megatron-core": "core"}
DEFAULT_SPLIT = next(one.default for one in fields(Data) if one.name == "split")
SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "val"), "test": ("test",)}  # in a paper folder


@dataclass(frozen=True, kw_only=True)
class SampleSpec:
    """What the datasets of a run depend on besides the data flags; `lengths` are the samples that Megatron would index."""

    seq_length: int
    seed: int
    eval_seed: int
    tokenizer: Tokenizer | None = None
    lengths: dict[str, int] | None = None
    latent_size: int | None = None  # numbers in a row's vector, where it is read

    @property
    def vocab_size(self) -> int | None:
        return self.tokenizer.vocab_size if self.tokenizer else None

    @property
    def eod(self) -> int:
        """What ends a document and pads a row. Raises TypeError."""
        if self.tokenizer is None:
            raise TypeError("ends of documents need a tokenizer, whose eod they are")
        return self.tokenizer.eod

    def seed_of(self, split: str, data: Data) -> int:
        """Megatron's order has one seed for all splits."""
        return self.seed if split == "train" or data.epoch_order != "strict" else self.eval_seed


def build_datasets(data: Data, spec: SampleSpec) -> dict[str, Samples | None]:
    """{"train", "valid", "test"} -> dataset, None where the flags name none; further validation sets are "valid:NAME".

    Raises MissingInput, BadData, also when training and evaluation share tokens, or Mismatch when another tokenizer made a
    corpus.
    """
    built: dict[str, Any]
    if data.data_kind == "random-window":
        built = {split: windows(data, split, spec) for split in SPLITS}
        if data.valid_by_category and (valid := built["valid"]):
            built |= {f"valid:{name}": windows(of_category(data, name), "valid", spec) for name in valid.categories}
    else:
        kinds: dict[str, Callable[[Data, str, list[Source], SampleSpec], Samples]]
        kinds = {"packed": packed, "instruct": instruct, "pairs": pairs}
        kind = kinds[data.data_kind]
        built = {split: kind(data, split, sources, spec) if sources else None for split, sources in chosen(data, spec).items()}
    train = built["train"]
    for split, found in built.items():
        if split != "train" and train and found:
            refuse_shared(train, found, split)
    if spec.latent_size and isinstance(train, Pairs):
        read_vectors_as(built, train.moments())
    return built


def read_vectors_as(built: Mapping[str, Samples | None], standard: Standard) -> None:
    """Standardise the vectors of all sets so, as the network has learnt to read them."""
    for found in built.values():
        if isinstance(found, Pairs):
            found.standard = standard


# Which corpora each split names


def chosen(data: Data, spec: SampleSpec) -> dict[str, list[Source]]:
    """The sources of every split, training cut to --unique-tokens."""
    if data.data_path:
        found = cut(parse_paths(data.data_path, "--data-path"), data, spec.seq_length)
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


def cut(sources: list[Source], data: Data, seq_length: int) -> dict[str, list[Source]]:
    """--split: of each corpus the first tokens train, the next validate, the last test; a share of 0 gives none.

    In Megatron's order the cuts lie where Megatron has them, between documents. The default split's test share, which nobody
    asked for, is left out where it holds no sample.  Raises BadData for another share that holds none.
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
    if data.split == DEFAULT_SPLIT and any(one.weight and one.stop - one.start <= seq_length for one in found["test"]):
        found["test"] = []
    least = seq_length + 1 if data.epoch_order == "strict" else 1
    for name, part in found.items():
        if short := next((one for one in part if one.weight and one.stop - one.start < least), None):
            raise BadData(
                f"{short.prefix}, tokens {short.start}:{short.stop}: --seq-length {seq_length} needs at least {least} tokens, "
                f"has {short.stop - short.start}, the {name} share of --split {data.split}; give {name} a larger share, lower "
                "--seq-length or add data"
            )
    return found


# The kinds of dataset


def packed(data: Data, split: str, sources: list[Source], spec: SampleSpec) -> PackedDataset:
    seed = spec.seed_of(split, data)
    order = None if data.epoch_order == "strict" else reference(data, split, sources, spec)
    found = checked(PackedDataset(sources, spec.seq_length, seed, spec.vocab_size, order, RULES[data.epoch_order]), spec)
    if data.reset_attention_mask or data.reset_position_ids or data.eod_mask_loss:
        found.borders = Borders(
            eod=spec.eod, attention=data.reset_attention_mask, positions=data.reset_position_ids, loss=data.eod_mask_loss
        )
    return found


def reference(data: Data, split: str, sources: list[Source], spec: SampleSpec) -> Callable[[Source, int], ReferenceOrder]:
    """Megatron's order of each source, for as many samples as Megatron would ask it for.

    Raises Mismatch for several corpora without weights, of which Megatron-DeepSpeed refuses some and megatron-core makes one
    epoch by size.
    """
    if len(sources) > 1 and not sources[0].weighted:
        raise Mismatch(
            f"the {split} data name {len(sources)} corpora without weights, for which --epoch-order {data.epoch_order} has no "
            "order: give each a weight, or use --epoch-order strict, where all count the same"
        )
    weights, blended = [source.weight for source in sources if source.weight], len(sources) > 1
    blended = blended or bool(data.data_path) and sources[0].weighted
    requests = blended_samples((spec.lengths or {})[split.partition(":")[0]], weights, RULES[data.epoch_order], blended)

    def order(source: Source, place: int) -> ReferenceOrder:
        corpus = open_corpus(source.prefix)
        return ReferenceOrder(
            corpus,
            *token_range(source, corpus.num_tokens),
            spec.seq_length,
            spec.seed,
            requests[place],
            cache=data.data_cache_path,
        )

    return order


def windows(data: Data, split: str, spec: SampleSpec) -> RandomWindow | None:
    """Windows of the papers in the folder of --data-path; None where it has no such split."""
    [folder] = data.data_path or [""]  # flags that name none, or several, are refused
    name = next((name for name in SPLIT_NAMES[split] if name in PaperFolder(folder).splits), None)
    if name is None:
        return None
    return RandomWindow(
        folder,
        name,
        spec.seq_length,
        spec.seed_of(split, data),
        categories=data.categories,
        num_categories=data.num_categories,
        category_seed=spec.seed,
        vocab_size=spec.vocab_size,
        tokens_per_category=data.tokens_per_category if split == "train" else None,
        unique_tokens=int(data.unique_tokens) if data.unique_tokens and split == "train" else None,
        component_uniform=data.component_uniform,
        shuffled=data.shuffle_categories,
    )


def of_category(data: Data, name: str) -> Data:
    """The same data of one category alone."""
    return replace(data, categories=[name], num_categories=None)


def instruct(data: Data, split: str, sources: list[Source], spec: SampleSpec) -> Instruct:
    return checked(Instruct(alone(sources, split), spec.seq_length, spec.seed_of(split, data), spec.vocab_size, spec.eod), spec)


def pairs(data: Data, split: str, sources: list[Source], spec: SampleSpec) -> Pairs:
    prefix = alone(sources, split)
    found = Pairs(prefix, spec.seq_length, spec.seed_of(split, data), spec.vocab_size, spec.eod)
    if spec.latent_size and found.width != spec.latent_size:
        raise Mismatch(
            f"{prefix} has vectors of {found.width} numbers, expected {spec.latent_size}: give --latent-size {found.width}"
        )
    return checked(found, spec)


def alone(sources: list[Source], split: str) -> str:
    """The one prefix that a kind which does not blend is given.  Raises BadData."""
    if len(sources) != 1 or (sources[0].start, sources[0].stop) != (0, 1.0):
        raise BadData(
            f"the {split} data name {len(sources)} corpora or a range, expected one whole prefix: "
            "this --data-kind neither blends nor cuts"
        )
    return sources[0].prefix


# What is refused


def checked(found: Kind, spec: SampleSpec) -> Kind:
    """The dataset, once each of its corpora is known to be the tokenizer's.  Raises Mismatch or BadData."""
    for corpus, _, _ in found.extents():
        check_origin(corpus, spec.tokenizer)
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
    """No token of evaluation is trained on, by whatever name or through whatever subset it comes.  Raises BadData."""
    for mine in train.extents():
        for theirs in other.extents():
            if common := shared(mine, theirs):
                raise BadData(
                    f"{theirs[0].prefix}: {common} are both in the train and in the {split.replace(':', ' ')} data; "
                    "give ranges that do not overlap, such as 0:0.9 and 0.9:1"
                )
