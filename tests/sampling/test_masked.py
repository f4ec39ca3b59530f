"""Samples of small tables of random conditionals against their exact distributions, worked out by recursion."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from megatron.batch import reading
from megatron.objectives.block import sight
from megatron.sampling.draws import How, Rows
from megatron.sampling.table import SAMPLERS
from tests.test_bound import engine

VOCAB, MASK, LENGTH, DRAWS = 3, 3, 3, 2000


class Conditionals:
    """A masked model that is nothing but a table: a distribution of each place for each partly masked row."""

    def __init__(self, extra_ids=1):
        rng = np.random.default_rng(5)
        rows = itertools.product(range(VOCAB + 1), repeat=LENGTH)
        self.table = {row: rng.dirichlet(np.ones(VOCAB), LENGTH) for row in rows}
        self.extra, self.read = extra_ids, 0

    def logits(self, batches):
        (batch,) = batches
        self.read += len(batch.inputs)
        p = np.stack([self.table[tuple(row)] for row in batch.inputs.tolist()]).reshape(-1, VOCAB)
        likely = torch.full((len(p), self.extra), 9.0)  # ids that are reserved: never to be drawn
        return [torch.cat([torch.from_numpy(p).log().float(), likely], 1)[batch.asked]]


def masked(row):
    return [i for i, one in enumerate(row) if one == MASK]


def law(model, choose, row=(MASK,) * LENGTH, step=0):
    """{row: probability} where choose(p, places, step) says which places are revealed together: [(probability, places)]."""
    if not masked(row):
        return {row: 1.0}
    found = dict.fromkeys(itertools.product(range(VOCAB), repeat=LENGTH), 0.0)
    p = model.table[row]
    for chance, places in choose(p, masked(row), step):
        for ids in itertools.product(range(VOCAB), repeat=len(places)):
            after = list(row)
            for place, one in zip(places, ids):
                after[place] = one
            here = chance * np.prod([p[place, one] for place, one in zip(places, ids)])
            for end, later in law(model, choose, tuple(after), step + 1).items():
                found[end] += here * later
    return found


def subsets(places, each):
    return [
        (each**n * (1 - each) ** (len(places) - n), chosen)
        for n in range(len(places) + 1)
        for chosen in itertools.combinations(places, n)
    ]


def best(score, count=1):
    return lambda p, places, step: [(1.0, sorted(places, key=lambda i: -score(p[i]))[:count])]


def most(p, places, score, fits):
    """The most of the best places whose scores, highest first, fit; at least one."""
    ordered = sorted(places, key=lambda i: -score(p[i]))
    count = max(n for n in range(1, len(places) + 1) if n == 1 or fits([score(p[i]) for i in ordered[:n]]))
    return [(1.0, sorted(ordered[:count]))]


def top_two(p):
    return np.sort(p)[::-1][:2]


CASES = {
    ("ancestral", ()): lambda p, places, step: [(1 / len(places), [i]) for i in places],
    ("ancestral", (("steps", 2),)): lambda p, places, step: subsets(places, 0.5) if step == 0 else [(1.0, places)],
    ("ancestral", (("block_length", 2),)): lambda p, places, step: [
        (1 / len([i for i in places if i < 2] or [2]), [i]) for i in ([i for i in places if i < 2] or [2])
    ],
    ("left-to-right", ()): lambda p, places, step: [(1.0, places[:1])],
    ("left-to-right", (("steps", 2),)): lambda p, places, step: [(1.0, places[:2])],
    ("confidence", ()): best(max),
    ("confidence", (("steps", 2),)): lambda p, places, step: best(max, 2 if step == 0 else 1)(p, places, step),
    ("confidence", (("block_length", 2),)): lambda p, places, step: best(max)(p, [i for i in places if i < 2] or [2], step),
    ("margin", ()): best(lambda p: top_two(p)[0] - top_two(p)[1]),
    ("entropy", ()): best(lambda p: (p * np.log(p)).sum()),
    ("uncertainty", ()): best(lambda p: -(p * np.log(p)).sum()),
    ("uncertainty", (("steps", 2),)): best(lambda p: -(p * np.log(p)).sum(), 2),
    ("threshold", (("threshold", 0.6),)): lambda p, places, step: [
        (1.0, [i for i in places if p[i].max() >= 0.6] or best(max)(p, places, step)[0][1])
    ],
    ("factor", ()): lambda p, places, step: most(p, places, max, lambda surest: surest[-1] >= 1 - 1 / (len(surest) + 1)),
    ("factor", (("factor", 1.5),)): lambda p, places, step: most(
        p, places, max, lambda surest: surest[-1] >= 1 - 1.5 / (len(surest) + 1)
    ),
    ("entropy-bounded", (("entropy_bound", 0.6),)): lambda p, places, step: most(
        p, places, lambda one: (one * np.log(one)).sum(), lambda surest: sum(surest) - min(surest) >= -0.6
    ),
    ("entropy-bounded", (("entropy_bound", 0.0),)): best(lambda p: (p * np.log(p)).sum()),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, (case[0], *itertools.chain(*case[1])))))
def test_samples_follow_the_exact_distribution(case):
    name, settings = case
    model = Conditionals()
    rows = Rows(
        ids=torch.full((DRAWS, LENGTH), MASK),
        open=torch.ones(DRAWS, LENGTH, dtype=torch.bool),
        numbers=list(range(DRAWS)),
        seed=3,
        vocab_size=VOCAB,
    )
    drawn = SAMPLERS[name].load()(model, rows, How(**dict(settings)))
    exact = law(model, CASES[case])
    assert sum(exact.values()) == pytest.approx(1)
    counts = dict.fromkeys(exact, 0)
    for row in drawn.tolist():
        counts[tuple(row)] += 1
    assert chisquare(list(counts.values()), np.array(list(exact.values())) * DRAWS).pvalue > 0.01
    steps = dict(settings).get("steps", LENGTH)
    assert model.read <= steps * DRAWS and (name != "ancestral" or "steps" not in dict(settings) or model.read < steps * DRAWS)


def test_guidance_samples_conditionals_that_are_moved_away_from_those_without_a_prompt():
    model, weight, prompt = Conditionals(), 0.7, (1, MASK, MASK)
    ids = torch.tensor([prompt] * DRAWS)
    rows = Rows(ids=ids, open=ids == MASK, numbers=list(range(DRAWS)), seed=3, vocab_size=VOCAB, mask=MASK)
    drawn = SAMPLERS["confidence"].load()(model, rows, How(guidance=weight))
    guided = Conditionals()
    for row, p in model.table.items():
        moved = model.table[(MASK, *row[1:])] ** -weight * p ** (1 + weight)
        guided.table[row] = moved / moved.sum(1, keepdims=True)
    exact = {row: chance for row, chance in law(guided, best(max), prompt).items() if chance}
    counts = dict.fromkeys(exact, 0)
    for row in drawn.tolist():
        counts[tuple(row)] += 1
    assert chisquare(list(counts.values()), np.array(list(exact.values())) * DRAWS).pvalue > 0.01
    assert model.read == 2 * 2 * DRAWS


class Even(Conditionals):
    """All ids alike, up to what the layout of a computation changes."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def logits(self, batches):
        self.seen.append(batches[0].inputs.tolist()[0])
        (found,) = super().logits(batches)
        return [torch.rand(found.shape, generator=torch.Generator().manual_seed(len(found))) * 1e-6]


