"""What several processes cost: replicas, the exposed communication of a layout, and the layers that are cut."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from megatron.config import Model, Parallel
from tools.benchmark_gpu import gpu_model
from tools.benchmark_step import SMALL_VOCABULARY, TEN_MILLION, our_step
from tools.benchmark_timing import Row, median_ratio, side_by_side

if TYPE_CHECKING:
    from torch import Tensor

    from megatron.core.transformer import Block

TWO_RANKS = functools.partial(Parallel, world_size=2, pipeline_schedule="1f1b")
LAYOUTS = {
    "tp2": TWO_RANKS(tensor_model_parallel_size=2),
    "tp2+sp": TWO_RANKS(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2": TWO_RANKS(pipeline_model_parallel_size=2),
    "dp2": TWO_RANKS(),
    "dp2+zero1": TWO_RANKS(zero_stage=1),
    "dp2+zero3": TWO_RANKS(zero_stage=3),
}
PATIENCE = timedelta(minutes=5)  # for a rank that others wait for, so that a failure ends


def dp(rounds: int, model: Model = TEN_MILLION, micro_batches: int = 4) -> list[Row]:
    """Two replicas against two processes that know nothing of each other, all with as many micro-batches: tokens of both."""
    with tempfile.TemporaryDirectory() as folder:
        found = side_by_side(
            {
                "ours": team(LAYOUTS["dp2"], f"{folder}/store", model, "bfloat16", "ar", 2 * micro_batches),
                "apart": [(our_step, model, "bfloat16", "ar", micro_batches)] * 2,
            },
            rounds,
        )
    tokens = micro_batches * model.seq_length
    rates = {name: [sum(tokens / spent.wall for spent in members) for members in each] for name, each in found.items()}
    ours, peer = (f"{statistics.median(rates[name]):.0f} tok/s" for name in ("ours", "apart"))
    return [
        Row(
            section="dp",
            what=f"dp2, {micro_batches} micro-batches each, against two independent processes",
            ours=ours,
            peer=peer,
            ratio=median_ratio(rates["ours"], rates["apart"]),
            gate=0.8,
        )
    ]


def communication(rounds: int, model: Model = TEN_MILLION, micro_batches: int = 8) -> list[Row]:
    """The exposed communication of each layout: the share of a step's wall time in which a rank's main thread does not run.

    That thread computes forward, backward and update; what gloo's threads do meanwhile is hidden. Waiting for other ranks,
    with a pipeline its bubble, counts; so does, on a busy machine, waiting for a core, as two processes apart show.
    """
    ours = (model, "bfloat16", "ar", micro_batches)
    rows = [exposed_row("two processes apart", [(our_step, model, "bfloat16", "ar", micro_batches // 2)] * 2, rounds)]
    for name, parallel in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(exposed_row(name, team(parallel, f"{folder}/store", *ours), rounds))
    return rows


def exposed_row(name: str, members: list[tuple], rounds: int) -> Row:
    """The fastest round of a layout, averaged over its ranks: what else the machine does only makes a round slower."""
    each = min(side_by_side({name: members}, rounds)[name], key=lambda each: max(spent.wall for spent in each))
    wall, computing = (statistics.mean(seconds) for seconds in zip(*((s.wall, s.computing) for s in each), strict=True))
    return Row(
        section="communication",
        what=f"{name}, {1 - computing / wall:.0%} of the step exposed",
        ours=f"step {wall:.2f} s",
        peer=f"computing {computing:.2f} s",
        ratio=computing / wall,
    )


def layers(rounds: int, model: Model = SMALL_VOCABULARY) -> list[Row]:
    """Our column and row linears at tensor-parallel size 1 against nn.Linear: eager on a CPU, compiled and gated on a GPU."""
    import torch

    on_cpu = layers_row(model, 1, rounds, "cpu", None)
    if torch.cuda.is_available():
        return [on_cpu, layers_row(gpu_model("425M", 2048), 8, rounds, "cuda", 0.98)]
    what = "compiled blocks on a GPU, against nn.Linear"
    return [on_cpu, Row(section="layers", what=what, gate=0.98, why="torch sees no GPU here")]


def layers_row(model: Model, batch: int, rounds: int, device: str, gate: float | None) -> Row:
    given = (model, batch, device)
    found = side_by_side({"ours": [(blocks_step, *given, False)], "plain": [(blocks_step, *given, True)]}, rounds)
    seconds = {name: [spent.cpu if device == "cpu" else spent.wall for (spent,) in each] for name, each in found.items()}
    what = f"{'eager' if device == 'cpu' else 'compiled'} blocks on {device}, width {model.hidden_size}, against nn.Linear"
    ours, plain = (f"{statistics.median(seconds[name]):.3g} s" for name in ("ours", "plain"))
    ratio = median_ratio(seconds["plain"], seconds["ours"])
    return Row(section="layers", what=what, ours=ours, peer=plain, ratio=ratio, gate=gate)


def blocks_step(model: Model, batch: int, device: str, plain: bool) -> Callable[[], None]:
    """Forward and backward of a model's blocks in bf16; on a GPU compiled, and over when the device is done."""
    import torch

    from megatron.core.mesh import Group
    from megatron.core.transformer import Block, rotary

    blocks = torch.nn.ModuleList(Block(model, True, Group(), False) for _ in range(model.num_layers))
    for block in blocks:
        if plain:
            use_plain_linears(block)
        if device == "cuda":
            block.compile(dynamic=False)
    for p in blocks.to(device).parameters():
        torch.nn.init.normal_(p, std=0.02)
    x = torch.randn(batch, model.seq_length, model.hidden_size, dtype=torch.bfloat16, device=device)
    rope = rotary(torch.arange(model.seq_length, device=device)[None], model.kv_channels, 1e4, x.dtype)

    def run():
        y = x
        for block in blocks:
            y = block(y, rope, None)
        y.sum().backward()
        blocks.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def use_plain_linears(block: Block) -> None:
    """torch's own linear in each place, its fp32 weight cast where it is used, as ours are."""
    import torch

    class Plain(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, self.weight.to(x.dtype))

    for parent, name in ((block.attention, "qkv"), (block.attention, "out"), (block.mlp, "up"), (block.mlp, "down")):
        width_out, width_in = getattr(parent, name).weight.shape
        setattr(parent, name, Plain(width_in, width_out, bias=False))


def ranked_step(parallel: Parallel, rank: int, store: str, *given) -> Callable[[], object]:
    """Our step as one rank of a layout, whose processes meet over a file."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=parallel.world_size, timeout=PATIENCE)
    return our_step(*given, parallel=parallel)


def team(parallel: Parallel, store: str, *given) -> list[tuple]:
    """Every rank of a layout, with the arguments of our step."""
    return [(ranked_step, parallel, rank, store, *given) for rank in range(parallel.world_size)]
