"""Which sizes a budget asks for: the expected optimum N*(C), and sizes of the table or made-up shapes around it."""

from __future__ import annotations

import math
from pathlib import Path

from megatron.budget import Shape, find_size, padded_vocab, sizes, swiglu_width
from megatron.errors import BadData
from megatron.files import read_json
from megatron.scaling.law.forms.chinchilla import Chinchilla

# Tokens a parameter at the published optima of arXiv:2507.15857, all embeddings counted: the geometric mean of its three budgets.
PUBLISHED_RATIOS = {"ar": 32.5, "mdm": 103.4}
LAWS = {
    "hoffmann": Chinchilla(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),  # arXiv:2203.15556
    "besiroglu": Chinchilla(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),
}  # arXiv:2404.10102
ASPECT = {"gpu": 64, "cpu": 16}  # hidden size a layer that made-up shapes keep near, as the table's do
WIDEST = 16384
KNOWN = "published, ratio:X (tokens a parameter), hoffmann, besiroglu, a fit.json, or one each: ar=...,mdm=..."


def expected_optimum(rule: str, objective: str, flops: float) -> float:
    """N*(C) by one of KNOWN. Raises ValueError with a sentence, MissingInput and BadData for a file."""
    if "=" in rule:
        said = dict(part.partition("=")[::2] for part in rule.split(","))
        if objective not in said:
            raise ValueError(f"--optimum {rule} says nothing of {objective}: give {objective}=... too")
        rule = said[objective]
    if rule == "published":
        return from_ratio(PUBLISHED_RATIOS[objective], flops)
    if rule.startswith("ratio:"):
        return from_ratio(read_ratio(rule), flops)
    law = LAWS.get(rule) or read_law(rule)
    return float(law.optimum(flops)[0])


def from_ratio(tokens_per_param: float, flops: float) -> float:
    """N* where D = ratio x N and C = 6 N D."""
    return math.sqrt(flops / (6 * tokens_per_param))


def read_ratio(rule: str) -> float:
    try:
        ratio = float(rule.removeprefix("ratio:"))
    except ValueError:
        ratio = 0.0
    if not 0 < ratio < math.inf:
        raise ValueError(f"--optimum {rule}: expected a number above 0, as ratio:20")
    return ratio


def read_law(path: str) -> Chinchilla:
    """E, A, B, alpha and beta of a fit.json."""
    if not path.endswith(".json"):
        raise ValueError(f"--optimum {path}: expected {KNOWN}")
    try:
        params = read_json(Path(path), "`fit` writes one")["params"]
        return Chinchilla(**{name: float(params[name]) for name in ("E", "A", "B", "alpha", "beta")})
    except (ValueError, KeyError, TypeError):
        raise BadData(
            f"--optimum {path}: expected `params` with E, A, B, alpha and beta; `fit --form chinchilla` writes them"
        ) from None


def sizes_between(low: float, high: float, num: int, *, scale: str, vocab_size: int, count: str) -> list[str]:
    """`num` sizes at equal ratios from `low` to `high` parameters, as find_size reads them; one alone is in the middle.

    A size of the table stands for what is within a quarter step of it; else a shape is made up. `count`: which number of
    Shape is meant, "published" or "total". Raises ValueError where there are no such sizes.
    """
    middle, step = math.sqrt(low * high), math.log(high / low) / max(1, num - 1)
    aims = [middle * math.exp(step * (i - (num - 1) / 2)) for i in range(num)]
    found = [nearest_size(aim, step / 4, scale=scale, vocab_size=vocab_size, count=count) for aim in aims]
    params = [getattr(find_size(size, vocab_size)[1], count)() for size in found]
    if any(abs(math.log(got / aim)) > step / 2 for got, aim in zip(params, aims)):
        raise ValueError(
            f"no {num} sizes bracket the expected optimum, from {low:,.0f} to {high:,.0f} parameters: with "
            f"{vocab_size} ids in the vocabulary the nearest have {', '.join(f'{p:,}' for p in params)}; take other "
            f"budgets, {'--scale cpu, ' if scale == 'gpu' else ''}or name --sizes"
        )
    return found


def nearest_size(target: float, tolerance: float, *, scale: str, vocab_size: int, count: str) -> str:
    """A size of the table within `tolerance` of ln N, else a made-up shape."""

    def distance(size: str) -> float:
        return abs(math.log(getattr(find_size(size, vocab_size)[1], count)() / target))

    table = [name for name in sizes() if name.startswith("CPU_") == (scale == "cpu") and counted_well(name, vocab_size, count)]
    nearest = min(table, key=distance)
    return nearest if distance(nearest) <= tolerance else make_size(target, scale=scale, vocab_size=vocab_size, count=count)


def counted_well(size: str, vocab_size: int, count: str) -> bool:
    """Whether 6 N D means what is trained: the published formula misses where heads x width is not the hidden size."""
    shape = find_size(size, vocab_size)[1]
    return abs(getattr(shape, count)() / shape.total() - 1) < 0.01


def make_size(target: float, *, scale: str, vocab_size: int, count: str) -> str:
    """The five numbers of a shape with about `target` parameters and the table's proportions."""

    def badness(shape: Shape) -> float:
        miss = math.log(getattr(shape, count)() / target)
        return miss**2 + (0.1 * math.log(shape.hidden_size / shape.num_layers / ASPECT[scale])) ** 2

    widths = range(16, 513, 16) if scale == "cpu" else (*range(64, 1024, 64), *range(1024, WIDEST + 1, 128))
    shapes = [make_shape(target, hidden, 16 if scale == "cpu" else 64 if hidden < 1024 else 128, vocab_size) for hidden in widths]
    best = min(shapes, key=badness)
    return f"{best.hidden_size},{4 * best.hidden_size},{best.kv_channels},{best.num_attention_heads},{best.num_layers}"


def make_shape(target: float, hidden: int, kv_channels: int, vocab_size: int) -> Shape:
    """Of this width, with the number of layers that comes nearest."""
    rows, ffn = padded_vocab(vocab_size), swiglu_width(hidden)
    layers = max(1, round((target - rows * hidden) / (4 * hidden**2 + 3 * hidden * ffn)))
    return Shape(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // kv_channels,
        kv_channels=kv_channels,
        ffn_hidden_size=ffn,
        vocab_size=vocab_size,
        padded_vocab_size=rows,
    )
