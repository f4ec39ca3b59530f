"""A published corpus to training data in one command: text, tokenizer, train, validation and test tokens.

    python tools/prepare_corpus.py c4 --output data/c4 --subset 100M                from the Hub, streamed
    python tools/prepare_corpus.py tinystories --output data/ts --from stories.txt --train-tokenizer 8192
    python tools/prepare_corpus.py openwebtext --output s3://bucket/owt --format memmap --train-tokenizer 32000

DIR gets {train,valid,test}_text_document.bin, .idx and .meta.json (or what --format names), tokenizer.json, config.json
and corpus.json, which records source, revision, rules, counts and hashes. Files appear when everything is done; an
interrupted run goes on when it is started again, and a finished one does nothing.

--from takes JSON Lines, JSON arrays, parquet and plain text, folders of them, and URLs. The words train, valid(ation) and
test in their names say which split they are once one of them says train; SPLIT=PATH says it outright. Splits that the
corpus does not have are held out of the others (--held-out).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed

from megatron import __version__  # noqa: E402
from megatron.data import remote  # noqa: E402
from megatron.data.corpora import (  # noqa: E402
    CORPORA,
    Bad,
    Corpus,
    HubSplit,
    OnBad,
    file_documents,
    pinned_revision,
    source_files,
    split_of,
    suffix_of,
)
from megatron.data.corpus_text import (  # noqa: E402
    Document,
    Gathering,
    Limits,
    Part,
    Stream,
    count_documents,
    parts_of,
    training_texts,
)
from megatron.data.indexed import IndexedDataset, retire  # noqa: E402
from megatron.data.instruct import encode_pair, pair_of, recognized  # noqa: E402
from megatron.data.text_files import identity  # noqa: E402
from megatron.data.token_file import joined, write_paper_folder, write_token_folder  # noqa: E402
from megatron.data.tokenizer import Tokenizer, add_flags, build_tokenizer  # noqa: E402
from megatron.data.tokenizer_json import tokenizer_json  # noqa: E402
from megatron.data.train_tokenizer import SMALLEST_VOCABULARY, train_byte_level_bpe  # noqa: E402
from megatron.errors import BadData, CannotWrite, Mismatch, MissingInput, Unsaid, exits  # noqa: E402
from megatron.files import replace_file, sync_folder  # noqa: E402
from megatron.flags import parse_count  # noqa: E402
from tools import preprocess_data  # noqa: E402

SPLITS = ("train", "valid", "test")
FORMATS = {"text": ("indexed", "memmap"), "papers": ("indexed", "papers", "memmap"), "instruct": ("indexed", "tensors")}
ANNOUNCING = ("meta.json", "idx", "config.json")  # written and sent behind the data, in this order
LAST = "corpus.json"
LONGEST = 1 << 30  # bytes of a document's line, for the tokenizing tool
SHOWN_EVERY = 0.5  # seconds


# ---- where it comes from


@dataclass(frozen=True)
class Origin:
    """The corpus' documents by split, and how they are described in corpus.json."""

    documents: dict[str, Callable[[OnBad], Iterator[Document]]]
    described: dict[str, Any]
    known: dict[str, Any]  # what of the description must not differ when a preparation is repeated
    num_records: Callable[[str], int | None] = lambda split: None
    fetched: dict[str, Path] = field(default_factory=dict)  # URLs, and the folders that their files go to
    seen: list = field(default_factory=list)  # what tells that a file at hand is still the same one


@dataclass(frozen=True)
class File:
    """One file to read: of which split, if its name says so."""

    split: str | None
    path: str
    num_bytes: int


def from_hub(corpus: Corpus) -> Origin:
    splits = {split: HubSplit(corpus, split) for split in corpus.splits}
    described = {"hub": corpus.hub, "config": corpus.config, "splits": corpus.splits}
    return Origin(
        {split: part.documents for split, part in splits.items()},
        described,
        described,
        lambda split: splits[split].num_records() if corpus.layout != "articles" else None,
    )


