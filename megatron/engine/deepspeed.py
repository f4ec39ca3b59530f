"""The DeepSpeed engine: ZeRO 1 to 3 and CPU offload by DeepSpeed, for the same model and with the native engine's results.

DeepSpeed runs in fp32, where its weights are the masters and the model itself casts to bf16. It partitions, reduces, gathers and
calls the optimizer; norm, clip and the decision to skip are ours, handed to it as the norm it believes. Stage 0 runs as stage 1:
DeepSpeed's own is another optimizer in bf16, and counts only one tensor-parallel rank in the norm that it clips by.

    python -m megatron.engine.deepspeed         compile the ops that DeepSpeed needs on this machine, once, untimed
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.batch import Batch, RowScores, Step
from megatron.config import Config, ConfigError
from megatron.core.cache import Cache
from megatron.core.checkpoint import Checkpoint, Piece
from megatron.core.mesh import Mesh, all_reduce, flat_sum
from megatron.core.norm import squares
from megatron.core.parameters import Spec, whole_shape
from megatron.core.transformer import GPT
from megatron.engine.adamw import MOMENTS
from megatron.engine.average import ROOT, Average, root_of_weights
from megatron.engine.native import new_cache, parameter_groups, row_scores, set_rate
from megatron.errors import Mismatch, MissingInput, exits
from megatron.flags import unique
from megatron.layout import find_place, num_micro_batches

# The file that --deepspeed-config names

# What it may add, because no flag says it and no result depends on it.
ADDS = """steps_per_print wall_clock_breakdown memory_breakdown dump_state zero.allgather_partitions
    zero.allgather_bucket_size zero.reduce_scatter zero.reduce_bucket_size zero.overlap_comm zero.contiguous_gradients
    zero.sub_group_size zero.ignore_unused_parameters zero.log_trace_cache_warnings zero.stage3_prefetch_bucket_size
    zero.stage3_param_persistence_threshold zero.stage3_model_persistence_threshold zero.stage3_max_live_parameters
    zero.stage3_max_reuse_distance zero.stage3_gather_16bit_weights_on_model_save zero.offload_optimizer.pin_memory
    zero.offload_optimizer.buffer_count zero.offload_optimizer.fast_init zero.offload_param.pin_memory
    zero.offload_param.buffer_count zero.offload_param.buffer_size zero.offload_param.max_in_cpu
    """.replace("zero.", "zero_optimization.").split()
# What it may not, and who decides instead.
DECIDED = {
    "scheduler": "--lr-decay-style and --lr-warmup-samples are",
    "activation_checkpointing": "--recompute-granularity is",
    "tensorboard": "--tensorboard-dir is",
    "wandb": "--wandb-project is",
    "fp16": "--bf16 is",
    "amp": "--bf16 is",
    "pipeline": "--pipeline-model-parallel-size is",
    "tensor_parallel": "--tensor-model-parallel-size is",
    "checkpoint": "--save is",
}


def ruled(cfg: Config) -> dict[str, tuple[str, Any]]:
    """What flags say of the file's settings: dotted name -> (who says it, value)."""
    t, o, p = cfg.train, cfg.optim, cfg.parallel
    micro_batches = num_micro_batches(t.global_batch_size, p.data_parallel_size, t.micro_batch_size)
    return {
        "train_micro_batch_size_per_gpu": ("--micro-batch-size", t.micro_batch_size),
        "train_batch_size": ("--global-batch-size", t.global_batch_size),
        "gradient_accumulation_steps": ("by --global-batch-size the number of micro-batches", micro_batches),
        "gradient_clipping": ("--clip-grad", o.clip_grad),
        "zero_optimization.stage": ("--zero-stage", p.zero_stage),
        "zero_optimization.offload_optimizer.device": ("by --cpu-optimizer it", "cpu" if p.cpu_optimizer else "none"),
        "zero_optimization.offload_param.device": ("by --cpu-params it", "cpu" if p.cpu_params else "none"),
        "bf16.enabled": ("--bf16", t.bf16),
        "fp16.enabled": ("fp16, which is not offered (--bf16 is),", False),
        "optimizer.type": ("the optimizer", "AdamW"),
        "optimizer.params.lr": ("--lr", o.lr),
        "optimizer.params.betas": ("--adam-beta1 and --adam-beta2", [o.adam_beta1, o.adam_beta2]),
        "optimizer.params.eps": ("--adam-eps", o.adam_eps),
        "optimizer.params.weight_decay": ("--weight-decay", o.weight_decay),
    }


