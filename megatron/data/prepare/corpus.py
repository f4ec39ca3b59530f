"""A corpus, published or one's own, to training data: text, tokenizer, tokens and records, in steps that outlast interruption."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from megatron import __version__
from megatron.data import remote
from megatron.data.corpora import Bad, Corpus, Manner, OnBad, pinned_revision
from megatron.data.corpus_text import Document, Gathering, Limits, Part, Stream, parts_of, training_texts
from megatron.data.encoding import ANOTHER_ENCODING, Recipe
from megatron.data.indexed import IndexedDataset, retire
from megatron.data.instruct import encode_pair, pair_of, recognized
from megatron.data.prepare.instruct_pairs import write_pairs
from megatron.data.prepare.origins import (
    HELD_OUT,
    SPLITS,
    Origin,
    all_documents,
    from_files,
    from_hub,
    rule_of,
    streams_of,
    subset_documents,
)
from megatron.data.prepare.preprocess import Preprocessing, preprocess
from megatron.data.token_file import token_chunks, write_paper_folder, write_token_folder
from megatron.data.tokenizer import Tokenizer, build_tokenizer
from megatron.data.tokenizer_json import tokenizer_json
from megatron.data.train_tokenizer import train_byte_level_bpe
from megatron.errors import BadData, CannotWrite, Mismatch
from megatron.files import json_if_whole, own_folder, parse_json, replace_file, sha256, sync_folder
from megatron.locks import Held, held
from megatron.progress import ProgressLine

ANNOUNCING = ("meta.json", "idx", "config.json")  # written and sent behind the data, in this order
LAST = "corpus.json"
LONGEST = 1 << 30  # bytes of a document's line, for tokenizing what has been gathered
REQUEST = (  # what of a preparation decides the result, as corpus.json says it
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


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is asked for: the flags of tools/prepare_corpus.py that decide the result, under their names."""

    corpus: Corpus
    tokenizer: dict[str, Any]  # the arguments of build_tokenizer
    source: tuple[str, ...] = ()  # --from; none: the Hub
    revision: str | None = None  # of the Hub's data set, if one was asked for
    format: tuple[str, ...] = ("indexed",)
    max_documents: int | None = None
    max_tokens: int | None = None
    subset: int | None = None
    epochs: int = 1
    held_out: float | None = None  # share; None: a hundredth, where there are documents for it
    on_bad_line: str = "fail"
    max_line_bytes: int = 16 << 20
    strip_gutenberg: bool = False
    keep_text: bool = False
    train_tokenizer: int | None = None
    tokenizer_megabytes: float = 256.0
    max_seq_len: int | None = None
    workers: int = 1
    overwrite: bool = False


# ---- amounts and tokenizer


def limits_of(job: Preparation, origin: Origin, streams: list[Stream]) -> Limits:
    """Documents by split: --max-documents of each, and of train a published subset's, or its first 1/epochs."""
    documents = dict.fromkeys(SPLITS, job.max_documents) if job.max_documents else {}
    train = min([n for n in (job.max_documents, subset_documents(job.subset, job.corpus)) if n], default=None)
    if job.epochs > 1:
        train = (train or all_documents(origin, streams)) // job.epochs
        if not train:
            raise BadData(f"--epochs {job.epochs}: fewer documents than that are there to train on; lower it")
    if train:
        documents["train"] = train
    return Limits(documents, job.max_tokens)


def tokenizer_arguments(job: Preparation, trained: Path) -> dict[str, Any]:
    """The arguments of build_tokenizer: those given, or for the tokenizer that is trained here."""
    return {"tokenizer_type": "HFTokenizer", "tokenizer_model": str(trained)} if job.train_tokenizer else job.tokenizer


def train_tokenizer(job: Preparation, streams: list[Stream], limits: Limits, path: Path, on_bad: OnBad) -> None:
    """Train on the first documents of the train split, once."""
    if job.train_tokenizer and not path.exists():
        most = job.tokenizer_megabytes
        print(f"training a tokenizer of {job.train_tokenizer:,} ids on the first {most:g} MB of train at most", flush=True)
        train = next(stream for stream in streams if stream.split == "train")
        texts = training_texts(train, limits, round(most * 1e6), on_bad)
        replace_file(path, train_byte_level_bpe(texts, job.train_tokenizer).encode())


