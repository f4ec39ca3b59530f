"""Checkpoints: safetensors shards and a JSON manifest with hashes, published by one rename.

    folder/step-00000200/{shard-RANK-NUMBER.safetensors, ..., manifest.json}    folder/latest (a hint for people, never trusted)

Every rank writes the pieces that it holds: rectangles of logical tensors, which say nothing of the layout, so that any other
layout reads from them the rectangles that it needs. The manifest vouches for every byte: each file's size and header, each
piece's data, that the pieces of a tensor fill it, and itself. Nothing is written into an existing directory, nothing unpickles,
no tensor is touched before all of them were verified, and what one rank refuses, all refuse.
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
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedReader
from itertools import accumulate, islice, takewhile
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.core.mesh import ALONE, Group, agreed, all_reduce, gather_json
from megatron.errors import BadData, CannotWrite, Mismatch, MissingInput, Refusal, Untrusted
from megatron.files import sync_folder, write_synced
from megatron.rundir.names import CHECKPOINT, LATEST, MANIFEST, checkpoint_name, step_and_attempt, step_of

FORMAT_VERSION = 1
SHARD_BYTES = 2 << 30
HEADER_BYTES = 100_000_000  # the longest header that safetensors accepts
MANIFEST_BYTES = 1 << 20  # room asked for beside the tensors
HASH_THREADS = min(8, os.cpu_count() or 1)
DROP_SECONDS = 1.0  # for a write to end, of a checkpoint that is given up
NEW_NANOSECONDS = 2 * 10**9  # file systems tell times by seconds, at worst by two
ABANDONED_SECONDS = 24 * 3600  # a temporary of another machine, whose processes cannot be seen, is dead after this
SHARD = re.compile(r"[A-Za-z0-9_-]+\.safetensors")
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPE_OF = {name: dtype for dtype, name in DTYPES.items()}
Refuse = Callable[[int, dict], str]  # step, facts -> why not, or nothing
Box = Sequence[Sequence[int]]  # a rectangle: (start, stop) of each dimension
Stamp = tuple[int, ...]  # what a file system says of a file, other after any change


@dataclass(frozen=True, eq=False)
class Piece:
    """A rectangle of a logical tensor, and where its values are; `start` is its offset, the tensor's shape its extent."""

    name: str
    shape: tuple[int, ...]  # of the whole
    start: tuple[int, ...]
    tensor: Tensor

    @property
    def box(self) -> list[list[int]]:
        return [[start, start + n] for start, n in zip(self.start, self.tensor.shape)]