def from_files(corpus: Corpus, places: Sequence[str], strip_gutenberg: bool, folder: Path) -> Origin:
    """Files at hand or at URLs; the latter are listed now, and go to `folder` when they are needed."""
    fetched = {
        url: folder / hashlib.sha256(url.encode()).hexdigest()[:16]
        for _, url in map(split_and_path, places)
        if remote.is_url(url)
    }
    files = named(places, [file for place in places for file in listed(place, fetched)])
    of = {split: [file for file in files if file.split == split] for split in SPLITS}
    documents = {
        split: functools.partial(file_documents, corpus, [file.path for file in part], strip_gutenberg=strip_gutenberg)
        for split, part in of.items()
        if part
    }
    sizes = {split: [[Path(file.path).name, file.num_bytes] for file in of[split]] for split in documents}
    seen = [identity(file.path) for file in files if os.path.exists(file.path)] if not fetched else []
    return Origin(documents, {"from": list(places), "files": sizes}, {"files": sizes}, fetched=fetched, seen=seen)


def listed(place: str, fetched: dict[str, Path]) -> list[File]:
    """The files of one --from, each with the split that `SPLIT=` or its name says."""
    split, path = split_and_path(place)
    if path in fetched:
        found = [(name, str(fetched[path] / name), size) for name, size in remote.sizes(path) if suffix_of(name)]
        if not found:
            raise MissingInput(f"--from {path}: no file of a kind that is read here (JSON, parquet, text)")
    else:
        above = path if os.path.isdir(path) else os.path.dirname(path)
        found = [(os.path.relpath(file, above or "."), file, os.path.getsize(file)) for file in source_files(path)]
    return [File(split or split_of(name), file, size) for name, file, size in found]


def named(places: Sequence[str], files: list[File]) -> list[File]:
    """Every file with a split: all of them train where none is named train.  Raises MissingInput for a name that says nothing."""
    if "train" not in {file.split for file in files}:
        if any(split_and_path(place)[0] for place in places):
            raise MissingInput("--from names no file for train: add train=PATH")
        return [replace(file, split="train") for file in files]
    nameless = next((file.path for file in files if file.split is None), None)
    if nameless:
        raise MissingInput(f"--from {nameless}: its name says no split while others do; write train={nameless}, or leave it out")
    return files


def split_and_path(place: str) -> tuple[str | None, str]:
    """`valid=a.jsonl` -> valid, a.jsonl."""
    name, equals, path = place.partition("=")
    return (split_of(name), path) if equals and name in ("train", "valid", "validation", "val", "test") else (None, place)


def streams_of(corpus: Corpus, origin: Origin, held_out: float) -> list[Stream]:
    """The splits there are, with those there are not held out: validation of train, test of validation, else of train too."""
    by_prompt, period = corpus.kind == "instruct", round(1 / held_out) if held_out else 0
    missing = [split for split in SPLITS if split not in origin.documents] if period else []
    held = {"train": tuple(missing), "valid": ()}
    if missing == ["test"]:
        held = {"train": (), "valid": ("test",)}
    return [
        Stream(split, documents, held.get(split, ()), 2 if split == "valid" else period, by_prompt)
        for split, documents in origin.documents.items()
    ]


def rule_of(stream: Stream) -> str:
    """How a stream is cut, in words."""
    if not stream.held:
        return "the corpus' own"
    names = " and ".join(stream.held) + (" each" if len(stream.held) > 1 else "")
    if stream.by_prompt:
        return f"{names} 1/{stream.period} of the prompts, by their hash"
    return (
        f"{names} one document of every {stream.period}, at a place drawn from the block's number; "
        f"of fewer than {2 * stream.period} the last 1/{stream.period}, at least one"
    )


# ---- how much of it


def limits_of(args: argparse.Namespace, corpus: Corpus, origin: Origin, streams: list[Stream]) -> Limits:
    """Documents by split: --max-documents of each, and of train a published subset's, or its first 1/epochs."""
    documents = dict.fromkeys(SPLITS, args.max_documents) if args.max_documents else {}
    train = min([n for n in (args.max_documents, subset_documents(args.subset, corpus)) if n], default=None)
    if args.epochs > 1:
        train = (train or all_documents(origin, streams)) // args.epochs
        if not train:
            raise BadData(f"--epochs {args.epochs}: fewer documents than that are there to train on; lower it")
    if train:
        documents["train"] = train
    return Limits(documents, args.max_tokens)


def subset_documents(tokens: int | None, corpus: Corpus) -> int | None:
    """The published rule: tokens over the corpus' mean tokens a document, to the nearest document."""
    if tokens is None:
        return None
    if not corpus.tokens_per_document:
        known = ", ".join(name for name, one in CORPORA.items() if one.tokens_per_document)
        raise Mismatch(
            f"--subset: there are published subsets of {known} only, not of {corpus.name}: use --max-documents or --max-tokens"
        )
    return max(1, round(tokens / corpus.tokens_per_document))