def counter(corpus: Corpus, tokenizer: Tokenizer) -> Callable[[Document], int]:
    """Tokens of a document as it will be stored, its end included."""
    return lambda document: sum(len(tokenizer.encode(text)) for text in parts_of(document)) + 1


# ---- text to tokens


def read_lines(path: Path) -> Iterator[Document]:
    with open(path, "rb") as file:
        yield from map(json.loads, file)


def tokenize(job: Preparation, text: Path, prefix: Path, given: dict[str, Any], tokenizer: Tokenizer) -> None:
    """SPLIT.jsonl to PREFIX_text_document, once."""
    if Path(f"{prefix}_text_document.idx").exists():
        return
    if job.corpus.kind == "instruct":
        write_pairs(Path(f"{prefix}_text_document"), encoded_pairs(text, tokenizer), tokenizer)
        return
    recipe = Recipe(**given, append_eod=True, max_line_bytes=LONGEST)
    preprocess(Preprocessing(recipe=recipe, files=(str(text),), prefix=str(prefix), overwrite=True, workers=job.workers))


def encoded_pairs(text: Path, tokenizer: Tokenizer) -> list:
    return [
        encode_pair(pair_of(record, recognized(str(text), record)), tokenizer.encode, tokenizer.eod)
        for record in read_lines(text)
    ]


def convert(name: str, job: Preparation, text: Path, out: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """One of the other formats into `out`, from the .bin and .idx there.  -> what its config.json says"""
    parts = {split: out / f"{split}_text_document" for split in SPLITS if (out / f"{split}_text_document.idx").exists()}
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        aside = Path(folder) / "files"
        if name == "memmap":
            if "valid" not in parts:
                raise BadData("--format memmap needs validation documents: give more documents, or a --held-out above 0")
            train, valid = (token_chunks(IndexedDataset(parts[split])) for split in ("train", "valid"))
            write_token_folder(aside, train, valid, tokenizer.vocab_size)
        elif name == "papers":
            write_paper_folder(aside, papers(job.corpus, text, parts), tokenizer.vocab_size)
        else:
            from megatron.data.prepare.pair_tensors import write_tensors  # imports torch, which nothing else here needs

            aside.mkdir()
            pairs = {{"valid": "val"}.get(split, split): encoded_pairs(text / f"{split}.jsonl", tokenizer) for split in parts}
            write_tensors(aside, pairs, job.max_seq_len or 512, tokenizer)
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
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(folder))
        except Held:
            raise CannotWrite(f"--output {folder} is being prepared by another process: wait for it, or choose another") from None
        except OSError as error:
            raise CannotWrite(f"--output {folder} cannot be made or written: {error.strerror}") from error
        yield


def begin(work: Path, request: dict[str, Any], overwrite: bool) -> None:
    """The working folder of this request: an earlier one's rest is kept when it was for the same, else cleared away."""
    path = own_folder(work) / "request.json"
    if overwrite or not path.exists() or json_if_whole(path) != request:
        for inside in work.iterdir():
            shutil.rmtree(inside) if inside.is_dir() and not inside.is_symlink() else inside.unlink()
        replace_file(path, json.dumps(request).encode())
    for name in ("text", "out"):
        (work / name).mkdir(exist_ok=True)


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


def request_of(job: Preparation, origin: Origin) -> dict[str, Any]:
    """What decides the result, for corpus.json and for telling one preparation from another."""
    given = {name: getattr(job, name) for name in REQUEST}
    given["held_out"] = HELD_OUT if job.held_out is None else job.held_out
    if job.corpus.kind != "instruct" and job.corpus.keys != ("text",):
        given["json_key"] = job.corpus.keys[0]
    if job.max_line_bytes != Preparation.max_line_bytes:
        given["max_line_bytes"] = job.max_line_bytes
    if job.train_tokenizer:
        given["tokenizer_megabytes"] = job.tokenizer_megabytes
    else:
        given["tokenizer"] = build_tokenizer(**job.tokenizer).fingerprint()
    return json.loads(json.dumps({"corpus": job.corpus.name, "revision": job.revision, **origin.known, **given}))