def whole(tensors: dict[str, Tensor]) -> list[Piece]:
    """Uncut tensors as pieces."""
    return [Piece(name, tuple(t.shape), (0,) * t.dim(), t) for name, t in tensors.items()]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint, on disk."""

    path: Path
    step: int
    facts: dict  # what the trainer wrote beside the tensors
    entries: list[dict]  # the manifest's record of every stored piece
    verified: dict[tuple, Stamp | None]  # by this process: {place of a piece: its file as it was then}
    refused: tuple[str, ...] = ()  # names of newer ones in its folder that were not good

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the whole tensors, by logical name."""
        return {entry["name"]: tuple(entry["shape"]) for entry in self.entries}

    def names(self) -> list[str]:
        return list(self.shapes)

    def fill(self, pieces: Iterable[Piece]) -> None:
        """Copy into each piece's tensor, on whatever device, the rectangle that it asks for.

        Hashes are checked of what another rank verified, and of files that are not as they were when this one did. Raises
        Mismatch before anything is touched, and BadData if a file changed since it was verified.
        """
        wanted = defaultdict(list)
        for piece in pieces:
            wanted[piece.name].append(piece)
        refuse_misfits(self.path, self.shapes, wanted)
        jobs = [
            (entry, met, self.verified.get(place(entry)))
            for entry in self.entries
            if (met := [p for p in wanted.get(entry["name"], ()) if volume(common(entry["slice"], p.box))])
        ]
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            for _ in pool.map(lambda job: copy_entry(self.path, *job), jobs):
                pass

    def tensors(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Whole tensors in memory of their own: those named, or all. Raises Mismatch naming what is missing."""
        shapes, dtypes = self.shapes, {entry["name"]: DTYPE_OF[entry["dtype"]] for entry in self.entries}
        names = list(shapes if names is None else names)
        if missing := [name for name in names if name not in shapes]:
            raise Mismatch(f"{self.path} lacks {len(missing)} tensors ({', '.join(missing[:20])})")
        found = {name: torch.empty(shapes[name], dtype=dtypes[name]) for name in names}
        self.fill(whole(found))
        return found


def refuse_misfits(path: Path, shapes: dict[str, tuple[int, ...]], wanted: dict[str, list[Piece]]) -> None:
    """Raises Mismatch naming what is missing or has another shape."""
    wrong = [f"{name} is missing" for name in wanted if name not in shapes]
    wrong += [
        f"{name} has shape {list(shapes[name])}, expected {list(pieces[0].shape)}"
        for name, pieces in wanted.items()
        if name in shapes and shapes[name] != tuple(pieces[0].shape)
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise Mismatch(f"{path} does not fit the model: {'; '.join(wrong[:5])}{more}: check the model's flags")


# Saving


class Saving:
    """A checkpoint of all ranks' pieces on its way: `finish` publishes it; earlier ones stay as they are, whatever happens.

    All ranks make one and finish or drop it, each where the others do; at most one in a folder. `facts` is plain JSON, rank
    0's counts. `beside`: a thread writes copies of the pieces, which may change from here on. It talks to no other rank: what
    needs all of them, the manifest and the rename too, is `finish`'s.

    Raises BadData for a NaN or Inf (unless not `audit`) and for pieces that do not fill their tensors, CannotWrite for lack
    of space, permission or, `beside`, memory.
    """

    def __init__(
        self,
        folder: str | Path,
        step: int,
        pieces: list[Piece],
        facts: dict,
        *,
        group: Group = ALONE,
        audit: bool = True,
        say: Callable[[str], None] = print,
        beside: bool = False,
    ):
        self.folder, self.step, self.facts, self.group, self.say = Path(folder), step, facts, group, say
        self.aside: Path | None = None
        self.future: Future | None = None
        with agreed(group):
            check_pieces(step, pieces, audit)
        self.needed = sum(gather_json(sum(piece.tensor.nbytes for piece in pieces), group)) + MANIFEST_BYTES
        try:
            with self.refused():
                if group.rank == 0:
                    self.aside = make_aside(self.folder, checkpoint_name(step), self.needed, say)
                held = copies(pieces) if beside else pieces
            aside = self.folder / gather_json(self.aside and self.aside.name, group)[0]
            self.write = partial(write_part, aside, group.rank, held)
            if beside:
                self.future = in_a_thread(self.write)
        except BaseException:
            self.clear()
            raise

    @contextmanager
    def refused(self) -> Iterator[None]:
        """What keeps one rank from writing keeps all, as CannotWrite."""
        with agreed(self.group), write_refused(self.folder / checkpoint_name(self.step), self.needed):
            yield

    def is_written(self) -> bool:
        """Whether `finish` need not wait for any rank's thread."""
        written = self.future is None or self.future.done()
        return bool(all_reduce(torch.tensor(int(written)), self.group, dist.ReduceOp.MIN))

    def finish(self) -> Path:
        """Publish it and return its directory. What a thread met on the way is raised here, and leaves nothing behind."""
        try:
            with self.refused():
                part = self.future.result() if self.future else self.write()
            parts, name = gather_json(part, self.group), ""
            with self.refused():
                if self.aside:
                    write_manifest(self.aside, self.step, parts, self.facts)
                    name = publish(self.aside, self.folder, self.step).name
            name = gather_json(name, self.group)[0]
        finally:
            self.clear()
        if self.group.rank == 0:
            write_latest(self.folder, name, self.say)
        return self.folder / name

    def drop(self) -> None:
        """Give it up, without a word to other ranks, which may be gone.

        A write that goes on leaves its temporary folder to a later save, which removes it.
        """
        if self.future:
            wait([self.future], DROP_SECONDS)
        self.clear()

    def clear(self) -> None:
        if self.aside:
            shutil.rmtree(self.aside, ignore_errors=True)  # gone already if it was published


def copies(pieces: list[Piece]) -> list[Piece]:
    """The same values in memory of their own on the CPU. Raises CannotWrite where there is not enough of it."""
    try:
        return [replace(piece, tensor=piece.tensor.detach().to("cpu", copy=True)) for piece in pieces]
    except (MemoryError, RuntimeError) as error:  # torch has no class of errors for the CPU's memory
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise CannotWrite(
            f"no checkpoint was written: --async-save found no CPU memory for a copy of {sum(p.tensor.nbytes for p in pieces)} "
            "bytes; earlier ones are intact: leave the flag out, or give each process more memory"
        ) from error


def in_a_thread(work: Callable[[], Any]) -> Future:
    """A daemon's: a process that ends does not wait for it, as it would for those of a pool."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="save", daemon=True).start()
    return future


def check_pieces(step: int, pieces: list[Piece], audit: bool) -> None:
    for name, tensor in ((piece.name, piece.tensor) for piece in pieces):
        if tensor.dtype not in DTYPES:
            raise BadData(f"tensor {name} is {tensor.dtype}: a checkpoint holds {', '.join(DTYPE_OF)}")
        if audit and tensor.is_floating_point() and tensor.numel():
            # min and max carry every NaN and Inf in one pass, without a mask of the tensor's size
            if not all(bound.isfinite() for bound in torch.aminmax(tensor.detach())):
                raise BadData(f"tensor {name} holds NaN or Inf: step {step} was not saved; earlier checkpoints are intact")


@contextmanager
def write_refused(path: Path, needed: int) -> Iterator[None]:
    """Whatever keeps a checkpoint from being written becomes CannotWrite."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"checkpoint {path} was not written: {error.strerror}; it needs {needed} bytes, "
            f"{free_bytes(path)} are free; earlier ones are intact: make room, or give another --save"
        ) from error


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())).free


