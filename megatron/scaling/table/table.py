"""One table of observations, whatever it was read from, with every choice that was made on the way on record.

A path is a CSV or JSONL table, a run directory (result.json, metrics.jsonl), or a folder of such directories. A row is one
observation (N, D, loss); rows of one run, and branches of one trunk, are one cluster. Numbers are float64 from the first
moment: 6 N D overflows an int64.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from megatron.errors import BadData, MissingInput
from megatron.flags import parse_count
from megatron.progress import ProgressLine
from megatron.rundir.folders import read_file
from megatron.rundir.names import CONFIG, FACTS
from megatron.scaling.table.comparable import check_comparable
from megatron.scaling.table.covariates import (
    FLAGS,
    RENAMED,
    choose_best,
    column_of,
    read_covariates,
    spelled,
    split_by,
    spread,
    unspelled,
)
from megatron.scaling.table.downstream import ACCURACY, by_accuracy
from megatron.scaling.table.plausible import check_plausible
from megatron.scaling.table.runs import read_result, records, run_directories, table_lines
from megatron.scaling.table.scores import by_score, score_of
from megatron.score_names import read_score

NUMBERS = {
    "params",
    "tokens",
    "loss",
    "flops",
    "unique_tokens",
    "step",
    "budget",
    "params_non_embedding",
    "params_with_head",
    "params_published",
    "flops_exact",
    "bits_per_byte",
    "bytes_per_token",
    "loss_se_noise",
    "loss_se_data",
}
LABELS = {
    "run",
    "name",
    "objective",
    "bound",
    "score",
    "tokenizer",
    "eval_slice",
    "event",
    "params_convention",
    "flops_convention",
    "trunk",
    "cluster",
    "path",
    "source",
}
COUNTS = {"params", "tokens", "unique_tokens"} | {name for name in NUMBERS if name.startswith("params_")}  # as 124M or 1.5B, too
EMPTY = ("", "na", "n/a", "null", "none")  # how tables spell a number that is not there
TRUTHS = {"true": True, "yes": True, "false": False, "no": False}
PARAMS = {"non-embedding": "params_non_embedding", "with-head": "params_with_head", "published": "params_published"}
LAWFUL = ("params", "tokens", "unique_tokens", "flops", "loss")  # positive in every row
COMPARE = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
CONDITION = re.compile(r"\s*(.+?)\s*(<=|>=|!=|==|=|<|>)\s*(.+?)\s*")
MAPPING = re.compile(r"\s*([^=\s]+)\s*=\s*(.+?)\s*(?:\*\s*([-+.\deE]+)\s*)?")
LEAST_PARAMS = 1000  # no language model is smaller, or trained on less: the column is in millions or billions


@dataclass(frozen=True)
class Table:
    """Rows (dicts: run, params, tokens, unique_tokens, flops, loss, objective, cluster, ... and every other column of the
    source), what was left out and why, the sources with their SHA-256, and the choices that made it."""

    rows: list[dict]
    dropped: list[dict] = field(default_factory=list)  # {"run", "line", "reason"}
    sources: list[dict] = field(default_factory=list)  # {"path", "sha256"}
    choices: dict = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> np.ndarray:
        """A numeric column as float64 [n]. Raises BadData where a row has no number there."""
        for row in self.rows:
            if not isinstance(row.get(name), (int, float)):
                raise BadData(
                    f"{row['where']}: column {name} is {row.get(name)!r}, expected a number; "
                    "name the right column with --map, or leave the row out with --drop."
                )
        return np.array([row[name] for row in self.rows], np.float64)

    def labels(self, name: str) -> np.ndarray:
        """A column of labels (run, cluster, objective, ...) as strings [n], '' where a row has none."""
        return np.array([str(row.get(name) or "") for row in self.rows], str)

    @property
    def objectives(self) -> list[str]:
        """The objectives of the rows, sorted."""
        return sorted({row["objective"] for row in self.rows})

    def only(self, objective: str) -> Table:
        """The rows of one objective, with the record of everything."""
        return replace(self, rows=[row for row in self.rows if row["objective"] == objective])


def read_table(
    paths: Sequence[str | Path],
    *,
    mapping: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    drop_unfinished: bool = False,
    loss: str = "final",
    score: str | None = None,
    unit: str = "nats",
    params: str = "params",
    flops: str = "column",
    allow: Sequence[str] = (),
    lint: bool = True,
    group_by: str = "run",
    by: Sequence[str] = (),
    best_of: Sequence[str] = (),
    columns: Sequence[str] = (),
    accuracy: str | None = None,
    chance: float = 0.0,
) -> Table:
    """Read tables, run directories and folders of them into one Table.

    `mapping`: new column -> column of the source, or `column*factor`. `drop`: names of columns (rows where it is true are
    left out) or conditions such as `loss>3.4`, on the rows with their chosen unit and conventions. `loss`: final (rows of a
    table as they stand), best or last-k:n of every run. `score`: one that tools/evaluate.py likelihood measured of every run, in
    place of its validation's; a table states it in a column score. `unit`: nats or bits-per-byte. `params`: params (as it
    stands), total, non-embedding, with-head, published or a column. `flops`: column (6ND where there is none), 6nd, exact,
    exact-skipped-head or a column. `group_by`: the column whose equal values are one cluster. `by`: flags of training whose
    every combination of values becomes an objective of its own. `best_of`: flags of which only the best setting stays at each
    objective, N, D and U. `columns`: those that the form is a law of, so that runs may differ in them. `accuracy`: the loss is
    -ln of this column's share above `chance` (`by_accuracy`). `allow`: differences to fit across, of LINTS or flags of training.

    Raises MissingInput for paths that hold nothing, BadData with file and line for what no law can have (a loss of 0, NaN
    or nothing, unless `drop` or `drop_unfinished` leaves it out), Mismatch for rows that may not be compared (`lint`).
    """
    if score and loss != "final":
        raise BadData(f"--score {score} --loss {loss}: a score is of the run's last step; leave out --loss")
    rows, dropped, sources = _read(map(Path, paths), mapping or {}, loss, None if score is None else read_score(score).text)
    if accuracy is not None:
        rows, dropped, unit = *by_accuracy(rows, accuracy, chance, dropped), ACCURACY
    varied = spread(rows)
    if dropped and not rows:
        raise MissingInput(f"no finished run in {', '.join(map(str, paths))} ({_reasons(dropped)}); finish a run first.")
    warnings = _settle(rows, params, flops, unit)
    rows, left_out, without_effect = _drop(rows, drop, drop_unfinished)
    dropped, warnings = dropped + left_out, warnings + without_effect + check_plausible(rows, unit)
    rows, left_out, said = _choose_loss(rows, loss)
    if not rows:
        raise BadData(
            f"{sources[0]['path'] if sources else 'the table'}: no row is left of {len(dropped) + len(left_out)} "
            f"({_reasons(dropped + left_out)}); wait for the runs to end, or drop less."
        )
    rows, gave_way, on_error = _pool(rows, by, best_of, columns, allow if lint else None, group_by)
    left_out, said = left_out + gave_way, said + on_error
    choices: dict = {"loss": loss, "score": score, "unit": unit, "params": params, "flops": flops, "map": dict(mapping or {})}
    choices |= {"drop": list(drop), "drop_unfinished": drop_unfinished, "allow": list(allow), "group_by": group_by}
    choices |= {"by": list(by), "best_of": list(best_of), "columns": list(columns), "varied": varied}
    choices |= {"accuracy": None if accuracy is None else {"column": accuracy, "chance": chance}}
    return Table(rows, dropped + left_out, sources, choices, warnings + said)


def _pool(rows: list[dict], by, best_of, columns, allow, group_by: str) -> tuple[list[dict], list[dict], list[str]]:
    """(rows with their clusters, those that gave way, sentences) after `by` and `best_of`, checked for all other differences but
    with `allow` None."""
    told = {spelled(column_of(flag, rows)) for flag in (*by, *best_of, *columns)}
    split_by(rows, by)
    rows, gave_way, said = choose_best(rows, best_of) if best_of else (rows, [], [])
    if allow is not None:
        check_comparable(rows, {*allow, *told})
    for row in rows:
        row["cluster"] = _cluster(row, group_by)
    return rows, gave_way, said


def _settle(rows: list[dict], params: str, flops: str, unit: str) -> list[str]:
    """N, D, U, C and the loss of every row by these choices; sentences on what had to be derived."""
    for row in rows:
        if unit == "bits-per-byte" and "loss" not in row and "bits_per_byte" in row:
            row["loss"] = row["bits_per_byte"]
    warnings = _choose_params(rows, params) + _choose_tokens(rows) + _choose_flops(rows, flops)
    for row in rows:
        _choose_unit(row, unit)
    return warnings


def parse_condition(text: str):
    """(column, operator, value) of `loss>3.4`; the value a float where it is one. None where `text` is no condition."""
    found = CONDITION.fullmatch(text)
    if found is None:
        return None
    column, sign, value = found.groups()
    try:
        return column, sign, float(value)
    except ValueError:
        return column, sign, value


def _read(paths, mapping, loss, score):
    rows, dropped, sources, seen = [], [], [], set()
    for path in paths:
        if not path.exists():
            raise MissingInput(f"{path}: no such file or folder; give a CSV or JSONL table, or run directories.")
        files = list(run_directories(path)) if path.is_dir() else [path]
        line = ProgressLine(len(files), "runs")
        for number, file in enumerate(files):
            if number:
                line.show(number, path.name)
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            found, unfinished = _read_run(file, mapping, loss, score) if file.is_dir() else (_read_file(file, mapping, score), [])
            rows += found
            dropped += unfinished
            if found:
                source = file / "result.json" if file.is_dir() else file
                sources.append({"path": str(source), "sha256": hashlib.sha256(source.read_bytes()).hexdigest()})
        line.clear()
    return rows, dropped, sources


def _read_file(path: Path, mapping, score) -> list[dict]:
    rows = [_typed(row, mapping, f"{path}, line {line}") | {"line": line} for line, row in table_lines(path)]
    if not rows:
        raise BadData(f"{path}: no rows; a table needs a header and the columns params, tokens and loss.")
    for row in rows:
        row["run"] = row.get("run") or row.get("name") or f"{path.stem}:{row['line']}"
        row["path"] = row.get("path") or str(path)
        if score and score_of(row) not in (score, "exact"):
            stated = score_of(row) or "of no stated score"
            raise BadData(f"{row['where']}: the loss is {stated}, --score asks for {score}; give folders of runs.")
    return rows


def _read_run(directory: Path, mapping, loss, score):
    """([row], []) of a finished run directory, ([], [why]) of an unfinished one."""
    result = read_result(directory)
    if "reason" in result:
        return [], [{"run": result["run"], "line": None, "reason": "unfinished: " + result["reason"]}]
    if loss != "final":
        result |= _from_curve(directory, result, loss)
    if score:
        result |= by_score(directory, result, score)
    row = _typed(result, mapping, str(directory / "result.json"))
    where = {"line": None, "run": directory.name, "path": str(directory), "group": str(directory.resolve().parent)}
    covariates = read_covariates(read_file(directory, CONFIG), read_file(directory, FACTS))
    return [row | where | {"covariates": covariates}], []


def _from_curve(directory: Path, result: dict, loss: str) -> dict:
    """Loss, step, tokens and FLOPs of a run by its validation records instead of its last evaluation."""
    found = records(directory, "val")
    if not found:
        raise BadData(
            f"{directory / 'metrics.jsonl'}: no validation records, --loss {loss} needs them; "
            "give --loss final, or leave the run out."
        )
    at, value = _summary(found, loss)
    seen = at["tokens"] / result["tokens"]
    return {
        "loss": value,
        "step": at["step"],
        "tokens": at["tokens"],
        "flops": at["flops"],
        "loss_records": _count(loss),
        "unique_tokens": min(result.get("unique_tokens") or at["tokens"], at["tokens"]),
        "flops_exact": (result.get("flops_exact") or math.nan) * seen,
        "bits_per_byte": _scaled(result.get("bits_per_byte"), value, result.get("loss")),
    }


def _scaled(value, numerator, denominator):
    return value * numerator / denominator if value and denominator else None


def _summary(rows: list[dict], loss: str) -> tuple[dict, float]:
    """(the row whose place counts, its loss): the best row, or the last with the mean of the last n. Rows by rising step."""
    if loss == "best":
        best = min(rows, key=lambda row: row["loss"])
        return best, best["loss"]
    last = [row["loss"] for row in rows[-_count(loss) :]]
    return rows[-1], math.fsum(last) / len(last)


def _count(loss: str) -> int:
    """n of `last-k:n`; 1 otherwise. Raises BadData for a choice that does not exist."""
    if loss in ("final", "best"):
        return 1
    found = re.fullmatch(r"last-k:([1-9]\d*)", loss)
    if found is None:
        raise BadData(f"--loss {loss}: expected final, best or last-k:n, as last-k:5.")
    return int(found[1])


def _typed(row: dict, mapping, where: str) -> dict:
    """A row with its columns under our names, numbers as floats, and `where` it stands."""
    for new, old in mapping.items():
        found = MAPPING.fullmatch(f"{new}={old}")
        if found is None:
            raise BadData(f"--map {new}={old}: expected NEW=OLD, as params=N or params=size*1e6.")
        _, name, factor = found.groups()
        if name not in row:
            raise BadData(f"{where}: no column {name}, which --map names for {new} (found {', '.join(map(str, row))}).")
        row = row | {new: row[name] if factor is None else _number(row[name], where, name) * float(factor)}
    row = {_column(name): _value(name, value, where) for name, value in row.items()}
    return row | {"where": where, "objective": row.get("objective") or "unlabelled"}


def _column(name: str) -> str:
    """weight-decay, as a flag is written, is the column weight_decay, and learning_rate, as others call it, lr."""
    return unspelled(name) if ("-" in name or name in RENAMED) and unspelled(name) in FLAGS else name


def _value(name: str, value, where: str):
    if name in LABELS:
        return None if value in (None, "") else str(value)
    if name in NUMBERS:
        return None if value is None or str(value).lower() in EMPTY else _number(value, where, name)
    if value is None or isinstance(value, (bool, list, dict)):
        return value
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None if value == "" else TRUTHS.get(str(value).lower(), value)


def _number(value, where: str, column: str) -> float:
    try:
        if isinstance(value, (bool, list, dict)):
            raise ValueError
        return parse_count(value) if column in COUNTS and isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        plain = " with a point and no separators" if re.fullmatch(r"[\d.,' ]+", str(value)) else ""
        raise BadData(f"{where}, column {column}: found {value!r}, expected a number{plain}.") from None


def _choose_params(rows: list[dict], choice: str) -> list[str]:
    for row in rows:
        column = PARAMS.get(choice, choice)
        if choice == "total":
            column = "params_total" if "params_total" in row else "params"
            if column == "params" and row.get("params_convention") not in (None, "total"):
                raise BadData(
                    f"{row['where']}: params are {row['params_convention']}, --params total needs a column "
                    "params_total, or another choice of --params."
                )
        if column not in row:
            _lacks(row, column)
        if choice != "params":
            row |= {"params": _number(row[column], row["where"], column), "params_convention": choice}
    largest = max((row["params"] or 0.0 for row in rows), default=math.inf)
    if 0 < largest < LEAST_PARAMS:
        return [
            f"params are {largest:g} at most: a count of parameters is expected; if the column is in millions, give "
            "--map 'params=params*1e6'."
        ]
    return []


def _check_units(rows: list[dict], column: str) -> None:
    """Raise BadData where some rows hold counts and others are in millions or billions."""
    small = [row for row in rows if row[column] and 0 < row[column] < LEAST_PARAMS]
    if small and any(row[column] and row[column] >= LEAST_PARAMS for row in rows):
        raise BadData(
            f"{small[0]['where']}: {column} are {small[0][column]:g} there and counts above {LEAST_PARAMS} in other rows: units "
            f"are mixed ({len(small)} such rows of {len(rows)}); give counts in all of them, or leave these out with --drop "
            f"'{column}<{LEAST_PARAMS}'."
        )


def _lacks(row: dict, column: str):
    """Refuse a row without this column, saying how to name it."""
    found = ", ".join(name for name in row if name not in ("where", "line", "objective", "path", "run"))
    raise BadData(
        f"{row['where']}: no column {column} (found {found}); a table needs params, tokens and loss: "
        f"name yours with --map {column}=COLUMN" + (", or choose one with --params." if "params" in column else ".")
    )


def _choose_tokens(rows: list[dict]) -> list[str]:
    """Tokens from FLOPs where a table has only these, unique tokens (of those seen) and epochs."""
    derived = 0
    for row in rows:
        if "loss" not in row:
            _lacks(row, "loss")
        if "tokens" not in row:
            if not (row.get("flops") and row["params"]):
                _lacks(row, "tokens")
            row["tokens"] = row["flops"] / (6 * row["params"])
            derived += 1
        unique, tokens = row.get("unique_tokens"), row["tokens"]
        whole = unique is None or tokens is None or math.isnan(unique)
        row["unique_tokens"] = tokens if whole else min(unique, tokens)
        row["epochs"] = tokens / row["unique_tokens"] if row["unique_tokens"] else None
    return [f"no column tokens in {derived} rows: D = C / 6 N from their FLOPs."] if derived else []


def _choose_flops(rows: list[dict], choice: str) -> list[str]:
    """FLOPs of every row by one rule: a column that does not hold in some row gives way to 6ND in all, and that is said."""
    bad = [f"{row['where']}: {flaw}" for row in rows if choice == "column" and (flaw := _flaw(row, "flops"))]
    if choice not in ("6nd", "column"):
        for row in rows:
            row |= {"flops": _exact_flops(row, choice), "flops_convention": choice}
    elif choice == "6nd" or bad:
        for row in rows:
            row |= _six_n_d(row)
    return [f"{bad[0]} ({len(bad)} such rows): C = 6 N D in every row instead."] if 0 < len(bad) < len(rows) else []


def _six_n_d(row: dict) -> dict:
    if None in (row["params"], row["tokens"]):
        return {"flops": None}
    return {"flops": 6.0 * row["params"] * row["tokens"], "flops_convention": "6ND"}


def _exact_flops(row: dict, choice: str) -> float:
    """FLOPs by column. A masked model may compute its head only where it is asked: half the positions, on average."""
    column = "flops_exact" if choice in ("exact", "exact-skipped-head") else choice
    if row.get(column) is None:
        raise BadData(f"{row['where']}: no {column}, --flops {choice} needs it; give --flops 6nd, or --map {column}=COLUMN.")
    flops = _number(row[column], row["where"], column)
    if choice != "exact-skipped-head" or row["objective"] == "ar":
        return flops
    with_head, without = row.get("params_with_head"), row.get("params_non_embedding")
    if with_head is None or without is None:
        raise BadData(f"{row['where']}: --flops {choice} needs params_with_head and params_non_embedding; give --flops exact.")
    return flops - 0.5 * 6 * (with_head - without) * row["tokens"]


def _choose_unit(row: dict, unit: str) -> None:
    if unit != "bits-per-byte" or not row["loss"]:
        return
    bits, width = row.get("bits_per_byte"), row.get("bytes_per_token")
    if not (bits or width):
        raise BadData(
            f"{row['where']}: --unit bits-per-byte needs a column bits_per_byte or bytes_per_token; give one, or --unit nats."
        )
    scale = bits / row["loss"] if bits else 1 / (math.log(2) * (width or math.nan))
    row |= {name: row[name] * scale for name in ("loss", "loss_se_noise", "loss_se_data") if row.get(name) is not None}
    row["loss_scale"] = scale  # for losses of the same run that are read later


def _drop(rows, drop, drop_unfinished):
    """(rows kept, rows left out and why, sentences). Raises BadData for the rows that stay and that no law can have."""
    said = list(filter(None, (_without_effect(rows, item) for item in drop)))
    kept, left_out, flaws = [], [], []
    for row in rows:
        reason = next((f"--drop {item}" for item in drop if _matches(row, item)), None)
        flaw = next(filter(None, (_flaw(row, column) for column in LAWFUL)), None)
        if reason is None and flaw and not drop_unfinished:
            flaws.append(f"{row['where']} ({row['run']}): {flaw}")
        elif reason or flaw:
            left_out.append({"run": row["run"], "line": row["line"], "reason": reason or f"unfinished: {flaw}"})
        else:
            kept.append(row)
    if flaws:
        more = f" and {len(flaws) - 5} more rows" if len(flaws) > 5 else ""
        raise BadData(
            f"{'; '.join(flaws[:5])}{more}; expected positive numbers: leave unfinished runs out with "
            "--drop-unfinished, or rows with --drop."
        )
    for column in ("params", "tokens"):
        _check_units(kept, column)
    return kept, left_out, said


def _without_effect(rows: list[dict], item: str) -> str | None:
    """A sentence where --drop matches no row. Raises BadData for a column or a name that no row has."""
    column, sign, wanted = parse_condition(item) or (item, "", None)
    if not any(column in row for row in rows):
        raise BadData(
            f"--drop {item}: no column {column} in {rows[0]['where'] if rows else 'the table'}; "
            "give a column of the table, or a condition such as loss>3.4."
        )
    if any(_matches(row, item) for row in rows):
        return None
    values = {str(row[column]) for row in rows if row.get(column) is not None}
    if isinstance(wanted, str) and sign in ("=", "==") and not values <= {"True", "False"}:
        near = difflib.get_close_matches(wanted, values, n=1)
        more = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(values)[:3]) or 'none'}, ..."
        raise BadData(f"--drop {item}: no row has this {column}; {more}")
    return f"--drop {item} matches none of the {len(rows)} rows: all stay."


def _matches(row: dict, item: str) -> bool:
    condition = parse_condition(item)
    if condition is None:
        return _is_true(row, item)
    column, sign, wanted = condition
    value = row.get(column)
    if value is None:
        return False
    if isinstance(wanted, float) and isinstance(value, float):
        if math.isnan(wanted):
            return math.isnan(value) == (sign != "!=")
        return COMPARE[sign](value, wanted)
    if sign not in ("=", "==", "!="):
        raise BadData(f"{row['where']}: --drop {item} compares {value!r}, which is no number; use = or !=.")
    stated = item[item.index(sign) + len(sign) :].strip()
    return (str(value).lower() == stated.lower()) == (sign != "!=")


def _is_true(row: dict, column: str) -> bool:
    value = row.get(column)
    if value not in (None, True, False):
        raise BadData(
            f"{row['where']}: --drop {column} expects true or false there, found {value!r}; "
            f"give a condition, such as '{column}={value}'."
        )
    return bool(value)


def _flaw(row: dict, column: str) -> str | None:
    """Why this number can be in no law."""
    value = row.get(column)
    if value is not None and 0 < value < math.inf:
        return None
    if value is None:
        return f"{column} is empty"
    if not math.isfinite(value) or value == 0:
        return f"{column} is {value:g}"
    return f"{column} is {value:g}, negative as after an integer overflow"


def _choose_loss(rows, loss):
    """(one row a run for best and last-k, all rows for final; what gave way; a sentence on several rows a run)."""
    by_run: dict = {}
    for row in rows:
        by_run.setdefault((row.get("group"), row["run"], row["objective"]), []).append(row)
    several = [members for members in by_run.values() if len(members) > 1]
    if _count(loss) and loss == "final":
        said = (
            [
                f"{len(rows)} rows are checkpoints of {len(by_run)} runs, each an observation: the runs are the clusters; "
                "--loss last-k:1 keeps the last row of every run."
            ]
            if several
            else []
        )
        return rows, [], said
    kept, gave_way = [], []
    for members in by_run.values():
        order = "step" if all(row.get("step") is not None for row in members) else "tokens"
        at, value = _summary(sorted(members, key=lambda row: row[order]), loss)
        kept.append(at | {"loss": value})
        if len(members) > 1:
            gave_way.append({"run": at["run"], "line": None, "reason": f"--loss {loss}: {len(members)} rows became one"})
    return kept, gave_way, []


def _cluster(row: dict, group_by: str) -> str:
    """The unit of resampling: the row's own `cluster`, else its trunk, else its `group_by`."""
    if group_by != "run":
        if row.get(group_by) is None:
            raise BadData(f"{row['where']}: no {group_by}, which --group-by names; give a column of the table.")
        return str(row[group_by])
    label = row.get("cluster") or row.get("trunk") or row["run"]
    return f"{row['group']}/{label}" if row.get("group") else label


def _reasons(dropped: list[dict]) -> str:
    """The distinct reasons, three at most."""
    found = list(dict.fromkeys(entry["reason"] for entry in dropped))
    return "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "") or "it was empty"
