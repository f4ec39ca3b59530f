"""Files that are either there whole or not at all. Standard library only."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from megatron.errors import BadData, CannotWrite, MissingInput

SUSPECT = re.compile(rb"\\u[dD][89a-fA-F]|[0-9]{309}")  # in JSON: what other programs cannot take


def output_prefix(text: str) -> str:
    """The value of a tool's --output-prefix, which begins the names of files. Raises ArgumentTypeError for a folder."""
    if not Path(text).name or text.endswith("/"):
        raise argparse.ArgumentTypeError(f"{text} is a folder: add the start of a file name")
    return text


def sha256(file: Path | IO[bytes]) -> str:
    """Of a file's content, or of what is left of an open one, in hexadecimal digits."""
    if isinstance(file, Path):
        with open(file, "rb") as opened:
            return sha256(opened)
    found = hashlib.sha256()
    while block := file.read(1 << 20):
        found.update(block)
    return found.hexdigest()


def own_folder(folder: Path) -> Path:
    """A folder that nobody else prepared for us: made if absent, for this user alone, else checked.  -> folder

    Raises CannotWrite for a link or another user's folder, which could lead elsewhere or hold planted files, and where
    it cannot be made.
    """
    found = None
    while found is None:  # another process may take it away in between
        try:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700, parents=True)
            with contextlib.suppress(FileNotFoundError):
                found = folder.lstat()
        except OSError as error:
            raise CannotWrite(f"{folder}: {error.strerror}; make room there, or choose another place") from error
    if not stat.S_ISDIR(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "no folder"
        raise CannotWrite(f"{folder} is {kind}, expected a folder of this user's own: delete it, or choose another place")
    if found.st_uid != os.geteuid():
        raise CannotWrite(f"{folder} belongs to user {found.st_uid}, expected this user's own: choose another place")
    if found.st_mode & 0o022:
        folder.chmod(found.st_mode & ~0o022)
    return folder


def open_lock(path: Path) -> TextIO:
    """A lock file, created where absent and never followed through a link.  Raises OSError."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "a")


def is_there(path: Path) -> bool:
    """Whether a file is there. Raises MissingInput for a link to nothing: what it stands for was written, and is lost."""
    if path.is_symlink() and not path.exists():
        raise MissingInput(f"{path}: a link to {os.readlink(path)}, which is not there; put that back, or remove the link")
    return path.exists()


def parse_json(data: bytes, **hooks: Any) -> Any:
    """A JSON value that can be written again and computed with. Raises ValueError, whatever is wrong with it."""
    try:
        found = json.loads(data, **hooks)
        if SUSPECT.search(data):
            json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is no text
            if re.search(rb"[0-9]{309}", data):
                raise ValueError("a number of more than 308 digits")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return found


def json_if_whole(path: Path) -> Any:
    """What a JSON file that we left for ourselves holds; None where there is none, or a damaged one. Raises OSError."""
    try:
        return parse_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def read_json(path: Path, remedy: str, expected: str = "an object") -> dict:
    """The object in a JSON file. Raises MissingInput where it cannot be read, BadData for what is none; both end in `remedy`."""
    try:
        text = Path(path).read_bytes()
        found = parse_json(text)
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror}; {remedy}") from None
    except ValueError as error:
        what = f"not JSON ({' '.join(str(error).split())})" if text.strip(b"\0 \r\n\t") else "empty"
        raise BadData(f"{path}: {what}, expected {expected}; {remedy}") from None
    if not isinstance(found, dict):
        raise BadData(f"{path}: found a {type(found).__name__}, expected {expected}; {remedy}")
    return found


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and have it on the disk. Raises OSError, also when it exists."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes) -> None:
    """Give a file new contents at once: written aside, synced, renamed. Raises OSError, with the old contents intact."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        write_synced(aside, data)
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder aside to write into. Its files move to `folder` together when the block ends well, and vanish when it does not.

    Raises CannotWrite.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    except OSError as error:
        raise CannotWrite(f"{folder}: {error.strerror}") from error
    try:
        yield stage
        for path in sorted(stage.iterdir()):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        for path in sorted(stage.iterdir()):  # .bin before .idx, which announces it
            os.replace(path, folder / path.name)
        sync_folder(folder)
    except OSError as error:
        raise CannotWrite(f"{folder}: {error.strerror or error}; nothing was written") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # holds what was written
                folder.rmdir()
