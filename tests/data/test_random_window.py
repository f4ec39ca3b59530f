import random

import numpy as np
import pytest
from scipy import stats

from megatron.data.random_window import RandomWindow, choose_categories
from megatron.data.token_file import write_paper_folder
from megatron.errors import BadData

S = 7
CATEGORIES = ["cs.AI", "cs.CV", "math.ST"]
LENGTHS = {"cs.AI": [8, 20, 40], "cs.CV": [7, 9, 100, 30, 12], "math.ST": [50]}  # 7 is too short for s + 1 = 8


@pytest.fixture
def folder(tmp_path):
    """Papers whose token i is 200 x paper + i; 8 of them in train have a window, one is in val."""
    rows, number = [], 0
    for cat, lengths in LENGTHS.items():
        for length in lengths:
            rows.append(("train", f"train_{number}", cat, 200 * number + np.arange(length)))
            number += 1
    rows.append(("val", "val_0", "cs.AI", 200 * number + np.arange(60)))
    write_paper_folder(tmp_path / "papers", rows, 10000)
    return tmp_path / "papers"


def windows(folder, seed=1, count=20000, **named):
    data = RandomWindow(folder, named.pop("split", "train"), S, seed, **named)
    return data, data.rows(np.arange(count))


def test_rows_are_windows_of_single_papers(folder):
    data, rows = windows(folder)
    assert rows.shape == (20000, S + 1) and rows.dtype == np.int64
    assert (np.diff(rows) == 1).all() and (rows[:, 0] // 200 == rows[:, -1] // 200).all()
    lengths = [length for cat in CATEGORIES for length in LENGTHS[cat]]
    assert set(np.unique(rows[:, 0] // 200)) == {n for n, length in enumerate(lengths) if length >= S + 1}
    seen = {n: set((rows[rows[:, 0] // 200 == n, 0] % 200).tolist()) for n in range(len(lengths))}
    assert all(seen[n] == set(range(length - S)) for n, length in enumerate(lengths) if length > S)
    assert data.tokens_per_epoch == sum(lengths) - 7 and data.rows_in_first_epoch == (sum(lengths) - 7) // S


def test_papers_and_starts_are_uniform(folder):
    _, rows = windows(folder)
    papers, counts = np.unique(rows[:, 0] // 200, return_counts=True)
    assert len(papers) == 8 and stats.chisquare(counts).pvalue > 1e-3
    starts = np.bincount(rows[rows[:, 0] // 200 == 5, 0] % 200)  # the paper of 100 tokens
    assert len(starts) == 93 and stats.chisquare(starts).pvalue > 1e-3


def test_component_uniform_draws_the_category_first(folder):
    data, rows = windows(folder, component_uniform=True)
    edges = np.cumsum([0, *(len(LENGTHS[cat]) for cat in CATEGORIES)])
    categories = np.searchsorted(edges, rows[:, 0] // 200, side="right") - 1
    assert stats.chisquare(np.bincount(categories)).pvalue > 1e-3
    inside = np.unique(rows[categories == 1, 0] // 200, return_counts=True)[1]
    assert len(inside) == 4 and stats.chisquare(inside).pvalue > 1e-3
    assert data.fingerprint() != RandomWindow(folder, "train", S, 1).fingerprint()


def test_draws_of_neighbours_are_independent(folder):
    data, _ = windows(folder, count=1)
    paper, start = data.place(np.arange(40000))
    pairs = np.zeros((8, 8))
    np.add.at(pairs, (paper[:-1], paper[1:]), 1)
    assert stats.chi2_contingency(pairs).pvalue > 1e-3
    long = paper == np.flatnonzero(data.lengths == 100)[0]
    assert abs(np.corrcoef(start[long][:-1], start[long][1:])[0, 1]) < 0.05


def test_a_row_is_a_function_of_seed_and_number(folder):
    data, rows = windows(folder, count=300)
    order = np.random.default_rng(0).permutation(300)
    assert np.array_equal(RandomWindow(folder, "train", S, 1).rows(order), rows[order])
    assert np.array_equal(np.concatenate([data.rows([n]) for n in range(300)]), rows)
    others = {windows(folder, seed, 300)[1].tobytes() for seed in range(5)}
    assert len(others) == 5
    assert len({RandomWindow(folder, "train", S, seed).fingerprint() for seed in (1, 2)} | {data.fingerprint()}) == 2


def test_the_statistics_are_the_originals(folder):
    """Mean and spread of the window's place against the original's rule: random.choice of a paper, then random.randint."""
    _, rows = windows(folder)
    generator, lengths = random.Random(0), [length for cat in CATEGORIES for length in LENGTHS[cat] if length >= S + 1]
    theirs = [generator.randint(0, generator.choice(lengths) - (S + 1)) for _ in range(20000)]
    assert stats.ks_2samp(rows[:, 0] % 200, theirs).pvalue > 1e-3


# Categories and splits


def test_only_the_chosen_categories_and_split(folder):
    _, rows = windows(folder, categories=["math.ST", "cs.AI"])
    assert set(np.unique(rows[:, 0] // 200)) == {0, 1, 2, 8}
    _, rows = windows(folder, split="val")
    assert set(np.unique(rows[:, 0] // 200)) == {9}


def test_categories_are_chosen_as_in_the_original_and_nested(folder):
    names = [f"c{n}" for n in range(11)]
    for seed in range(10):
        order = sorted(names)
        random.Random(seed).shuffle(order)
        chosen = [choose_categories(names[::-1], k, seed) for k in range(1, 12)]
        assert chosen[-1] == order and all(a == b[: len(a)] for a, b in zip(chosen, chosen[1:], strict=False))
    with pytest.raises(BadData, match="categories c0, c1, c10, .*, c19 and 8 more$"):
        choose_categories([f"c{n}" for n in range(20)], 21, 0)
    assert choose_categories(CATEGORIES, 1, 0) == [RandomWindow(folder, "train", S, 9, num_categories=1).categories[0]]
    picked = {RandomWindow(folder, "train", S, 0, num_categories=1, category_seed=seed).categories[0] for seed in range(20)}
    assert picked == set(CATEGORIES)
    among = RandomWindow(folder, "train", S, 0, categories=["cs.AI", "cs.CV"], num_categories=1, category_seed=3)
    assert among.categories[0] in ("cs.AI", "cs.CV")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"categories": ["cs.XX"]}, "--categories cs.XX: .* only cs.AI, cs.CV, math.ST"),
        ({"num_categories": 4}, "--num-categories 4: expected 1 to 3"),
        ({"num_categories": 0}, "expected 1 to 3"),
        ({"split": "test"}, "no split 'test'"),
        ({"split": "val", "categories": ["cs.CV"]}, "no paper of at least 8 tokens in cs.CV"),
        ({"split": "val", "component_uniform": True}, "cs.CV has no window of 8 tokens in split 'val'"),
        (
            {"tokens_per_category": 60},
            "math.ST has 50 tokens, in 1 papers of at least 8; 60 of each category are asked for: lower --tokens-per-category",
        ),
        ({"tokens_per_category": 5}, "no window of 8 tokens"),
    ],
)
def test_what_cannot_be_is_refused(folder, named, said):
    with pytest.raises(BadData, match=said):
        windows(folder, **named)


# Budgets


def test_all_categories_share_the_unique_tokens(folder):
    data, _ = windows(folder, categories=["cs.CV", "cs.AI"], unique_tokens=60)
    assert data.budget == 30 and data.tokens_per_epoch <= 60
    assert data.fingerprint() == windows(folder, categories=["cs.CV", "cs.AI"], tokens_per_category=30)[0].fingerprint()


def test_shuffled_categories_keep_their_sizes_and_share_the_papers(folder):
    def papers(seed, cat):
        data, _ = windows(folder, categories=[cat], shuffled=True, category_seed=seed)
        return {paper.paper_id for paper in data.labelled if paper.cat == cat}

    for seed in range(3):
        dealt = [papers(seed, cat) for cat in CATEGORIES]
        assert [len(one) for one in dealt] == [3, 5, 1] and len(set.union(*dealt)) == 9
    assert papers(1, "cs.CV") != papers(2, "cs.CV") and papers(1, "cs.CV") == papers(1, "cs.CV")


def kept(data):
    return {n for offset, length in zip(data.offsets, data.lengths, strict=True) for n in range(offset, offset + length)}


def test_budgets_are_exact_up_to_a_rest_and_nested(folder):
    before = set()
    for budget in range(12, 51):
        data = RandomWindow(folder, "train", S, budget, tokens_per_category=budget)
        ends = data.counts.cumsum()
        totals = [data.lengths[end - count : end].sum() for end, count in zip(ends, data.counts, strict=True)]
        assert all(budget - S <= total <= budget for total in totals)
        assert before <= kept(data)
        before = kept(data)
    assert RandomWindow(folder, "train", S, 1, tokens_per_category=50).tokens_per_epoch <= 150


def test_a_budget_does_not_depend_on_the_training_seed_but_on_the_category_seed(folder):
    pools = [kept(RandomWindow(folder, "train", S, seed, tokens_per_category=30)) for seed in range(5)]
    assert all(pool == pools[0] for pool in pools)
    assert (
        len(
            {
                frozenset(kept(RandomWindow(folder, "train", S, 1, category_seed=seed, tokens_per_category=30)))
                for seed in range(10)
            }
        )
        > 1
    )
    alone = RandomWindow(folder, "train", S, 1, categories=["cs.CV"], tokens_per_category=30)
    assert kept(alone) <= pools[0]  # nor on the other categories


def test_windows_stay_inside_the_budget(folder):
    data, rows = windows(folder, tokens_per_category=30, count=5000)
    inside = {
        int(token)
        for offset, length in zip(data.offsets, data.lengths, strict=True)
        for token in data.source.file.tokens(offset, offset + length)
    }
    assert set(np.unique(rows).tolist()) == inside and data.tokens_per_epoch == len(inside)


# What is said


def test_describe_and_ids(folder):
    data, rows = windows(folder, tokens_per_category=50, vocab_size=1000)
    assert (
        data.describe().splitlines()[2].endswith("train, math.ST: 1 papers of at least 8, together 50 tokens of a budget of 50")
    )
    with pytest.raises(BadData, match="tokens.bin, paper train_[5-8]: sample .* vocabulary size 1000"):
        data.check_ids(rows, np.arange(len(rows)))
    RandomWindow(folder, "train", S, 1, vocab_size=10000).check_ids(rows, np.arange(len(rows)))
