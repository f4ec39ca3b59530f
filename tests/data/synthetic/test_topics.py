"""The source of texts with vectors: its information is the plug-in estimate's limit, and its files are pairs."""

import math

import numpy as np

from megatron.data.pairs import Pairs, moments, vectors_path
from megatron.data.synthetic.topics import Topics, write_pairs

SMALL = Topics(topics=3, length=4, share=0.3, own=1, common=2, size=3, noise=0.05)


def test_the_information_is_that_of_all_texts_gone_through():
    texts = np.stack(np.meshgrid(*[np.arange(SMALL.num_ids)] * SMALL.length, indexing="ij"), -1).reshape(-1, SMALL.length)
    word = np.zeros((SMALL.topics, SMALL.num_ids))
    word[:, :2] = (1 - SMALL.share) / 2
    word[range(3), range(2, 5)] = SMALL.share
    p = word[:, texts].prod(-1)  # [topic, text]
    mean = p.mean(0)
    seen = mean > 0
    information = (p[:, seen] / 3 * np.log(np.where(p[:, seen] > 0, p[:, seen], 1) / mean[seen])).sum()
    assert math.isclose(information, SMALL.information(), rel_tol=1e-12)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum() / 3
    assert math.isclose(entropy, SMALL.entropy(), rel_tol=1e-12)
    assert SMALL.information(given=1) < SMALL.information()


def test_what_is_written_is_pairs_with_their_moments_and_the_source(tmp_path):
    write_pairs(SMALL, tmp_path / "c", 5000)
    data = Pairs(str(tmp_path / "c"), 6, 1, 257, 256)
    assert Topics.of(data.corpus.meta) == SMALL
    data.standard = data.moments()
    again = moments(vectors_path(tmp_path / "c"))
    assert np.array_equal(again.mean, data.standard.mean) and np.array_equal(again.std, data.standard.std)
    found = data.vectors(np.arange(5000))
    assert abs(found.mean(0)).max() < 1e-4 and abs(found.std(0) - 1).max() < 1e-4
    raw = data.standard.raw(found)
    topic = (raw @ SMALL.centres().T).argmax(1)
    own = [{int(w) - 2 for w in row if 2 <= w < 5} for row in data.rows(np.arange(5000))]
    assert all(words <= {k} for words, k in zip(own, topic.tolist()))
