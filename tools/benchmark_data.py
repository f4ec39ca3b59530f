"""Speed and memory of the data path: ratios to bare loops and to megatron-core, measured in turn on this machine.

    python tools/benchmark_data.py                                  tokenization, index, access
    python tools/benchmark_data.py index --documents 1M 10M 100M --peer-python other-venv/bin/python

tokenization   tools/preprocess_data.py as a whole against a bare loop over tiktoken and one over gigatoken, same text, one worker
index          opening a corpus and reading its first sample against megatron-core's, by documents and epochs; the .bin is sparse;
               the ratio is the worse of time and memory
access         a sample of 2048 tokens out of a warm file, one by one and 32 at once

megatron-core is measured where --peer-python names an interpreter that has it: it is imported as `megatron`, as this project is,
so they cannot share one. Everything runs in a process of its own; memory is what the work adds to its peak.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a checkout that is not installed
from megatron import stopping

if __name__ == "__main__":
    stopping.heed_interrupt()

import argparse
import functools
import importlib.util
import json
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron.data.gpt_dataset import PackedDataset
from megatron.data.indexed import CODES, HEADER, MAGIC, VERSION, IndexedDataset, IndexedWriter
from megatron.data.reference_order import ReferenceOrder
from megatron.data.sources import Source
from megatron.data.tokenizer import END_OF_TEXT, GPT2_MERGE_FILE, GPT2_VOCAB_FILE, find_gpt2
from megatron.errors import MissingInput, Refusal, exits
from megatron.flags import parse_count
from tools import benchmark, benchmark_timing
from tools.benchmark_data_peers import Meter, fastest

SEQ_LENGTH, MEAN_TOKENS = 2048, 1000
ACCESS_TOKENS, PICKS, BATCH = 20_000_000, 4096, 32
DOCUMENT_BLOCK = 1 << 20  # lengths drawn or written at once
PEER_BYTES, REFERENCE_BYTES = 21, 9  # of memory for a document and epoch: numbers of 8 bytes twice, then of 4
CALL = (
    "import json, sys; from tools import benchmark_data; "
    "print(json.dumps(getattr(benchmark_data, sys.argv[1])(*json.loads(sys.argv[2]))))"
)


@dataclass(frozen=True, kw_only=True)
class Row(benchmark_timing.Row):
    """A row of the benchmark with the numbers behind its words."""

    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """The flags."""

    megabytes: float
    documents: list[int]
    epochs: list[int]
    rounds: int
    peer_python: str | None
    vocab_file: str | None
    merge_file: str | None
    folder: Path

    @functools.cached_property
    def without_core(self) -> str | None:
        """Why megatron-core is not measured; None where it is."""
        if self.peer_python is None:
            return "megatron-core is not installed: name an interpreter that has it with --peer-python"
        try:
            spent([self.peer_python, "-c", "import megatron.core.datasets.gpt_dataset"], self.folder)
        except (OSError, MissingInput) as error:
            return f"megatron-core is not installed for --peer-python: {error}"
        return None


# Processes


def alone_environment() -> dict[str, str]:
    """One thread, and no path by which one `megatron` finds the other."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Spent:
    """What a process took, the processes that it started included."""

    cpu: float
    mebibytes: float
    said: str


