"""The table of GPU speed: tokens a second, MFU and peak memory of a bf16 step."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from dataclasses import replace

from megatron.budget import find_size
from megatron.config import Model
from tools.benchmark_step import TEN_MILLION, config_of, objective_of, our_step, pose
from tools.benchmark_timing import Row

GPU_SIZES, GPU_BATCHES, DATA_SHEET_FLOPS = ("117M", "425M", "1424M"), (64, 32, 16, 8, 4, 2, 1), 989e12


def gpu(rounds: int, sizes: tuple[str, ...] = GPU_SIZES, seq_length: int = 2048) -> list[Row]:
    """Print the README's table: tokens/s, MFU, shares of executed FLOPs, and peak memory of a bf16 step. It has no gate."""
    import torch

    rate = gpu_matmul_flops() if torch.cuda.is_available() else None
    beside = f"of the matmul's {rate / 1e12:.0f} TFLOP/s" if rate else "of the matmul"
    heads = ["model", "objective", "compile", "micro-batch", "tokens/s", "MFU of 989 TFLOP/s", "executed", beside, "peak memory"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for size, objective, compile in itertools.product(sizes, ("ar", "mdm"), (False, True)):
        cells = gpu_cells(gpu_model(size, seq_length), objective, compile, rate, rounds) if rate else ["not measured"] * 6
        print(f"| {size} | {objective.upper()} | {'on' if compile else 'off'} | {' | '.join(cells)} |", flush=True)
    where = f"{torch.cuda.get_device_name()}, torch {torch.__version__}" if rate else "not measured: torch sees no GPU here"
    print(f"bf16, sequence {seq_length}, {where}")
    return []


def gpu_model(size: str, seq_length: int) -> Model:
    _, s = find_size(size)
    return replace(
        TEN_MILLION,
        num_layers=s.num_layers,
        hidden_size=s.hidden_size,
        num_attention_heads=s.num_attention_heads,
        kv_channels=s.kv_channels,
        ffn_hidden_size=s.ffn_hidden_size,
        seq_length=seq_length,
    )


def gpu_matmul_flops(size: int = 8192) -> float:
    import torch

    from megatron.training.device import timed_product

    a = torch.randn(size, size, device="cuda").bfloat16()
    return 2 * size**3 / min(timed_product(a) for _ in range(10))


def gpu_cells(model: Model, objective: str, compile: bool, matmul: float, rounds: int) -> list[str]:
    """The largest micro-batch that fits, and what one step with it takes."""
    import torch

    for batch in GPU_BATCHES:
        try:
            seconds, memory = gpu_seconds(rounds, model, "bfloat16", objective, batch, batch, False, compile, "cuda")
        except torch.OutOfMemoryError:
            continue
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        rate = batch * model.seq_length / seconds
        cfg = config_of(model, "bfloat16", objective, batch)
        posed = objective_of(cfg)
        asked = sum(len(b.asked) for b in pose(cfg, posed, batch)) / (batch * model.seq_length)
        flops = rate * model.shape().flops_per_token(model.seq_length)
        executed = rate * model.shape().executed_flops_per_token(model.seq_length, asked, posed.causal)
        shares = [f"{part:.1%}" for part in (flops / DATA_SHEET_FLOPS, executed / DATA_SHEET_FLOPS, executed / matmul)]
        return [str(batch), f"{rate:,.0f}", *shares, f"{memory / 2**30:.1f} GiB"]
    return ["not measured: not even one sample fits"] * 6


def gpu_seconds(rounds: int, *given) -> tuple[float, int]:
    """Median seconds of a step, and the allocator's peak in bytes."""
    import torch

    torch.compiler.reset()
    run = our_step(*given)
    for _ in range(3):
        run()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), torch.cuda.max_memory_allocated()