def all_documents(origin: Origin, streams: list[Stream]) -> int:
    """How many documents train has: as the Hub says, else counted."""
    train = next(stream for stream in streams if stream.split == "train")
    told = origin.num_records("train") if not train.held else None
    return told or count_documents(train, "train")


# ---- tokenizer


def tokenizer_flags(args: argparse.Namespace, trained: Path) -> dict[str, str | None]:
    if args.train_tokenizer:
        return {"tokenizer_type": "HFTokenizer", "vocab_file": None, "merge_file": None, "tokenizer_model": str(trained)}
    return {name: getattr(args, name) for name in ("tokenizer_type", "vocab_file", "merge_file", "tokenizer_model")}


def train_tokenizer(args: argparse.Namespace, streams: list[Stream], limits: Limits, path: Path, on_bad: OnBad) -> None:
    """Train on the first documents of the train split, once."""
    if not path.exists():
        most = args.tokenizer_megabytes
        print(f"training a tokenizer of {args.train_tokenizer:,} ids on the first {most:g} MB of train at most", flush=True)
        train = next(stream for stream in streams if stream.split == "train")
        texts = training_texts(train, limits, round(most * 1e6), on_bad)
        replace_file(path, train_byte_level_bpe(texts, args.train_tokenizer).encode())


def counter(corpus: Corpus, tokenizer: Tokenizer) -> Callable[[Document], int]:
    """Tokens of a document as it will be stored, its end included."""
    return lambda document: sum(len(tokenizer.encode(text)) for text in parts_of(document)) + 1


# ---- text to tokens


def read_lines(path: Path) -> Iterator[Document]:
    with open(path, "rb") as file:
        yield from map(json.loads, file)


def tokenize(corpus: Corpus, text: Path, prefix: Path, flags: dict[str, str | None], tokenizer: Tokenizer, workers: int) -> None:
    """SPLIT.jsonl to PREFIX_text_document, once.  Raises Unsaid when the tool that does it has said why not."""
    if Path(f"{prefix}_text_document.idx").exists():
        return
    if corpus.kind == "instruct":
        # here, because it imports torch, which nothing else needs
        from tools.prepare_instruct import write_corpus

        write_corpus(Path(f"{prefix}_text_document"), encoded_pairs(text, tokenizer), tokenizer)
        return
    given = [word for name, value in flags.items() if value for word in (f"--{name.replace('_', '-')}", value)]
    with contextlib.redirect_stdout(io.StringIO()):
        code = preprocess_data.main(
            [
                "--input",
                str(text),
                "--output-prefix",
                str(prefix),
                "--append-eod",
                "--overwrite",
                "--workers",
                str(workers),
                "--max-line-bytes",
                str(LONGEST),
                *given,
            ]
        )
    if code:
        raise Unsaid(code)


def encoded_pairs(text: Path, tokenizer: Tokenizer) -> list:
    return [
        encode_pair(pair_of(record, recognized(str(text), record)), tokenizer.encode, tokenizer.eod)
        for record in read_lines(text)
    ]


def convert(name: str, args: argparse.Namespace, text: Path, out: Path, corpus: Corpus, tokenizer: Tokenizer) -> dict[str, Any]:
    """One of the other formats into `out`, from the .bin and .idx there.  -> what its config.json says"""
    parts = {split: out / f"{split}_text_document" for split in SPLITS if (out / f"{split}_text_document.idx").exists()}
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        aside = Path(folder) / "files"
        if name == "memmap":
            if "valid" not in parts:
                raise BadData("--format memmap needs validation documents: give more documents, or a --held-out above 0")
            train, valid = (joined(IndexedDataset(parts[split])) for split in ("train", "valid"))
            write_token_folder(aside, train, valid, tokenizer.vocab_size)
        elif name == "papers":
            write_paper_folder(aside, papers(corpus, text, parts), tokenizer.vocab_size)
        else:
            from tools.prepare_instruct import write_tensors

            aside.mkdir()
            pairs = {{"valid": "val"}.get(split, split): encoded_pairs(text / f"{split}.jsonl", tokenizer) for split in parts}
            write_tensors(aside, pairs, args.max_seq_len or 512, tokenizer)
        config = json.loads((aside / "config.json").read_text())
        for path in aside.iterdir():
            os.replace(path, out / path.name)
    return config


