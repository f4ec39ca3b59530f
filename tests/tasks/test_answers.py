"""Likelihoods of answers against brute force over logits, their errors, and the same numbers at every layout."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from megatron.errors import BadData
from megatron.sampling.generate import Source
from megatron.tasks.answers import Answer, Method, draws, score_answers
from megatron.training import open_run

LAYOUTS = [{"tensor_model_parallel_size": 2, "sequence_parallel": True}, {"pipeline_model_parallel_size": 2}, {"zero_stage": 3}]


def answers(*sizes, context=7):
    rng = np.random.default_rng(5)
    return [
        Answer(context=rng.integers(97, 123, context + q), ids=rng.integers(97, 123, n), question=q) for q, n in enumerate(sizes)
    ]


def log_probabilities(trained, ids):
    return trained.logits(torch.from_numpy(ids)[None])[0].double().log_softmax(-1).numpy()


def test_exact(runs):
    """The sum over the answer's tokens, each given all before; greedy where each is the likeliest."""
    trained = open_run(runs / "ar", dtype="fp64")
    source, asked = Source.of(trained.cfg, trained.tokenizer), answers(1, 5, 40 - 7 - 2 - 3)
    greedy = asked[0].context
    for _ in range(3):
        greedy = np.append(greedy, log_probabilities(trained, greedy)[-1].argmax())
    asked.append(Answer(context=asked[0].context, ids=greedy[-3:], question=3))
    found = score_answers(trained.engine, source, asked, Method(kind="exact"))
    for i, one in enumerate(asked):
        whole = np.concatenate((one.context, one.ids))[-33:]
        log_p = log_probabilities(trained, whole[:-1])
        assert found.log_p[i] == pytest.approx(log_p[np.arange(len(log_p)), whole[1:]][-len(one.ids) :].sum(), rel=1e-12)
    assert found.greedy.tolist() == [False, False, False, True] and found.passes == 4 and not found.se.any()


def orders(trained, one, mask):
    """NLL of each order of revealing the places of an answer."""
    n, whole, found = len(one.ids), np.concatenate((one.context, one.ids)), []
    for order in permutations(range(n)):
        ids, total = whole.copy(), 0.0
        ids[-n:] = mask
        for place in order:
            total -= log_probabilities(trained, ids)[len(ids) - n + place, one.ids[place]]
            ids[len(ids) - n + place] = one.ids[place]
        found.append(total)
    return found


def test_bound_and_chain(runs):
    """Enumerated sets of hidden places are the mean over all orders, draws agree within their error; the chain is one order."""
    trained = open_run(runs / "mdm", dtype="fp64")
    source, asked = Source.of(trained.cfg, trained.tokenizer), answers(1, 3, 4)
    nll = [orders(trained, one, source.mask) for one in asked]
    whole = score_answers(trained.engine, source, asked, Method(kind="bound", num_mc=16))
    assert -whole.log_p == pytest.approx([np.mean(some) for some in nll], rel=1e-7)
    assert whole.passes == 1 + 7 + 15 and not whole.se.any()
    chain = score_answers(trained.engine, source, asked, Method(kind="chain"))
    assert -chain.log_p == pytest.approx([some[0] for some in nll], rel=1e-12)
    drawn = score_answers(trained.engine, source, asked[1:], Method(kind="bound", num_mc=6, tolerance=0.1, seed=1))
    assert (drawn.se <= 0.1).all() and drawn.passes > 12
    assert (abs(drawn.log_p + [np.mean(some) for some in nll[1:]]) < 5 * drawn.se).all()
    told = score_answers(trained.engine, source, asked[:1], Method(kind="bound", num_mc=512, eps=0.1))
    assert told.log_p == pytest.approx(whole.log_p[:1], abs=6 * told.se[0])


def test_draws_are_uniform_and_shared_by_the_choices_of_a_question(runs):
    trained = open_run(runs / "mdm")
    source = Source.of(trained.cfg, trained.tokenizer)
    for n in (3, 6):
        counts, hidden = np.zeros(n), np.zeros(n)
        one = answers(n)[0]
        for block in range(600):
            for row in draws(one, source, Method(kind="bound"), block, 8):
                weights = row.weights[-n:]
                counts[(weights > 0).sum() - 1] += 1
                hidden += weights > 0
        assert chisquare(counts).pvalue > 1e-4 and np.ptp(hidden) < 0.06 * hidden.mean()
    long, short = (Answer(context=np.arange(97, 102), ids=np.arange(97, 97 + n), question=4) for n in (6, 6))
    for a, b in zip(draws(long, source, Method(kind="bound"), 0, 8), draws(short, source, Method(kind="bound"), 0, 8)):
        assert (a.weights == b.weights).all()
    other = Answer(context=long.context, ids=long.ids, question=5)
    assert any(
        (a.weights != b.weights).any() for a, b in zip(*(draws(x, source, Method(kind="bound"), 0, 8) for x in (long, other)))
    )


def at_layouts(folder, layouts, sizes, kind):
    found = []
    for layout in layouts:
        trained = open_run(folder, say=lambda line: None, **layout)
        source = Source.of(trained.cfg, trained.tokenizer)
        scored = score_answers(trained.engine, source, answers(*sizes), Method(kind=kind, num_mc=4))
        found.append((scored.log_p, scored.passes))
    return found


@pytest.mark.parametrize("objective, kind", [("ar", "exact"), ("mdm", "bound")])
def test_every_layout_gives_the_same(runs, pool, objective, kind):
    sizes = (1, 2, 3, 5, 6, 6, 4)
    (alone,) = at_layouts(runs / objective, [{}], sizes, kind)
    for found in pool.run(2, at_layouts, runs / objective, LAYOUTS, sizes, kind):
        for log_p, passes in found:
            assert log_p == pytest.approx(alone[0], rel=2e-6) and passes == alone[1]


def test_answers_that_do_not_fit_are_refused(runs):
    trained = open_run(runs / "mdm")
    source = Source.of(trained.cfg, trained.tokenizer)
    for size, said in ((0, "no token"), (32, "32 tokens, and the window 32")):
        with pytest.raises(BadData, match=said):
            score_answers(trained.engine, source, answers(size), Method(kind="bound"))
