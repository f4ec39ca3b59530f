"""What sweeps on a laptop are made of: whole short runs of tiny models against a plain script's, start-up and compile counted."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

from tools.benchmark_startup import children_seconds, make_corpus, program
from tools.benchmark_timing import Row, median_ratio

WHOLE_STEPS = 1000  # of the run that is compared
BATCH = 8  # of 128 tokens


@dataclass(frozen=True)
class Size:
    """A model over bytes. `steps` take a few CPU seconds, so that their cost can be told from the start's."""

    name: str
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    ffn_hidden_size: int
    steps: int
    gate: float | None = None  # of a whole run against plain
    cpp_gate: float | None = None  # the same with --cpp-step
    seq_length: int = 128
    padded_vocab_size: int = 384
    kv_channels: int | None = None


SIZES = (
    Size("12 k", 2, 16, 2, 43, 300, gate=0.8, cpp_gate=1.5),
    Size("100 k", 3, 48, 4, 128, 200, gate=0.8, cpp_gate=1.2),
    Size("1 M", 5, 128, 4, 342, 40),
    Size("10 M", 6, 384, 6, 1024, 8),
)


class Cost(NamedTuple):
    """CPU seconds of a run."""

    start: float  # with the first step, and what was compiled for it
    step: float

    @property
    def whole(self) -> float:
        return self.start + (WHOLE_STEPS - 1) * self.step


def sweep(rounds: int, sizes: tuple[Size, ...] = SIZES) -> list[Row]:
    """A run of 1,000 steps of 1,024 tokens in fp32: ours, also with --cpp-step, and a plain script's in turn; compiled once."""
    rows, built = [], importlib.util.find_spec("megatron.engine._cpp_step") is not None
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(f"{folder}/corpus")
        for size in sizes:
            for objective in ("ar", "mdm"):
                ours, plain = partial(our_run, size, objective, folder), partial(plain_run, size, objective, folder)
                kinds = [ours, plain] + [partial(ours, cpp=True)] * built
                own, others, *cpp = zip(*([run() for run in kinds] for _ in range(rounds)), strict=True)
                rows += compared(f"{size.name} {objective}", "plain", own, others, size.gate)
                for costs in cpp:
                    rows += compared(f"{size.name} {objective} with --cpp-step", "plain", costs, others, size.cpp_gate)
                if not shutil.which(os.environ.get("CXX", "g++")):
                    why = "torch.compile needs a C++ compiler and none is on PATH"
                    rows.append(Row(section="sweep", what=f"{size.name} {objective}, against compiled plain", why=why))
                    continue
                rows += compared(f"{size.name} {objective}", "compiled plain", [ours()], [plain(compile=True)], None)
    return rows


def compared(what: str, peer: str, ours: list[Cost], others: list[Cost], gate: float | None) -> list[Row]:
    """Whole runs, of which a gate is, and their steps alone."""

    def row(part: str, of: Callable[[Cost], float], steps: int, gate: float | None) -> Row:
        mine, theirs = ([of(cost) for cost in costs] for costs in (ours, others))
        rates = [f"{steps * BATCH * 128 / statistics.median(spent):.0f} tok/cpu-s" for spent in (mine, theirs)]
        if steps > 1:
            rates = [
                f"{rate}, start {statistics.median(c.start for c in costs):.1f} s"
                for rate, costs in zip(rates, (ours, others), strict=True)
            ]
        words = f"{what}, {part}, against {peer}"
        return Row(section="sweep", what=words, ours=rates[0], peer=rates[1], ratio=median_ratio(theirs, mine), gate=gate)

    return [row(f"{WHOLE_STEPS} steps", lambda c: c.whole, WHOLE_STEPS, gate), row("a step", lambda c: c.step, 1, None)]


def our_run(size: Size, objective: str, folder: str, cpp: bool = False) -> Cost:
    """The trainer's, from the difference between two of its runs."""

    def spent(steps: int) -> float:
        flags = f"""--num-layers {size.num_layers} --hidden-size {size.hidden_size} --ffn-hidden-size {size.ffn_hidden_size}
            --num-attention-heads {size.num_attention_heads} --seq-length {size.seq_length} --attention-dropout 0
            --hidden-dropout 0 --micro-batch-size {BATCH} --global-batch-size {BATCH} --train-iters {steps} --lr 1e-4
            --tokenizer-type ByteTokenizer --split 100,0,0 --eval-iters 0 --log-interval 10 --device cpu --num-threads 1
            --make-vocab-size-divisible-by {size.padded_vocab_size} --data-path {folder}/corpus""".split()
        flags += ["--cpp-step"] * cpp
        with tempfile.TemporaryDirectory(dir=folder) as run:
            began = children_seconds()
            program(f"pretrain_{'diff_gpt' if objective == 'mdm' else 'gpt'}.py", [*flags, "--run-dir", f"{run}/run"])
            return children_seconds() - began

    short = spent(1)
    return Cost(short, (spent(1 + size.steps) - short) / size.steps)


def plain_run(size: Size, objective: str, folder: str, compile: bool = False) -> Cost:
    """The plain script's, which says what its start took; nothing compiled before is taken over."""
    masked = {"masked": objective == "mdm", "mask_id": 257}
    given = asdict(size) | masked | {"ids": f"{folder}/corpus.bin", "batch": BATCH, "compile": compile, "steps": 1 + size.steps}
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        fresh = {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        said = program("tools/benchmark_plain.py", [json.dumps(given)], environ=os.environ | fresh).stdout
    start, whole = json.loads(said)
    return Cost(start, (whole - start) / size.steps)
