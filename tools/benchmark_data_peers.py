"""What tools/benchmark_data.py compares with, each in a process of its own: bare loops, and megatron-core's data sets.

    python tools/benchmark_data_peers.py NAME '[ARGUMENTS]'

It imports nothing of this project, because megatron-core is imported by the same name: its interpreter is another one.
Prints what the work took as JSON.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

BLOCK_BYTES = 16 << 20  # of text that a bare loop reads at once


class Meter:
    """CPU seconds and MiB of memory that a block of code adds to this process."""

    def __enter__(self) -> Meter:
        self.before, self.started = peak_mebibytes(), time.process_time()
        return self

    def __exit__(self, *_) -> None:
        self.cpu, self.mebibytes = time.process_time() - self.started, peak_mebibytes() - self.before

    def found(self) -> dict[str, float]:
        return {"cpu": self.cpu, "mebibytes": self.mebibytes}


def peak_mebibytes() -> float:
    """The most memory that this program held so far; unlike ru_maxrss without what its parent held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


# Tokens by a bare loop: lines in, ids and lengths out, nothing checked


def texts(path: str) -> Iterator[list[str]]:
    with open(path, "rb") as file:
        while lines := file.readlines(BLOCK_BYTES):
            yield [json.loads(line)["text"] for line in lines]


def bare_tiktoken(vocab: str, merges: str, eod: int, corpus: str, out: str) -> dict[str, int]:
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    encoding = tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        special_tokens={"<|endoftext|>": eod},
        mergeable_ranks=data_gym_to_mergeable_bpe_ranks(merges, vocab),
    )
    end, tokens = np.array([eod]), 0
    with open(out, "wb") as file:
        for block in texts(corpus):
            parts = [part for text in block for part in (encoding.encode_to_numpy(text, disallowed_special=()), end)]
            file.write(np.concatenate(parts, dtype=np.uint16, casting="unsafe").data)
            tokens += sum(map(len, parts))
    return {"tokens": tokens}


def bare_gigatoken(vocab: str, merges: str, eod: int, corpus: str, out: str) -> dict[str, int]:
    import awkward
    import gigatoken

    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": json.loads(Path(vocab).read_bytes()), "merges": Path(merges).read_text().splitlines()[1:]}
    spec = {"version": "1.0", "added_tokens": [], "pre_tokenizer": level, "decoder": level, "model": model}
    encoding, tokens = gigatoken.Tokenizer.from_json(json.dumps(spec)), 0
    with open(out, "wb") as file:
        for block in texts(corpus):
            batch = encoding.encode_batch(block)
            ends = np.cumsum(np.asarray(awkward.num(batch)).astype(np.int64) + 1)
            ids = np.full(ends[-1], eod, np.uint16)
            within = np.ones(len(ids), bool)
            within[ends - 1] = False
            ids[within] = np.asarray(awkward.flatten(batch))
            file.write(ids.data)
            tokens += len(ids)
    return {"tokens": tokens}


# megatron-core


class Ids:
    """The tokenizer that its configuration asks for; no id of the corpora is padding."""

    eod, pad, vocab_size, unique_identifiers = 50256, 50257, 50304, {}


def core_dataset(prefix: str, seq_length: int, epochs: int):
    """Its GPTDataset of so many whole epochs, built in memory; saving it as it does by default would cost more."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=seq_length,
        blend=([prefix], None),
        split="1,0,0",
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        tokenizer=Ids(),
        path_to_cache=None,
    )
    config.mock = True

    def build():
        corpus = IndexedDataset(prefix, mmap=True)
        sizes = corpus.sequence_lengths
        samples = (epochs * int(sizes.sum(dtype=np.int64)) - 1) // seq_length
        return GPTDataset(corpus, prefix, np.arange(len(sizes), dtype=np.int32), samples, Split.train, config)

    return build


def core_index(prefix: str, seq_length: int, epochs: int) -> dict[str, float]:
    """Open, build, read the first sample."""
    build = core_dataset(prefix, seq_length, epochs)
    with Meter() as meter:
        build()[0]
    return meter.found()


def core_access(prefix: str, seq_length: int, picks: int, rounds: int) -> dict[str, float]:
    found = core_dataset(prefix, seq_length, 1)()
    numbers = np.random.default_rng(0).integers(0, len(found), picks).tolist()
    return {"one": fastest(lambda: [found[n] for n in numbers], rounds) / picks * 1e6}


def fastest(run: Callable[[], object], rounds: int) -> float:
    """CPU seconds of the fastest of several runs, after one that is not counted."""
    spent = []
    for _ in range(rounds + 1):
        started = time.process_time()
        run()
        spent.append(time.process_time() - started)
    return min(spent[1:])


PEERS = {f.__name__: f for f in (bare_tiktoken, bare_gigatoken, core_index, core_access)}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(PEERS[sys.argv[1]](*json.loads(sys.argv[2]))))