@pytest.mark.parametrize("name", ["confidence", "margin", "entropy"])
def test_what_is_given_stays_and_near_ties_go_to_the_left(name):
    ids, model = torch.tensor([[MASK, 2, MASK]]), Even()
    rows = Rows(ids=ids, open=ids == MASK, numbers=[0], seed=0, vocab_size=VOCAB)
    assert SAMPLERS[name].load()(model, rows, How(temperature=0)).tolist() == [[0, 2, 0]]
    assert model.seen == [[MASK, 2, MASK], [0, 2, MASK]]


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if "mdm" in sampler.serves])
@pytest.mark.parametrize("steps", [None, 1])
def test_every_open_place_is_filled_however_few(name, steps):
    ids = torch.tensor([[0, 1, 2], [0, MASK, 2], [MASK, MASK, MASK], [MASK, 0, 1]])
    rows = Rows(ids=ids, open=ids == MASK, numbers=[0, 1, 2, 3], seed=0, vocab_size=VOCAB, mask=MASK)
    found = SAMPLERS[name].load()(Conditionals(), rows, How(steps=steps if "steps" in SAMPLERS[name].reads else None))
    assert (found != MASK).all() and torch.equal(found[~rows.open], ids[~rows.open])


def test_behind_a_drawn_end_everything_is_the_end():
    rows = Rows(
        ids=torch.full((500, LENGTH), MASK),
        open=torch.ones(500, LENGTH, dtype=torch.bool),
        numbers=list(range(500)),
        seed=0,
        vocab_size=VOCAB,
    )
    for name in ("ancestral", "confidence", "threshold"):
        for row in SAMPLERS[name].load()(Conditionals(), rows, How(end=1)).tolist():
            assert 1 not in row or set(row[row.index(1) :]) == {1}


@pytest.mark.parametrize("length", [4, 3])
def test_a_model_of_blocks_is_sampled_as_it_was_trained(length):
    """Blocks of two, read twice as in training, against samples that read each block once; a row may end within one."""
    network, texts = engine(False), torch.tensor(list(itertools.product(range(VOCAB), repeat=4)))
    chances = torch.ones(len(texts), dtype=torch.float64)
    for place in range(4):
        hidden = texts.clone()
        hidden[:, place // 2 * 2 :][:, place % 2 : 2] = MASK
        batch = replace(reading(torch.cat((hidden, texts), 1)), attend=sight(4, 2), asked=torch.arange(len(texts)) * 8 + place)
        batch = replace(batch, positions=batch.positions % 4)
        (logits,) = network.logits([batch])
        chances *= logits[:, :VOCAB].double().softmax(1).gather(1, texts[:, place, None])[:, 0]
    assert float(chances.sum()) == pytest.approx(1)
    ids, open_places = torch.full((DRAWS, length), MASK), torch.ones(DRAWS, length, dtype=torch.bool)
    rows = Rows(ids=ids, open=open_places, numbers=list(range(DRAWS)), seed=3, vocab_size=VOCAB, mask=MASK, block=2)
    drawn = SAMPLERS["left-to-right"].load()(network, rows, How())
    digits = 3 ** torch.arange(length)
    counts = (drawn * digits).sum(1).bincount(minlength=3**length)
    expected = torch.zeros(3**length, dtype=torch.float64).index_add(0, (texts[:, :length] * digits).sum(1), chances)
    assert chisquare(counts.numpy(), expected.numpy() * DRAWS).pvalue > 1e-3