def read_settings(path: str) -> dict[str, Any]:
    """A DeepSpeed file's settings by dotted name. Raises ConfigError where it is no JSON object."""

    def refuse(what: str) -> ConfigError:
        return ConfigError([f"--deepspeed-config {path}: {what}"])

    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise refuse(f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise refuse(f"is not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise refuse(f"must be a JSON object of DeepSpeed's settings, not {type(tree).__name__}")
    return dict(leaves(tree))


def leaves(tree: dict, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def additions(cfg: Config) -> dict[str, Any]:
    """What the file adds to the flags, by dotted name. Raises ConfigError with a sentence for each conflict."""
    path = cfg.parallel.deepspeed_config
    found, flags, mistakes, added = read_settings(path) if path else {}, ruled(cfg), [], {}
    for name, value in found.items():
        if value == "auto" or offloads_nothing(name, cfg):
            continue
        if name in flags:
            who, ours = flags[name]
            if value != ours or isinstance(value, bool) != isinstance(ours, bool):
                mistakes.append(
                    f"{path}: {name} is {json.dumps(value)}, but {who} is {json.dumps(ours)}: "
                    "flags rule; change one of the two, or leave it out of the file"
                )
        elif name in ADDS:
            added[name] = value
        elif not (name.startswith("fp16.") and not found.get("fp16.enabled")):
            mistakes.append(f"{path}: {name} is {json.dumps(value)}, but {not_taken(name)}: leave it out of the file")
    if mistakes:
        raise ConfigError(mistakes)
    return added


def offloads_nothing(name: str, cfg: Config) -> bool:
    """Below stage 3 DeepSpeed has no use for `offload_param`, which published files give there."""
    return name.startswith("zero_optimization.offload_param.") and cfg.parallel.zero_stage < 3


def not_taken(name: str) -> str:
    decided = DECIDED.get(name.split(".")[0])
    return f"{decided} what decides here" if decided else "it is no setting that the file may add (ds_configs/README.md)"


def ds_config(cfg: Config) -> dict[str, Any]:
    """DeepSpeed's settings: made from flags, and the file's additions merged in."""
    p, micro = cfg.parallel, cfg.train.micro_batch_size
    micro_batches = num_micro_batches(cfg.train.global_batch_size, p.data_parallel_size, micro)
    out: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": micro_batches,
        "train_batch_size": micro * micro_batches * p.data_parallel_size,
        "gradient_clipping": cfg.optim.clip_grad,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage_of(cfg), "memory_efficient_linear": False},
    }
    offloaded = {"offload_optimizer": p.cpu_optimizer, "offload_param": p.cpu_params}
    out["zero_optimization"] |= {name: {"device": "cpu"} for name, wanted in offloaded.items() if wanted}
    for name, value in additions(cfg).items():
        *path, last = name.split(".")
        if path[1:] and not offloaded[path[1]]:
            continue
        at: dict[str, Any] = out
        for part in path:
            at = at[part]
        at[last] = value
    return out


def stage_of(cfg: Config) -> int:
    return max(1, cfg.parallel.zero_stage)


# Compiled ops

OPS = {"deepspeed_shm_comm": "ShareMemCommBuilder"}  # what DeepSpeed compiles as soon as it starts on a CPU
BUILD_SECONDS = 1800  # how long a process waits for another's build
WAIT_SECONDS = 1.0


def check(cfg: Config, say: Callable[[str], None] = print) -> list[str]:
    """What DeepSpeed will do, a line each, once all that it needs is there. Asks no other process.

    Raises MissingInput without the library or its ops, Mismatch for a left-over lock, ConfigError for the file's mistakes.
    """
    additions(cfg)
    if cfg.parallel.pipeline_model_parallel_size > 1:
        return []  # the native engine runs: nothing else is needed
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingInput("--deepspeed: the package deepspeed is not installed: pip install 'megatron-scaling[deepspeed]'")
    on_cpu = cfg.train.device == "cpu" or not torch.cuda.is_available()
    set_environment(on_cpu)
    for op in needed_ops(on_cpu):
        find_op(op, cfg.parallel.build_ops, say)
    lines = [f"DeepSpeed {importlib.metadata.version('deepspeed')}, ZeRO stage {stage_of(cfg)}"]
    if cfg.parallel.zero_stage == 0:
        lines[0] += (
            " for --zero-stage 0, whose own way in DeepSpeed clips by a wrong norm with tensor parallelism, "
            "and is another optimizer in bf16"
        )
    return lines + [f"its compiled op is {op_folder(op)}" for op in needed_ops(on_cpu)]


def needed_ops(on_cpu: bool) -> list[str]:
    return list(OPS) if on_cpu and sys.platform == "linux" else []


def set_environment(on_cpu: bool) -> None:
    """Where DeepSpeed compiles: a cache of this Python environment, with its own ninja."""
    versions = [importlib.metadata.version(name) for name in ("deepspeed", "torch")]
    here = hashlib.sha256("\n".join([sys.prefix, sys.version, *versions]).encode()).hexdigest()[:12]
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "torch_extensions" / f"megatron-{here}"))
    tools = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join(dict.fromkeys([tools, *os.environ.get("PATH", "").split(os.pathsep)]))
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def op_folder(op: str) -> Path:
    return Path(os.environ["TORCH_EXTENSIONS_DIR"]) / op


