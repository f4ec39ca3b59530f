"""A published corpus to training data in one command: text, tokenizer, train, validation and test tokens.

    python tools/prepare_corpus.py c4 --output data/c4 --subset 100M                from the Hub, streamed
    python tools/prepare_corpus.py tinystories --output data/ts --from stories.txt --train-tokenizer 8192
    python tools/prepare_corpus.py openwebtext --output s3://bucket/owt --format memmap --train-tokenizer 32000

DIR gets {train,valid,test}_text_document.bin, .idx and .meta.json (or what --format names), tokenizer.json, config.json
and corpus.json, which records source, revision, rules, counts and hashes. Files appear when everything is done; an
interrupted run goes on when it is started again, and a finished one does nothing.

Another name is a corpus of your own, and needs --from: `prepare_corpus.py mine --output data/mine --from 'mine/*.csv'`.

--from takes JSON Lines, JSON arrays, CSV, parquet and plain text, folders of them, and URLs. The words train, valid(ation) and
test in their names say which split they are once one of them says train; SPLIT=PATH says it outright. Splits that the
corpus does not have are held out of the others (--held-out).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed
from megatron import stopping

if __name__ == "__main__":
    stopping.heed_interrupt()

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from megatron.data import remote
from megatron.data.corpora import CORPORA, Corpus
from megatron.data.prepare.corpus import LAST, Preparation, download, locked, prepare, summary, upload
from megatron.data.tokenizer import add_flags, flags_of, refuse_unread
from megatron.data.train_tokenizer import SMALLEST_VOCABULARY
from megatron.errors import CannotWrite, exits
from megatron.files import own_folder
from megatron.flags import parse_count

FORMATS = {"text": ("indexed", "memmap"), "papers": ("indexed", "papers", "memmap"), "instruct": ("indexed", "tensors")}


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Corpus]:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("corpus", metavar="CORPUS", help=f"{', '.join(CORPORA)}; or a name of your own, with --from")
    add_place_flags(parser.add_argument)
    add_amount_flags(parser.add_argument)
    add_tokenizer_flags(parser)
    words = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args([dashed(word) for word in words])
    corpus = chosen(parser, args)
    check(parser, args, corpus)
    return args, corpus


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
    add("--json-key", metavar="KEY", help="where a record, or a column of a table, has the text [text]")
    add("--json", action="store_true", help="print corpus.json instead of a summary; what goes on is then said on stderr")
    add("--overwrite", action="store_true", help="replace what is in DIR")
    add("--upload-to", metavar="URL", help="copy the finished folder there as well")
    add("--download-from", metavar="URL", help="take the finished folder from there, if it is there")
    add("--upload-to-s3", action="store_true", help="the same, to s3://BUCKET/PREFIX")
    add("--download-from-s3", action="store_true", help="the same, from s3://BUCKET/PREFIX")
    add("--s3-bucket", metavar="BUCKET")
    add("--s3-prefix", metavar="PREFIX")


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
        metavar="SHARE",
        help="share of the documents for each of valid and test, where the corpus has none of its own (a missing test alone is "
        "half of valid); 0: none [0.01, and no test where there are too few documents for one]",
    )
    add(
        "--on-bad-line",
        choices=["fail", "skip"],
        default="fail",
        help="fail: stop at the first record that is no document; skip: list such records in rejects.jsonl",
    )
    add("--max-line-bytes", type=count, default=16 << 20, metavar="N", help="a longer line is no document [16 MiB]")
    add("--strip-gutenberg", action="store_true", help="leave out Project Gutenberg's header and footer of plain text")
    add("--keep-text", action="store_true", help="leave the text as {train,valid,test}.jsonl [tokens only]")


def add_tokenizer_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--train-tokenizer", "--vocab-size", type=count, metavar="V", help="train a byte-level BPE of V ids on this corpus")
    add("--tokenizer-megabytes", type=float, metavar="MB", help="text to train it on, at most [256]")
    add_flags(parser, None)
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


def check(parser: argparse.ArgumentParser, args: argparse.Namespace, corpus: Corpus) -> None:
    """Fill what depends on other flags, and end with a usage error where they contradict each other or would not be read."""
    args.format = list(dict.fromkeys(args.format or (["indexed", "papers"] if corpus.kind == "papers" else ["indexed"])))
    args.max_documents = None if args.full_dataset else args.max_documents
    if unfit := [name for name in args.format if name not in FORMATS[corpus.kind]]:
        parser.error(f"--format {unfit[0]} is not for {args.corpus}: choose of {', '.join(FORMATS[corpus.kind])}")
    if {"memmap", "papers"} <= set(args.format):
        parser.error("--format memmap and papers both keep a config.json of their own: prepare them into two folders")
    if args.held_out is not None and not 0 <= args.held_out <= 0.25:
        parser.error("--held-out is a share from 0 to 0.25")
    if args.source and (args.hub or args.revision):
        parser.error("--hub and --revision are of the Hub, --from of files at hand: give either")
    if args.strip_gutenberg and not args.source:
        parser.error("--strip-gutenberg is for plain text of --from: leave it out")
    if args.json_key and corpus.kind == "instruct":
        parser.error(
            f"--json-key is for text, {args.corpus} has prompts and responses: leave it out, or use tools/prepare_instruct.py"
        )
    if args.workers < 1:
        parser.error("--workers is above 0")
    check_tokenizer(parser, args)
    check_stores(parser, args)


def check_tokenizer(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.train_tokenizer is not None and args.train_tokenizer < SMALLEST_VOCABULARY:
        parser.error(f"--train-tokenizer {args.train_tokenizer}: {SMALLEST_VOCABULARY} ids are the least, the bytes and the end")
    if args.train_tokenizer and any(flags_of(args).values()):
        parser.error("--train-tokenizer makes a tokenizer, the other tokenizer flags name one: give either")
    if args.tokenizer_megabytes is not None and not (args.train_tokenizer and args.tokenizer_megabytes > 0):
        parser.error("--tokenizer-megabytes is above 0, and of --train-tokenizer")
    args.tokenizer_megabytes = args.tokenizer_megabytes or 256.0
    args.tokenizer_type = args.tokenizer_type or "GPT2BPETokenizer"
    refuse_unread(**flags_of(args))


def check_stores(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """The s3 flags become URLs."""
    used = args.upload_to_s3 or args.download_from_s3
    if (args.s3_bucket or args.s3_prefix) and not used:
        parser.error("--s3-bucket and --s3-prefix are of --upload-to-s3 and --download-from-s3: give one of these as well")
    if used and not args.s3_bucket:
        parser.error(f"--{'upload-to' if args.upload_to_s3 else 'download-from'}-s3 needs --s3-bucket")
    for flag in ("upload_to", "download_from"):
        if getattr(args, f"{flag}_s3"):
            setattr(args, flag, f"s3://{args.s3_bucket}/{args.s3_prefix or ''}")


def chosen(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Corpus:
    """The corpus of that name, or one of the user's own, with what the flags change of it."""
    corpus = CORPORA.get(args.corpus)
    if corpus is None:
        if not (args.source or args.download_from or args.download_from_s3):
            parser.error(f"{args.corpus} is none of {', '.join(CORPORA)}: choose one of them, or name your own files with --from")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", args.corpus):
            parser.error(f"{args.corpus!r} is no name for a corpus: letters, digits, and . _ - between them")
        corpus = Corpus(name=args.corpus, hub=None, splits={})
    if args.hub:
        name, _, config = args.hub.partition(":")
        corpus = replace(corpus, hub=name, config=config or None, revision=None)
    keys = (args.json_key,) if args.json_key else corpus.keys
    return replace(corpus, revision=args.revision or corpus.revision, keys=keys)


