"""Axes of a plan over flags of pretrain_*.py: their values, the points of their grid, and what runs are called after them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from megatron.config import declared
from megatron.flags import convert, find, refuse, spelling

SIZES = ("model_config", "num_layers", "hidden_size", "num_attention_heads", "kv_channels", "ffn_hidden_size")
LENGTHS = ("train_samples", "train_iters", "lr_decay_samples", "lr_decay_iters")
# Flags that a plan sets itself, and the axis it has for them.
ELSEWHERE = {
    **dict.fromkeys(SIZES, "--sizes names the sizes"),
    **dict.fromkeys(LENGTHS, "--flops, --tokens and --epochs say how long runs are"),
    **dict.fromkeys(("save", "load", "run_dir", "kill_switch_file", "config"), "where runs live is for `run` to say"),
    "objective": "--objectives names them",
    "seq_length": "--seq-length is one for the whole plan",
    "flops": "give --flops C,...",
    "train_tokens": "give --tokens D,...",
    "unique_tokens": "give --unique-tokens U,...",
    "epochs": "give --epochs E,...",
}


@dataclass(frozen=True)
class Axis:
    """One flag and its values, as config.json will hold them."""

    name: str  # the field: weight_decay
    values: tuple[Any, ...]


def read_axis(text: str) -> Axis:
    """`weight-decay=0,0.1,0.3`, `split=969,30,1;949,50,1` where values hold commas.

    Raises ValueError with a sentence on the flag, or on each value that it does not take.
    """
    spelled, equals, said = text.partition("=")
    spelled, table = f"--{spelled.strip().lstrip('-')}", declared()
    name, fixed = find(spelled, table)
    words = [word.strip() for word in said.split(";" if ";" in said else ",")]
    if elsewhere := ELSEWHERE.get(name or spelled[2:]):
        raise ValueError(f"--vary {text}: {elsewhere}")
    if name is None:
        raise ValueError(f"--vary {text}: {refuse(spelled, table)}")
    if fixed is not None:
        raise ValueError(f"--vary {text}: {spelled} stands for one value: vary {spelling(name)[2:]}")
    if not equals or not all(words):
        raise ValueError(f"--vary {text}: expected FLAG=VALUE,VALUE,..., as weight-decay=0,0.1,0.3")
    values, wrong = [], []
    for word in words:
        try:
            values.append(read_value(name, word))
        except ValueError as error:
            wrong.append(f"{spelling(name)} {error}")
    if wrong:
        raise ValueError(f"--vary {text}: {'; '.join(wrong)}")
    if len(set(map(str, values))) < len(values):
        raise ValueError(f"--vary {text}: a value stands there twice")
    return Axis(name, tuple(values))


def read_value(name: str, word: str) -> Any:
    """Raises ValueError with the sentence's end."""
    _, field, hint = declared()[name]
    truth = {"true": True, "on": True, "false": False, "off": False}
    return convert(field, hint, truth.get(word.lower(), word) if hint is bool else word)


def points(axes: tuple[Axis, ...], sample: int | None, seed: int) -> list[dict[str, Any]]:
    """The full grid, or `sample` points of it that a scrambled Latin hypercube chooses: {field: value}."""
    if sample is None:
        chosen = list(product(*(range(len(axis.values)) for axis in axes)))
    else:
        chosen = latin_hypercube([len(axis.values) for axis in axes], sample, seed)
    return [{axis.name: axis.values[at] for axis, at in zip(axes, place)} for place in chosen]


def latin_hypercube(sizes: list[int], count: int, seed: int) -> list[tuple[int, ...]]:
    """`count` different cells of a grid with these sides, every side's values about equally often; `seed` fixes which.

    Cells that a hypercube (McKay et al. 1979, by scipy.stats.qmc) hits twice are made up for by further ones.
    """
    from numpy.random import default_rng
    from scipy.stats import qmc  # late: it takes a second to import

    random = default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        for row in qmc.LatinHypercube(len(sizes), rng=random).random(count):
            found[tuple(int(share * side) for share, side in zip(row, sizes))] = None
    return sorted(list(found)[:count])


def flags_of(point: dict[str, Any]) -> list[str]:
    """The words that set a point's fields."""
    found = []
    for name, value in point.items():
        if isinstance(value, bool):
            found.append(spelling(name if value else f"no_{name}"))
        else:
            found += [spelling(name), *map(str, value if isinstance(value, list) else [value])]
    return found


def spell(value: Any) -> str:
    """As a table shows it; empty for a run without that axis."""
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def name_of(point: dict[str, Any]) -> str:
    """_weight-decay0.1_score-first-token_lr-decay-style-WSD"""
    return "".join(f"_{_part(spelling(name)[2:], value)}" for name, value in point.items())


def _part(flag: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag if value else f"no-{flag}"
    if isinstance(value, (int, float)):
        return flag + spell(value)
    words = (Path(word).name for word in (value if isinstance(value, list) else [value]))
    return f"{flag}-" + "-".join(re.sub(r"[^\w.-]+", "-", word) for word in words)
