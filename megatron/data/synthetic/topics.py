"""Texts with vectors whose information in common is known: the vector says the topic, and so do some of the words.

Each of K topics has words of its own, all share the others. A text is n words; each is one of its topic's with probability q,
else a common one, uniformly. Its vector is the topic's centre with a little normal noise. A text without a word of its topic says
nothing of it, any other says all, so that the mutual information of text and vector is log K (1 - (1 - q)^n), in nats.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from megatron.data.indexed import IndexedWriter
from megatron.data.pairs import Standard, checksums, moments, vectors_path
from megatron.data.prepare.vector_pairs import matrix_header

CENTRES = 1 << 32  # what a random number is for: the topics' centres, which no document has
DOCUMENTS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Topics:
    """A source of such texts. Ids are the common words', then each topic's own."""

    topics: int = 8  # K
    length: int = 15  # n
    share: float = 0.2  # q
    own: int = 4  # words of a topic
    common: int = 16
    size: int = 8  # numbers of a vector
    noise: float = 0.1  # standard deviation around the centre, which has length 1
    seed: int = 1234

    @classmethod
    def of(cls, meta: dict | None) -> Topics | None:
        """The source that a corpus' sidecar names; None for another corpus."""
        said = ((meta or {}).get("extra") or {}).get("topics")
        return cls(**{field.name: said[field.name] for field in fields(cls)}) if said else None

    @property
    def num_ids(self) -> int:
        return self.common + self.topics * self.own

    def information(self, given: int = 0) -> float:
        """Nats that the words behind the first `given` share with the vector, as far as its noise leaves centres apart."""
        silent = 1 - self.share  # the probability that a word says nothing
        return math.log(self.topics) * silent**given * (1 - silent ** (self.length - given))

    def entropy(self) -> float:
        """Nats of a text whose topic is known."""
        word = -self.share * math.log(self.share / self.own) - (1 - self.share) * math.log((1 - self.share) / self.common)
        return self.length * word

    def centres(self) -> np.ndarray:
        """At right angles, where there is room for that.  -> float64 [K, d]"""
        drawn = np.random.default_rng([self.seed, CENTRES]).standard_normal((self.topics, self.size))
        if self.topics <= self.size:
            return np.linalg.qr(drawn.T)[0].T
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def draw(self, number: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Part `number` of the corpus.  -> topic [c], words [c, n], vectors [c, d] float32"""
        rng = np.random.default_rng([self.seed, number])
        topic = rng.integers(0, self.topics, count)
        mine = rng.random((count, self.length)) < self.share
        own = self.common + topic[:, None] * self.own + rng.integers(0, self.own, mine.shape)
        words = np.where(mine, own, rng.integers(0, self.common, mine.shape))
        vectors = self.centres()[topic] + self.noise * rng.standard_normal((count, self.size))
        return topic, words, vectors.astype("<f4")


def write_pairs(source: Topics, prefix: Path, documents: int, first_part: int = 0) -> Standard:
    """PREFIX.bin, .idx, .meta.json and .vectors.npy, from a part on; the sidecar says the source and what is known of it."""
    with IndexedWriter(prefix, np.uint16) as writer:
        with open(vectors_path(prefix), "xb") as matrix:
            matrix.write(matrix_header(documents, source.size))
            for number, first in enumerate(range(0, documents, DOCUMENTS_AT_ONCE)):
                _, words, vectors = source.draw(first_part + number, DOCUMENTS_AT_ONCE)
                count = min(DOCUMENTS_AT_ONCE, documents - first)
                for text in words[:count]:
                    writer.add_document(text)
                matrix.write(vectors[:count].tobytes())
        path = vectors_path(prefix)
        standard = moments(path)
        known = {"information": source.information(), "entropy": source.entropy()}
        writer.extra = {
            "vectors": {"width": source.size, "block_crc32": checksums(path)} | standard.said(),
            "topics": asdict(source) | known,
        }
    return standard
