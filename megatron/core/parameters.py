"""Parameters declare themselves: how they begin, decay, scale and are cut stands beside the module that has them, and only there.

A module says it in `specs()`, by the names that its parameters have inside it; a parent may speak for its children, so that a
plain `nn.Linear` is allowed. `collect` makes one dict of a model, by name and at construction: what hangs on a parameter itself
does not survive sharding. Optimizer groups, norms, gradient sums, checkpoints and the initial weights all read that dict.
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from megatron.core.mesh import Group

# What a parameter is to a rule that scales with the width (Yang et al., arXiv:2203.03466, table 8): a matrix takes the width to
# the width, an embedding something of fixed size to the width (token and mask vectors, what norms are told), a head the width to
# something of fixed size, and a vector acts on each coordinate by itself (gains, biases). A table that is embedding and head in
# one is an embedding: the rules agree for both once logits are scaled, and only what scales them differs.
Role = Literal["matrix", "embedding", "head", "vector"]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a parameter is. Of one or two dimensions; the first is its rows."""

    role: Role | None = None  # of one dimension: a vector where nothing is said; of two: must be said
    init: Literal["normal", "table", "zeros", "ones"] = "normal"
    std: float = 1.0  # of the initial normals
    known_rows: int | None = None  # table: rows drawn; the next one is the mask's, at an address of its own; zeros above
    live_rows: int | None = None  # rows that norms count; those above are read by nobody [all]
    cut: int | None = None  # dimension that tensor parallelism cuts
    fused: tuple[int, ...] = ()  # several matrices stand in this one: their rows come in turns of so many of each
    decay: bool = True  # whether weight decay acts on it
    lr_factor: float = 1.0  # of the learning rate, and so on: what a wider model than the base changes
    decay_factor: float = 1.0
    eps_factor: float = 1.0
    partial: bool = False  # where the sequence is cut, each tensor rank's gradient is a part of a sum over positions
    copies: Literal["", "ends"] = ""  # ends: the first and the last pipeline stage both hold it, and sum its gradients


@runtime_checkable
class Declares(Protocol):
    """A module that says what its parameters are."""

    def specs(self) -> dict[str, Spec]: ...


def collect(model: nn.Module) -> dict[str, Spec]:
    """The spec of each parameter, in the order of `named_parameters`. A parent's word counts before its child's.

    Raises TypeError naming what lacks a spec or a role, is spoken of and not there, has no or more than two dimensions, or
    is something that no layout would keep alike: a buffer, or torch's own dropout.
    """
    said: dict[str, Spec] = {}
    for name, module in model.named_modules():
        refuse_module(name, module)
        if isinstance(module, Declares):
            said = {f"{name}.{key}" if name else key: spec for key, spec in module.specs().items()} | said
    parameters = dict(model.named_parameters())
    for name, p in parameters.items():
        if name not in said:
            raise TypeError(
                f"{place(model, name)} has no spec: give the class `def specs(self) -> dict[str, Spec]`, "
                "which says how each of its parameters begins, decays and is cut (megatron/core/parameters.py)"
            )
        if not 1 <= p.dim() <= 2:
            raise TypeError(f"{place(model, name)} has {p.dim()} dimensions, expected 1 or 2: lay it out as a matrix or a vector")
        if said[name].role is None:
            if p.dim() == 2:
                raise TypeError(
                    f"{place(model, name)} has two dimensions and its spec no role: say Spec(role=...), "
                    "matrix (width to width), embedding (to the width), head (from the width) or vector"
                )
            said[name] = replace(said[name], role="vector")
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}  # a shared one has several names
    if lost := [name for name in said if name not in known]:
        raise TypeError(f"{type(model).__name__} has no parameter {', '.join(lost)}, of which specs() speaks: correct the name")
    return {name: said[name] for name in parameters}


def scaled(specs: Mapping[str, Spec], width: float, depth: float) -> dict[str, Spec]:
    """The specs of a model `width` times as wide and `depth` times as deep as one of the same specs and hyperparameters.

    muP for Adam (Yang et al., arXiv:2203.03466, table 8, with one scale of logits in place of one of the head's weights) and
    CompleteP (Dey et al., arXiv:2505.01618, with branches divided by the depth): matrices begin smaller and learn slower, with
    as much decay a step. Gradients of all fall with the width, those of blocks also with the depth, and epsilon with them.
    """

    def one(name: str, spec: Spec) -> Spec:
        eps = 1 / (width * (depth if name.startswith("blocks.") else 1.0))
        if spec.role != "matrix":
            return replace(spec, eps_factor=eps)
        return replace(spec, std=spec.std / math.sqrt(width), lr_factor=1 / width, decay_factor=width, eps_factor=eps)

    return {name: one(name, spec) for name, spec in specs.items()}


def refuse_module(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        raise TypeError(
            f"{name} is a {type(module).__name__}, which draws from torch's global stream, another one at every layout: "
            "use megatron.core.transformer.Dropout, whose masks are addressed by sample and position"
        )
    if buffers := [key for key, _ in module.named_buffers(recurse=False)]:
        raise TypeError(
            f"{name or type(module).__name__} has the buffer {buffers[0]}, which checkpoints do not keep: "
            "compute it where it is used, or make it a parameter"
        )


def place(model: nn.Module, name: str) -> str:
    """A parameter's name, and class and file of the module that should speak for it."""
    owner = name.rpartition(".")[0]
    module = model.get_submodule(owner)
    if type(module).__module__.startswith("torch.") and owner:
        module = model.get_submodule(owner.rpartition(".")[0])
    try:
        file = f" ({inspect.getsourcefile(type(module))})"
    except TypeError:  # defined in no file
        file = ""
    return f"the parameter {name} of {type(module).__name__}{file}"


def whole_shape(spec: Spec, p: Tensor, tensor_parallel: int) -> tuple[int, ...]:
    """A parameter's shape before the tensor-parallel cut."""
    return tuple(n * tensor_parallel if dim == spec.cut else n for dim, n in enumerate(p.shape))


def live(spec: Spec, x: Tensor, first_row: int) -> Tensor:
    """The rows that norms count, of rows that begin at `first_row` of the whole parameter."""
    return x if spec.live_rows is None else x[: max(0, spec.live_rows - first_row)]


def normal(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normals at the address (seed, name)."""
    rng = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + zlib.crc32(name.encode())) % 2**63)
    return torch.randn(shape, generator=rng)


def table(seed: int, name: str, shape: tuple[int, ...], known_rows: int) -> Tensor:
    """Standard normals for the ids that there are, and for the mask from an address that no vocabulary size moves."""
    rows, known = torch.zeros(shape), min(known_rows, shape[0])
    rows[:known] = normal(seed, name, (known, shape[1]))
    rows[known : known + 1] = normal(seed, name + "[mask]", (1, shape[1]))[: shape[0] - known]
    return rows


@torch.no_grad()
def initialise(parameters: Iterator[tuple[str, Tensor]], specs: Mapping[str, Spec], seed: int, tp: Group) -> None:
    """Initial weights are a function of (seed, parameter name): the same at any layout, vocabulary padding or device."""
    for name, p in parameters:
        spec = specs[name]
        if spec.init in ("zeros", "ones"):
            p.fill_(float(spec.init == "ones"))
            continue
        shape = whole_shape(spec, p, tp.size)
        if spec.init == "table":
            whole = table(seed, name, shape, shape[0] if spec.known_rows is None else spec.known_rows)
        else:
            whole = normal(seed, name, shape)
        p.copy_((whole if spec.cut is None else whole.chunk(tp.size, spec.cut)[tp.rank]) * spec.std)
