"""What Megatron, Megatron-DeepSpeed and we print: the iteration lines, the validation lines, the arguments."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron.errors import BadData
from megatron.scaling.table.ingest.curves import Curves

ITERATION = re.compile(r"\biteration\s+(\d+)/\s*\d+ \|(.*)")
EVALUATION = re.compile(r"\bvalidation loss at (?:iteration (\d+)|the end of training for (\w+) data)(?: on (\w+) set)? \|(.*)")
ARGUMENT = re.compile(r"\b(\w+) \.{2,} (.+)")
PARAMETERS = re.compile(r"number of parameters on \(tensor, pipeline\) model parallel rank \((\d+), (\d+)\): (\d+)")


def read_logs(files: Iterable[Path]) -> Iterator[Curves]:
    """The curves of every log, one run each, under Megatron's names: lm loss, lm loss validation, consumed samples.

    Raises BadData where a file has neither iteration nor validation lines.
    """
    for path in files:
        curves = read_log(path)
        if not curves.names:
            raise BadData(
                f"{path}: no line of a training (` iteration 100/ 1000 | ... lm loss: ... |`); give the log of "
                "the rank that prints them, Megatron's last or ours first."
            )
        yield curves


def read_log(path: Path) -> Curves:
    curves = Curves(run=path.stem, path=path, files=[path])
    columns: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    params, step = {}, 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if found := ITERATION.search(line):
                step = int(found[1])
                _add(columns, step, _numbers(found[2]))
            elif found := EVALUATION.search(line):
                split = "test" if "test" in (found[2], found[3]) else "validation"
                _add(columns, int(found[1] or step), {_name(name, split): n for name, n in _numbers(found[4]).items()})
            elif found := PARAMETERS.search(line):
                params[found[1], found[2]] = int(found[3])
            elif " ..." in line and (found := ARGUMENT.search(line)):
                curves.arguments[found[1]] = found[2].strip()
    for name, (steps, values) in columns.items():
        curves.add(name, steps, values)
    if set(params) == {("0", "0")} and _is_one_rank(curves.arguments):
        curves.facts["params"] = params["0", "0"]
    return curves


def _numbers(text: str) -> dict[str, float]:
    """`name: number |` again and again; a field that no bar ends was cut short."""
    found = {}
    for part in text.split("|")[:-1]:
        name, _, value = part.rpartition(":")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            continue  # another rank wrote into the line
    return found


def _name(printed: str, split: str) -> str:
    """`lm loss value` and `lm loss PPL` under the names of their curves."""
    ppl = " ppl" if printed.endswith(" PPL") else ""
    return f"{printed.removesuffix(' value').removesuffix(' PPL')} {split}{ppl}"


def _add(columns: dict, step: int, numbers: dict[str, float]) -> None:
    for name, number in numbers.items():
        columns[name][0].append(step)
        columns[name][1].append(number)


def _is_one_rank(arguments: dict) -> bool:
    """Whether the whole model is on one rank, so that the rank's parameters are all."""
    return all(arguments.get(f"{kind}_model_parallel_size") == "1" for kind in ("tensor", "pipeline"))