def asked(args: argparse.Namespace, corpus: Corpus) -> Preparation:
    names = {one.name for one in fields(Preparation)} - {"corpus", "tokenizer", "source", "format"}
    given = {name: getattr(args, name) for name in names}
    sources, formats = tuple(args.source or ()), tuple(args.format)
    return Preparation(corpus=corpus, tokenizer=flags_of(args), source=sources, format=formats, **given)


def run(job: Preparation, args: argparse.Namespace) -> dict[str, Any] | None:
    """Fetch or prepare, and store where it was asked for.  -> corpus.json, None where nothing changed"""
    url = args.output.rstrip("/") if remote.is_url(args.output) else None
    folder = Path(args.output)
    if url:  # the same folder every time, so that an interrupted run goes on; this user's own, because others write beside it
        mine = own_folder(Path(tempfile.gettempdir()) / f"prepare_corpus-{os.geteuid()}")
        folder = own_folder(mine / hashlib.sha256(url.encode()).hexdigest()[:16])
    with locked(folder):
        try:
            there = args.download_from and download(args.download_from.rstrip("/"), folder, job.corpus, args.overwrite)
            changed = there or prepare(job, folder, url)
        except OSError as error:
            raise CannotWrite(f"{folder}: {error.strerror or error}; make room and run it again, it goes on") from error
        held = json.loads((folder / LAST).read_text(encoding="utf-8")) if (folder / LAST).exists() else None
        if held and changed and not args.json:
            print(summary(held, url or str(folder)))
        if held:
            for target in dict.fromkeys(filter(None, (url, args.upload_to and args.upload_to.rstrip("/")))):
                upload(folder, target)
        if url:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another run's folder may be beside it
                folder.parent.rmdir()
    return held


@exits
def main(argv: Sequence[str] | None = None) -> None:
    args, corpus = parse(argv)
    job = asked(args, corpus)
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        held = run(job, args)
    if args.json:
        print(json.dumps(held))


if __name__ == "__main__":
    sys.exit(main())