def papers(corpus: Corpus, text: Path, parts: dict[str, Path]) -> Iterator[tuple]:
    """(split, paper_id, category, ids without the end), as seed code numbers them: <split>_<number in the split>."""
    for split, prefix in parts.items():
        data, name = IndexedDataset(prefix), corpus.splits.get(split, split)
        for number, record in enumerate(read_lines(text / f"{split}.jsonl")):
            yield name, f"{name}_{number}", record["category"], data.document(number)[:-1]


# ---- one run


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time prepares a folder.  Raises CannotWrite."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
    except OSError as error:
        raise CannotWrite(f"--output {folder} cannot be made or written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotWrite(f"--output {folder} is being prepared by another process: wait for it, or choose another") from None
        yield


def begin(work: Path, request: dict[str, Any], overwrite: bool) -> None:
    """The working folder of this request: an earlier one's rest is kept when it was for the same, else cleared away."""
    path = work / "request.json"
    if work.exists() and (not path.exists() or json.loads(path.read_text()) != request or overwrite):
        shutil.rmtree(work)
    for name in ("text", "out"):
        (work / name).mkdir(parents=True, exist_ok=True)
    if not path.exists():
        replace_file(path, json.dumps(request).encode())


def is_done(where: str, data: bytes | None, request: dict[str, Any], overwrite: bool) -> bool:
    """True when the corpus.json there, `data`, is of this request.  Raises CannotWrite when it is of another."""
    if overwrite or data is None:
        return False
    try:
        held = dict(json.loads(data)["request"])
    except (ValueError, KeyError, TypeError):
        raise CannotWrite(f"{where}/{LAST} is damaged: choose another --output, or pass --overwrite") from None
    if held != request:
        other = "; ".join(
            f"{name} {held.get(name)!r:.80} there, {request.get(name)!r:.80} now"
            for name in {**held, **request}
            if held.get(name) != request.get(name)
        )
        raise CannotWrite(f"{where} was prepared otherwise ({other}): choose another --output, or pass --overwrite")
    print(f"{where}: already prepared with these arguments, nothing to do")
    return True


def refuse_others(folder: Path) -> None:
    """Tokens that this tool did not finish, nor is about to, are nobody's to replace.  Raises CannotWrite."""
    found = next(iter([*folder.glob("*_text_document.idx"), *folder.glob("*tokens.bin")]), None)
    if found and not (folder / ".prepare").exists():
        raise CannotWrite(f"{found} is there, and not from this tool: choose another --output, or pass --overwrite")


def request_of(args: argparse.Namespace, corpus: Corpus, origin: Origin) -> dict[str, Any]:
    """What decides the result, for corpus.json and for telling one preparation from another."""
    names = (
        "max_documents",
        "max_tokens",
        "subset",
        "epochs",
        "held_out",
        "train_tokenizer",
        "max_seq_len",
        "format",
        "keep_text",
        "strip_gutenberg",
        "on_bad_line",
    )
    given = {name: getattr(args, name) for name in names}
    if args.train_tokenizer:
        given["tokenizer_megabytes"] = args.tokenizer_megabytes
    else:
        given["tokenizer"] = build_tokenizer(**tokenizer_flags(args, Path())).fingerprint()
    return json.loads(json.dumps({"corpus": corpus.name, "revision": args.revision, **origin.known, **given}))


def prepare(args: argparse.Namespace, corpus: Corpus, folder: Path, url: str | None) -> bool:
    """All steps, into `folder`, unless it or the URL holds the result.  -> whether there was anything to do"""
    work = folder / ".prepare"
    origin = from_files(corpus, args.source, args.strip_gutenberg, work / "source") if args.source else from_hub(corpus)
    request = request_of(args, corpus, origin)
    held = remote.read(f"{url}/{LAST}") if url else (folder / LAST).read_bytes() if (folder / LAST).exists() else None
    if is_done(url or str(folder), held, request, args.overwrite):
        return False
    if not args.overwrite:
        refuse_others(folder)
    begin(work, {**request, "seen": origin.seen}, args.overwrite)
    for place, target in origin.fetched.items():
        print(f"fetching {place}", flush=True)
        remote.fetch(place, target)
    if not (work / "out" / LAST).exists():
        make(args, corpus, origin, request, work)
    publish(work / "out", folder)
    shutil.rmtree(work, ignore_errors=True)
    return True


def make(args: argparse.Namespace, corpus: Corpus, origin: Origin, request: dict[str, Any], work: Path) -> None:
    """Text, tokenizer, tokens and records, all into the working folder; each step that is done is not done again."""
    text, out = work / "text", work / "out"
    if not args.source:
        corpus, origin = pinned(corpus, work)
    streams = streams_of(corpus, origin, args.held_out)
    limits = limits_of(args, corpus, origin, streams)
    if args.train_tokenizer:
        train_tokenizer(args, streams, limits, out / "tokenizer.json", refuse if args.on_bad_line == "fail" else lambda bad: None)
    flags = tokenizer_flags(args, out / "tokenizer.json")
    tokenizer = build_tokenizer(**flags)
    keep_tokenizer(tokenizer, flags, out)
    with rejects(work, args.on_bad_line) as on_bad:
        limits = replace(limits, count=counter(corpus, tokenizer))
        parts = Gathering(text, limits, on_bad, progress()).run(streams)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)  # the progress line
    if "train" not in parts:
        raise BadData(f"{corpus.name}: no document to train on; check --from and the limits")
    for split in parts:
        tokenize(corpus, text / f"{split}.jsonl", out / split, flags, tokenizer, args.workers)
    config = {}
    for name in (name for name in args.format if name != "indexed"):
        config |= convert(name, args, text, out, corpus, tokenizer)
    record(args, corpus, origin, request, work, streams, parts, tokenizer, config)


