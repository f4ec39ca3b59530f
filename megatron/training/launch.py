"""From some processes to one world: where they meet, whether all of them came, and whether they were told the same."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from megatron.config import Config, ConfigError, spelling
from megatron.core.mesh import Mesh, barrier, build_mesh
from megatron.errors import PEER_LOST, PeerLost, Refusal, Unsaid
from megatron.layout import Place, find_place
from megatron.training import device
from megatron.training.watch import SETTLE_SECONDS, Watch, is_spokesman

OWN_FLAGS = ("local_rank",)  # may differ between ranks
NUM_SHOWN = 5


@contextmanager
def joined(cfg: Config) -> Iterator[tuple[Mesh, Watch]]:
    """The world that the environment names, watched until all leave it together.

    An error on one rank ends all of them with one sentence. Raises ConfigError, PeerLost.
    """
    place = find_place(os.environ)
    store = connect(place, cfg.parallel.distributed_timeout) if place.world_size > 1 else None
    apart = store.clone() if store else None  # type: ignore[attr-defined]  # torch's types lack it
    with Watch(place, apart, cfg.parallel.distributed_timeout) as watch:
        try:
            mesh = join(cfg, place, store) if store else Mesh()
            yield mesh, watch
            watch.at(watch.own.step, "leaving")
            barrier(mesh.control)  # a launcher ends the others when one is gone: not while files are written
        except Exception as error:
            settled = watch.settle(error)
            if settled is error:
                raise
            raise settled from None
        watch.leave()
        stop()


def start(cfg: Config) -> Mesh:
    """The same without a watch, for tools; `stop` ends it."""
    place = find_place(os.environ)
    return join(cfg, place, connect(place, cfg.parallel.distributed_timeout)) if place.world_size > 1 else Mesh()


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def join(cfg: Config, place: Place, store: dist.Store) -> Mesh:
    """Make the process groups, once all ranks are there and agree."""
    seconds = cfg.parallel.distributed_timeout
    call_roll(cfg, place, store)
    where = device.choose(cfg.train.device, place)
    dist.init_process_group(
        "nccl" if where.type == "cuda" else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=seconds),
    )
    parallel = cfg.parallel
    return build_mesh(parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, parallel.sequence_parallel)


# The meeting place


def connect(place: Place, seconds: float) -> dist.Store:
    """The store that all ranks share: torchrun's own, or one that rank 0 serves at MASTER_ADDR:MASTER_PORT."""
    host, port = endpoint(os.environ)
    serving = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not serving and not find_server(host, port, seconds):
        raise missing_rank_0(place, f"nothing answers at MASTER_ADDR:MASTER_PORT {host}:{port}")
    try:
        store = dist.TCPStore(host, port, place.world_size, serving, timedelta(seconds=seconds), wait_for_workers=False)
    except dist.DistError as error:
        if "EADDRINUSE" in str(error):
            raise ConfigError([f"MASTER_PORT {port} is in use on {socket.gethostname()}: choose another"]) from None
        raise missing_rank_0(place, str(error).splitlines()[0]) from None
    return dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def endpoint(environ: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of the store: as given, else the job's first host and a port of its number. Raises ConfigError."""
    job = environ.get("SLURM_JOB_ID")
    port = environ.get("MASTER_PORT") or (str(20000 + int(job) % 20000) if job else "")
    host = environ.get("MASTER_ADDR") or (first_host(environ) if job else "")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(
            [
                f"MASTER_ADDR={host} MASTER_PORT={port}: several processes meet at rank 0's host and a free port of "
                "it; set both, or start with torchrun, the deepspeed launcher, srun or examples/launch.sh"
            ]
        )
    return host, int(port)


def first_host(environ: Mapping[str, str]) -> str:
    """The first node of a Slurm step, which has rank 0."""
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    try:
        said = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.split("\n")[0]


def find_server(host: str, port: int, seconds: float) -> bool:
    """Wait until something listens there, at most so long. Raises ConfigError for a host that does not exist."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
            return True
        except socket.gaierror as error:
            raise ConfigError([f"MASTER_ADDR={host}: {error.strerror}; give the host of rank 0"]) from None
        except OSError:
            time.sleep(0.1)
    return False


def missing_rank_0(place: Place, why: str) -> Refusal:
    if not is_spokesman(place):
        return Unsaid(PEER_LOST)
    return PeerLost(f"rank 0 did not start within --distributed-timeout: {why}; look at its log")


# The roll call


def call_roll(cfg: Config, place: Place, store: dist.Store) -> None:
    """Wait for every rank, and see that all were told the same. Raises ConfigError naming ranks and flags.

    A rank that does not come is for the watch to name; this only waits longer than that takes.
    """
    mine = json.dumps(flat(cfg), sort_keys=True)
    store.set(f"flags/{place.rank}", mine)
    store.set(f"digest/{place.rank}", hashlib.sha256(mine.encode()).hexdigest())
    keys = [f"digest/{rank}" for rank in range(place.world_size)]
    store.wait(keys, timedelta(seconds=cfg.parallel.distributed_timeout + SETTLE_SECONDS))
    digests = store.multi_get(keys)
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        told = {rank: json.loads(store.get(f"flags/{rank}")) for rank in [0, *others[:NUM_SHOWN]]}
        raise ConfigError([f"the processes were started with different flags: {line}" for line in disagreements(told)])


def flat(cfg: Config) -> dict[str, object]:
    return {name: value for flags in cfg.as_dict().values() for name, value in flags.items() if name not in OWN_FLAGS}


def disagreements(told: dict[int, dict]) -> list[str]:
    """A sentence for each flag that is not the same on all of these ranks."""
    return [
        f"rank {rank} has {spelling(name)} {flags[name]}, rank 0 has {told[0][name]}"
        for rank, flags in told.items()
        for name in flags
        if flags[name] != told[0][name]
    ]
