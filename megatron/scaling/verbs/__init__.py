"""The verbs of tools/scaling_laws.py: how they answer, and the flags that every verb which reads tables shares."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from megatron.errors import CannotWrite
from megatron.files import replace_file
from megatron.flags import ConfigError
from megatron.scaling.show.screen import say
from megatron.scaling.table.comparable import LINTS, SAME_FOR_ALL
from megatron.scaling.table.covariates import FLAGS, spelled
from megatron.scaling.table.json_record import json_text, versions
from megatron.scaling.table.table import MAPPING, Table, read_table


@dataclass(frozen=True)
class Answer:
    """What a verb found: what --json prints, with the names and units of the file that the verb writes, and the exit code."""

    record: dict | list
    code: int = 0


def json_argument(parser: argparse.ArgumentParser) -> None:
    """Add --json to a verb whose command returns an Answer."""
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")


def answer(command: Callable[[argparse.Namespace], Answer | int | None], args: argparse.Namespace) -> int | None:
    """Do a verb's command and return its exit code. With --json stdout holds its Answer alone; nothing where it was refused."""
    if not getattr(args, "json", False):
        found = command(args)
        return found.code if isinstance(found, Answer) else found
    with stdout_aside():
        found = command(args)
    assert isinstance(found, Answer)  # a verb with --json has one
    print(json_text(found.record))
    return found.code


@contextmanager
def stdout_aside() -> Iterator[None]:
    """What is printed meanwhile, here or by a child process, goes to stderr."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def table_arguments(parser: argparse.ArgumentParser, paths: bool = True, score: bool = True) -> None:
    """Add the flags that say how a table is read; the positional TABLE... and --score too unless the verb has its own."""
    if paths:
        parser.add_argument("tables", nargs="+", metavar="TABLE", help="CSV or JSONL tables, run directories, folders of them")
    group = parser.add_argument_group("the table")
    group.add_argument(
        "--map",
        type=_mapping,
        action="append",
        default=[],
        metavar="NEW=OLD,...",
        help="columns under other names, as params=N,tokens=D; params=size*1e6 also scales",
    )
    group.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="X",
        help="leave out rows where column X is true, or where a condition as loss>3.4 or run=abc holds",
    )
    group.add_argument("--drop-unfinished", action="store_true", help="leave out rows whose loss is 0, NaN or empty")
    group.add_argument(
        "--loss",
        default="final",
        metavar="final|best|last-k:N",
        help="of every run: rows as they stand, its best, or the mean of its last N validations",
    )
    if score:
        group.add_argument(
            "--score",
            dest="scored_by",
            metavar="NAME",
            help="the loss is this score of tools/evaluate.py likelihood, as korder:16 or rule:confidence; of AR runs exact",
        )
    group.add_argument(
        "--accuracy",
        metavar="COLUMN",
        help="the loss is -ln of this accuracy's share above --chance, as task-NAME/accuracy (arXiv:2512.08894)",
    )
    group.add_argument(
        "--chance", type=_share, default=0.0, metavar="G", help="of --accuracy: that of guessing, as 0.25 (default: 0)"
    )
    group.add_argument("--unit", choices=("nats", "bits-per-byte"), default="nats", help="of the loss")
    group.add_argument(
        "--params",
        default="params",
        metavar="total|non-embedding|with-head|published|COLUMN",
        help="what N counts (default: the column params as it stands)",
    )
    group.add_argument(
        "--flops",
        default="column",
        metavar="6nd|exact|exact-skipped-head|column|COLUMN",
        help="what C counts (default: the column flops, 6ND where there is none)",
    )
    group.add_argument("--group-by", default="run", metavar="COLUMN", help="rows of equal value are resampled together")
    pooling_arguments(group)


def pooling_arguments(group: argparse._ArgumentGroup) -> None:
    """Which runs that differ beside their axes are fitted together."""
    group.add_argument(
        "--allow",
        type=_lints,
        action="append",
        default=[],
        metavar="X,...",
        help=f"differences to fit across: {', '.join(LINTS)}, or a flag of training, as weight-decay",
    )
    group.add_argument(
        "--by", type=words, default=[], metavar="FLAG,...", help="runs that differ in these flags of training are fitted apart"
    )
    group.add_argument(
        "--best-of",
        type=words,
        default=[],
        metavar="FLAG,...",
        help="of runs that differ in these flags of training, as lr,weight-decay, the best setting at each N, D and U",
    )


def load_table(args: argparse.Namespace, paths: Iterable[str | Path] | None = None, lint: bool = True, columns=()) -> Table:
    """The Table that the flags of `table_arguments` describe; `columns` are those of a form. Raises as `read_table`."""
    faults = []
    if args.chance and args.accuracy is None:
        faults.append(f"--chance {args.chance:g} is that of an accuracy: give --accuracy COLUMN too.")
    if args.accuracy is not None:
        others = {"--score": getattr(args, "scored_by", None), "--loss": args.loss != "final", "--unit": args.unit != "nats"}
        faults += [
            f"{flag} says which loss, and --accuracy has none: leave out one of them." for flag, given in others.items() if given
        ]
    if faults:
        raise ConfigError(faults)
    mapping = {new: old for item in args.map for new, old in item.items()}
    allow = [name for item in args.allow for name in item]
    return read_table(
        args.tables if paths is None else list(paths),
        mapping=mapping,
        drop=args.drop,
        loss=args.loss,
        score=getattr(args, "scored_by", None),
        unit=args.unit,
        drop_unfinished=args.drop_unfinished,
        params=args.params,
        flops=args.flops,
        allow=allow,
        lint=lint,
        group_by=args.group_by,
        by=args.by,
        best_of=args.best_of,
        columns=columns,
        accuracy=args.accuracy,
        chance=args.chance,
    )


def _mapping(text: str) -> dict[str, str]:
    found = [item.split("=", 1) for item in text.split(",")]
    if not all(MAPPING.fullmatch(item) for item in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NEW=OLD, as params=N,tokens=D")
    return {new.strip(): old.strip() for new, old in found}


def _lints(text: str) -> list[str]:
    names = [name if name in LINTS else spelled(name.lstrip("-")) for name in words(text)]
    unknown = [name for name in names if name not in (*LINTS, *map(spelled, FLAGS))]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(LINTS)}, and no flag of training")
    return names


def words(text: str) -> list[str]:
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected names with commas between")
    return found


def positive(text: str) -> float:
    """A flag's value as a positive number."""
    return _number(text, lambda value: value > 0, "a positive number")


def _share(text: str) -> float:
    return _number(text, lambda value: 0 <= value < 1, "an accuracy from 0 to below 1")


def _number(text: str, holds: Callable[[float], bool], expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and holds(value)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
    return value


def conclude(args: argparse.Namespace, name: str, record: dict, table: Table) -> Answer:
    """The answer of a verb: a result with the table's sources, choices and conventions, the flags and the versions behind it.

    With --out it is written there too, as the file `name`. JSON has no NaN: numbers that are not finite become null. Raises
    CannotWrite.
    """
    whole = {
        "schema_version": 1,
        **record,
        "sources": table.sources,
        "choices": table.choices,
        "conventions": {name: table.rows[0].get(name) for name in SAME_FOR_ALL},
        "flags": vars(args),
        "versions": versions(),
    }
    if args.out:
        path = Path(args.out) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, json_text(whole).encode())
        except OSError as error:
            raise CannotWrite(f"{path} cannot be written: {error.strerror}; make room or choose another --out.") from None
        say(f"wrote {path}")
    return Answer(whole)