def make_aside(folder: Path, name: str, needed: int, say: Callable[[str], None]) -> Path:
    """An empty temporary folder for all ranks to write into."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, say)
    if free_bytes(folder) < needed:
        raise OSError(errno.ENOSPC, "No space left on device")
    aside = aside_path(folder, name)
    aside.mkdir()
    return aside


def write_part(aside: Path, rank: int, pieces: list[Piece]) -> tuple[dict, list[dict]]:
    """Write a rank's shards; the manifest's records of files and pieces."""
    if not aside.is_dir():
        raise not_shared(aside.parent)
    files, entries = {}, []
    for number, shard in enumerate(cut_shards(pieces), 1):
        file = aside / f"shard-{rank:05d}-{number:05d}.safetensors"
        files[file.name], written = write_shard(file, shard)
        entries += written
    place = {piece.name: i for i, piece in enumerate(pieces)}
    return files, sorted(entries, key=lambda entry: place[entry["name"]])


def not_shared(folder: Path) -> CannotWrite:
    return CannotWrite(
        f"{folder} is not the same folder on every node ({platform.node()} lacks files that another wrote): "
        "give a --save on a file system that all nodes share"
    )


def write_manifest(aside: Path, step: int, parts: list[tuple[dict, list[dict]]], facts: dict) -> None:
    """The manifest of all ranks' parts, once their files are seen to be there."""
    files = {name: record for files, _ in parts for name, record in files.items()}
    entries = [entry for _, entries in parts for entry in entries]
    if any(not (aside / name).exists() for name in files):
        raise not_shared(aside.parent)
    check_tiling(f"step {step} was not saved", entries)
    manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files, "tensors": entries, "facts": facts}
    write_synced(aside / MANIFEST, render(manifest))
    sync_folder(aside)


def aside_path(folder: Path, name: str) -> Path:
    """A temporary's name tells later runs whether its writer still lives."""
    return folder / f".tmp-{name}-{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"


def cut_shards(pieces: list[Piece]) -> list[list[Piece]]:
    """Shards of at most SHARD_BYTES, or of one piece; wide types first, so that all data is aligned without padding."""
    shards: list[list[Piece]] = []
    room = 0
    for piece in sorted(pieces, key=lambda piece: -piece.tensor.element_size()):
        if not shards or piece.tensor.nbytes > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(piece)
        room -= piece.tensor.nbytes
    return shards