def prepare(job: Preparation, folder: Path, url: str | None = None) -> bool:
    """All steps, into `folder`, unless it or the URL holds the result.  -> whether there was anything to do

    Raises MissingInput, BadData, Mismatch or CannotWrite.
    """
    work = folder / ".prepare"
    manner = Manner(strip_gutenberg=job.strip_gutenberg, max_line_bytes=job.max_line_bytes)
    origin = from_files(job.corpus, job.source, manner, work / "source") if job.source else from_hub(job.corpus)
    request = request_of(job, origin)
    held = remote.read(f"{url}/{LAST}") if url else (folder / LAST).read_bytes() if (folder / LAST).exists() else None
    if is_done(url or str(folder), held, request, job.overwrite):
        return False
    if not job.overwrite:
        refuse_others(folder)
    begin(work, {**request, "seen": origin.seen}, job.overwrite)
    for place, target in origin.fetched.items():
        print(f"fetching {place}", flush=True)
        remote.fetch(place, target)
    if not (work / "out" / LAST).exists():
        make(job, origin, request, work)
    publish(work / "out", folder)
    shutil.rmtree(work, ignore_errors=True)
    return True


def make(job: Preparation, origin: Origin, request: dict[str, Any], work: Path) -> None:
    """Text, tokenizer, tokens and records, all into the working folder; each step that is done is not done again."""
    text, out = work / "text", work / "out"
    if not job.source:
        corpus, origin = pinned(job.corpus, work)
        job = replace(job, corpus=corpus)
    streams = streams_of(job.corpus, origin, job.held_out)
    limits = limits_of(job, origin, streams)
    if job.train_tokenizer:
        train_tokenizer(job, streams, limits, out / "tokenizer.json", refuse if job.on_bad_line == "fail" else lambda bad: None)
    given = tokenizer_arguments(job, out / "tokenizer.json")
    tokenizer = build_tokenizer(**given)
    keep_tokenizer(tokenizer, given, out)
    with rejects(work, job.on_bad_line) as on_bad:
        limits = replace(limits, count=counter(job.corpus, tokenizer))
        line = ProgressLine(origin.num_bytes)
        parts = Gathering(text, limits, on_bad, lambda parts: line.show(origin.read.total, in_words(parts))).run(streams)
        line.clear()
    if "train" not in parts:
        raise BadData(f"{job.corpus.name}: no document to train on; check --from and the limits")
    for split in parts:
        tokenize(job, text / f"{split}.jsonl", out / split, given, tokenizer)
    config: dict[str, Any] = {}
    for name in (name for name in job.format if name != "indexed"):
        config |= convert(name, job, text, out, tokenizer)
    record(Made(job, origin, request, work, streams, parts, tokenizer), config)


def pinned(corpus: Corpus, work: Path) -> tuple[Corpus, Origin]:
    """The corpus at one commit of the Hub, the same when an interrupted run goes on."""
    path = work / "revision.json"
    if json_if_whole(path) is None:
        replace_file(path, json.dumps(pinned_revision(corpus)).encode())
    corpus = replace(corpus, revision=json_if_whole(path))
    origin = from_hub(corpus)
    return corpus, replace(origin, described={**origin.described, "revision": corpus.revision})


def keep_tokenizer(tokenizer: Tokenizer, given: dict[str, Any], out: Path) -> None:
    """The tokenizer goes with the corpus as tokenizer.json, where it can be written so."""
    model = given.get("tokenizer_model")
    data = tokenizer_json(tokenizer, model)
    if data is not None and not (out / "tokenizer.json").exists():
        replace_file(out / "tokenizer.json", data)
    beside = model and Path(model).parent / "tokenizer_config.json"
    if given["tokenizer_type"] == "HFTokenizer" and beside and beside.exists():
        shutil.copyfile(beside, out / "tokenizer_config.json")  # it may name the end of a document


def refuse(bad: Bad) -> None:
    place = f"{bad.file}:{bad.line}" if bad.line else bad.file
    hint = ANOTHER_ENCODING if "UTF-8" in bad.reason else ""
    raise BadData(f"{place}: {bad.reason}{hint}; mend it, or pass --on-bad-line skip")


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


