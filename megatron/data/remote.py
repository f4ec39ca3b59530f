"""Folders at URLs (s3://, gs://, memory://, ...) through fsspec: fetched whole, stored with the announcing files last.

A folder counts as complete when it holds its LAST file, which lists the others; it is removed first and written last, so that
an interrupted upload is never taken for a corpus.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.errors import CannotWrite, MissingInput


def is_url(place: str) -> bool:
    return bool(re.match(r"[a-z][a-z0-9+.-]*://", place))


@contextmanager
def remote(url: str, doing: type[MissingInput] | type[CannotWrite]) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the path on it; its failures are raised as `doing`, with one sentence."""
    try:
        import fsspec
    except ImportError as error:
        raise MissingInput(f"{url} needs the Python package fsspec: pip install -e '.[corpora]'") from error
    try:
        yield fsspec.core.url_to_fs(url)
    except ImportError as error:  # fsspec names the package of the protocol
        raise MissingInput(f"{url}: {error}") from error
    except (OSError, ValueError) as error:
        raise doing(f"{url}: {type(error).__name__}: {str(error) or 'no reason given'}") from error
    except Exception as error:  # a store's own, such as botocore's for absent credentials
        if type(error).__module__.partition(".")[0] not in ("aiohttp", "azure", "botocore", "gcsfs", "google"):
            raise
        raise doing(f"{url}: {type(error).__name__}: {error}") from error


def read(url: str) -> bytes | None:
    """A file's bytes; nothing where there is none."""
    with remote(url, MissingInput) as (store, path):
        return store.cat_file(path) if store.exists(path) else None


def sizes(url: str) -> list[tuple[str, int]]:
    """(name below the URL, bytes) of the file, or of all files, that it names.  Raises MissingInput when there are none."""
    with remote(url, MissingInput) as (store, path):
        return [(os.path.relpath(name, above(store, path)), store.size(name)) for name in found(store, path, url)]


def found(store: Any, path: str, url: str) -> list[str]:
    if not store.exists(path):
        raise MissingInput(f"{url}: no such file or folder")
    return sorted(store.find(path)) if store.isdir(path) else [path]


def above(store: Any, path: str) -> str:
    return path if store.isdir(path) else str(Path(path).parent)


def fetch(url: str, folder: Path) -> list[Path]:
    """The file, or all files below the folder, that a URL names, into `folder`; what is there in full size is kept.

    Raises MissingInput when there is nothing at the URL.
    """
    with remote(url, MissingInput) as (store, path):
        names = found(store, path, url)
        return [fetch_file(store, name, folder / os.path.relpath(name, above(store, path))) for name in names]


def fetch_file(store: Any, name: str, target: Path) -> Path:
    """One file, under its final name only when it is whole."""
    if target.exists() and target.stat().st_size == store.size(name):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.part")
    store.get_file(name, str(aside))
    if aside.stat().st_size != store.size(name):
        raise MissingInput(f"{name}: {aside.stat().st_size} of {store.size(name)} bytes arrived; try again")
    os.replace(aside, target)
    return target


def store_folder(folder: Path, names: Sequence[str], url: str) -> None:
    """Files of `folder`, in the order given, to a URL; the last one announces them.  Raises CannotWrite."""
    with remote(url, CannotWrite) as (store, path):
        store.makedirs(path, exist_ok=True)
        if store.exists(f"{path}/{names[-1]}"):
            store.rm_file(f"{path}/{names[-1]}")
        for name in names:
            store.put_file(str(folder / name), f"{path}/{name}")
            if store.size(f"{path}/{name}") != (folder / name).stat().st_size:
                raise CannotWrite(f"{url}/{name}: not all bytes arrived; try again")
