"""Overlap of answers with references, by hand and by the definitions of ROUGE-L and SQuAD."""

import pytest

from megatron.evaluation.overlap import exact_match, rouge_l, token_f1


@pytest.mark.parametrize(
    "answer, references, f1, exact",
    [
        ("The cat sat.", ["a cat sat"], 1.0, 1.0),  # case, articles and punctuation do not count
        ("cat cat", ["cat dog dog"], 0.4, 0.0),  # words are a bag: one in common of 2 and of 3
        ("blue", ["red", "deep blue"], 2 / 3, 0.0),  # the best reference
        ("", ["the"], 1.0, 1.0),
        ("", ["red"], 0.0, 0.0),
        ("red", ["..."], 0.0, 0.0),
    ],
)
def test_squads_measures(answer, references, f1, exact):
    assert token_f1(answer, references) == pytest.approx(f1) and exact_match(answer, references) == exact


def test_rouge_l_is_the_f_of_the_longest_common_subsequence():
    rouge = rouge_l()
    assert rouge("police killed the gunman", ["the gunman police killed"]) == pytest.approx(0.5)
    assert rouge("he walked", ["nothing", "he walks"]) == 1.0  # stems, and the best reference
    assert rouge("", ["a word"]) == 0.0