def pinned(corpus: Corpus, work: Path) -> tuple[Corpus, Origin]:
    """The corpus at one commit of the Hub, the same when an interrupted run goes on."""
    path = work / "revision.json"
    if not path.exists():
        replace_file(path, json.dumps(pinned_revision(corpus)).encode())
    corpus = replace(corpus, revision=json.loads(path.read_text()))
    origin = from_hub(corpus)
    return corpus, replace(origin, described={**origin.described, "revision": corpus.revision})


def keep_tokenizer(tokenizer: Tokenizer, flags: dict[str, str | None], out: Path) -> None:
    """The tokenizer goes with the corpus as tokenizer.json, where it can be written so."""
    data = tokenizer_json(tokenizer, flags["tokenizer_model"])
    if data is not None and not (out / "tokenizer.json").exists():
        replace_file(out / "tokenizer.json", data)
    beside = flags["tokenizer_model"] and Path(flags["tokenizer_model"]).parent / "tokenizer_config.json"
    if flags["tokenizer_type"] == "HFTokenizer" and beside and beside.exists():
        shutil.copyfile(beside, out / "tokenizer_config.json")  # it may name the end of a document


def refuse(bad: Bad) -> None:
    raise BadData(f"{bad.file}:{bad.line}: {bad.reason}; mend it, or pass --on-bad-line skip")


@contextlib.contextmanager
def rejects(work: Path, on_bad_line: str) -> Iterator[OnBad]:
    """What to do at a record that is no document: refuse it, or list it in rejects.jsonl, each once."""
    if on_bad_line == "fail":
        yield refuse
        return
    with open(work / "rejects.jsonl", "a+", encoding="ascii") as file:
        file.seek(0)
        yield functools.partial(note, file, set(file))


def note(file: TextIO, known: set[str], bad: Bad) -> None:
    line = json.dumps(asdict(bad)) + "\n"
    if line not in known:
        known.add(line)
        file.write(line)


def progress() -> Callable[[dict[str, Part]], None]:
    """A line about what has been gathered, on a terminal only."""
    shown = [time.monotonic()]

    def show(parts: dict[str, Part]) -> None:
        if time.monotonic() - shown[0] > SHOWN_EVERY:
            shown[0] = time.monotonic()
            said = ", ".join(
                f"{split} {part.documents:,} documents {part.text_bytes / 1e6:,.1f} MB" for split, part in parts.items()
            )
            print(f"\r{said}\033[K", end="", file=sys.stderr, flush=True)

    return show if sys.stderr.isatty() else lambda parts: None


