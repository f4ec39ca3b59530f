"""A byte-level BPE tokenizer of one's own, trained on a corpus: GPT-2's cut into words and a vocabulary of any size.

The same texts give the same file, whatever the number of threads. `<|endoftext|>` is the one special token, and ends a document.
"""

from __future__ import annotations

from collections.abc import Iterable

from megatron.data.tokenizer import END_OF_TEXT, optional_package
from megatron.errors import BadData

SMALLEST_VOCABULARY = 257  # every byte, and the end of a document


def train_byte_level_bpe(texts: Iterable[str], vocab_size: int) -> str:
    """A tokenizer.json of the `tokenizers` library with at most `vocab_size` ids: fewer when the texts hold fewer pairs.

    Raises BadData when there is no text, MissingInput without the library.
    """
    with optional_package("tokenizers"):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    seen = [0]
    model.train_from_iterator(counted(texts, seen), trainer)
    if not seen[0]:
        raise BadData("a tokenizer cannot be trained on no text at all; check the input")
    return model.to_str(pretty=True)


def counted(texts: Iterable[str], seen: list[int]) -> Iterable[str]:
    for text in texts:
        seen[0] += len(text)
        yield text
