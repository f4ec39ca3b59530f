"""Whole folders, such as runs, at URLs and back: every file by its size and sha256, in steps that outlast interruption.

A copy is whole when it holds LISTING, which is written last and removed first. What had arrived of an interrupted one stands in
ARRIVED, and is not sent again; a folder that is fetched comes into place at once, when all of it has been checked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from megatron.data.remote import remote
from megatron.errors import BadData, CannotWrite, MissingInput, Untrusted
from megatron.files import sha256
from megatron.locks import is_held

LISTING, ARRIVED = "files.json", "files.arrived.json"
Listing = dict[str, dict[str, Any]]  # {name below the folder: {"bytes", "sha256"}}
Say = Callable[[str], None]


def listing_of(folder: Path) -> Listing:
    """What a copy holds: all files but hidden ones. Raises MissingInput for a folder without any, CannotWrite for one in use."""
    if is_held(folder):
        raise CannotWrite(f"{folder} is written by a run that is on: wait until it has ended")
    found: Listing = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts) and str(name) not in (LISTING, ARRIVED):
            found[name.as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    if not found:
        raise MissingInput(f"{folder} has no file to copy: give the folder of a run or a corpus")
    return found


def parse_listing(data: bytes | None, where: str) -> Listing | None:
    """Raises BadData, and Untrusted for names that lead out of the folder."""
    if data is None:
        return None
    try:
        files = json.loads(data)["files"]
        names = {name: (int(stated["bytes"]), str(stated["sha256"])) for name, stated in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadData(f"{where} is damaged, expected a list of files with bytes and sha256: upload the folder anew") from None
    if not names:
        raise BadData(f"{where} lists no files: upload the folder anew")
    for name in names:
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise Untrusted(f"{where} lists {name!r:.80}, which leads out of the folder")
    return files


def send(folder: Path, url: str, say: Say = print) -> None:
    """A folder to a URL, replacing an earlier copy there. Raises MissingInput, CannotWrite."""
    files, url = listing_of(folder), url.rstrip("/")
    with remote(url, CannotWrite) as (store, path):
        whole = parse_listing(read(store, f"{path}/{LISTING}"), f"{url}/{LISTING}")
        if whole == files:
            say(f"{url}: already there")
            return
        before = whole or parse_listing(read(store, f"{path}/{ARRIVED}"), f"{url}/{ARRIVED}") or {}
        arrived = {name: stated for name, stated in before.items() if files.get(name, stated) == stated}  # also what must go
        store.makedirs(path, exist_ok=True)
        write(store, f"{path}/{ARRIVED}", arrived)
        if whole is not None:
            store.rm_file(f"{path}/{LISTING}")
        for name, stated in files.items():
            there = f"{path}/{name}"
            if name in arrived and store.exists(there) and store.size(there) == stated["bytes"]:
                continue
            store.makedirs(there.rpartition("/")[0], exist_ok=True)
            store.put_file(str(folder / name), there)
            if (size := store.size(there)) != stated["bytes"]:
                raise CannotWrite(f"{url}/{name}: {size} of {stated['bytes']} bytes arrived; the same command goes on")
            arrived[name] = stated
            write(store, f"{path}/{ARRIVED}", arrived)
        for name in before.keys() - files.keys():
            if store.exists(f"{path}/{name}"):
                store.rm_file(f"{path}/{name}")
        write(store, f"{path}/{LISTING}", files)
        store.rm_file(f"{path}/{ARRIVED}")
    say(f"{url}: {len(files)} files, {sum(stated['bytes'] for stated in files.values()):,} bytes, checked")


def receive(url: str, folder: Path, say: Say = print) -> None:
    """A whole copy from a URL. Raises MissingInput, BadData, Untrusted, and CannotWrite where the folder holds something else."""
    url = url.rstrip("/")
    with remote(url, MissingInput) as (store, path):
        files = parse_listing(read(store, f"{path}/{LISTING}"), f"{url}/{LISTING}")
        if files is None:
            raise MissingInput(f"{url} holds no whole copy ({LISTING}): upload it with tools/transfer.py, or check the URL")
        if folder.exists() and any(folder.iterdir()):
            if listing_of(folder) != files:
                raise CannotWrite(f"{folder} holds something else than {url}: choose another folder, or move it away")
            say(f"{folder}: already there")
            return
        aside = folder.parent / f".{folder.name}.coming"
        for name, stated in files.items():
            fetch(store, f"{path}/{name}", aside / name, stated, f"{url}/{name}")
        for path_aside in [one for one in aside.rglob("*") if one.is_file()]:
            if path_aside.relative_to(aside).as_posix() not in files:  # of another copy
                path_aside.unlink()
        if folder.exists():
            folder.rmdir()
        os.replace(aside, folder)
    say(f"{folder}: {len(files)} files, {sum(stated['bytes'] for stated in files.values()):,} bytes, checked")


def fetch(store: Any, name: str, target: Path, stated: dict[str, Any], where: str) -> None:
    """One file, unless it is there already. Raises BadData, MissingInput, CannotWrite."""
    if target.is_file() and target.stat().st_size == stated["bytes"] and sha256(target) == stated["sha256"]:
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"{target.parent} cannot be made: {error.strerror}; choose another folder") from None
    if not store.exists(name):
        raise BadData(f"{where} is missing, though {LISTING} lists it: upload the folder anew")
    store.get_file(name, str(target))
    size, found = target.stat().st_size, sha256(target)
    if (size, found) != (stated["bytes"], stated["sha256"]):
        target.unlink()
        raise BadData(
            f"{where}: {size} bytes with sha256 {found[:16]} arrived, expected {stated['bytes']} with {stated['sha256'][:16]}: "
            "fetch it again, or upload the folder anew"
        )


def read(store: Any, path: str) -> bytes | None:
    return store.cat_file(path) if store.exists(path) else None


def write(store: Any, path: str, files: Listing) -> None:
    store.pipe_file(path, json.dumps({"files": files}, indent=1).encode())


def refuse_unreachable(url: str) -> None:
    """Raises MissingInput, CannotWrite before there is anything to lose."""
    with remote(url, CannotWrite) as (store, path):
        store.exists(path)