def is_built(op: str) -> bool:
    return (op_folder(op) / f"{op}.so").is_file() and not is_locked(op)


def is_locked(op: str) -> bool:
    """Whether a build is under way. Raises Mismatch for the lock of one that is gone, which DeepSpeed would wait for for ever."""
    lock = op_folder(op) / "lock"
    if lock.exists() and not is_held(lock) and lock.exists():
        raise Mismatch(
            f"{lock} was left by a build that is gone: unless one runs on another machine, remove it "
            f"(rm {shlex.quote(str(lock))}) and start again"
        )
    return lock.exists()


def is_held(file: Path) -> bool:
    """Whether a process of this machine that may be looked at has the file open, as the maker of a lock has."""
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if handle.samefile(file):
                return True
    return False


def find_op(op: str, build_ops: bool, say: Callable[[str], None]) -> None:
    """Have a compiled op, or refuse within a second; under --build-ops the node's first process builds and the others wait."""
    if is_built(op):
        return
    if not build_ops:
        state = (
            "is being built by another process: start again when it is done"
            if is_locked(op)
            else (f"is not built: give --build-ops, or run once\n  {build_command()}")
        )
        raise MissingInput(f"DeepSpeed needs its compiled op {op}, which {state}")
    if find_place(os.environ).local_rank == 0 and not is_locked(op):
        build_op(op, say)
    else:
        wait_for_op(op, say)


