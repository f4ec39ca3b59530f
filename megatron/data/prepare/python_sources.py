"""Real text that is already here: the sources of Python's own library, one document a file, as JSON Lines."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from megatron.errors import MissingInput
from megatron.files import staged
from megatron.progress import ProgressLine

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

    def facts(self) -> dict[str, str | int]:
        sha256 = self.digest.hexdigest()
        return {"path": str(self.path), "documents": self.documents, "text_bytes": self.text_bytes, "sha256": sha256}


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


def gather(output: Path, valid_output: Path | None, valid_every: int, seed: int, megabytes: float) -> list[Output]:
    """Every K-th document goes to the validation file, the others to the first; both appear when both are complete."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = [output] + ([valid_output] if valid_output else [])
    with ExitStack() as stack:
        stages = [stack.enter_context(staged(path.parent)) for path in paths]
        files = [stack.enter_context(open(stage / path.name, "wb")) for path, stage in zip(paths, stages, strict=True)]
        outputs = [Output(path, file) for path, file in zip(paths, files, strict=True)]
        line = ProgressLine(megabytes * 1e6)
        for number, text in enumerate(documents(library, seed, megabytes), 1):
            held_out = valid_output and number % valid_every == 0
            outputs[1 if held_out else 0].add(text)
            line.show(sum(output.text_bytes for output in outputs), f"{number} documents")
        line.clear()
        if not all(output.documents for output in outputs):
            raise MissingInput(
                f"{library} holds too few Python sources for {' and '.join(map(str, paths))}: "
                f"give more --megabytes, or a Python that comes with its library's sources"
            )
    return outputs
