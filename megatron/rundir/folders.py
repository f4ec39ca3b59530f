"""The run folders below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron.errors import BadData, MissingInput
from megatron.files import is_there, read_json
from megatron.rundir.fields import OBJECT, OBJECTS, OF_FILE, check_fields
from megatron.rundir.names import MARKS

NESTED = ((OBJECT,), (OBJECTS,))  # null in their place is as good as nothing
REMEDY = "start the run again, or move the folder away"


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in MARKS)


def find_runs(folders: Iterable[str | Path]) -> list[Path]:
    """The run folders at or below these, sorted, each once; none may be among them. Raises MissingInput for what is no folder."""
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise MissingInput(f"{folder}: no such folder; give run directories or folders of them.")
        for path in walk(folder):
            if found.get(path.resolve(), path).is_symlink():
                found[path.resolve()] = path
            else:
                found.setdefault(path.resolve(), path)
    return sorted(found.values())


def walk(folder: Path) -> Iterator[Path]:
    """A checkpoint below a run is no run. A link to a run is one; other links are not followed: they may lead round."""
    for path, below, files in os.walk(folder):
        if not MARKS.isdisjoint(files):
            below.clear()
            yield Path(path)
        yield from (link for name in below if (link := Path(path, name)).is_symlink() and is_run(link))


def read_file(folder: Path, name: str) -> dict:
    """What one JSON file of a run folder holds; {} where there is none, and without objects that are null.

    Raises BadData naming file and field, MissingInput for a link to nothing.
    """
    path = Path(folder) / name
    if not is_there(path):
        return {}
    if not path.is_file():
        raise BadData(f"{path}: is no regular file; {REMEDY}")
    found = read_json(path, REMEDY)
    fields = OF_FILE.get(name, {})
    check_fields(str(path), found, fields, REMEDY)
    return {key: value for key, value in found.items() if value is not None or fields.get(key, "")[:1] not in NESTED}
