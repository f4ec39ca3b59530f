"""Random windows of single papers: how many kinds of text a model sees, at a fixed number of tokens.

Sample k is s + 1 tokens of one paper: the paper is drawn uniformly among all of them, as in the original, or among those of
a category drawn uniformly first; its start uniformly among all that fit. All three draws are hashes of (seed, k), so that
sample k is the same after any resume and under any layout, which the original's were not. Papers shorter than s + 1 tokens
are left out. Windows overlap and repeat: an epoch is so many samples as would carry the pool's tokens once.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from megatron.data.samples import Samples, hash64
from megatron.data.token_file import Paper, PaperFolder
from megatron.errors import BadData

CATEGORY, PAPER, START, BUDGET, DEALT = range(100, 105)  # what a random number is for


def choose_categories(names: Sequence[str], count: int, seed: int) -> list[str]:
    """The first `count` of the sorted names in an order drawn from the seed: 3 are among 5 of the same seed.

    The original's rule, with Python's own generator, so that its choices come out again.  Raises BadData.
    """
    order = sorted(names)
    random.Random(seed).shuffle(order)
    if not 1 <= count <= len(order):
        raise BadData(f"--num-categories {count}: expected 1 to {len(order)}, of the categories {listed(sorted(names))}")
    return order[:count]


def listed(names: Sequence[str]) -> str:
    """The first dozen of them, for a sentence."""
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def dealt(papers: list[Paper], seed: int) -> list[Paper]:
    """The papers with their categories shuffled among them by the seed: each category keeps its number of papers."""
    keys = [int.from_bytes(hashlib.sha256(paper.paper_id.encode()).digest()[:8], "little") for paper in papers]
    order = np.argsort(hash64(seed, DEALT, np.array(keys, np.uint64)), kind="stable").tolist()
    return [replace(paper, cat=papers[other].cat) for paper, other in zip(papers, order, strict=True)]


def within_budget(papers: list[Paper], budget: int, cat: str, seed: int, least: int) -> list[Paper]:
    """Papers in an order drawn from (seed, category) until they have `budget` tokens, the last one cut to fit.

    A smaller budget's tokens are among a larger one's. A rest shorter than `least` tokens holds no window and is dropped.
    Raises BadData when the category has fewer tokens.
    """
    total = sum(paper.length for paper in papers)
    if total < budget:
        raise BadData(
            f"{cat} has {total} tokens, in {len(papers)} papers of at least {least}; "
            f"{budget} of each category are asked for: lower --tokens-per-category (or --unique-tokens, of all together), "
            "or choose other categories"
        )
    word = int.from_bytes(hashlib.sha256(cat.encode()).digest()[:8], "little")
    keys = [int.from_bytes(hashlib.sha256(paper.paper_id.encode()).digest()[:8], "little") for paper in papers]
    order = np.argsort(hash64(seed, BUDGET, np.uint64(word), np.array(keys, np.uint64)), kind="stable")
    kept, left = [], budget
    for paper in (papers[n] for n in order.tolist()):
        length = min(paper.length, left)
        if length >= least:
            kept.append(replace(paper, length=length))
        left -= length
        if not left:
            break
    return kept


class RandomWindow(Samples):
    """Windows of the papers of one split, perhaps of some categories and up to so many tokens of each.

    `num_categories` of them (of `categories`, if given) are chosen by `category_seed`, which also orders papers for the
    budget, so that runs of other seeds see the same papers. `unique_tokens` are dealt to the categories alike.
    `component_uniform` draws the category first; `shuffled`: papers' categories are dealt anew, by `category_seed`.
    Raises MissingInput or BadData.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        seq_length: int,
        seed: int,
        *,
        categories: Sequence[str] | None = None,
        num_categories: int | None = None,
        category_seed: int = 0,
        tokens_per_category: int | None = None,
        unique_tokens: int | None = None,
        component_uniform: bool = False,
        shuffled: bool = False,
        vocab_size: int | None = None,
    ):
        super().__init__(seq_length, seed, vocab_size)
        self.source, self.split_name, self.component_uniform = PaperFolder(folder), split, component_uniform
        self.categories = self.chosen(categories, num_categories, category_seed)
        self.budget = unique_tokens // len(self.categories) if unique_tokens else tokens_per_category
        papers = self.source.split(split)
        self.labelled = dealt(papers, category_seed) if shuffled else papers
        pools = [self.pool_of(cat, category_seed) for cat in self.categories]
        self.papers = [paper for pool in pools for paper in pool]
        if not self.papers:
            raise BadData(
                f"{folder}: split {split!r} has no paper of at least {seq_length + 1} tokens in "
                f"{listed(self.categories)}; lower --seq-length {seq_length} or choose other categories"
            )
        self.counts = np.array([len(pool) for pool in pools], np.int64)
        self.offsets = np.array([paper.offset for paper in self.papers], np.int64)
        self.lengths = np.array([paper.length for paper in self.papers], np.int64)

    @property
    def tokens_per_epoch(self) -> int:
        return int(self.lengths.sum())

    def chosen(self, categories: Sequence[str] | None, count: int | None, seed: int) -> list[str]:
        known = self.source.categories
        for name in categories or ():
            if name not in known:
                raise BadData(f"--categories {name}: {self.source.folder} has no such category, only {listed(known)}")
        names = sorted(set(categories or known))
        return names if count is None else sorted(choose_categories(names, count, seed))

    def pool_of(self, cat: str, category_seed: int) -> list[Paper]:
        least = self.seq_length + 1
        pool = [paper for paper in self.labelled if paper.cat == cat and paper.length >= least]
        if self.budget is not None:
            pool = within_budget(pool, self.budget, cat, category_seed, least)
        if not pool and (self.component_uniform or self.budget is not None):
            raise BadData(
                f"{self.source.folder}: category {cat} has no window of {least} tokens in split {self.split_name!r}; "
                "lower --seq-length, allow more tokens of it or choose other categories"
            )
        return pool

    @property
    def rows_in_first_epoch(self) -> int:
        """Random windows never end: validation scores at most so many as would carry each token of the pool once."""
        return self.tokens_per_epoch // self.seq_length

    def place(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The paper of each sample, and where in it the window starts.  int64 [b] -> int64 [b], int64 [b]"""
        first, count = np.zeros(len(numbers), np.int64), np.full(len(numbers), len(self.papers))
        if self.component_uniform:
            cat = below(self.seed, CATEGORY, numbers, np.array(len(self.counts)))
            first, count = (self.counts.cumsum() - self.counts)[cat], self.counts[cat]
        paper = first + below(self.seed, PAPER, numbers, count)
        return paper, below(self.seed, START, numbers, self.lengths[paper] - self.seq_length)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Samples by number.  int64 [b] -> int64 [b, s+1]"""
        numbers = np.asarray(numbers, np.int64)
        paper, start = self.place(numbers)
        rows = np.empty((len(numbers), self.seq_length + 1), np.int64)
        for row, at in zip(rows, (self.offsets[paper] + start).tolist(), strict=True):
            row[:] = self.source.file.tokens(at, at + len(row))
        return rows

    def origin(self, number: int) -> str:
        """The file and paper that sample `number` comes from."""
        paper, _ = self.place(np.array([number]))
        return f"{self.source.file.path}, paper {self.papers[paper[0]].paper_id}"

    def category(self, number: int) -> str:
        paper, _ = self.place(np.array([number]))
        return self.papers[paper[0]].cat

    def describe(self) -> str:
        """A line for each category: papers and tokens that windows are drawn from."""
        ends = self.counts.cumsum()
        tokens = [int(self.lengths[end - count : end].sum()) for end, count in zip(ends, self.counts, strict=True)]
        return "\n".join(
            f"{self.source.folder}, {self.split_name}, {cat}: {count} papers of at least {self.seq_length + 1}, "
            f"together {total} tokens" + (f" of a budget of {self.budget}" if self.budget is not None else "")
            for cat, count, total in zip(self.categories, self.counts.tolist(), tokens, strict=True)
        )

    def fingerprint(self) -> str:
        """Names the samples: sha256 over seed, length, the folder's content, the rule of drawing and the pool."""
        parts = [
            self.seed,
            self.seq_length,
            self.source.digest,
            self.component_uniform,
            self.counts.tolist(),
            self.offsets.tolist(),
            self.lengths.tolist(),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def below(seed: int, purpose: int, numbers: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """A uniform integer in [0, limit) for each sample.  int64 [b], int64 [b] -> int64 [b]"""
    return (hash64(seed, purpose, numbers) % limit.astype(np.uint64)).astype(np.int64)