def record(
    args: argparse.Namespace,
    corpus: Corpus,
    origin: Origin,
    request: dict[str, Any],
    work: Path,
    streams: list[Stream],
    parts: dict[str, Part],
    tokenizer: Tokenizer,
    config: dict[str, Any],
) -> None:
    """config.json for other trainers, corpus.json with everything that is known; corpus.json is the last file made."""
    text, out, splits = work / "text", work / "out", {}
    for split, part in parts.items():
        data = IndexedDataset(out / f"{split}_text_document")
        if data.num_documents != part.documents:
            raise BadData(
                f"{split}: {part.documents} documents became {data.num_documents}: some have no token of "
                "this tokenizer, choose another"
            )
        splits[split] = {
            "documents": part.documents,
            "tokens": data.num_tokens,
            "text_bytes": part.text_bytes,
            "reached_a_limit": part.full,
        }
    known = tokenizer.facts()
    config |= {
        "dataset": corpus.name,
        "vocab_size": tokenizer.vocab_size,
        "eos_token_id": tokenizer.eod,
        "tokenizer_type": tokenizer.name,
        "tokenizer_fingerprint": known["fingerprint"],
        "max_seq_len": args.max_seq_len or config.get("max_seq_len"),
    }
    replace_file(out / "config.json", (json.dumps(config, indent=1) + "\n").encode())
    if "indexed" not in args.format:
        for path in out.glob("*_text_document.*"):
            path.unlink()
    for split in parts if args.keep_text else ():
        os.replace(text / f"{split}.jsonl", out / f"{split}.jsonl")
    skipped = len((work / "rejects.jsonl").read_text().splitlines()) if (work / "rejects.jsonl").exists() else 0
    if skipped:
        shutil.copyfile(work / "rejects.jsonl", out / "rejects.jsonl")
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in in_order(out)}
    described = {
        "corpus": corpus.name,
        "source": origin.described,
        "request": request,
        "splits": splits,
        "split_rule": {stream.split: rule_of(stream) for stream in streams},
        "skipped_records": skipped,
        "tokenizer": known,
        "files": files,
        "made_by": f"megatron-scaling {__version__}",
    }
    replace_file(out / LAST, (json.dumps(described, indent=1) + "\n").encode())


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def in_order(folder: Path) -> list[Path]:
    """Files with what announces others behind them: data, sidecars, indices, config.json; corpus.json is not among them."""

    def rank(path: Path) -> int:
        return next((n for n, end in enumerate(ANNOUNCING, 1) if path.name.endswith(end)), 0)

    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".") and path.name != LAST)
    return sorted(files, key=lambda path: (rank(path), path.name))