def load_op(op: str) -> None:
    """Give DeepSpeed the compiled op as it is; its own way would ask ninja, and perhaps compile it again. Raises Mismatch."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    spec = importlib.util.spec_from_file_location(op, op_folder(op) / f"{op}.so")
    assert spec is not None and spec.loader is not None  # the file's suffix says how it is loaded
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise Mismatch(
            f"DeepSpeed's op in {op_folder(op)} is not of this environment ({error}): remove the folder, "
            f"and run once\n  {build_command()}"
        ) from error
    OpBuilder._loaded_ops[op] = module


def build_command() -> str:
    folder = f"TORCH_EXTENSIONS_DIR={os.environ['TORCH_EXTENSIONS_DIR']}"
    return shlex.join(["env", folder, sys.executable, "-m", "megatron.engine.deepspeed"])


def build_op(op: str, say: Callable[[str], None]) -> None:
    if shutil.which("ninja") is None:
        raise MissingInput(f"DeepSpeed builds its op {op} by means of ninja, which is not on the PATH: pip install ninja")
    say(f"building DeepSpeed's op {op} in {op_folder(op)}: a minute or two")
    started = time.monotonic()
    code = f"from deepspeed.accelerator import get_accelerator as a; a().create_op_builder('{OPS[op]}').load(verbose=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode or not is_built(op):
        print(done.stdout + done.stderr, file=sys.stderr)
        raise MissingInput(f"DeepSpeed's op {op} could not be built: its compiler's words are above")
    say(f"built {op} in {time.monotonic() - started:.0f} s")


def wait_for_op(op: str, say: Callable[[str], None]) -> None:
    say(f"waiting for the node's first process to build DeepSpeed's op {op} in {op_folder(op)}")
    started = time.monotonic()
    while not is_built(op):
        if time.monotonic() - started > BUILD_SECONDS:
            raise MissingInput(f"DeepSpeed's op {op} was not built in {BUILD_SECONDS} s: build it with\n  {build_command()}")
        time.sleep(WAIT_SECONDS)


def main() -> int:
    on_cpu = not torch.cuda.is_available()
    set_environment(on_cpu)
    for op in needed_ops(on_cpu):
        find_op(op, True, print)
    return 0


# The engine


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of one parameter's elements in the order of memory: what this rank's optimizer updates of it."""

    name: str
    parameter: Any  # the model's nn.Parameter and what DeepSpeed hangs on it; cut by tensor parallelism, empty at stage 3
    local: tuple[int, ...]  # its shape
    shape: tuple[int, ...]  # of the whole parameter
    corner: tuple[int, ...]  # where the tensor-parallel part begins in it
    owner: bool  # whether this tensor-parallel rank answers for it in norms and checkpoints
    first: int  # number of the run's first element within the local part
    partition: Tensor  # DeepSpeed's fp32 weights of this rank, flat, many parameters in one
    place: slice  # the run within it
    spec: Spec

    def pieces(self, name: str, flat: Tensor) -> list[Piece]:
        """Whatever lies as `partition` does, as rectangles of the whole parameter."""
        width = self.local[1] if len(self.local) == 2 else 1
        out, run = [], flat[self.place]
        for row, column, rows, columns in rectangles(self.first, self.first + len(run), width):
            offset = row * width + column - self.first
            part = run[offset : offset + rows * columns]
            start = tuple(a + b for a, b in zip(self.corner, (row, column)))
            out.append(Piece(name=name, shape=self.shape, start=start, tensor=part.view((rows, columns)[: len(self.shape)])))
        return out


