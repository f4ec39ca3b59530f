"""Checkpoints: safetensors shards and a JSON manifest with hashes, published by one rename.

    folder/step-00000200/{shard-00001.safetensors, ..., manifest.json}      folder/latest (a hint for people, never trusted)

The manifest vouches for every byte: each file's size and header, each tensor's data, and itself. Nothing is written into an
existing directory, nothing unpickles, and no tensor is returned before all of them were verified.
"""
from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from megatron.errors import BadData, CannotWrite, Mismatch, MissingInput, Refusal, Untrusted
from megatron.files import sync_folder, write_synced

FORMAT_VERSION = 1
SHARD_BYTES = 2 << 30
HEADER_BYTES = 100_000_000          # the longest header that safetensors accepts
MANIFEST_BYTES = 1 << 20            # room asked for beside the tensors
HASH_THREADS = min(8, os.cpu_count() or 1)
ABANDONED_SECONDS = 24 * 3600       # a temporary of another machine, whose processes cannot be seen, is dead after this
CHECKPOINT = re.compile(r"step-([0-9]+)(?:\.a([0-9]+))?")
SHARD = re.compile(r"[A-Za-z0-9_-]+\.safetensors")
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
          torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}
DTYPE_OF = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint, in memory."""
    path: Path
    step: int
    facts: dict                     # what the trainer wrote beside the tensors
    tensors: dict[str, Tensor]      # by logical name, with full shapes


# Saving

def save(folder: Path, step: int, tensors: dict[str, Tensor], facts: dict, *, audit: bool = True,
         say: Callable[[str], None] = print) -> Path:
    """Publish one checkpoint and return its directory; earlier ones stay as they are, whatever happens.

    `facts` is plain JSON. Raises BadData for a NaN or Inf (unless not `audit`), CannotWrite for lack of space or permission.
    """
    folder = Path(folder)
    check_tensors(step, tensors, audit)
    needed = sum(t.nbytes for t in tensors.values()) + MANIFEST_BYTES
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, say)
        if free_bytes(folder) < needed:
            raise OSError(errno.ENOSPC, "No space left on device")
        path = write_and_publish(folder, step, tensors, facts)
    except OSError as error:
        raise CannotWrite(f"checkpoint {folder}/step-{step:08d} was not written: {error.strerror}; it needs {needed} bytes, "
                          f"{free_bytes(folder)} are free; earlier ones are intact: make room, or give another --save") from error
    write_latest(folder, path.name, say)
    return path


def check_tensors(step: int, tensors: dict[str, Tensor], audit: bool) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise BadData(f"tensor {name} is {tensor.dtype}: a checkpoint holds {', '.join(DTYPE_OF)}")
        if audit and tensor.is_floating_point() and tensor.numel():
            # min and max carry every NaN and Inf in one pass, without a mask of the tensor's size
            if not all(bound.isfinite() for bound in torch.aminmax(tensor.detach())):
                raise BadData(f"tensor {name} holds NaN or Inf: step {step} was not saved; earlier checkpoints are intact")


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())).free


def write_and_publish(folder: Path, step: int, tensors: dict[str, Tensor], facts: dict) -> Path:
    aside = aside_path(folder, f"step-{step:08d}")
    files, entries = {}, {}
    try:
        aside.mkdir()
        for number, shard in enumerate(cut_shards(tensors), 1):
            file = aside / f"shard-{number:05d}.safetensors"
            files[file.name], written = write_shard(file, shard)
            entries |= {entry["name"]: entry for entry in written}
        manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files,
                    "tensors": [entries[name] for name in tensors], "facts": facts}
        write_synced(aside / "manifest.json", render(manifest))
        sync_folder(aside)
        return publish(aside, folder, step)
    finally:
        shutil.rmtree(aside, ignore_errors=True)        # gone already if it was published


def aside_path(folder: Path, name: str) -> Path:
    """A temporary's name tells later runs whether its writer still lives."""
    return folder / f".tmp-{name}-{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"