def publish(out: Path, folder: Path) -> None:
    """Move everything into place, corpus.json last; what an earlier preparation left there goes first."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for name in json.loads((folder / LAST).read_bytes())["files"]:
            if not (out / name).exists() and Path(name).name == name:
                (folder / name).unlink(missing_ok=True)
    (folder / LAST).unlink(missing_ok=True)
    for path in out.glob("*.bin"):
        retire(str(folder / path.stem))
    for path in [*in_order(out), out / LAST]:
        os.replace(path, folder / path.name)
    sync_folder(folder)


def summary(folder: Path, where: str) -> str:
    """What a folder holds, a line a split."""
    held = json.loads((folder / LAST).read_text(encoding="utf-8"))
    lines = [f"{where}: {held['corpus']}, tokenizer {held['tokenizer']['type']} with {held['tokenizer']['vocab_size']:,} ids"]
    wanted = held["request"]["train_tokenizer"]
    if wanted and held["tokenizer"]["vocab_size"] < wanted:
        lines.append(f"  the text it was trained on holds no pairs for all {wanted:,} ids that were asked for")
    for split, counts in held["splits"].items():
        lines.append(
            f"  {split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['text_bytes']:,} bytes of text"
        )
    asked = {name: held["request"][name] for name in ("subset", "max_documents", "max_tokens") if held["request"][name]}
    if asked and not held["splits"]["train"]["reached_a_limit"]:
        said = ", ".join(f"--{name.replace('_', '-')} {number:,}" for name, number in asked.items())
        lines.append(f"  train is all there is: the corpus ended before {said}")
    lines += [f"  {split}'s documents: {rule}" for split, rule in held["split_rule"].items()]
    if held["skipped_records"]:
        lines.append(f"  {held['skipped_records']:,} records skipped, listed in rejects.jsonl")
    return "\n".join(lines)


# ---- elsewhere


def upload(folder: Path, url: str) -> None:
    """A finished folder to a URL; nothing to do when it is there already."""
    held = (folder / LAST).read_bytes()
    if remote.read(f"{url}/{LAST}") == held:
        print(f"{url}: already there")
        return
    remote.store_folder(folder, [*json.loads(held)["files"], LAST], url)
    print(f"{url}: {len(json.loads(held)['files']) + 1} files uploaded")


def download(url: str, folder: Path, corpus: Corpus, overwrite: bool) -> bool:
    """A finished folder from a URL, every file checked by its hash.  -> False when none is there.  Raises BadData, Mismatch."""
    data = remote.read(f"{url}/{LAST}")
    if data is None:
        print(f"{url} holds no finished corpus ({LAST}); preparing it here", flush=True)
        return False
    held = json.loads(data)
    if held["corpus"] != corpus.name:
        raise Mismatch(f"{url} holds {held['corpus']}, not {corpus.name}")
    if (folder / LAST).exists() and (folder / LAST).read_bytes() == data:
        print(f"{folder}: already there")
        return True
    if (folder / LAST).exists() and not overwrite:
        raise CannotWrite(f"{folder} holds another corpus than {url}: choose another --output, or pass --overwrite")
    if not overwrite:
        refuse_others(folder)
    aside = folder / ".prepare" / "fetched"
    for name, stated in held["files"].items():
        if Path(name).name != name:
            raise BadData(f"{url}/{LAST}: lists {name!r}, expected names of files beside it")
        remote.fetch(f"{url}/{name}", aside)
        if sha256(aside / name) != stated["sha256"]:
            (aside / name).unlink()
            raise BadData(f"{url}/{name}: its sha256 is not the one in {LAST}; fetch it again, or upload it anew")
    replace_file(aside / LAST, data)
    publish(aside, folder)
    shutil.rmtree(folder / ".prepare", ignore_errors=True)
    return True


# ---- the command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("corpus", choices=CORPORA, metavar="CORPUS", help=", ".join(CORPORA))
    add_place_flags(parser.add_argument)
    add_amount_flags(parser.add_argument)
    add_tokenizer_flags(parser)
    words = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args([dashed(word) for word in words])
    check(parser, args)
    return args


def dashed(word: str) -> str:
    """`--output_dir=a_b` -> `--output-dir=a_b`: both spellings of a flag are read."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def add_place_flags(add: Callable) -> None:
    add("--output", "--output-dir", required=True, metavar="DIR", help="folder to fill, or a URL such as s3://bucket/folder")
    add(
        "--from",
        dest="source",
        nargs="+",
        action="extend",
        metavar="[SPLIT=]PATH",
        help="files, folders, globs or URLs to read instead of the Hub",
    )
    add("--hub", metavar="NAME[:CONFIG]", help="another data set of the Hub (or folder) with the same keys")
    add("--revision", help="commit, tag or branch of the Hub's data set [its latest, recorded in corpus.json]")
    add(
        "--format",
        nargs="+",
        choices=sorted({name for names in FORMATS.values() for name in names}),
        help="indexed: .bin and .idx; memmap: train_tokens.bin, val_tokens.bin (int32); papers: tokens.bin, index.jsonl, "
        "splits.json; tensors: prompts and responses as .pt [indexed, and papers for arxiv-classification]",
    )
    add("--overwrite", action="store_true", help="replace what is in DIR")
    add("--upload-to", metavar="URL", help="copy the finished folder there as well")
    add("--download-from", metavar="URL", help="take the finished folder from there, if it is there")
    add("--upload-to-s3", action="store_true", help="the same, to s3://BUCKET/PREFIX")
    add("--download-from-s3", action="store_true", help="the same, from s3://BUCKET/PREFIX")
    add("--s3-bucket", metavar="BUCKET")
    add("--s3-prefix", metavar="PREFIX", default="")


