"""How alike texts are: each as a translation of the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ORDERS = 4


def self_bleu(texts: Sequence[str]) -> float | None:
    """Mean BLEU-4 of each text against all others as references (Zhu et al., arXiv:1802.01886); None below two texts.

    Words are what spaces part. Precisions of order 2 and above have 1 added to both counts (Lin and Och, 2004), so that short
    texts have a value; the brevity penalty is by the reference nearest in length (Papineni et al., 2002).
    """
    words = [text.split() for text in texts]
    if len(words) < 2:
        return None
    counts = [[ngrams(some, n) for n in range(1, ORDERS + 1)] for some in words]
    return sum(bleu(i, words, counts) for i in range(len(words))) / len(words)


def ngrams(words: Sequence[str], n: int) -> Counter:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(number: int, words: Sequence[Sequence[str]], counts: Sequence[Sequence[Counter]]) -> float:
    """Of one text against all others."""
    length = len(words[number])
    if not length:
        return 0.0
    total = 0.0
    for n in range(ORDERS):
        mine = counts[number][n]
        most: Counter = Counter()
        for other in range(len(words)):
            if other != number:
                most |= counts[other][n] & mine
        hits, of = sum(most.values()), sum(mine.values())
        if n == 0 and not hits:
            return 0.0
        total += math.log((hits + (n > 0)) / (of + (n > 0)))
    near = min((len(w) for i, w in enumerate(words) if i != number), key=lambda other: (abs(other - length), other))
    return math.exp(total / ORDERS + min(0.0, 1 - near / length))