def in_words(parts: dict[str, Part]) -> str:
    """What has been gathered so far."""
    return ", ".join(f"{split} {part.documents:,} documents {part.text_bytes / 1e6:,.1f} MB" for split, part in parts.items())


@dataclass(frozen=True)
class Made:
    """What has been made, and of what, for the records."""

    job: Preparation
    origin: Origin
    request: dict[str, Any]
    work: Path
    streams: list[Stream]
    parts: dict[str, Part]
    tokenizer: Tokenizer

    @property
    def out(self) -> Path:
        return self.work / "out"


def counts_of(made: Made) -> dict[str, dict[str, Any]]:
    """Documents, tokens and bytes of every split.  Raises BadData when documents were lost on the way."""
    splits = {}
    for split, part in made.parts.items():
        data = IndexedDataset(made.out / f"{split}_text_document")
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
    return splits


def record(made: Made, config: dict[str, Any]) -> None:
    """config.json for other trainers, corpus.json with everything that is known; corpus.json is the last file made."""
    job, work, out, splits = made.job, made.work, made.out, counts_of(made)
    known = made.tokenizer.facts()
    config = config | {
        "dataset": job.corpus.name,
        "vocab_size": made.tokenizer.vocab_size,
        "eos_token_id": made.tokenizer.eod,
        "tokenizer_type": made.tokenizer.name,
        "tokenizer_fingerprint": known["fingerprint"],
        "max_seq_len": job.max_seq_len or config.get("max_seq_len"),
    }
    replace_file(out / "config.json", (json.dumps(config, indent=1) + "\n").encode())
    if "indexed" not in job.format:
        for path in out.glob("*_text_document.*"):
            path.unlink()
    for split in made.parts if job.keep_text else ():
        os.replace(work / "text" / f"{split}.jsonl", out / f"{split}.jsonl")
    skipped = len((work / "rejects.jsonl").read_text().splitlines()) if (work / "rejects.jsonl").exists() else 0
    if skipped:
        shutil.copyfile(work / "rejects.jsonl", out / "rejects.jsonl")
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in in_order(out)}
    described = {
        "corpus": job.corpus.name,
        "source": made.origin.described,
        "request": made.request,
        "splits": splits,
        "split_rule": {stream.split: rule_of(stream) for stream in made.streams},
        "skipped_records": skipped,
        "tokenizer": known,
        "files": files,
        "made_by": f"megatron-scaling {__version__}",
    }
    replace_file(out / LAST, (json.dumps(described, indent=1) + "\n").encode())


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


def summary(held: dict[str, Any], where: str) -> str:
    """What a folder holds by its corpus.json, a line a split."""
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


def read_listing(where: str, data: bytes) -> dict[str, Any]:
    """A corpus.json from elsewhere.  Raises BadData."""
    try:
        held = parse_json(data)
        if isinstance(held["corpus"], str) and all(isinstance(stated["sha256"], str) for stated in held["files"].values()):
            return held
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise BadData(f"{where} is damaged, expected a corpus and its files; prepare it there again")


def download(url: str, folder: Path, corpus: Corpus, overwrite: bool) -> bool:
    """A finished folder from a URL, every file checked by its hash.  -> False when none is there.  Raises BadData, Mismatch."""
    data = remote.read(f"{url}/{LAST}")
    if data is None:
        print(f"{url} holds no finished corpus ({LAST}); preparing it here", flush=True)
        return False
    held = read_listing(f"{url}/{LAST}", data)
    if held["corpus"] != corpus.name:
        raise Mismatch(f"{url} holds {held['corpus']}, not {corpus.name}")
    if (folder / LAST).exists() and (folder / LAST).read_bytes() == data:
        print(f"{folder}: already there")
        return True
    if (folder / LAST).exists() and not overwrite:
        raise CannotWrite(f"{folder} holds another corpus than {url}: choose another --output, or pass --overwrite")
    if not overwrite:
        refuse_others(folder)
    aside = own_folder(folder / ".prepare") / "fetched"
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