def cut_shards(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Shards of at most SHARD_BYTES, or of one tensor; wide types first, so that all data is aligned without padding."""
    shards, room = [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
        if not shards or tensor.nbytes > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards


def write_shard(path: Path, tensors: dict[str, Tensor]) -> tuple[dict, list[dict]]:
    """One safetensors file (header length, JSON header, little-endian data); the manifest's records of it and its tensors."""
    header, stop = {}, 0
    for name, tensor in tensors.items():
        start, stop = stop, stop + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    records = [{"name": name, "dtype": entry["dtype"], "shape": entry["shape"], "slice": [[0, n] for n in entry["shape"]],
                "file": path.name, "offset": len(head) + entry["data_offsets"][0]} for name, entry in header.items()]
    with open(path, "xb") as file, ThreadPoolExecutor(HASH_THREADS) as hasher:
        file.write(head)
        hashes = [write_and_hash(file, tensor, hasher) for tensor in tensors.values()]
        file.flush()
        os.fsync(file.fileno())
    return ({"bytes": len(head) + stop, "header_sha256": sha256(head)},
            [record | {"sha256": digest.result()} for record, digest in zip(records, hashes)])


def write_and_hash(file: BinaryIO, tensor: Tensor, hasher: ThreadPoolExecutor) -> Future:
    """Write the raw bytes while another thread hashes them; copies only what is on a device or not contiguous."""
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest = hasher.submit(sha256, data)
    file.write(data)
    return digest


def sha256(data) -> str:
    return hashlib.sha256(data).hexdigest()


def render(manifest: dict) -> bytes:
    """The manifest's one legal spelling; its hash is over the compact JSON of all else, in the same order."""
    own = sha256(json.dumps(manifest, separators=(",", ":")).encode())
    return json.dumps(manifest | {"manifest_sha256": own}, indent=1).encode()


def publish(aside: Path, folder: Path, step: int) -> Path:
    """Rename to step-N, or to step-N.a1, .a2 ... past every earlier attempt at that step."""
    attempts = [attempt for at, attempt in map(step_and_attempt, os.listdir(folder)) if at == step]
    suffix = f".a{max(attempts) + 1}" if attempts else ""
    path = folder / f"step-{step:08d}{suffix}"
    os.rename(aside, path)
    sync_folder(folder)
    return path


def write_latest(folder: Path, name: str, say: Callable[[str], None]) -> None:
    aside = aside_path(folder, "latest")
    try:
        write_synced(aside, f"{name}\n".encode())
        os.replace(aside, folder / "latest")
    except OSError as error:                            # the checkpoint is published; a hint is not worth a run
        say(f"{folder / 'latest'} could not be written ({error.strerror}); {name} is complete and will be found without it")
        aside.unlink(missing_ok=True)


# Finding, keeping, removing

def step_and_attempt(name: str) -> tuple[int, int]:
    """(200, 1) for step-00000200.a1; (-1, -1) for any other name."""
    match = CHECKPOINT.fullmatch(name)
    return (int(match[1]), int(match[2] or 0)) if match else (-1, -1)


def find(folder: Path) -> list[Path]:
    """Checkpoint directories, the newest (highest step, then attempt) first, whether they are intact or not."""
    folder = Path(folder)
    try:
        names = [n for n in os.listdir(folder) if CHECKPOINT.fullmatch(n) and (folder / n).is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise MissingInput(f"{folder} cannot be listed ({error.strerror}): checkpoints are sought in it") from error
    return [folder / n for n in sorted(names, key=step_and_attempt, reverse=True)]


def retain(folder: Path, keep_last: int | None, keep_every: int | None = None, best: Path | None = None,
           say: Callable[[str], None] = print) -> None:
    """Delete all but the `keep_last` newest, multiples of `keep_every`, the best, and what `latest` names; None keeps all.

    Only complete checkpoints are counted or deleted: a damaged one is left for a person to look at.
    """
    if keep_last is None:
        return
    complete = [path for path in find(folder) if is_complete(path)]
    keep = {path.name for path in complete[:max(1, keep_last)]} | {best.name if best else "", read_latest(Path(folder))}
    for path in complete:
        if path.name not in keep and not (keep_every and step_and_attempt(path.name)[0] % keep_every == 0):
            trash = path.with_name(f".trash-{path.name}-{secrets.token_hex(4)}")
            try:
                os.rename(path, trash)                  # from here on it is no checkpoint, even if unlinking is cut short
                remove(trash)
            except OSError as error:
                say(f"the old checkpoint {path} could not be deleted: {error.strerror}")


def is_complete(path: Path) -> bool:
    """Its manifest is intact and all its files have the right size; their data is not read."""
    try:
        files = read_manifest(path)["files"]
        return all((path / name).stat().st_size == record["bytes"] for name, record in files.items())
    except (Refusal, OSError):
        return False


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_leftovers(folder: Path, say: Callable[[str], None]) -> None:
    """Remove what a killed run left: half-deleted checkpoints, and temporaries whose writer is dead."""
    for path in sorted(folder.iterdir()):
        try:
            if path.name.startswith(".trash-") or path.name.startswith(".tmp-") and is_abandoned(path):
                remove(path)
                say(f"removed {path}, left by a run that was killed")
        except OSError as error:
            say(f"{path}, left by a run that was killed, could not be removed: {error.strerror}")


def is_abandoned(path: Path) -> bool:
    writer, pid = path.name.rsplit("-", 2)[:2]
    if not (writer.endswith(f"-{platform.node()}") and pid.isdecimal()):
        return time.time() - path.lstat().st_mtime > ABANDONED_SECONDS
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(pid) == os.getpid()                      # a container's restarted process has its predecessor's number


# Loading

def load(path: Path, names: Collection[str] | None = None, say: Callable[[str], None] = print) -> Checkpoint:
    """One checkpoint (no other will do), or the newest good one of a folder; `names` picks tensors, all are verified.

    Raises BadData naming file and tensor, MissingInput where there is none, Untrusted, Mismatch.
    """
    path = Path(path)
    if CHECKPOINT.fullmatch(path.name) or (path / "manifest.json").exists():
        if not path.is_dir():
            others = ", ".join(other.name for other in find(path.parent))
            raise MissingInput(f"there is no checkpoint {path}; its folder holds {others or 'none'}: check --load")
        return read(path, names)
    checkpoint = load_latest(path, names, say)
    if checkpoint is None:
        raise MissingInput(f"there is no checkpoint in {path}: expected step-00000100 or the like; check --load")
    return checkpoint


def load_latest(folder: Path, names: Collection[str] | None = None, say: Callable[[str], None] = print) -> Checkpoint | None:
    """The newest good checkpoint of a folder, saying which were refused; None where there are none at all."""
    found = find(folder)
    check_latest(Path(folder), [path.name for path in found], say)
    for path in found:
        try:
            checkpoint = read(path, names)
        except BadData as error:
            say(f"checkpoint {path.name} is refused: {error}")
            continue
        if path != found[0]:
            say(f"going on from {path}, the newest good checkpoint")
        return checkpoint
    if found:
        raise BadData(f"none of the {len(found)} checkpoints in {folder} is intact: restore one, or start anew in another folder")
    return None


def read_latest(folder: Path) -> str:
    """What `latest` says; empty if it cannot be read or is no plain file."""
    try:
        with open_regular(folder / "latest") as file:
            return file.read(256).decode().strip()
    except (OSError, ValueError, Untrusted):
        return ""


def check_latest(folder: Path, found: list[str], say: Callable[[str], None]) -> None:
    if not os.path.lexists(folder / "latest"):
        return
    hint = read_latest(folder)
    if hint not in found:
        say(f"{folder / 'latest'} is ignored: it holds {hint!r}, which is no checkpoint of this folder")
    elif hint != found[0]:
        say(f"{folder / 'latest'} names {hint}, but {found[0]} is newer and is tried first")


def verify(path: Path) -> None:
    """Read every byte of one checkpoint against its manifest; raises BadData naming file and tensor."""
    read(Path(path), names=())


def read(path: Path, names: Collection[str] | None) -> Checkpoint:
    manifest = read_manifest(path)
    with damage_refused(path / "manifest.json"):
        entries = manifest["tensors"]
        missing = sorted(set(names or ()) - {entry["name"] for entry in entries})
        if missing:
            raise Mismatch(f"{path} lacks {len(missing)} tensors of the model ({', '.join(missing[:20])}): check its flags")
        for name, record in manifest["files"].items():
            check_file(path / name, record)
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            tensors = list(pool.map(lambda entry: read_tensor(path, entry, names is None or entry["name"] in names), entries))
        return Checkpoint(path=path, step=manifest["step"], facts=manifest["facts"],
                          tensors={entry["name"]: tensor for entry, tensor in zip(entries, tensors) if tensor is not None})


@contextmanager
def damage_refused(file: Path) -> Iterator[None]:
    """Whatever an unreadable or malformed file makes Python raise becomes BadData that names it."""
    try:
        yield
    except OSError as error:
        raise BadData(f"{file} cannot be read: {error.strerror}") from error
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise BadData(f"{file} is damaged: {type(error).__name__}: {error}") from error


def open_regular(path: Path) -> BinaryIO:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise Untrusted(f"{path} is a link or no regular file: a checkpoint holds plain files of its own")
    return open(path, "rb")


def read_manifest(path: Path) -> dict:
    file = path / "manifest.json"
    with damage_refused(file):
        with open_regular(file) as opened:
            text = opened.read()
        manifest = json.loads(text)
        version = manifest["format_version"]
        if version > FORMAT_VERSION:
            raise Mismatch(f"{file} has format version {version}, and this program reads {FORMAT_VERSION}: use a newer one")
        for name in (*manifest["files"], *(entry["file"] for entry in manifest["tensors"])):
            if not SHARD.fullmatch(name):
                raise Untrusted(f"{file} names {name!r}: a checkpoint's files lie beside its manifest and end in .safetensors")
        own = manifest.pop("manifest_sha256")
        if text != render(manifest):
            raise BadData(f"{file} is damaged: its content does not agree with its sha256 {own}")
    return manifest


def check_file(file: Path, record: dict) -> None:
    """Size and header of one shard; its data is checked tensor by tensor."""
    with damage_refused(file), open_regular(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        if size != record["bytes"]:
            raise BadData(f"{file} has {size} bytes, expected {record['bytes']}")
        length = opened.read(8)
        actual = sha256(length + opened.read(min(int.from_bytes(length, "little"), HEADER_BYTES)))
        if actual != record["header_sha256"]:
            raise BadData(f"{file}: the header has sha256 {actual}, expected {record['header_sha256']}")


def read_tensor(path: Path, entry: dict, wanted: bool) -> Tensor | None:
    """Check one tensor's hash; returned in memory of its own, if wanted: the file is never mapped."""
    file, name, shape = path / entry["file"], entry["name"], entry["shape"]
    with damage_refused(file), open_regular(file) as opened:
        if entry["slice"] != [[0, n] for n in shape]:
            raise BadData(f"{file}: tensor {name} is the slice {entry['slice']} of {shape}, expected the whole")
        dtype = DTYPE_OF[entry["dtype"]]
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes > os.fstat(opened.fileno()).st_size:
            raise BadData(f"{file}: tensor {name} has {num_bytes} bytes, more than its file")
        data = torch.empty(num_bytes, dtype=torch.uint8)
        opened.seek(entry["offset"])
        opened.readinto(data.numpy())
        actual = sha256(data.numpy())
        if actual != entry["sha256"]:
            raise BadData(f"{file}: tensor {name} has sha256 {actual}, expected {entry['sha256']}")
        return data.view(dtype).reshape(shape) if wanted else None
