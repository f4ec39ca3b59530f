"""Text files to corpora, one a key: encoded block by block, journalled, published together."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron.data.encoding import SAFELY_CUT, Encoded, Recipe, encode_all, tokenizer_of
from megatron.data.indexed import IndexedDataset, IndexedWriter, best_dtype, retire
from megatron.data.journal import Journal, Progress, WorkFolder, written
from megatron.data.lineage import input_record
from megatron.data.prepare.shuffle import write_shuffled
from megatron.data.sidecar import read_sidecar
from megatron.data.text_files import Reading, identity, is_plain_text, read_blocks
from megatron.errors import BadData, CannotWrite
from megatron.progress import ProgressLine

ENDINGS = (".bin", ".rejects.jsonl", ".meta.json", ".idx")  # in the order they are published: the last announces


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What to encode, how, and where to: PREFIX_<key>_document for every key of the recipe."""

    recipe: Recipe
    files: tuple[str, ...]
    prefix: str
    overwrite: bool = False
    skip_bad: bool = False  # bad lines are listed in PREFIX.rejects.jsonl; else the first one ends the work
    workers: int = 1
    shuffle: int | None = None  # seed of an order of the documents; none: as they come

    @property
    def folder(self) -> Path:
        return Path(self.prefix).parent

    def name(self, key: str) -> str:
        return f"{Path(self.prefix).name}_{key}_document"

    def outputs(self) -> list[Path]:
        endings = (".bin", ".idx", ".meta.json")
        made = [self.folder / f"{self.name(key)}{end}" for key in self.recipe.keys for end in endings]
        return [*made, Path(f"{self.prefix}.rejects.jsonl")]

    def work_key(self, fingerprint: str) -> dict[str, Any]:
        """What decides the output: work done under another key is of no use."""
        return {
            "tokenizer": fingerprint,
            "keys": list(self.recipe.keys),
            "append_eod": self.recipe.append_eod,
            "on_bad_line": "skip" if self.skip_bad else "fail",
            "max_line_bytes": self.recipe.max_line_bytes,
            "inputs": [identity(path) for path in self.files],
            **({} if self.shuffle is None else {"shuffle": self.shuffle}),
        }


def preprocess(job: Preprocessing) -> list[dict[str, Any]]:
    """Encode all files inside a work folder beside the output, then move every output into place.

    -> for each key what its corpus holds: prefix, documents, tokens, text_bytes, rejects by kind, and the megabytes_per_second
    of this run, 0 where an earlier one had finished it.  Raises MissingInput, BadData or CannotWrite.
    """
    plain = [path for path in job.files if is_plain_text(path)]
    if plain and len(job.recipe.keys) > 1:
        raise BadData(f"{plain[0]} is plain text and has no keys: give one --json-keys, or JSON Lines only")
    fingerprint = tokenizer_of(job.recipe).fingerprint()  # one that cannot be built is refused before any work
    speed = 0.0
    if job.shuffle is None and (warning := sources_in_a_row(job.files)):
        print(f"warning: {warning}", file=sys.stderr)
    with WorkFolder(job.folder, Path(job.prefix).name, job.work_key(fingerprint)) as work:
        taken = [path for path in job.outputs() if path.exists()]
        if taken and not (job.overwrite or work.finished):
            raise CannotWrite(f"{taken[0]} exists: choose another --output-prefix, or pass --overwrite")
        if work.dropped:
            print(f"{work.folder}: the work of an earlier run with other arguments or inputs is dropped", file=sys.stderr)
        if not work.finished:
            speed = write_outputs(job, fingerprint, work)
            work.finish()
            for key in job.recipe.keys:
                retire(str(job.folder / job.name(key)))  # --overwrite: never a new .bin beside an old .idx
            Path(f"{job.prefix}.rejects.jsonl").unlink(missing_ok=True)
        work.publish(job.folder, ENDINGS)
    return [about_output(str(job.folder / job.name(key))) | {"megabytes_per_second": speed} for key in job.recipe.keys]


def sources_in_a_row(files: Sequence[str]) -> str | None:
    """What to say of files of several sources, by their names without numbers; None where all are of one."""
    names = list(dict.fromkeys(re.sub(r"[0-9]+", "", path) for path in files))
    if len(names) < 2:
        return None
    first = ", ".join(Path(path).name for path in files[:3]) + " ..." * (len(files) > 3)
    return (
        f"the input names {len(names)} sources ({first}) and keeps their order: --unique-tokens takes the first of their "
        "tokens, so the first sources; --shuffle SEED mixes the documents, or blend one corpus a source: WEIGHT PREFIX ..."
    )


def about_output(prefix: str) -> dict[str, Any]:
    """What a finished output holds, by its sidecar."""
    facts = read_sidecar(prefix) or {}
    return {"prefix": prefix, **{name: facts[name] for name in ("documents", "tokens")}} | {
        name: facts["extra"][name] for name in ("text_bytes", "rejects")
    }