def spent(words: Sequence[str | Path], folder: Path = ROOT) -> Spent:
    """Run a program in `folder`.  Raises OSError, or MissingInput with its last line when it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([str(word) for word in words], stdout=out, stderr=errors, cwd=folder, env=alone_environment())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            said = (errors.read().strip().splitlines() or ["no word"])[-1]
            raise MissingInput(f"{words[0]} {Path(words[1]).name} left with {process.returncode}: {said}")
        return Spent(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, out.read())


def last_json(found: Spent) -> dict[str, float]:
    return json.loads(found.said.splitlines()[-1])


def ours(name: str, *given) -> dict[str, float]:
    """A function of this file in a process of its own."""
    return last_json(spent([sys.executable, "-c", CALL, name, json.dumps(given)]))


def peer(python: str, name: str, *given) -> Spent:
    return spent([python, ROOT / "tools/benchmark_data_peers.py", name, json.dumps(given)])


# Tokenization


def tokenization(given: Given) -> list[Row]:
    write_text(given.folder / "text.jsonl", given.megabytes)
    vocab, merges = vocabulary(given)
    files = [str(given.folder / "vocab.json"), str(given.folder / "merges.txt")]
    for path, data in zip(files, (vocab, merges), strict=True):
        Path(path).write_bytes(data)
    return [tokenization_row(given, backend, files, json.loads(vocab)[END_OF_TEXT]) for backend in ("tiktoken", "gigatoken")]


def tokenization_row(given: Given, backend: str, files: list[str], eod: int) -> Row:
    """CPU time of the fastest of some rounds. The gate, 1.25 bare loops, is for 100 MB and more: below, starting up counts."""
    what = f"{given.megabytes:g} MB of text, {backend}"
    if importlib.util.find_spec(backend) is None:
        return Row(section="tokenization", what=what, why=f"{backend} is not installed")
    corpus = given.folder / "text.jsonl"
    command = [
        sys.executable,
        ROOT / "tools/preprocess_data.py",
        "--input",
        corpus,
        "--output-prefix",
        given.folder / "ours",
        "--append-eod",
        "--overwrite",
        "--bpe-backend",
        backend,
        "--vocab-file",
        files[0],
        "--merge-file",
        files[1],
    ]
    mine, bare = [], []
    for _ in range(given.rounds):
        bare.append(peer(sys.executable, f"bare_{backend}", *files, eod, str(corpus), str(given.folder / "bare.bin")))
        mine.append(spent(command))
    check_same_bytes(given.folder / "ours_text_document.bin", given.folder / "bare.bin")
    tokens, least = last_json(bare[0])["tokens"], min(one.cpu for one in mine)
    least_bare, peak = min(one.cpu for one in bare), max(one.mebibytes for one in mine)
    return Row(
        section="tokenization",
        what=what,
        ours=f"{least:.2f} CPU-s, {tokens / least / 1e6:.2f} Mtok/s, {peak:.0f} MiB",
        peer=f"bare loop {least_bare:.2f} CPU-s, {tokens / least_bare / 1e6:.2f} Mtok/s",
        ratio=least_bare / least,
        gate=0.8 if given.megabytes >= 100 else None,
        numbers={"cpu": least, "mebibytes": peak, "peer_cpu": least_bare, "tokens": tokens},
    )


def check_same_bytes(one: Path, other: Path) -> None:
    if one.read_bytes() != other.read_bytes():
        raise Refusal(f"{one} and {other} differ: the two do not do the same work, so their times say nothing")


def vocabulary(given: Given) -> tuple[bytes, bytes]:
    """The bytes of GPT-2's two files, or of those named."""
    if given.vocab_file and given.merge_file:
        return Path(given.vocab_file).read_bytes(), Path(given.merge_file).read_bytes()
    return find_gpt2(GPT2_VOCAB_FILE), find_gpt2(GPT2_MERGE_FILE)


def write_text(path: Path, megabytes: float) -> None:
    """Python's own library as JSON Lines of about 3 kB; when it is used up, again with each document's words rotated."""
    size, turn = 0, 0
    with open(path, "wb") as file:
        while size < megabytes * 1e6:
            for text in library_texts():
                words = text.split(" ")
                cut = turn * 31 % len(words)
                size += file.write(json.dumps({"text": " ".join(words[cut:] + words[:cut])}).encode() + b"\n")
                if size >= megabytes * 1e6:
                    break
            turn += 1


def library_texts(length: int = 3000) -> Iterator[str]:
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = source.read_text(encoding="utf-8", errors="ignore")
        yield from (text[at : at + length] for at in range(0, len(text), length))


# Index


def index(given: Given) -> list[Row]:
    rows = []
    for documents in given.documents:
        prefix = str(given.folder / f"documents-{documents}")
        write_sparse_corpus(prefix, documents)
        for epochs in given.epochs:
            theirs, why = core_index(given, prefix, documents, epochs)
            rows += [index_row(name, prefix, documents, epochs, theirs, why) for name in ("strict", "reference")]
        for ending in (".bin", ".idx"):
            Path(prefix + ending).unlink()
    return rows


def core_index(given: Given, prefix: str, documents: int, epochs: int) -> tuple[dict[str, float] | None, str]:
    """What megatron-core takes; or why it is not known."""
    why = given.without_core or too_large(PEER_BYTES, documents * epochs)
    if why:
        return None, why
    return last_json(peer(given.peer_python, "core_index", prefix, SEQ_LENGTH, epochs)), ""


