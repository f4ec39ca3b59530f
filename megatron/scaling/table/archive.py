"""One citable file: tables, configurations, fits and figures, with a manifest of their SHA-256 and a README.

The same files give the same bytes: fixed order, fixed times, no names of machines. Checkpoints and data stay out.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import megatron
from megatron.errors import BadData, CannotWrite, MissingInput, Untrusted
from megatron.files import sha256, staged
from megatron.rundir.folders import is_run, read_file
from megatron.rundir.names import CONFIG, FACTS, METRICS, RESULT
from megatron.scaling.table.runs import read_result

SUFFIXES = {".cff", ".csv", ".html", ".json", ".jsonl", ".md", ".pdf", ".png", ".svg", ".txt"}
RUN_RECORDS = (CONFIG, METRICS, RESULT, FACTS)
MANIFEST = "MANIFEST.sha256"
MADE = ("README.md", "table.jsonl", MANIFEST)
TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold


def pack(paths: Iterable[str | Path], archive: str | Path, title: str, author: str) -> list[str]:
    """Write the archive of these run directories, folders and files; gives the names in it.

    Of a run directory its records are taken, of another folder the tables, texts and figures below it. Raises MissingInput
    for a path that holds nothing, CannotWrite where the archive exists or two paths would take one name, Untrusted for a link
    that leads out of the folder.
    """
    archive = Path(archive)
    if archive.exists():
        raise CannotWrite(f"{archive} exists, and an archive is never replaced; give another --out, or move it away.")
    files = _collect(map(Path, paths))
    rows = [
        read_result(path.parent) | {"run": path.parent.name} for _, path in sorted(files.items()) if path.name == "result.json"
    ]
    made = {"table.jsonl": "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()} if rows else {}
    made["README.md"] = _readme(title, author, files, _code_versions(files)).encode()
    digests = {name: sha256(path) for name, path in files.items()}
    digests |= {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}
    made[MANIFEST] = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()
    with staged(archive.parent) as stage, zipfile.ZipFile(stage / archive.name, "w") as packed:
        for name in sorted(files | made):
            packed.writestr(_entry(name), made[name] if name in made else files[name].read_bytes())
    return sorted(files | made)


def check(archive: str | Path) -> int:
    """Compare every file of the archive with its manifest; gives their number.

    Raises MissingInput where there is no archive, BadData with the names that are damaged, missing or added, and Untrusted for
    names that would leave the folder they are unpacked into.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            names = packed.namelist()
            _refuse_escapes(archive, names)
            if MANIFEST not in names:
                raise BadData(f"{archive}: no {MANIFEST}; it was not written by `archive`.")
            stated = _read_manifest(archive, packed.read(MANIFEST))
            found = {name: _digest_in(packed, name) for name in names if name != MANIFEST}
    except FileNotFoundError:
        raise MissingInput(f"{archive}: no such file; give the archive that --check is to verify.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise BadData(f"{archive}: damaged ({error}); fetch it again.") from None
    wrong = [f"{name} is missing" for name in stated if name not in found]
    wrong += [f"{name} is not in the manifest" for name in found if name not in stated]
    wrong += [f"{name} has other contents" for name in found if name in stated and found[name] != stated[name]]
    if wrong or len(set(names)) != len(names):
        raise BadData(f"{archive}: {'; '.join(wrong[:5]) or 'a name stands twice in it'}; fetch it again.")
    return len(found)


def _collect(paths: Iterable[Path]) -> dict[str, Path]:
    """Name in the archive -> file."""
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise MissingInput(f"{path}: no such file or folder; give run directories, report folders or tables.")
        taken = {path.name: path} if path.is_file() else _collect_folder(path, path.resolve())
        if not taken:
            raise MissingInput(f"{path}: nothing to archive in it (records of runs, {', '.join(sorted(SUFFIXES))}).")
        for name, file in taken.items():
            if name in MADE or (name in found and found[name].resolve() != file.resolve()):
                raise CannotWrite(f"{file}: {name} would stand twice in the archive; rename one of them.")
            found[name] = file
    return found


def _collect_folder(folder: Path, given: Path) -> dict[str, Path]:
    root = folder.resolve()
    found: dict[str, Path] = {}
    if is_run(root):
        records = [root / name for name in RUN_RECORDS if (root / name).is_file()]
        return {f"runs/{root.name}/{path.name}": path for path in records if not _stands_elsewhere(path, given)}
    for path in sorted(root.iterdir()):
        if _stands_elsewhere(path, given):
            continue
        if path.is_dir() and not path.name.startswith("."):
            below = _collect_folder(path, given)
            found |= {name if name.startswith("runs/") else f"{root.name}/{name}": file for name, file in below.items()}
        elif path.is_file() and path.suffix in SUFFIXES and not path.name.startswith("."):
            found[f"{root.name}/{path.name}"] = path
    return found


def _stands_elsewhere(path: Path, given: Path) -> bool:
    """Whether it is a link to what is taken at its own place. Raises Untrusted for one that leads out of the folder given."""
    if path.is_symlink() and not path.resolve().is_relative_to(given):
        raise Untrusted(
            f"{path} is a link to {path.resolve()}, outside of what is archived; name that path, or put a copy there."
        )
    return path.is_symlink()


def _code_versions(files: dict[str, Path]) -> list[str]:
    """The commits that trained the runs, as their run.json state them."""
    stated = {read_file(path.parent, FACTS).get("code") for path in files.values() if path.name == FACTS}
    return sorted(str(code) for code in stated if code)


def _readme(title: str, author: str, files: dict[str, Path], codes: list[str]) -> str:
    runs = sorted({name.split("/")[1] for name in files if name.startswith("runs/")})
    trained = f"trained by code version {', '.join(codes)} (+: with local changes)" if codes else "of no stated code version"
    table = "runs" if runs else next((name for name in files if name.endswith((".csv", ".jsonl"))), "TABLE")
    key = "".join(letter for letter in title.lower() if letter.isalnum())[:24] or "archive"
    return f"""# {title}

{author}. {len(runs)} run(s), {trained}; packed by megatron-scaling {megatron.__version__}.

## What is here
- `runs/NAME/`: config.json (every resolved setting), run.json (code, environment, fingerprints, seeds, resumes),
  metrics.jsonl (every record) and result.json (final numbers, with errors) of each run
- `table.jsonl`: the results, a row for each run
- fits (`fit.json`), tables, figures (PNG, PDF) and `report.html`, which opens in any browser
- `{MANIFEST}`: `sha256sum -c {MANIFEST}`, or `python tools/scaling_laws.py archive --check FILE`

## How to reproduce
1. Install the code version above.
2. The analysis: `python tools/scaling_laws.py report {table} --out report`
3. A run: its config.json holds every flag, its run.json the fingerprints of tokenizer and data that it needs.

## How to cite
```
@misc{{{key}, title = {{{title}}}, author = {{{author}}},
  note = {{runs, fits and figures; identified by the SHA-256 of this archive's {MANIFEST}}}}}
```
"""


def _digest_in(packed: zipfile.ZipFile, name: str) -> str:
    with packed.open(name) as file:
        return sha256(file)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, TIME)
    entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
    return entry


def _read_manifest(archive: str | Path, text: bytes) -> dict[str, str]:
    lines = [line.partition("  ") for line in text.decode("utf-8", errors="replace").splitlines()]
    if not all(len(digest) == 64 and name for digest, _, name in lines):
        raise BadData(f"{archive}: {MANIFEST} is not a list of SHA-256 and names; fetch it again.")
    return {name: digest for digest, _, name in lines}


def _refuse_escapes(archive: str | Path, names: list[str]) -> None:
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise Untrusted(f"{archive}: {name!r} would leave the folder it is unpacked into; do not unpack it.")
