"""One dumped step again, alone on one process: the first tensor that is not finite, in the order of its computation."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from megatron.batch import Batch
from megatron.config import Config
from megatron.core import checkpoint
from megatron.core.checkpoint import Checkpoint
from megatron.core.mesh import Mesh
from megatron.core.norm import global_norm
from megatron.core.transformer import GPT
from megatron.engine.native import NativeEngine
from megatron.errors import Mismatch
from megatron.layout import find_place
from megatron.training import device as devices
from megatron.training.trained import at_layout, build_objective, read_config, restore

NOT_REPRODUCED, REPRODUCED = 16, 17


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a step did here."""

    first: str | None = None  # the first tensor that was not finite, in words
    loss: float = math.nan
    grad_norm: float = math.nan

    @property
    def code(self) -> int:
        """The exit code of tools/replay.py."""
        return REPRODUCED if self.first else NOT_REPRODUCED


@dataclass(frozen=True, kw_only=True)
class Dump:
    """A step that was not finite, with its weights in a model in training mode: dropout follows from addresses."""

    cfg: Config
    checkpoint: Checkpoint
    model: GPT
    batches: list[Batch]
    device: str


def open_dump(path: Path, device: str = "auto") -> Dump:
    """Raises MissingInput, BadData for damage, and Mismatch for what is no dump or is one of a version with other flags."""
    devices.choose(device, find_place(os.environ))  # before gigabytes are read
    found = checkpoint.load(path)
    if "micro_batches" not in found.facts:
        raise Mismatch(f"{found.path} is no dumped batch: give a folder of RUN_DIR/bad_batches")
    cfg = at_layout(read_config(found.facts, found.path), device)
    where = devices.for_scoring(cfg, torch.bfloat16 if cfg.train.bf16 else torch.float32)
    engine = restore(cfg, build_objective(cfg), found, where, Mesh())
    assert isinstance(engine, NativeEngine)  # at_layout chose it
    model = engine.stages[0].train()
    if cfg.model.parameter_dropout:
        model.thin(int(found.tensors(["optimizer/step"])["optimizer/step"]))
    return Dump(cfg=cfg, checkpoint=found, model=model, batches=read_batches(found), device=where.device.type)


def read_batches(dump: Checkpoint) -> list[Batch]:
    batches = []
    for i in range(dump.facts["micro_batches"]):
        start = f"batch/{i}/"
        found = dump.tensors(name for name in dump.shapes if name.startswith(start))
        batches.append(Batch(**{name.removeprefix(start): tensor for name, tensor in found.items()}))
    return batches


def check(name: str, tensor: Tensor, found: list[str], index: Tensor | None = None) -> None:
    """Append a sentence to `found` when the tensor is not finite; `index` names the sample of each of its rows."""
    if not tensor.is_floating_point() or bool(tensor.isfinite().all()):
        return
    counts = [f"{int(bad.sum())} {kind}" for kind, bad in (("NaN", tensor.isnan()), ("Inf", tensor.isinf())) if bad.any()]
    said = f"{name} is not finite ({' and '.join(counts)} of {tensor.numel()})"
    if index is not None and tensor.dim() > 1 and len(tensor) == len(index):
        row, place = (~tensor.isfinite()).nonzero()[0, :2].tolist()
        said += f", first in sample {int(index[row])} at position {place}"
    found.append(said)


def floating(values: object) -> Iterator[Tensor]:
    """The tensors of a module's positional arguments or of its output."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple):
        for value in values:
            yield from floating(value)


def watch(model: nn.Module, batch: Batch, found: list[str]) -> list[Callable[[], None]]:
    """Look at every module's inputs, output and their gradients as they are made. Returns what takes the hooks off."""

    def before(name: str, given: tuple) -> None:
        for x in floating(given):
            check(f"an input of {name}", x, found, batch.index)

    def behind(name: str, made: object) -> None:
        said = f"the loss is finite; gradient of the output of {name}"
        for x in floating(made):
            check(f"output of {name}", x, found, batch.index)
            if x.requires_grad:
                x.register_hook(lambda grad: check(said, grad, found, batch.index))

    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(lambda _, given, name=name: before(name, given)))
            hooks.append(module.register_forward_hook(lambda _, given, made, name=name: behind(name, made)))
    hooks += [
        p.register_hook(lambda grad, name=name: check(f"the loss is finite; gradient of {name}", grad, found))
        for name, p in model.named_parameters()
    ]
    return [hook.remove for hook in hooks]