def too_large(num_bytes: int, entries: int) -> str | None:
    """Why an index with so many entries is not built here; None where there is memory for it, and some to spare."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes * entries < 0.7 * free:
        return None
    return f"it takes about {num_bytes * entries / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB are free"


def index_row(order: str, prefix: str, documents: int, epochs: int, theirs: dict[str, float] | None, why: str) -> Row:
    what = f"{order}, {documents / 1e6:g}M documents, {epochs} epoch{'s' * (epochs > 1)}"
    own_why = too_large(REFERENCE_BYTES, documents * epochs) if order == "reference" else None
    if own_why:
        return Row(section="index", what=what, why=own_why)
    mine = ours(f"{order}_index", prefix, epochs)
    numbers = {"documents": documents, "epochs": epochs, **mine}
    words = f"{mine['cpu']:.3f} CPU-s, {mine['mebibytes']:.0f} MiB"
    if theirs is None:
        return Row(section="index", what=what, ours=words, why=why, numbers=numbers)
    numbers |= {f"peer_{name}": value for name, value in theirs.items()}
    ratio = min(theirs[name] / max(mine[name], 1e-3) for name in ("cpu", "mebibytes"))  # the worse of time and memory
    return Row(
        section="index",
        what=what,
        ours=words,
        peer=f"{theirs['cpu']:.2f} CPU-s, {theirs['mebibytes']:.0f} MiB",
        ratio=ratio,
        gate=10 if order == "strict" and documents >= 10**7 else None,
        numbers=numbers,
    )


def strict_index(prefix: str, epochs: int) -> dict[str, float]:
    """Open, read the first sample of all, and the first of the last epoch."""
    with Meter() as meter:
        found = PackedDataset([Source(1.0, 0, 1.0, prefix)], SEQ_LENGTH, 1234)
        found.rows(np.array([0, int((epochs - 1) * found.samples_per_epoch)]))
    return meter.found()


def reference_index(prefix: str, epochs: int) -> dict[str, float]:
    with Meter() as meter:
        corpus = IndexedDataset(prefix)
        samples = (epochs * corpus.num_tokens - 1) // SEQ_LENGTH
        ReferenceOrder(corpus, 0, corpus.num_tokens, SEQ_LENGTH, 1234, samples).rows(np.array([0]))
    return meter.found()


def write_sparse_corpus(prefix: str, documents: int) -> None:
    """An index of documents of about 1000 tokens, and a .bin that takes no room on the disk."""
    sizes = np.concatenate(
        [lengths(first, min(DOCUMENT_BLOCK, documents - first)) for first in range(0, documents, DOCUMENT_BLOCK)]
    )
    tokens = 0
    with open(prefix + ".idx", "wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, CODES[np.dtype("<u2")], documents, documents + 1))
        file.write(sizes.data)
        for first in range(0, documents, DOCUMENT_BLOCK):
            ends = tokens + sizes[first : first + DOCUMENT_BLOCK].cumsum(dtype=np.int64)
            file.write(((ends - sizes[first : first + DOCUMENT_BLOCK]) * 2).astype("<i8").data)
            tokens = int(ends[-1])
        for first in range(0, documents + 1, DOCUMENT_BLOCK):
            file.write(np.arange(first, min(first + DOCUMENT_BLOCK, documents + 1), dtype="<i8").data)
    with open(prefix + ".bin", "wb") as file:
        file.truncate(2 * tokens)


def lengths(seed: int, count: int) -> np.ndarray:
    """Tokens of documents as they are found: log-normal.  -> int32 [count]"""
    return np.random.default_rng(seed).lognormal(np.log(MEAN_TOKENS) - 0.5, 1.0, count).clip(2, 2**20).astype("<i4")


# Access


def access(given: Given) -> list[Row]:
    prefix = str(given.folder / "access")
    sizes = lengths(0, ACCESS_TOKENS // MEAN_TOKENS)
    with IndexedWriter(prefix, np.uint16) as writer:
        writer.add_documents(np.random.default_rng(1).integers(0, 50000, int(sizes.sum()), dtype=np.uint16), sizes)
    theirs = None
    if not given.without_core:
        theirs = last_json(peer(given.peer_python, "core_access", prefix, SEQ_LENGTH, PICKS, given.rounds))
    return [
        access_row(order, how, value, theirs, given.without_core or "")
        for order in ("strict", "reference")
        for how, value in ours("our_access", prefix, order, PICKS, given.rounds).items()
    ]


def access_row(order: str, how: str, microseconds: float, theirs: dict[str, float] | None, why: str) -> Row:
    """20 us are the most that a sample of the strict order may take."""
    what, words = f"{order}, {how}, {SEQ_LENGTH} tokens", f"{microseconds:.1f} us of CPU a sample"
    if theirs is None:
        return Row(section="access", what=what, ours=words, why=why, numbers={"us": microseconds})
    one = theirs["one"]
    return Row(
        section="access",
        what=what,
        ours=words,
        peer=f"{one:.1f} us, one by one",
        ratio=one / microseconds,
        gate=round(one / 20, 2) if order == "strict" else None,
        numbers={"us": microseconds, "peer_us": one},
    )


def our_access(prefix: str, order: str, picks: int, rounds: int) -> dict[str, float]:
    """Microseconds of CPU a sample, one by one and in batches."""
    corpus = IndexedDataset(prefix)
    samples = (corpus.num_tokens - 1) // SEQ_LENGTH
    if order == "reference":
        found = ReferenceOrder(corpus, 0, corpus.num_tokens, SEQ_LENGTH, 1234, samples)
    else:
        found = PackedDataset([Source(1.0, 0, 1.0, prefix)], SEQ_LENGTH, 1234)
    numbers = np.random.default_rng(0).integers(0, samples, picks)
    one = fastest(lambda: [found.rows(numbers[i : i + 1]) for i in range(picks)], rounds)
    many = fastest(lambda: [found.rows(numbers[i : i + BATCH]) for i in range(0, picks, BATCH)], rounds)
    return {"one by one": one / picks * 1e6, f"{BATCH} at once": many / picks * 1e6}


# The command

SECTIONS = {"tokenization": tokenization, "index": index, "access": access}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmark_data.py", allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"sections to run, of {', '.join(SECTIONS)} [all]")
    add("--megabytes", type=float, default=20, metavar="N", help="of text to tokenize [20; the gate holds from 100 on]")
    add("--documents", type=count, nargs="+", default=[10**6, 10**7], metavar="N", help="sizes of the indices [1M 10M]")
    add("--epochs", type=count, nargs="+", default=[1, 4, 100], metavar="N", help="lengths of the runs [1 4 100]")
    add("--rounds", type=int, default=3, metavar="N", help="repetitions, of which the fastest counts [3]")
    add("--peer-python", metavar="PATH", help="an interpreter that has megatron-core")
    add("--vocab-file", metavar="FILE", help="GPT-2's vocab.json [found, see tools/fetch_tokenizer.py]")
    add("--merge-file", metavar="FILE", help="GPT-2's merges.txt")
    add("--folder", metavar="DIR", help="where corpora are made; 100M documents take 2 GB there [a temporary folder]")
    add(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write all numbers there; without FILE to stdout, and all else to stderr",
    )
    add("--check", action="store_true", help="leave with exit code 1 when a gate fails")
    given = parser.parse_args(argv)
    unknown = [name for name in given.names if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {' or '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    if given.rounds < 1 or not given.megabytes > 0:
        parser.error("--rounds must be at least 1 and --megabytes above 0")
    return given


def count(word: str) -> int:
    """10M -> 10,000,000.  Raises ValueError."""
    number = parse_count(word)
    if number < 1 or number % 1:
        raise ValueError
    return int(number)


@exits
def main(argv: Sequence[str] | None = None) -> int:
    given = parse(argv)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-data-", dir=given.folder) as folder:
        flags = Given(
            given.megabytes,
            given.documents,
            given.epochs,
            given.rounds,
            given.peer_python,
            given.vocab_file,
            given.merge_file,
            Path(folder),
        )
        for name in given.names or SECTIONS:
            found = SECTIONS[name](flags)
            benchmark.print_rows(found, sys.stderr if given.json == "-" else sys.stdout)
            rows += found
    if given.json == "-":
        print(benchmark.records(rows))
    elif given.json:
        Path(given.json).write_text(benchmark.records(rows) + "\n")
    return benchmark.conclude(rows, given.check)


if __name__ == "__main__":
    sys.exit(main())