def write_shard(path: Path, pieces: list[Piece]) -> tuple[dict, list[dict]]:
    """One safetensors file (header length, JSON header, little-endian data); the manifest's records of it and its pieces."""
    header: dict[str, dict[str, Any]] = {}
    stop = 0
    for piece in pieces:
        start, stop = stop, stop + piece.tensor.nbytes
        header[key(piece)] = {
            "dtype": DTYPES[piece.tensor.dtype],
            "shape": list(piece.tensor.shape),
            "data_offsets": [start, stop],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    records = [
        {
            "name": piece.name,
            "dtype": entry["dtype"],
            "shape": list(piece.shape),
            "slice": piece.box,
            "file": path.name,
            "offset": len(head) + entry["data_offsets"][0],
        }
        for piece, entry in zip(pieces, header.values())
    ]
    with open(path, "xb") as file, ThreadPoolExecutor(HASH_THREADS) as hasher:
        file.write(head)
        hashes = [write_and_hash(file, piece.tensor, hasher) for piece in pieces]
        file.flush()
        os.fsync(file.fileno())
    return (
        {"bytes": len(head) + stop, "header_sha256": sha256(head)},
        [record | {"sha256": digest.result()} for record, digest in zip(records, hashes)],
    )


def key(piece: Piece) -> str:
    """The name in a shard: of a part, with its rectangle."""
    if tuple(piece.tensor.shape) == tuple(piece.shape):
        return piece.name
    return f"{piece.name}[{','.join(f'{start}:{stop}' for start, stop in piece.box)}]"


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
    path = folder / checkpoint_name(step, max(attempts) + 1 if attempts else 0)
    os.rename(aside, path)
    sync_folder(folder)
    return path


def write_latest(folder: Path, name: str, say: Callable[[str], None]) -> None:
    aside = aside_path(folder, LATEST)
    try:
        write_synced(aside, f"{name}\n".encode())
        os.replace(aside, folder / LATEST)
    except OSError as error:  # the checkpoint is published; a hint is not worth a run
        say(f"{folder / LATEST} could not be written ({error.strerror}); {name} is complete and will be found without it")
        aside.unlink(missing_ok=True)


# Finding, keeping, removing


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


def retain(
    folder: Path,
    keep_last: int | None,
    keep_every: int | None = None,
    best: Path | None = None,
    steps: Sequence[int] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Delete all but the `keep_last` newest, multiples of `keep_every`, the best, those of `steps`, and what `latest` names.

    Without `keep_last` all are kept.

    Only complete checkpoints are counted or deleted: a damaged one is left for a person to look at.
    """
    if keep_last is None:
        return
    complete = [path for path in find(folder) if facts_of_complete(path) is not None]
    keep = {path.name for path in complete[: max(1, keep_last)]} | {best.name if best else "", read_latest(Path(folder))}
    for path in complete:
        step = step_and_attempt(path.name)[0]
        if path.name not in keep and step not in steps and not (keep_every and step % keep_every == 0):
            trash = path.with_name(f".trash-{path.name}-{secrets.token_hex(4)}")
            try:
                os.rename(path, trash)  # from here on it is no checkpoint, even if unlinking is cut short
                remove(trash)
            except OSError as error:
                say(f"the old checkpoint {path} could not be deleted: {error.strerror}")


def facts_of_complete(path: Path) -> dict | None:
    """Facts of one whose manifest is intact and whose files have the right size, data unread; None of others, and of one gone."""
    try:
        manifest = read_manifest(path)
        with damage_refused(path / MANIFEST):
            whole = all((path / name).stat().st_size == record["bytes"] for name, record in manifest["files"].items())
            return manifest["facts"] if whole else None
    except (Refusal, OSError):
        return None


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
    return int(pid) == os.getpid()  # a container's restarted process has its predecessor's number


# Loading


def load(path: Path, *, group: Group = ALONE, say: Callable[[str], None] = print, refuse: Refuse | None = None) -> Checkpoint:
    """One checkpoint (no other will do), or the newest good one of a folder; every byte is verified, shared out over the ranks.

    `refuse`: why one of that step and facts will not do, the same on every rank. Raises BadData naming file and tensor,
    MissingInput where there is none, Untrusted, Mismatch: the same on every rank.
    """
    path, named = Path(path), False
    with agreed(group):
        if group.rank == 0:
            named = is_named(path)
    if gather_json(named, group)[0]:
        return read(path, group, refuse)
    checkpoint = load_latest(path, group=group, say=say, refuse=refuse)
    if checkpoint is None:
        raise MissingInput(f"there is no checkpoint in {path}: expected step-00000100 or the like; check --load")
    return checkpoint


def is_named(path: Path) -> bool:
    """Whether a path is one checkpoint and not a folder of them. Raises MissingInput."""
    named = bool(CHECKPOINT.fullmatch(path.name)) or (path / MANIFEST).exists()
    if named and not path.is_dir():
        others = ", ".join(other.name for other in find(path.parent))
        raise MissingInput(f"there is no checkpoint {path}; its folder holds {others or 'none'}: check --load")
    return named


def load_latest(
    folder: Path, *, group: Group = ALONE, say: Callable[[str], None] = print, refuse: Refuse | None = None
) -> Checkpoint | None:
    """The newest good checkpoint of a folder, rank 0 saying which were refused; None where there are none at all."""
    folder, names = Path(folder), []
    tell = say if group.rank == 0 else lambda line: None
    with agreed(group):
        if group.rank == 0:
            names = [path.name for path in find(folder)]
            check_latest(folder, names, tell)
    names = gather_json(names, group)[0]  # rank 0's: a listing may change between two looks
    for name in names:
        try:
            checkpoint = read(folder / name, group, refuse)
        except BadData as error:
            tell(f"checkpoint {name} is refused: {error}")
            continue
        if name != names[0]:
            tell(f"going on from {folder / name}, the newest good checkpoint")
        return replace(checkpoint, refused=tuple(names[: names.index(name)]))
    if names:
        raise BadData(
            f"none of the {len(names)} checkpoints in {folder} is intact and of the run's last start: "
            "restore one, or start anew in another folder"
        )
    return None


def read_latest(folder: Path) -> str:
    """What `latest` says; empty if it cannot be read or is no plain file."""
    try:
        with open_regular(folder / LATEST) as file:
            return file.read(256).decode().strip()
    except (OSError, ValueError, Untrusted):
        return ""


def check_latest(folder: Path, found: list[str], say: Callable[[str], None]) -> None:
    if not os.path.lexists(folder / LATEST):
        return
    hint = read_latest(folder)
    if hint not in found:
        say(f"{folder / LATEST} is ignored: it holds {hint!r}, which is no checkpoint of this folder")
    elif hint != found[0]:
        say(f"{folder / LATEST} names {hint}, but {found[0]} is newer and is tried first")


def verify(path: Path) -> None:
    """Read every byte of one checkpoint against its manifest; raises BadData naming file and tensor."""
    read(Path(path), ALONE)


def read(path: Path, group: Group, refuse: Refuse | None = None) -> Checkpoint:
    """One checkpoint, of which each rank has hashed its share. Raises BadData for a damaged one and for what `refuse` refuses."""
    with agreed(group):
        if not path.is_dir():
            raise MissingInput(f"{path} is not there on {platform.node()}: --load must be on a file system that all nodes share")
        manifest = read_manifest(path)
        with damage_refused(path / MANIFEST):
            if why := refuse and refuse(manifest["step"], manifest["facts"]):
                raise BadData(f"{path}: {why}")
            entries = manifest["tensors"]
            check_tiling(f"{path / MANIFEST} is damaged", entries)
            for name, record in islice(manifest["files"].items(), group.rank, None, group.size):
                check_file(path / name, record)
            mine = share(entries, group)
            with ThreadPoolExecutor(HASH_THREADS) as pool:
                stamps = list(pool.map(lambda entry: copy_entry(path, entry, []), mine))
            verified = {place(entry): stamp for entry, stamp in zip(mine, stamps)}
            checkpoint = Checkpoint(path=path, step=manifest["step"], facts=manifest["facts"], entries=entries, verified=verified)
    if len(set(gather_json(manifest["manifest_sha256"], group))) > 1:
        raise Mismatch(f"{path} is not the same checkpoint on every node: put one on a file system that all share")
    return checkpoint


def share(entries: list[dict], group: Group) -> list[dict]:
    """This rank's run of the entries, about as many bytes as every other's."""
    stops = list(accumulate(num_bytes(entry) for entry in entries))
    total = max(1, stops[-1]) if stops else 1
    return [entry for entry, stop in zip(entries, stops) if max(0, stop - 1) * group.size // total == group.rank]


def place(entry: dict) -> tuple[str, str, int]:
    """Of a stored piece; one without values may begin where another does."""
    return entry["file"], entry["name"], entry["offset"]


def num_bytes(entry: dict) -> int:
    return volume(entry["slice"]) * DTYPE_OF[entry["dtype"]].itemsize


def volume(box: Box) -> int:
    return math.prod(max(0, stop - start) for start, stop in box)


def common(a: Box, b: Box) -> list[tuple[int, int]]:
    """The rectangle that two share; its volume is 0 if they share none."""
    return [(max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b)]


def check_tiling(where: str, entries: list[dict]) -> None:
    """Raises BadData naming a tensor that its pieces do not fill, each place once."""
    parts = defaultdict(list)
    for entry in entries:
        parts[entry["name"]].append(entry)
    for name, found in parts.items():
        shape, boxes = found[0]["shape"], [entry["slice"] for entry in found]
        if any((entry["shape"], entry["dtype"]) != (shape, found[0]["dtype"]) for entry in found):
            raise BadData(f"{where}: the pieces of tensor {name} differ in shape or type")
        if any(len(box) != len(shape) or not all(0 <= a <= b <= n for (a, b), n in zip(box, shape)) for box in boxes):
            raise BadData(f"{where}: a piece of tensor {name} of shape {shape} lies outside of it")
        if overlapping(boxes):
            raise BadData(f"{where}: pieces of tensor {name} overlap")
        if sum(map(volume, boxes)) != math.prod(shape):
            raise BadData(f"{where}: the pieces of tensor {name} hold {sum(map(volume, boxes))} of its {math.prod(shape)} values")


def overlapping(boxes: list[Box]) -> bool:
    """Whether any two share a value; of rectangles in order, only those that begin before one ends are compared with it."""
    boxes = sorted((box for box in boxes if volume(box)), key=lambda box: [tuple(edges) for edges in box])
    return any(
        volume(common(box, other))
        for i, box in enumerate(boxes)
        for other in takewhile(partial(begins_within, box), islice(boxes, i + 1, None))
    )


def begins_within(box: Box, other: Box) -> bool:
    """Whether `other` begins before `box` ends, in the first dimension."""
    return not box or other[0][0] < box[0][1]


@contextmanager
def damage_refused(file: Path) -> Iterator[None]:
    """Whatever an unreadable or malformed file makes Python raise becomes BadData that names it."""
    try:
        yield
    except OSError as error:
        raise BadData(f"{file} cannot be read: {error.strerror}") from error
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise BadData(f"{file} is damaged: {type(error).__name__}: {error}") from error


def open_regular(path: Path) -> BufferedReader:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise Untrusted(f"{path} is a link or no regular file: a checkpoint holds plain files of its own")
    return open(path, "rb")


def read_manifest(path: Path) -> dict:
    file = path / MANIFEST
    if path.is_symlink():
        raise Untrusted(f"{path} is a link: a checkpoint is a folder of its own; give the one that it points to")
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
        own = manifest["manifest_sha256"]
        if text != render({name: value for name, value in manifest.items() if name != "manifest_sha256"}):
            raise BadData(f"{file} is damaged: its content does not agree with its sha256 {own}")
        if step_of(path.name) not in (None, manifest["step"]):
            raise BadData(f"{path} holds step {manifest['step']}: give the folder the name of its step again")
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


def copy_entry(path: Path, entry: dict, pieces: list[Piece], verified: Stamp | None = None) -> Stamp | None:
    """Read one stored piece, check its hash, and copy what each of `pieces` shares with it; the file is never mapped.

    -> the file's stamp; with `verified` the hash is checked only where the stamp is another
    """
    file, name = path / entry["file"], entry["name"]
    with damage_refused(file), open_regular(file) as opened:
        size, stamp = num_bytes(entry), stamp_of(opened)
        if size > os.fstat(opened.fileno()).st_size:
            raise BadData(f"{file}: tensor {name} has {size} bytes, more than its file")
        data = torch.empty(size, dtype=torch.uint8)
        opened.seek(entry["offset"])
        if opened.readinto(data.numpy()) < size:
            raise BadData(f"{file} ends within tensor {name}")
        unchanged = verified and stamp == verified == stamp_of(opened)  # a change during the read, too
        actual = entry["sha256"] if unchanged else sha256(data.numpy())
        if actual != entry["sha256"]:
            raise BadData(f"{file}: tensor {name} has sha256 {actual}, expected {entry['sha256']}")
    stored = data.view(DTYPE_OF[entry["dtype"]]).view([stop - start for start, stop in entry["slice"]])
    for piece in pieces:
        both = common(entry["slice"], piece.box)
        piece.tensor.detach()[within(both, piece.box)].copy_(stored[within(both, entry["slice"])])
    return stamp


def stamp_of(opened: BufferedReader) -> Stamp | None:
    """None of a file so new that another change might leave it the same time."""
    found = os.fstat(opened.fileno())
    changed = max(found.st_mtime_ns, found.st_ctime_ns)
    if time.time_ns() - changed < NEW_NANOSECONDS:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def within(box: Box, outer: Box) -> tuple[slice, ...]:
    return tuple(slice(start - begin, stop - begin) for (start, stop), (begin, _) in zip(box, outer))
