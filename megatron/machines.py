"""What GPUs and the links between them do: the short table that a forecast of time reads. Standard library only.

Peaks, memory and links are of NVIDIA's data sheets (A100 80 GB SXM, H100 SXM, H200, DGX B200; links one way). `matmul` is the
most that a search over shapes reached (S. Bekman, Machine Learning Engineering, MAMF, bf16). `attention` is FlashAttention-2's
forward and backward pass together (Dao, arXiv:2307.08691, figures 4 and 7); for the B200 as much of its matmul as on an H100.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any

from megatron.flags import read_tree, unique

TERA, GIGA, GIB = 1e12, 1e9, 2**30


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Figures of one GPU, and of its part of a host's links."""

    name: str
    peak: float  # dense bf16, TFLOP/s
    matmul: float  # of which a large product reaches alone
    fp32: float  # outside tensor cores, TFLOP/s
    attention: float  # fused, bf16, TFLOP/s
    units: float  # multiprocessors, over which tiles are dealt
    memory: float  # GiB
    bandwidth: float  # of the memory, GB/s
    nvlink: float  # to the GPUs of the host, GB/s one way
    network: float  # to other hosts, GB/s one way
    host: float = 8  # GPUs that NVLink joins


A100 = Machine(
    name="a100", peak=312, matmul=268, fp32=19.5, attention=190, units=108, memory=80, bandwidth=2039, nvlink=300, network=25
)
H100 = Machine(
    name="h100", peak=989, matmul=792, fp32=67, attention=335, units=132, memory=80, bandwidth=3350, nvlink=450, network=50
)
H200 = replace(H100, name="h200", memory=141, bandwidth=4800)
B200 = Machine(
    name="b200", peak=2250, matmul=1745, fp32=75, attention=738, units=148, memory=180, bandwidth=8000, nvlink=900, network=50
)
MACHINES = {machine.name: machine for machine in (A100, H100, H200, B200)}
DEFAULT = "h100"
FIGURES = tuple(f.name for f in fields(Machine) if f.name != "name")


def read_machine(text: str) -> Machine:
    """`h100`; with figures of one's own, `h100,matmul=620,network=25`; or a file of figures. Raises ValueError with a sentence.

    A file (.yaml, .yml or .json) holds `figure: number` lines, and may have `base: h100` for those that it leaves out.
    """
    if text.endswith((".yaml", ".yml", ".json")):
        given = read_tree(text)
        name = given.pop("base", None)
    else:
        name, *changes = text.split(",")
        try:
            given = unique([change.partition("=")[::2] for change in changes])
        except ValueError as error:
            raise ValueError(f"{text}: {error}: say it once") from None
    if name is not None and not (isinstance(name, str) and name in MACHINES):
        raise ValueError(f"{text}: no machine {name!r}; known are {', '.join(MACHINES)}, and files (.yaml) of figures")
    figures = {str(figure): read_figure(text, figure, number) for figure, number in given.items()}
    if name is None and (left := [one for one in FIGURES if one not in (*figures, "host")]):
        raise ValueError(f"{text}: {', '.join(left)} left out: give them, or `base:` and one of {', '.join(MACHINES)}")
    known = {one: getattr(MACHINES[name], one) for one in FIGURES} if name else {}
    found = Machine(name=text, **known | figures)
    for figure in ("matmul", "attention"):
        if (reached := getattr(found, figure)) > found.peak:
            raise ValueError(f"{text}: {figure}={reached:g} is above peak={found.peak:g}: give both as they are")
    return found


def read_figure(text: str, figure: Any, number: Any) -> float:
    value = float(number) if re.fullmatch(r"[0-9]{1,20}(\.[0-9]{0,20})?(e[+-]?[0-9]{1,2})?", str(number)) else 0.0
    whole = figure not in ("units", "host") or value % 1 == 0
    if figure not in FIGURES or not 0 < value < 1e7 or not whole:
        raise ValueError(
            f"{text}: {figure}={number!s:.40}: expected a number above 0 (units and host whole) for one of {', '.join(FIGURES)}"
        )
    return value
