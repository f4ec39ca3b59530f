"""Text to tokens: JSON Lines, parquet or plain text, also .gz and .zst, to PREFIX_<key>_document.bin, .idx and .meta.json.

    python tools/preprocess_data.py --input corpus.jsonl --output-prefix data/corpus --append-eod --workers 8

The order of the input is kept and the output is the same for any number of workers. A run that is killed leaves nothing
under the final name, and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed

from megatron.data.encoding import SAFELY_CUT, Encoded, Recipe, encode_all, tokenizer_of  # noqa: E402
from megatron.data.indexed import IndexedWriter, best_dtype, retire  # noqa: E402
from megatron.data.journal import Journal, Progress, WorkFolder, written  # noqa: E402
from megatron.data.text_files import Reading, identity, input_files, is_plain_text, read_blocks  # noqa: E402
from megatron.data.tokenizer import add_flags  # noqa: E402
from megatron.errors import BadData, CannotWrite, exits  # noqa: E402
from megatron.files import output_prefix  # noqa: E402

ENDINGS = (".bin", ".rejects.jsonl", ".meta.json", ".idx")  # in the order they are published: the last announces


@dataclass
class Terminal:
    """The progress line, on a terminal only."""

    total_bytes: int
    log_interval: int
    text_bytes: int  # done before this run
    position: int
    shown: int = 0  # documents, when the line was last written
    started: float = field(default_factory=time.monotonic)

    def megabytes_per_second(self, progress: Progress) -> float:
        return (progress.text_bytes - self.text_bytes) / 1e6 / max(time.monotonic() - self.started, 1e-9)

    def show(self, progress: Progress) -> None:
        if not sys.stderr.isatty() or progress.documents[0] - self.shown < self.log_interval:
            return
        self.shown = progress.documents[0]
        done = max(progress.position - self.position, 1)
        seconds = (time.monotonic() - self.started) * max(self.total_bytes - progress.position, 0) / done
        print(
            f"\r{progress.documents[0]:,} documents, {progress.tokens[0]:,} tokens, {self.megabytes_per_second(progress):.1f} "
            f"MB/s, {progress.position / max(self.total_bytes, 1):.0%}, {seconds:.0f} s left\033[K",
            end="",
            file=sys.stderr,
            flush=True,
        )

    def clear(self) -> None:
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr)


def recipe_of(args: argparse.Namespace) -> Recipe:
    return Recipe(
        args.tokenizer_type,
        args.vocab_file,
        args.merge_file,
        args.tokenizer_model,
        args.bpe_backend,
        tuple(args.json_keys),
        args.append_eod,
        args.max_line_bytes,
    )


def output_name(args: argparse.Namespace, key: str) -> str:
    return f"{Path(args.output_prefix).name}_{key}_document"


def outputs(args: argparse.Namespace) -> list[Path]:
    folder = Path(args.output_prefix).parent
    return [folder / f"{output_name(args, key)}{end}" for key in args.json_keys for end in (".bin", ".idx", ".meta.json")] + [
        Path(f"{args.output_prefix}.rejects.jsonl")
    ]


def work_key(args: argparse.Namespace, files: list[str], fingerprint: str) -> dict:
    """What decides the output: work done under another key is of no use."""
    return {
        "tokenizer": fingerprint,
        "keys": args.json_keys,
        "append_eod": args.append_eod,
        "on_bad_line": args.on_bad_line,
        "max_line_bytes": args.max_line_bytes,
        "inputs": [identity(path) for path in files],
    }


def preprocess(args: argparse.Namespace, files: list[str]) -> list[str]:
    """Encode all files inside a work folder beside the output, then move every output into place.  -> a line an output"""
    folder, name = Path(args.output_prefix).parent, Path(args.output_prefix).name
    fingerprint = tokenizer_of(recipe_of(args)).fingerprint()  # one that cannot be built is refused before any work
    with WorkFolder(folder, name, work_key(args, files, fingerprint)) as work:
        taken = [path for path in outputs(args) if path.exists()]
        if taken and not (args.overwrite or work.finished):
            raise CannotWrite(f"{taken[0]} exists: choose another --output-prefix, or pass --overwrite")
        if work.dropped:
            print(f"{work.folder}: the work of an earlier run with other arguments or inputs is dropped", file=sys.stderr)
        said = [f"{folder / output_name(args, key)}: an earlier run had finished it" for key in args.json_keys]
        if not work.finished:
            said = write_outputs(args, files, fingerprint, work)
            work.finish()
            for key in args.json_keys:
                retire(str(folder / output_name(args, key)))  # --overwrite: never a new .bin beside an old .idx
            Path(f"{args.output_prefix}.rejects.jsonl").unlink(missing_ok=True)
        work.publish(folder, ENDINGS)
    return said


def write_outputs(args: argparse.Namespace, files: list[str], fingerprint: str, work: WorkFolder) -> list[str]:
    """Every output, whole, in the work folder.  -> a line an output that says what it holds"""
    recipe = recipe_of(args)
    tokenizer = tokenizer_of(recipe)
    about = {"type": tokenizer.name, "fingerprint": fingerprint, "vocab_size": tokenizer.vocab_size, "eod": tokenizer.eod}
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                IndexedWriter(str(work.path("out", output_name(args, key))), best_dtype(tokenizer.vocab_size), tokenizer=about)
            )
            for key in recipe.keys
        ]
        journal = stack.enter_context(Journal(work, writers))
        progress = journal.progress
        if progress.text_bytes:
            print(f"going on after {progress.documents[0]:,} documents of an earlier run", file=sys.stderr)
        terminal = Terminal(sum(map(os.path.getsize, files)), args.log_interval, progress.text_bytes, progress.position)
        how = Reading(recipe.keys, recipe.max_line_bytes, recipe.tokenizer_type not in SAFELY_CUT)
        blocks = read_blocks(files, progress.mark, how)
        write_all(encode_all(recipe, blocks, args.workers), journal, args.on_bad_line == "skip", terminal)
        check_documents(recipe.keys, files, progress)
        for key, writer in zip(recipe.keys, writers, strict=True):
            writer.extra = about_input(args, files, key, progress)
    if progress.rejects:
        write_rejects(work, f"{Path(args.output_prefix).name}.rejects.jsonl", progress)
    return [
        f"{Path(args.output_prefix).parent / output_name(args, key)}: {documents:,} documents, {tokens:,} tokens, "
        f"{terminal.megabytes_per_second(progress):.1f} MB/s{rejected(progress)}"
        for key, documents, tokens in zip(recipe.keys, progress.documents, progress.tokens, strict=True)
    ]


def write_all(encoded: Iterable[Encoded], journal: Journal, skip: bool, terminal: Terminal) -> None:
    """Append every document; bad lines are listed, or end the run when they are not to be skipped."""
    progress = journal.progress
    for block in encoded:
        for bad in block.rejects:
            if not skip:
                raise bad.refusal()
            journal.add_reject(bad.kind, asdict(bad))
        for number, (ids, lengths) in enumerate(zip(block.ids, block.lengths, strict=True)):
            journal.add(number, ids, lengths)
        progress.mark, progress.position = block.after, block.position
        progress.text_bytes += block.text_bytes
        journal.note_sometimes()
        terminal.show(progress)
    terminal.clear()


def check_documents(keys: Sequence[str], files: list[str], progress: Progress) -> None:
    for key, documents in zip(keys, progress.documents, strict=True):
        if not documents:
            raise BadData(
                f"the input holds no document with text under {key!r}: {', '.join(files[:3])}"
                f"{' ...' if len(files) > 3 else ''}{rejected(progress)}; nothing was written"
            )


def about_input(args: argparse.Namespace, files: list[str], key: str, progress: Progress) -> dict:
    """What the sidecar says of where the tokens come from."""
    return {
        "inputs": [{"path": path, "bytes": os.path.getsize(path)} for path in files],
        "json_key": key,
        "append_eod": args.append_eod,
        "text_bytes": progress.text_bytes,
        "rejects": dict(sorted(progress.rejects.items())),
    }


def write_rejects(work: WorkFolder, name: str, progress: Progress) -> None:
    """The list of bad lines, and their counts as its last line.  Raises CannotWrite."""
    counts = {"rejected": sum(progress.rejects.values()), "documents": progress.documents[0], "kinds": progress.rejects}
    with written(work.folder):
        shutil.copyfile(work.path("rejects.jsonl"), work.path("out", name))
        with open(work.path("out", name), "ab") as file:
            file.write(json.dumps(counts).encode() + b"\n")


def rejected(progress: Progress) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in progress.rejects.items())
    return f", {sum(progress.rejects.values())} lines skipped ({kinds})" if kinds else ""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="files or quoted globs: .parquet, .txt (one document a file), anything else JSON Lines; .gz and .zst of both",
    )
    add("--root", metavar="DIR", help="folder that --input and --output-prefix start from")
    add("--json-keys", nargs="+", default=["text"], metavar="KEY", help="one output a key [text]")
    add(
        "--output-prefix",
        type=output_prefix,
        required=True,
        metavar="PREFIX",
        help="writes PREFIX_<key>_document.bin, .idx and .meta.json",
    )
    add("--overwrite", action="store_true", help="replace an output that exists")
    add_flags(parser)
    add(
        "--bpe-backend",
        choices=["auto", "gigatoken", "tiktoken"],
        default="auto",
        help="who makes GPT-2's ids, which are the same [auto: gigatoken where it is installed]",
    )
    add("--append-eod", action="store_true", help="end each document with the end-of-document id")
    add(
        "--on-bad-line",
        choices=["fail", "skip"],
        default="fail",
        help="fail: stop at the first line that is no document; skip: list such lines in PREFIX.rejects.jsonl",
    )
    add(
        "--max-line-bytes",
        type=int,
        default=16 << 20,
        metavar="N",
        help="a longer line (value of a parquet file) is no document [16 MiB]",
    )
    add("--workers", type=int, default=1, help="processes that tokenize [1]")
    add("--log-interval", type=int, default=1000, help="documents between progress updates on a terminal [1000]")
    add("--dataset-impl", choices=["mmap"], default="mmap", help="the one format there is")
    add("--partitions", type=int, choices=[1], default=1, help="Megatron's: the order is always kept, use --workers")
    for flag in ("--make-vocab-size-divisible-by", "--seq-length"):
        add(flag, type=int, help="Megatron's, and taken for its scripts' sake: decides nothing about the ids")
    args = parser.parse_args(argv)
    if min(args.workers, args.log_interval, args.max_line_bytes) < 1:
        parser.error("--workers, --log-interval and --max-line-bytes must be at least 1")
    if args.root:
        args.input = [os.path.join(args.root, pattern) for pattern in args.input]
        args.output_prefix = os.path.join(args.root, args.output_prefix)
    if len(set(args.json_keys)) < len(args.json_keys):
        parser.error("--json-keys names a key twice")
    return args


@exits
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    files = input_files(args.input)
    plain = [path for path in files if is_plain_text(path)]
    if plain and len(args.json_keys) > 1:
        raise BadData(f"{plain[0]} is plain text and has no keys: give one --json-keys, or JSON Lines only")
    print("\n".join(preprocess(args, files)))


if __name__ == "__main__":
    sys.exit(main())