def run_micro_batch(model: GPT, batch: Batch, total: int) -> tuple[list[str], float]:
    """One forward and backward pass as the engine does it. What is not finite, in the order it was made; and the loss."""
    found: list[str] = []
    check("the weights of the batch", batch.weights, found, batch.index)
    take_off = watch(model, batch, found)
    loss, nll, _ = model(batch)
    check("the asked positions' nll", nll.detach(), found)
    check("the loss", loss.detach(), found)
    if not found:
        (loss / total).backward()
    for remove in take_off:
        remove()
    for name, p in model.named_parameters():
        if p.grad is not None:
            check(f"gradient of {name}, summed over micro-batches,", p.grad, found)
    return found, float(loss.detach())


def replay(dump: Dump) -> Replayed:
    """Weights first, then micro-batch by micro-batch every tensor in the order of its computation."""
    model = dump.model
    found: list[str] = []
    for name, p in model.named_parameters():
        check(f"weight {name}", p.detach(), found)
    if found:
        return Replayed(
            first=f"{found[0]} before any computation: an earlier step or the memory spoiled it; go back to an earlier checkpoint"
        )
    total, loss = sum(int(b.scored.sum()) for b in dump.batches), 0.0
    place = next(model.parameters()).device
    for number, batch in enumerate(dump.batches):
        found, micro = run_micro_batch(model, batch.to(place), total)
        loss += micro / total
        if found:
            samples = batch.index.tolist()
            return Replayed(first=f"micro-batch {number}: {found[0]}; what it was made of was finite; its samples are {samples}")
    norm = float(global_norm(p.grad for p in model.parameters() if p.grad is not None))
    check("the gradient norm", torch.tensor(norm), found)
    return Replayed(first=f"{found[0]}, though every gradient is finite" if found else None, loss=loss, grad_norm=norm)


def describe(dump: Dump) -> str:
    """Where the step comes from, and how its batch is made again."""
    cfg, facts = dump.cfg, dump.checkpoint.facts
    batch_size = cfg.train.global_batch_size
    place = f"{facts['host']} ({facts['environment']['device']}, torch {facts['environment']['torch']})"
    return (
        f"step {dump.checkpoint.step} of a run on {place}: "
        f"loss {facts['loss']}, gradient norm {facts['grad_norm']}\n"
        f"its batch again: --objective {cfg.objective.objective} --seed {cfg.train.seed}, samples {facts['samples']}.."
        f"{facts['samples'] + batch_size - 1} of the train data {facts['fingerprints']['train']}, "
        f"{cfg.train.micro_batch_size} a micro-batch; noise and dropout follow from seed and sample number"
    )


def verdict(dump: Dump, done: Replayed) -> str:
    """The one line to act on."""
    if done.first:
        return f"REPRODUCED: {done.first}. Data or numerics, not the machine"
    facts = dump.checkpoint.facts
    advice = "run this again there; if all is finite there too, suspect that machine"
    if dump.device == "cpu" != facts["environment"]["device"]:
        advice = "that was no CPU: run this again on such a device before you suspect the machine"
    return (
        f"NOT REPRODUCED: every tensor is finite here, on {platform.node()} ({dump.device}); "
        f"it happened on {facts['host']} ({facts['environment']['device']}): {advice}"
    )


def record(dump: Dump, done: Replayed) -> dict:
    """What was found, as plain JSON: the step as the run saw it and as it is here; None where there is no number."""
    facts = dump.checkpoint.facts
    return {
        "dump": str(dump.checkpoint.path),
        "step": dump.checkpoint.step,
        "reproduced": done.first is not None,
        "first": done.first,
        "loss": done.loss if math.isfinite(done.loss) else None,
        "grad_norm": done.grad_norm if math.isfinite(done.grad_norm) else None,
        "device": dump.device,
        "samples": [sample for batch in dump.batches for sample in batch.index.tolist()],
        "there": {name: facts[name] for name in ("host", "loss", "grad_norm")},
    }
