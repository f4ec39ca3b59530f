"""How much of a reference an answer has: ROUGE-L, token F1 and exact match, the best of several references."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from megatron.errors import MissingInput

Measure = Callable[[str, Sequence[str]], float]  # (answer, references) -> 0..1


def rouge_l() -> Measure:
    """F of the longest common subsequence (Lin, 2004), with Porter's stemmer, by the package rouge-score. Raises MissingInput.

    It knows words of a-z and 0-9 alone: texts of another script have none.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingInput(f"ROUGE-L needs the Python package rouge-score ({error}): pip install -e '.[eval]'") from None
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return lambda answer, references: float(scorer.score_multi(list(references), answer)["rougeL"].fmeasure)


def normalized(text: str) -> str:
    """As SQuAD's evaluation compares texts (Rajpurkar et al., arXiv:1606.05250): lower case, without punctuation and articles."""
    words = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", words).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    return float(any(normalized(answer) == normalized(one) for one in references))


def token_f1(answer: str, references: Sequence[str]) -> float:
    return max(shared_words(normalized(answer).split(), normalized(one).split()) for one in references)


def shared_words(answer: list[str], reference: list[str]) -> float:
    """Harmonic mean of precision and recall of the words; of none on one side, whether there are none on the other."""
    if not (answer and reference):
        return float(answer == reference)
    return 2 * (Counter(answer) & Counter(reference)).total() / (len(answer) + len(reference))
