"""Warm processes for small distributed jobs: started when first needed, used again, replaced after a failure."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron.proof.layouts import place_of
from megatron.stopping import held_back

# One server imports all that is slow to import, and every worker is a fork of it: eight cost as much as one.
PRELOAD = ["megatron.proof.trial", "megatron.engine.native"]
DUMP_SECONDS = 1.0  # a hung rank has written where it stands before the pool gives up


class JobFailed(RuntimeError):
    """What ended a job first: the rank, and its traceback, its death, or where it hangs."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One rank's part of a job."""

    function: str  # module:name
    args: tuple
    environ: dict[str, str]
    rank: int
    world_size: int
    folder: str  # of this job alone: the store, and where hung ranks say where they stand
    timeout_seconds: float
    device: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    value: Any = None
    trouble: str | None = None
    seconds: float = 0.0  # on the machine's clock, when it was raised: the first one is the cause
    died: bool = False


@dataclass(frozen=True, kw_only=True)
class Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection

    def answer(self) -> Answer:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return Answer(trouble=f"died with exit code {self.process.exitcode}", died=True)


class Pool:
    """Warm processes for small distributed jobs: started when first needed, used again, replaced after a failure."""

    def __init__(self, size: int = 8, device: str = "cpu"):
        self.size, self.device = size, device
        self.workers: list[Worker] = []
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_) -> None:
        self.dismiss()

    def run(self, world_size: int, function: Callable | str, *args, timeout: float = 120.0, fresh: bool = False) -> list:
        """`function(*args)` on every rank of a new world, which one process does without; the results by rank.

        `function` is one that can be imported, or its "module:name"; `fresh`: in processes that did nothing before, for a
        library that keeps state. Raises JobFailed; the pool can be used again.
        """
        if world_size > self.size:
            raise ValueError(f"a world of {world_size} asked of a pool of {self.size}")
        if fresh:
            self.dismiss()
        self.start(world_size)
        with tempfile.TemporaryDirectory() as folder:
            try:
                for rank, worker in enumerate(self.workers[:world_size]):
                    worker.pipe.send(
                        Job(
                            function=spell(function),
                            args=args,
                            environ=os.environ | place_of(rank, world_size),
                            rank=rank,
                            world_size=world_size,
                            folder=folder,
                            timeout_seconds=timeout,
                            device=self.device,
                        )
                    )
                return collect(self.workers[:world_size], timeout, Path(folder))
            except BaseException:
                self.dismiss()  # some may wait for each other; new ones cost little
                raise

    def start(self, count: int) -> None:
        if not all(worker.process.is_alive() for worker in self.workers):
            self.dismiss()
        while len(self.workers) < count:
            ours, theirs = self.context.Pipe()
            process = self.context.Process(target=serve, args=(theirs,), daemon=True)
            with held_back():
                process.start()
            theirs.close()
            self.workers.append(Worker(process=process, pipe=ours))

    def dismiss(self) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        self.workers = []


def spell(function: Callable | str) -> str:
    """A function as module:name. Raises ValueError where another process could not find it."""
    name = function if isinstance(function, str) else f"{function.__module__}:{function.__qualname__}"
    if "<" in name:
        raise ValueError(f"{name} cannot be imported by another process: define it at the top of a module")
    return name


def collect(workers: list[Worker], timeout: float, folder: Path) -> list:
    """The values by rank. Raises JobFailed with the first cause, which others may have felt as a closed connection."""
    deadline = time.monotonic() + timeout + DUMP_SECONDS
    values: dict[int, Any] = {}
    while waiting := {worker.pipe: rank for rank, worker in enumerate(workers) if rank not in values}:
        ready = wait(waiting, max(0.0, deadline - time.monotonic()))
        if not ready:
            raise JobFailed(describe_hang(sorted(waiting.values()), len(workers), timeout, folder))
        answers = {rank: workers[rank].answer() for pipe, rank in waiting.items() if pipe in ready}
        failures = {rank: answer for rank, answer in answers.items() if answer.trouble}
        if failures:
            rank = min(failures, key=lambda r: (not failures[r].died, failures[r].seconds))
            raise JobFailed(f"rank {rank} of {len(workers)}: {failures[rank].trouble}")
        values |= {rank: answer.value for rank, answer in answers.items()}
    return [values[rank] for rank in range(len(workers))]


def describe_hang(ranks: list[int], world_size: int, timeout: float, folder: Path) -> str:
    lines = [f"rank {', '.join(map(str, ranks))} of {world_size}: no answer within {timeout:g} s"]
    for rank in ranks:
        with contextlib.suppress(FileNotFoundError):
            main_thread = (folder / f"rank-{rank}").read_text().rpartition("Thread")[2].partition("\n")[2]
            lines.append(f"rank {rank} stands at (most recent call first)\n{main_thread}")
    return "\n".join(lines)


# The pool's workers


def serve(pipe: Connection) -> None:
    """Do one job after the other; end with the process that asks for them, however that ends."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    for job in jobs(pipe):
        try:
            pipe.send(Answer(value=do(job)))
        except BaseException as error:
            pipe.send(Answer(trouble=f"{type(error).__name__}: {error}\n{traceback.format_exc()}", seconds=time.monotonic()))


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this process was started by multiprocessing
    wait([parent.sentinel])
    os._exit(1)


def jobs(pipe: Connection) -> Iterator[Job]:
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            yield pipe.recv()


def do(job: Job) -> Any:
    os.environ.clear()
    os.environ.update(job.environ, OMP_NUM_THREADS="1")
    with open(Path(job.folder) / f"rank-{job.rank}", "w") as file:
        faulthandler.dump_traceback_later(job.timeout_seconds, file=file)
        try:
            module, _, name = job.function.partition(":")
            function = getattr(importlib.import_module(module), name)
            with world(job):
                return function(*job.args)
        finally:
            faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def world(job: Job) -> Iterator[None]:
    """torch's default process group, met over a file; none for a process alone. After a failure it dies with the worker."""
    if job.device == "cuda":
        torch.cuda.set_device(job.rank)
    if job.world_size > 1:
        # The pool gives up before a collective does, and so can say who is missing.
        patience = timedelta(seconds=job.timeout_seconds + 60)
        dist.init_process_group(
            "nccl" if job.device == "cuda" else "gloo",
            init_method=f"file://{job.folder}/store",
            rank=job.rank,
            world_size=job.world_size,
            timeout=patience,
        )
    yield
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
