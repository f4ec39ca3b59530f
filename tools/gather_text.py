"""Gather real text that is already here: the sources of Python's own library, one document a file, as JSON Lines.

    python tools/gather_text.py --output data/train.jsonl --megabytes 20 --valid-output data/valid.jsonl --valid-every 20

The same Python version and seed give the same files. Documents are shuffled by a hash of their path, so that the
training and validation documents are alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed

from megatron.errors import CannotWrite, MissingInput, exits  # noqa: E402
from megatron.files import staged  # noqa: E402

NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}


class Output:
    """One JSON Lines file being written, with its counts and hash."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.documents, self.text_bytes, self.digest = 0, 0, hashlib.sha256()

    def add(self, text: str) -> None:
        line = json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"
        self.file.write(line)
        self.digest.update(line)
        self.documents += 1
        self.text_bytes += len(text.encode())

    def summary(self) -> str:
        return f"{self.path}: {self.documents:,} documents, {self.text_bytes:,} bytes of text, sha256 {self.digest.hexdigest()}"


def library_files(library: Path, seed: int) -> list[Path]:
    """Python's own sources, in an order that depends on nothing but their relative paths and the seed."""
    files = [path for path in library.rglob("*.py") if not NOT_THE_LIBRARY & set(path.relative_to(library).parts)]
    return sorted(files, key=lambda path: hashlib.sha256(f"{seed}:{path.relative_to(library).as_posix()}".encode()).digest())


def documents(library: Path, seed: int, megabytes: float) -> Iterator[str]:
    """Texts of different files, none empty and none twice, until there are enough bytes."""
    seen, left = set(), megabytes * 1e6
    for path in library_files(library, seed):
        if left <= 0:
            return
        data = path.read_bytes()
        try:
            text = data.decode()
        except UnicodeDecodeError:  # the library's tests hold files in other encodings on purpose
            continue
        digest = hashlib.sha256(data).digest()
        if text.strip() and digest not in seen:
            seen.add(digest)
            left -= len(data)
            yield text


def gather(args: argparse.Namespace) -> list[Output]:
    """Every K-th document goes to the validation file, the others to the first; both appear when both are complete."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = [args.output] + ([args.valid_output] if args.valid_output else [])
    with ExitStack() as stack:
        stages = [stack.enter_context(staged(path.parent)) for path in paths]
        files = [stack.enter_context(open(stage / path.name, "wb")) for path, stage in zip(paths, stages, strict=True)]
        outputs = [Output(path, file) for path, file in zip(paths, files, strict=True)]
        for number, text in enumerate(documents(library, args.seed, args.megabytes), 1):
            held_out = args.valid_output and number % args.valid_every == 0
            outputs[1 if held_out else 0].add(text)
        if not all(output.documents for output in outputs):
            raise MissingInput(
                f"{library} holds too few Python sources for {' and '.join(map(str, paths))}: "
                f"give more --megabytes, or a Python that comes with its library's sources"
            )
    return outputs


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE", help="JSON Lines to write")
    add("--megabytes", type=float, default=20.0, help="stop after this many megabytes of text, both files together [20]")
    add("--seed", type=int, default=0, help="another order of the documents [0]")
    add("--valid-output", type=Path, metavar="FILE", help="JSON Lines for held-out documents")
    add("--valid-every", type=int, metavar="K", help="every K-th document is held out [20]")
    add("--overwrite", action="store_true", help="replace files that exist")
    args = parser.parse_args(argv)
    if not args.megabytes > 0:
        parser.error("--megabytes must be above 0")
    if args.valid_every is not None and not args.valid_output:
        parser.error("--valid-every needs --valid-output FILE")
    args.valid_every = 20 if args.valid_every is None else args.valid_every
    if args.valid_every < 2:
        parser.error("--valid-every must be at least 2")
    if args.valid_output and args.valid_output.resolve() == args.output.resolve():
        parser.error("--output and --valid-output name the same file")
    return args


@exits
def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    for path in (args.output, args.valid_output):
        if path and path.exists() and not args.overwrite:
            raise CannotWrite(f"{path} exists: choose another name, or pass --overwrite")
    outputs = gather(args)
    short = sum(output.text_bytes for output in outputs) < args.megabytes * 1e6
    for output in outputs:
        print(output.summary() + (" (all there is)" if short else ""))


if __name__ == "__main__":
    sys.exit(main())