def add_amount_flags(add: Callable) -> None:
    add("--max-documents", "--max-examples-per-split", type=count, metavar="N", help="the first N documents of each split")
    add(
        "--max-tokens",
        type=count,
        metavar="N",
        help="whole documents of each split while they have at most N tokens (exactly N: train with --unique-tokens)",
    )
    add("--full-dataset", action="store_true", help="no limit, whatever --max-documents says")
    add("--subset", type=count, metavar="TOKENS", help="a published subset, such as 100M: the first TOKENS / (tokens a document)")
    add("--epochs", type=count, default=1, metavar="E", help="the first 1/E of the train documents, to be repeated E times [1]")
    add(
        "--held-out",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="share of the documents for each of valid and test, where the corpus has none of its own; 0: none [0.01]",
    )
    add(
        "--on-bad-line",
        choices=["fail", "skip"],
        default="fail",
        help="fail: stop at the first record that is no document; skip: list such records in rejects.jsonl",
    )
    add("--strip-gutenberg", action="store_true", help="leave out Project Gutenberg's header and footer of plain text")
    add("--keep-text", action="store_true", help="leave the text as {train,valid,test}.jsonl [tokens only]")


def add_tokenizer_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--train-tokenizer", "--vocab-size", type=count, metavar="V", help="train a byte-level BPE of V ids on this corpus")
    add("--tokenizer-megabytes", type=float, default=256.0, metavar="MB", help="text to train it on, at most [256]")
    add_flags(parser)
    add("--max-seq-len", type=count, metavar="S", help="noted in config.json; columns of --format tensors [512]")
    add("--workers", "--num-workers", type=int, default=1, help="processes that tokenize [1]")


def count(word: str) -> int:
    """`100M` -> 100000000; whole and above 0."""
    try:
        number = parse_count(word)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{word!r} is no count such as 1000 or 100M") from None
    if number < 1 or number % 1:
        raise argparse.ArgumentTypeError(f"{word} is not a whole number above 0")
    return int(number)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill what depends on other flags, and end with a usage error where they contradict each other."""
    kind = CORPORA[args.corpus].kind
    args.format = list(dict.fromkeys(args.format or (["indexed", "papers"] if kind == "papers" else ["indexed"])))
    args.max_documents = None if args.full_dataset else args.max_documents
    if unfit := [name for name in args.format if name not in FORMATS[kind]]:
        parser.error(f"--format {unfit[0]} is not for {args.corpus}: choose of {', '.join(FORMATS[kind])}")
    if {"memmap", "papers"} <= set(args.format):
        parser.error("--format memmap and papers both keep a config.json of their own: prepare them into two folders")
    if args.train_tokenizer and (args.vocab_file or args.merge_file or args.tokenizer_model):
        parser.error("--train-tokenizer makes a tokenizer, the other tokenizer flags name one: give either")
    if args.train_tokenizer is not None and args.train_tokenizer < SMALLEST_VOCABULARY:
        parser.error(f"--train-tokenizer {args.train_tokenizer}: {SMALLEST_VOCABULARY} ids are the least, the bytes and the end")
    if not 0 <= args.held_out <= 0.25:
        parser.error("--held-out is a share from 0 to 0.25")
    if args.source and (args.hub or args.revision):
        parser.error("--hub and --revision are of the Hub, --from of files at hand: give either")
    if args.workers < 1 or args.tokenizer_megabytes <= 0:
        parser.error("--workers and --tokenizer-megabytes are above 0")
    for flag in ("upload_to", "download_from"):
        if getattr(args, f"{flag}_s3"):
            if not args.s3_bucket:
                parser.error(f"--{flag.replace('_', '-')}-s3 needs --s3-bucket")
            setattr(args, flag, f"s3://{args.s3_bucket}/{args.s3_prefix}")


def chosen(args: argparse.Namespace) -> Corpus:
    corpus = CORPORA[args.corpus]
    if args.hub:
        name, _, config = args.hub.partition(":")
        corpus = replace(corpus, hub=name, config=config or None, revision=None)
    return replace(corpus, revision=args.revision or corpus.revision)


@exits
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    corpus, url = chosen(args), args.output.rstrip("/") if remote.is_url(args.output) else None
    folder = Path(args.output)
    if url:  # the same folder every time, so that an interrupted run goes on
        folder = Path(tempfile.gettempdir()) / f"prepare_corpus-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    with locked(folder):
        try:
            there = args.download_from and download(args.download_from.rstrip("/"), folder, corpus, args.overwrite)
            changed = there or prepare(args, corpus, folder, url)
        except OSError as error:
            raise CannotWrite(f"{folder}: {error.strerror or error}; make room and run it again, it goes on") from error
        if changed:
            print(summary(folder, url or str(folder)))
        if (folder / LAST).exists():
            for target in dict.fromkeys(filter(None, (url, args.upload_to and args.upload_to.rstrip("/")))):
                upload(folder, target)
        if url:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
