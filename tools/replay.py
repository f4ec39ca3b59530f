"""Re-run one step that was not finite, alone on one process, and name the first bad tensor.

    python tools/replay.py RUN_DIR/bad_batches/step-00000812 [--device cpu]

A run dumps such a step with its weights and skips it. Weights are looked at first, then micro-batch by micro-batch every
tensor in the order of its computation. Exit code 17: it is not finite here either, so data or numerics did it. 16: every
tensor is finite here, so suspect the machine it happened on (run it there too). Compiled and recomputed blocks run eagerly.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed

from megatron import objectives  # noqa: E402
from megatron.batch import Batch  # noqa: E402
from megatron.config import Config  # noqa: E402
from megatron.core import checkpoint  # noqa: E402
from megatron.core.checkpoint import Checkpoint, whole  # noqa: E402
from megatron.core.norm import global_norm  # noqa: E402
from megatron.core.transformer import GPT  # noqa: E402
from megatron.data.tokenizer import Vocabulary  # noqa: E402
from megatron.errors import Mismatch, MissingInput, exits  # noqa: E402

NOT_REPRODUCED, REPRODUCED = 16, 17


def read_config(dump: Checkpoint) -> Config:
    """The run's Config. Raises Mismatch for a checkpoint that is no dump, or one of a version with other flags."""
    if "micro_batches" not in dump.facts:
        raise Mismatch(f"{dump.path} is no dumped batch: give a folder of RUN_DIR/bad_batches")
    try:
        return Config.from_dict(dump.facts["config"])
    except (KeyError, TypeError) as error:
        raise Mismatch(f"{dump.path} was written by a version with other flags ({error}): replay it with that version") from None


def read_batches(dump: Checkpoint) -> list[Batch]:
    batches = []
    for i in range(dump.facts["micro_batches"]):
        start = f"batch/{i}/"
        found = dump.tensors(name for name in dump.shapes if name.startswith(start))
        batches.append(Batch(**{name.removeprefix(start): tensor for name, tensor in found.items()}))
    return batches


def build_model(cfg: Config, dump: Checkpoint, device: str) -> GPT:
    """The model of the dumped step, in training mode: its dropout is a function of seed, sample and position."""
    objective = objectives.build(cfg, Vocabulary(cfg.model.vocab_size, cfg.model.padded_vocab_size).mask)
    dtype = torch.bfloat16 if cfg.train.bf16 else torch.float32
    model = GPT(cfg.model, objective.causal, cfg.train.seed, dtype, slots=objective.slots(cfg.model), fresh=False)
    dump.fill(whole({f"model/{name}": p for name, p in model.named_parameters()}))
    return model.to(device).train()


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


def replay(model: GPT, batches: list[Batch], say: Callable[[str], None]) -> str | None:
    """The first tensor that is not finite, in words; None when all are finite."""
    found: list[str] = []
    for name, p in model.named_parameters():
        check(f"weight {name}", p.detach(), found)
    if found:
        return f"{found[0]} before any computation: an earlier step or the memory spoiled it; go back to an earlier checkpoint"
    total, loss = sum(int(b.scored.sum()) for b in batches), 0.0
    device = next(model.parameters()).device
    for number, batch in enumerate(batches):
        found, micro = run_micro_batch(model, batch.to(device), total)
        loss += micro / total
        if found:
            return f"micro-batch {number}: {found[0]}; what it was made of was finite; its samples are {batch.index.tolist()}"
    norm = float(global_norm(p.grad for p in model.parameters()))
    say(f"here the loss is {loss:.6f} and the gradient norm {norm:.6f}")
    check("the gradient norm", torch.tensor(norm), found)
    return f"{found[0]}, though every gradient is finite" if found else None


def describe(cfg: Config, dump: Checkpoint) -> str:
    """Where the step comes from, and how its batch is made again."""
    facts, batch_size = dump.facts, cfg.train.global_batch_size
    place = f"{facts['host']} ({facts['environment']['device']}, torch {facts['environment']['torch']})"
    return (
        f"step {dump.step} of a run on {place}: "
        f"loss {facts['loss']}, gradient norm {facts['grad_norm']}\n"
        f"its batch again: --objective {cfg.objective.objective} --seed {cfg.train.seed}, samples {facts['samples']}.."
        f"{facts['samples'] + batch_size - 1} of the train data {facts['fingerprints']['train']}, "
        f"{cfg.train.micro_batch_size} a micro-batch; noise and dropout follow from seed and sample number"
    )


def verdict(first: str | None, dump: Checkpoint, device: str) -> tuple[str, int]:
    """The one line to act on, and the exit code."""
    if first:
        return f"REPRODUCED: {first}. Data or numerics, not the machine", REPRODUCED
    advice = "run this again there; if all is finite there too, suspect that machine"
    if device == "cpu" != dump.facts["environment"]["device"]:
        advice = "that was no CPU: run this again on such a device before you suspect the machine"
    return (
        f"NOT REPRODUCED: every tensor is finite here, on {platform.node()} ({device}); "
        f"it happened on {dump.facts['host']} ({dump.facts['environment']['device']}): {advice}",
        NOT_REPRODUCED,
    )


@exits
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="replay.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument(
        "dump", type=Path, metavar="DUMP", help="a folder of RUN_DIR/bad_batches (of bad_batches itself the newest)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]")
    given = parser.parse_args(argv)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise MissingInput("--device cuda: torch sees no GPU here; use --device cpu or auto")
    device = "cuda" if given.device != "cpu" and torch.cuda.is_available() else "cpu"
    dump = checkpoint.load(given.dump)
    cfg = read_config(dump)
    print(describe(cfg, dump))
    line, code = verdict(replay(build_model(cfg, dump, device), read_batches(dump), print), dump, device)
    print(line)
    return code


if __name__ == "__main__":
    sys.exit(main())