def rectangles(start: int, stop: int, width: int) -> list[tuple[int, int, int, int]]:
    """Elements start..stop of a matrix, read row by row, as (row, column, rows, columns): parts of rows, whole ones."""
    out = []
    while start < stop:
        row, column = divmod(start, width)
        rows, columns = (max(1, (stop - start) // width), width) if column == 0 else (1, width - column)
        columns = min(columns, stop - start)
        out.append((row, column, rows, columns))
        start += rows * columns
    return out


def build(cfg: Config, model: GPT, mesh: Mesh, say: Callable[[str], None] = print) -> DeepSpeedEngine:
    check(cfg, say)
    if cfg.parallel.zero_stage == 3:
        model.sharded = True  # every pass goes through the blocks' hooks, which gather weights
        if any(block._compiled_call_impl for block in model.blocks.values()):
            say("torch.compile is off: DeepSpeed's ZeRO 3 gathers weights in hooks that a compiled block does not call")
            for block in model.blocks.values():
                block._compiled_call_impl = None
    return DeepSpeedEngine(model, cfg, mesh)


def initialize(model: GPT, cfg: Config, mesh: Mesh) -> Any:
    """deepspeed.initialize over the process group that there is."""
    import deepspeed

    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # DeepSpeed calls collectives by their old names
    settings = ds_config(cfg)
    asked = any(settings.get(name) for name in ("wall_clock_breakdown", "memory_breakdown", "dump_state"))
    deepspeed.utils.logger.setLevel("INFO" if asked else "ERROR")
    if not dist.is_initialized():  # one process: DeepSpeed needs a group even so
        dist.init_process_group(
            "gloo" if next(model.parameters()).device.type == "cpu" else "nccl", store=dist.HashStore(), rank=0, world_size=1
        )
    os.environ.setdefault("LOCAL_RANK", str(find_place(os.environ).local_rank))
    forget_earlier_engines()
    for op in needed_ops(os.environ.get("DS_ACCELERATOR") == "cpu"):
        load_op(op)
    groups, optim = parameter_groups(dict(model.named_parameters()), model.declared, cfg.optim), cfg.optim
    optimizer = torch.optim.AdamW(groups, optim.lr or 0.0, (optim.adam_beta1, optim.adam_beta2), optim.adam_eps, fused=True)
    mpu = axes(mesh) if mesh.tp.size > 1 else None
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, mpu=mpu)[0]
    modules: Iterable[Any] = model.modules()
    for number, module in enumerate(modules):
        module.ds_id = number  # compared between ranks, and counted over all of a process's engines
    return engine


def forget_earlier_engines() -> None:
    """What DeepSpeed keeps of the engines that this process had: groups that are gone, and numbers that ranks compare."""
    import deepspeed

    deepspeed.comm.comm.cdb = None
    deepspeed.utils.groups._release_process_group_references()
    deepspeed.runtime.zero.partition_parameters.Init.param_id = 0
    deepspeed.runtime.zero.parameter_offload.FWD_MODULE_STACK.clear()


def axes(mesh: Mesh) -> SimpleNamespace:
    """The mesh in the words in which DeepSpeed asks for it."""
    answers = {}
    for axis, group in {"model": mesh.tp, "tensor_model": mesh.tp, "data": mesh.dp}.items():
        pg = group.pg or dist.new_group([dist.get_rank()], use_local_synchronization=True)
        for what, value in {"rank": group.rank, "world_size": group.size, "group": pg}.items():
            answers[f"get_{axis}_parallel_{what}"] = partial(lambda found: found, value)
    return SimpleNamespace(**answers)


class DeepSpeedEngine:
    """This rank's tensor-parallel part of the model in DeepSpeed's hands, at pipeline size 1."""

    def __init__(self, model: GPT, cfg: Config, mesh: Mesh):
        self.model, self.mesh, self.clip = model, mesh, cfg.optim.clip_grad
        self.nlls: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.device, self.stage = next(model.parameters()).device, stage_of(cfg)
        self.offload, self.norm = cfg.parallel.cpu_optimizer, 0.0
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        wholes = {name: whole_shape(model.declared[name], p, mesh.tp.size) for name, p in model.named_parameters()}
        with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints while it starts
            self.engine = initialize(model, cfg, mesh)
        self.zero = self.engine.optimizer
        believed = "_get_norm_groups" if self.stage == 3 else "scaled_global_norm"
        setattr(self.zero, believed, self.believed_norm)
        held = "fp32_partitioned_groups_flat" if self.stage == 3 else "single_partition_of_fp32_groups"
        self.partitions: list[Tensor] = getattr(self.zero, held)
        runs = (self.find_run(name, p, shapes[name], wholes[name]) for name, p in model.named_parameters())
        self.runs = [run for run in runs if run]
        self.average = Average(cfg.optim.ema, self.partitions)

    def find_run(self, name: str, p: Any, local: tuple[int, ...], whole: tuple[int, ...]) -> Run | None:
        """What of a parameter is in this rank's partitions."""
        if self.stage == 3:
            number, offset, length = self.zero.grad_position[self.zero.get_param_id(p)]
            first = self.mesh.dp.rank * length
            partition, length = self.partitions[number], min(length, p.ds_numel - first)  # the rest is padding
        elif p._hp_mapping is not None:
            number, first = p._hp_mapping.param_group_index, p._hp_mapping.lp_fragment_address.start
            offset, length = p._hp_mapping.hp_fragment_address.start, p._hp_mapping.hp_fragment_address.numel
            partition = self.partitions[number]
        else:
            length = 0
        if length <= 0:
            return None
        spec, tp = self.model.declared[name], self.mesh.tp
        cut = spec.cut
        corner = tuple(tp.rank * n if dim == cut else 0 for dim, n in enumerate(local))
        return Run(
            name=name,
            parameter=p,
            local=local,
            shape=whole,
            corner=corner,
            owner=cut is not None or tp.rank == 0,
            first=first,
            partition=partition,
            place=slice(offset, offset + length),
            spec=spec,
        )

    def step(self, batches: list[Batch], lr: float) -> Step:
        """One optimizer step over this replica's micro-batches of a global batch, or none when anything is not finite."""
        self.engine.train()
        if self.model.cfg.parameter_dropout:
            self.model.thin(int(self.updates()))
        scored, asked = sum(int(b.scored.sum()) for b in batches), sum(b.tokens_asked for b in batches)
        total, asked = all_reduce(torch.tensor([scored, asked], device=self.device), self.mesh.dp).tolist()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        hits = torch.zeros((), dtype=torch.float64, device=self.device)
        self.nlls, self.hits = [], []
        for i, batch in enumerate(batches):
            self.engine.set_gradient_accumulation_boundary(i == len(batches) - 1)
            micro, nll, hit = self.engine(batch.to(self.device))
            self.nlls.append(nll)
            self.hits.append(hit)
            # The denominator is global already, and DeepSpeed averages over replicas.
            self.engine.backward(micro * (self.mesh.dp.size / total), scale_wrt_gas=False)
            loss += micro.detach().double()
            hits += hit.double().sum()
        square, loss_sum, num_hits = self.over_world(self.gradients(), loss, hits)
        norm, value = square**0.5, loss_sum / total
        finite = math.isfinite(norm) and math.isfinite(value)
        self.norm = norm if finite else -1.0
        set_rate(self.zero.optimizer, lr)
        if finite:
            self.average.begin()
        self.engine.step()
        if finite and self.average.kept:
            self.average.follow(float(self.updates()))
        scale = min(1.0, self.clip / (norm + 1e-6)) if self.clip and finite else 1.0
        return Step(
            loss=value,
            accuracy=num_hits / max(1, asked),
            grad_norm=norm,
            clipped_norm=norm * scale,
            skipped=not finite,
            scored=total,
            asked=asked,
        )

    def believed_norm(self) -> Any:
        """Where DeepSpeed would compute its own norm: it clips by this one, and skips the step when it is negative."""
        norm = torch.tensor(self.norm, dtype=torch.float64, device=self.device)
        return [norm] if self.stage == 3 else norm

    def gradients(self) -> list[Tensor]:
        """Of each run, averaged over replicas; where the sequence is cut, partial ones need their tensor-parallel sum too."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # DeepSpeed reduces and off-loads on streams of its own
        found = [self.gradient(run) for run in self.runs]
        if self.mesh.tp.sequence:
            parts = [g for run, g in zip(self.runs, found) if run.spec.partial]
            placed = [g.to(self.device) for g in parts]
            flat_sum(placed, self.mesh.tp)
            for g, whole in zip(parts, placed):
                g.copy_(whole)
        return found

    def gradient(self, run: Run) -> Tensor:
        """Memory that the update reads."""
        if self.offload:
            assert run.partition.grad is not None  # DeepSpeed has put it there
            return run.partition.grad[run.place]
        if self.stage == 3:
            return self.zero.get_local_fp32_grad_for_param(run.parameter)[: run.place.stop - run.place.start]
        return run.parameter._hp_mapping.get_lp_grad_fragment(run.parameter._index_in_param_group).flatten()

    def over_world(self, tensors: Iterable[Tensor], loss: Tensor, hits: Tensor) -> list[float]:
        """The sum of squares of all runs, loss and hits over the world; what tensor ranks have in common counts once."""
        once = float(self.mesh.tp.rank == 0)
        own = [squares(self.live(run, x)).to(self.device) for run, x in zip(self.runs, tensors) if run.owner]
        sums = torch.stack((torch.stack([torch.zeros_like(loss), *own]).sum(), loss * once, hits * once))
        return all_reduce(sums, self.mesh.world).tolist()

    def live(self, run: Run, x: Tensor) -> Tensor:
        """Table rows that no id can name do not count."""
        if run.spec.live_rows is None:
            return x
        return x[: max(0, (run.spec.live_rows - run.corner[0]) * math.prod(run.local[1:]) - run.first)]

    @torch.no_grad()
    def score(self, batches: list[Batch]) -> list[RowScores]:
        """Each row's weighted NLL, without a gradient."""
        self.engine.eval()
        with self.average.read(self.spread_weights):
            outputs = [self.model(batch.to(self.device)) for batch in batches]
        return [row_scores(batch, nll, hit) for batch, (_, nll, hit) in zip(batches, outputs)]

    @torch.no_grad()
    def logits(self, batches: list[Batch], caches: Sequence[Cache | None] | None = None) -> list[Tensor]:
        """Of each batch's asked positions, on every rank.  -> [n, v]"""
        self.engine.eval()
        caches = caches or [None] * len(batches)
        with self.average.read(self.spread_weights):
            return [self.model(batch.to(self.device), loss=False, cache=cache) for batch, cache in zip(batches, caches)]

    def cache(self, rows: int, width: int) -> Cache:
        return new_cache(self.model, rows, width)

    def updates(self) -> Tensor:
        """How many there were.  -> [] fp32"""
        return next((s["step"] for s in self.zero.optimizer.state.values()), torch.zeros(()))

    def params_norm(self) -> float:
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        return self.over_world((run.partition.detach()[run.place] for run in self.runs), zero, zero)[0] ** 0.5

    def pieces(self) -> list[Piece]:
        """Weights, their average, both moments and the update count, as far as this rank owns them."""
        owned, state = [run for run in self.runs if run.owner], self.zero.optimizer.state
        out = [piece for run in owned for piece in run.pieces(f"model/{run.name}", run.partition.detach())]
        for run in owned:
            found = state.get(run.partition, {})
            out += [
                piece
                for moment in MOMENTS
                if moment in found
                for piece in run.pieces(f"optimizer/{moment}/{run.name}", found[moment])
            ]
        out += self.pieces_of_average(owned)
        if self.mesh.chief:
            out.append(Piece(name="optimizer/step", shape=(), start=(), tensor=self.updates().detach().cpu().float()))
        return out

    def pieces_of_average(self, runs: list[Run]) -> list[Piece]:
        kept = dict(zip(self.partitions, self.average.kept))
        return [piece for run in runs if kept for piece in run.pieces(f"{ROOT}/{run.name}", kept[run.partition])]

    @torch.no_grad()
    def load(self, checkpoint: Checkpoint, weights_only: bool = False) -> None:
        """Weights and moments into DeepSpeed's partitions, and from there to where the model reads them."""
        updates, state = torch.zeros(()), self.zero.optimizer.state
        if not weights_only and "optimizer/step" in checkpoint.shapes:
            checkpoint.fill([Piece(name="optimizer/step", shape=(), start=(), tensor=updates)])
        moments = {p: {moment: torch.zeros_like(p) for moment in MOMENTS} for p in self.partitions if updates > 0}
        self.average.expect(checkpoint, weights_only)
        root = root_of_weights(checkpoint, weights_only)
        wanted = [piece for run in self.runs for piece in run.pieces(f"{root}/{run.name}", run.partition.detach())]
        wanted += self.pieces_of_average(self.runs)
        wanted += [
            piece
            for run in self.runs
            if moments
            for moment in MOMENTS
            for piece in run.pieces(f"optimizer/{moment}/{run.name}", moments[run.partition][moment])
        ]
        checkpoint.fill(wanted)
        state.clear()
        for p, found in moments.items():
            state[p] = {"step": updates.to(p.device, copy=True)} | found
        self.spread_weights()

    def spread_weights(self) -> None:
        """From the fp32 partitions to the model, as DeepSpeed does after an update."""
        if self.stage < 3:
            self.zero.update_lp_params()
            return
        self.zero._partition_all_parameters()
        for number in range(len(self.partitions)):
            self.zero._reassign_or_swap_out_partitioned_parameters(number)
        if self.zero.persistent_parameters:
            self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)


if __name__ == "__main__":
    sys.exit(exits(main)())
