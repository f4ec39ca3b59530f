"""Where a process computes, how fast that place can be, and whether compiling pays there."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import resource
import shutil
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron.config import Config
from megatron.core.mesh import ALONE, Group, gather_json
from megatron.errors import MissingInput
from megatron.layout import Place, find_place

# Dense bf16 peaks in FLOP/s, from the vendors' data sheets (without sparsity).
GPU_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "4090": 165e12,
    "3090": 71e12,
    "V100": 125e12,
}
COMPILE_REPAYS_SECONDS = 120.0  # compiling one block takes 10-40 s; a GPU's step gains a fifth or more by it


@dataclass(frozen=True, kw_only=True)
class Where:
    device: torch.device
    dtype: torch.dtype
    peak_flops: float  # FLOP/s of dense products in `dtype`
    peak_source: str
    compile: bool
    compile_reason: str


def choose(asked: str, place: Place) -> torch.device:
    """The GPU of a local rank, or the CPU. Raises MissingInput when what is asked for is not there."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise MissingInput("--device cuda: torch sees no GPU here; use --device cpu or auto")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    seen = torch.cuda.device_count()
    if 1 < seen < place.local_world_size:
        raise MissingInput(f"{place.local_world_size} processes on this machine and {seen} GPUs: start one a GPU")
    device = torch.device("cuda", place.local_rank if seen > 1 else 0)  # a scheduler may show each rank its own GPU alone
    torch.cuda.set_device(device)
    return device


def setup(cfg: Config, control: Group = ALONE) -> Where:
    """Choose the device, set threads and determinism; rank 0 measures and decides for all. Raises MissingInput."""
    train, device = cfg.train, choose("cpu" if cfg.train.cpp_step else cfg.train.device, find_place(os.environ))
    kind = device.type
    if train.num_threads:
        torch.set_num_threads(train.num_threads)
    dtype, found = torch.bfloat16 if train.bf16 else torch.float32, None
    if control.rank == 0:
        peak, source = peak_flops(kind, dtype, torch.get_num_threads())
        found = peak, source, *choose_compile(cfg, kind, peak, control.size)
    peak, source, chosen, reason = gather_json(found, control)[0]
    deterministic = train.deterministic_mode or chosen  # a compiled CPU step is not reproducible without it
    if deterministic and kind == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # to say it again imports all of the compiler, for a second
        torch.use_deterministic_algorithms(deterministic)
    # Filling costs a tenth of a step, and nothing here reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch hides it from types
    if kind == "cpu":
        keep_freed_memory()
    return Where(device=device, dtype=dtype, peak_flops=peak, peak_source=source, compile=chosen, compile_reason=reason)


def for_scoring(cfg: Config, dtype: torch.dtype) -> Where:
    """Where a model is only read: its speed is not measured, nothing is compiled, and no switch of the process is set."""
    device = choose(cfg.train.device, find_place(os.environ))
    return Where(
        device=device,
        dtype=dtype,
        peak_flops=math.nan,
        peak_source="not measured",
        compile=False,
        compile_reason="nothing is trained",
    )


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees: the next asks for the same again, and fresh pages were a fifth of a step's time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block has a mapping of its own
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap's end is not given back


@functools.cache
def peak_flops(kind: str, dtype: torch.dtype, num_threads: int) -> tuple[float, str]:
    """Dense FLOP/s: the data sheet's for a known GPU in bf16, else the best of a few products timed here."""
    if kind == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name()
        for known, peak in GPU_PEAKS.items():
            if known in name:
                return peak, f"data sheet of {name}, dense bf16"
    size = 8192 if kind == "cuda" else 1024
    a = torch.randn(size, size, device=kind, generator=torch.Generator(kind).manual_seed(0)).to(dtype)
    best = min(timed_product(a) for _ in range(4))
    threads = f" on {num_threads} threads" if kind == "cpu" else ""
    return 2 * size**3 / best, f"best of four {size}^3 products{threads}"


def timed_product(a: torch.Tensor) -> float:
    start = time.perf_counter()
    a @ a
    if a.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def choose_compile(cfg: Config, kind: str, peak: float, world_size: int = 1) -> tuple[bool, str]:
    """Whether to compile, and why, in words for the log."""
    asked = cfg.train.compile
    if asked == "off" or cfg.train.skip_train:
        return False, "--compile off" if asked == "off" else "nothing is trained"
    if not cfg.may_compile:
        return False, f"--pipeline-schedule {cfg.parallel.pipeline_schedule} cannot run compiled blocks"
    missing = missing_for_compile()
    if missing and asked == "on":
        raise MissingInput(f"--compile on: torch.compile needs {missing}; install it or use --compile off")
    if missing:
        return False, f"torch.compile needs {missing}"
    if asked == "on":
        return True, "--compile on"
    if kind == "cpu":
        return False, "on a CPU the eager step is as fast (tools/benchmark.py step step-compiled)"
    flops = cfg.flops_per_token() * cfg.train.num_samples * cfg.model.seq_length
    seconds = flops / (0.4 * peak * world_size)
    return seconds > COMPILE_REPAYS_SECONDS, (
        f"about {seconds:.0f} s of compute, compiling repays itself after {COMPILE_REPAYS_SECONDS:.0f} s"
    )


def missing_for_compile() -> str:
    """What torch.compile would miss on its first step, in words; empty when all is there. It tries $CXX or else g++, no other."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(compiler):
        return f"the C++ compiler {compiler}, which is not on PATH"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return "" if header.exists() else f"Python's headers, and {header} is not there"


def memory_bytes(device: torch.device) -> int:
    """Peak memory of this process so far: the allocator's on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def utilization(device: torch.device) -> float | None:
    """Percent of time the GPU was busy; None where it cannot be read."""
    if device.type != "cuda":
        return None
    try:
        return float(torch.cuda.utilization(device))
    except (ModuleNotFoundError, RuntimeError):
        return None
