"""Instructions with one right answer each: whether a model follows them is a count, not an opinion.

A record has Alpaca's keys. Its answer is `Answer: X.`, where X is what the instruction asks of the word in its input. A word has
two syllables of a consonant and a vowel and perhaps a consonant more: too many words for a small model to remember.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from megatron.errors import BadData

SHAPE = r"Answer: [a-z]+\."
CONSONANTS, VOWELS = "bdfgklmnprst", "aeiou"
TASKS: dict[str, Callable[[str], str]] = {
    "Write the first letter.": lambda word: word[0],
    "Repeat the word.": lambda word: word,
    "Is there an a in it?": lambda word: "yes" if "a" in word else "no",
}
MOST = len(TASKS) * (len(CONSONANTS) * len(VOWELS)) ** 2 * (1 + len(CONSONANTS))  # different records


def records(count: int, seed: int) -> list[dict[str, str]]:
    """So many different ones; a smaller number's are among a larger one's. Raises BadData for more than there are."""
    if not 1 <= count <= MOST // 2:
        raise BadData(f"{count} instructions: expected 1 to {MOST // 2}")
    draw = random.Random(seed)
    found: dict[tuple[str, str], dict[str, str]] = {}
    while len(found) < count:
        task, word = draw.choice(list(TASKS)), word_of(draw)
        found[task, word] = {"instruction": task, "input": word, "output": f"Answer: {TASKS[task](word)}."}
    return list(found.values())


def word_of(draw: random.Random) -> str:
    syllables = [draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(2)]
    return "".join(syllables) + draw.choice(["", *CONSONANTS])