def write_outputs(job: Preprocessing, fingerprint: str, work: WorkFolder) -> float:
    """Every output, whole, in the work folder.  -> megabytes of text a second"""
    recipe, started = job.recipe, time.monotonic()
    tokenizer = tokenizer_of(recipe)
    about = {"type": tokenizer.name, "fingerprint": fingerprint, "vocab_size": tokenizer.vocab_size, "eod": tokenizer.eod}
    place = "out" if job.shuffle is None else "ordered"
    work.path(place).mkdir(exist_ok=True)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                IndexedWriter(str(work.path(place, job.name(key))), best_dtype(tokenizer.vocab_size), tokenizer=about)
            )
            for key in recipe.keys
        ]
        journal = stack.enter_context(Journal(work, writers))
        progress = journal.progress
        before = progress.text_bytes
        if before:
            print(f"going on after {progress.documents[0]:,} documents of an earlier run", file=sys.stderr)
        line = ProgressLine(sum(map(os.path.getsize, job.files)), done=progress.position)
        how = Reading(recipe.keys, recipe.max_line_bytes, recipe.tokenizer_type not in SAFELY_CUT)
        blocks = read_blocks(job.files, progress.mark, how)
        write_all(encode_all(recipe, blocks, job.workers), journal, job.skip_bad, line)
        check_documents(job, progress)
        for key, writer in zip(recipe.keys, writers, strict=True):
            writer.extra = about_input(job, key, progress)
    if job.shuffle is not None:
        shuffle_outputs(job, work)
    if progress.rejects:
        write_rejects(work, f"{Path(job.prefix).name}.rejects.jsonl", progress)
    return (progress.text_bytes - before) / 1e6 / max(time.monotonic() - started, 1e-9)


def shuffle_outputs(job: Preprocessing, work: WorkFolder) -> None:
    """Every output again, its documents in the seed's order: the same for any number of workers."""
    for key in job.recipe.keys:
        ordered = IndexedDataset(work.path("ordered", job.name(key)))
        meta = ordered.meta or {}
        with IndexedWriter(work.path("out", job.name(key)), ordered.dtype, meta["tokenizer"], meta["extra"]) as writer:
            write_shuffled(ordered, writer, job.shuffle or 0)
        ordered.close()
    shutil.rmtree(work.path("ordered"))


def write_all(encoded: Iterable[Encoded], journal: Journal, skip: bool, line: ProgressLine) -> None:
    """Append every document; bad lines are listed, or end the run when they are not to be skipped."""
    progress = journal.progress
    for block in encoded:
        for bad in block.rejects:
            if not skip:
                raise bad.refusal()
            journal.add_reject(bad.kind, asdict(bad))
        for number, (ids, lengths) in enumerate(zip(block.ids, block.lengths, strict=True)):
            journal.add(number, ids, lengths)
        progress.mark, progress.position = block.after, block.position
        progress.text_bytes += block.text_bytes
        journal.note_sometimes()
        line.show(progress.position, f"{progress.documents[0]:,} documents, {progress.tokens[0]:,} tokens")
    line.clear()


def check_documents(job: Preprocessing, progress: Progress) -> None:
    for key, documents in zip(job.recipe.keys, progress.documents, strict=True):
        if not documents:
            raise BadData(
                f"the input holds no document with text under {key!r}: {', '.join(job.files[:3])}"
                f"{' ...' if len(job.files) > 3 else ''}{counted(progress.rejects)}; nothing was written"
            )


def about_input(job: Preprocessing, key: str, progress: Progress) -> dict[str, Any]:
    """What the sidecar says of where the tokens come from."""
    return {
        "inputs": [input_record(path) for path in job.files],
        "json_key": key,
        "append_eod": job.recipe.append_eod,
        **({} if job.shuffle is None else {"shuffle": job.shuffle}),
        "text_bytes": progress.text_bytes,
        "rejects": dict(sorted(progress.rejects.items())),
    }


def write_rejects(work: WorkFolder, name: str, progress: Progress) -> None:
    """The list of bad lines, and their counts as its last line.  Raises CannotWrite."""
    counts = {"rejected": sum(progress.rejects.values()), "documents": progress.documents[0], "kinds": progress.rejects}
    with written(work.folder):
        shutil.copyfile(work.path("rejects.jsonl"), work.path("out", name))
        with open(work.path("out", name), "ab") as file:
            file.write(json.dumps(counts).encode() + b"\n")


def counted(rejects: dict[str, int]) -> str:
    """Bad lines in words; nothing where there are none."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in rejects.items())
    return f", {sum(rejects.values())} lines skipped ({kinds})" if kinds else ""


def summary(found: dict[str, Any]) -> str:
    """A line of what one output holds."""
    if not found["megabytes_per_second"]:
        return f"{found['prefix']}: an earlier run had finished it"
    return (
        f"{found['prefix']}: {found['documents']:,} documents, {found['tokens']:,} tokens, "
        f"{found['megabytes_per_second']:.1f} MB/s{counted(found['rejects'])}"
    )
