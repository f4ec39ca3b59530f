"""Flags of training in which runs differ beside the axes of a fit: kept as columns, never pooled in silence.

Runs may differ in size, length and seed. What a rule sets from these (the rate, the batch, the schedule's lengths) may follow
them, so that only runs of the same N, D and U can differ in it, and so may the corpus; every other flag that makes the
experiment is a difference wherever it varies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from megatron.config import declared, experiment
from megatron.errors import BadData

SHAPE = ("num_layers", "hidden_size", "num_attention_heads", "kv_channels", "ffn_hidden_size", "padded_vocab_size")
LENGTH = ("train_samples", "train_iters", "train_tokens", "flops")
AXES = {*SHAPE, *LENGTH, "objective", "seed", "grad_accum_steps"}  # the last: a share of the batch, by the layout
FOLLOWING = {
    "lr",
    "min_lr",
    "global_batch_size",
    "batch_size",
    "lr_decay_samples",
    "lr_decay_iters",
    "lr_warmup_samples",
    "lr_warmup_iters",
    "lr_wsd_decay_samples",
    "lr_wsd_decay_iters",
    "init_method_std",
    "num_query_groups",
}
# What a run was trained on and began from: no flag of the experiment, whose data are known by their content.
DATA = ("train_data_path", "data_kind", "num_categories", "tokens_per_category", "component_uniform", "shuffle_categories")
FLAGS = (*(name for name in (*experiment({}), "batch_size") if name not in AXES), *DATA, "finetune")  # batch_size: of result.json
SAME = 0.01  # largest gap in ln N, ln D and ln U of runs that stand for one place
UNSET = "none"  # the value of a flag that a run left open
MOST_NAMED = 3
RENAMED = {"global_batch_size": "batch_size", "learning_rate": "lr"}  # the column of a flag, where it is called otherwise


@dataclass(frozen=True)
class Places:
    """Which rows agree in objective, N, D and U, to 1 %: [n] numbers of places."""

    number: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[dict]) -> Places:
        axes = [levels(np.log([row[name] for row in rows])) for name in ("params", "tokens", "unique_tokens")]
        objective = np.unique([row["objective"] for row in rows], return_inverse=True)[1]
        return cls(np.unique(np.stack([objective.ravel(), *axes]), axis=1, return_inverse=True)[1].ravel())

    def members(self) -> list[list[int]]:
        """Row numbers of each place."""
        return [np.flatnonzero(self.number == place).tolist() for place in np.unique(self.number)]


def read_covariates(config: dict, facts: dict) -> dict:
    """Flag -> value of a run's config.json and run.json, for every flag of FLAGS; {} where there is no config."""
    if not config:
        return {}
    of_data = config.get("data", {})
    stated = experiment(config) | {name: of_data.get(name) for name in DATA} | {"finetune": took_weights(facts)}
    stated["train_data_path"] = corpora_of(of_data)
    return {name: in_a_table(stated[name]) for name in FLAGS if name in stated}


def took_weights(facts: dict) -> bool:
    """Whether a run began at step 0 with the weights of another (--finetune)."""
    return any(one.get("from") and one.get("step") == 0 for one in facts.get("resumes", []))


def corpora_of(data: dict) -> str | None:
    """The training corpora and their weights as they were given, by the last two parts of their paths: folders move."""
    words = data.get("train_data_path") or data.get("data_path") or data.get("train_data_path_file")
    return " ".join("/".join(str(word).split("/")[-2:]) for word in ([words] if isinstance(words, str) else words or [])) or None


def in_a_table(value):
    """The value of a flag as every table spells it: a number, a truth, a word, `none`; several values as one word."""
    if value is None or str(value).lower() == UNSET:
        return UNSET
    if isinstance(value, list):
        return ",".join(map(str, value))
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def spread(rows: Sequence[dict]) -> dict[str, list]:
    """Make columns of the `covariates` (a dict, taken out of each row): every flag with more than one value, and these."""
    for row in rows:
        row |= {name: value for name, value in as_columns(row.pop("covariates", {})).items() if row.get(name) is None}
    return {name: values for name in columns_of_flags(rows) if len(values := _values(rows, name)) > 1}


def as_columns(covariates: dict) -> dict:
    """The flags as a table has them: the global batch is the column batch_size."""
    return {RENAMED.get(name, name): value for name, value in covariates.items() if is_stated(value)}


def columns_of_flags(rows: Iterable[dict]) -> list[str]:
    """Those of FLAGS that are a column of some row."""
    columns = set().union(*rows)
    return [name for name in FLAGS if name in columns]


def _values(rows: Iterable[dict], name: str) -> list:
    return sorted({row[name] for row in rows if is_stated(row.get(name))}, key=lambda value: (isinstance(value, str), value))


def is_stated(value) -> bool:
    return value is not None and not isinstance(value, (list, dict))


def covariate_differences(rows: Sequence[dict]) -> dict[str, str]:
    """Flag, as it is spelled -> how runs of one objective differ in it, naming runs and what to do.

    A row that does not state a flag is not compared in it.
    """
    found: dict[str, str] = {}
    varied = [name for name in columns_of_flags(rows) if len(_values(rows, name)) > 1]
    if not varied:
        return found
    several = [row for row in rows if all(row.get(name) for name in ("params", "tokens", "unique_tokens"))]
    groups = [[several[i] for i in members] for members in Places.of(several).members()] if several else []
    objectives = [[row for row in rows if row["objective"] == one] for one in dict.fromkeys(row["objective"] for row in rows)]
    for name in varied:
        of_one_place = name in FOLLOWING or name in DATA
        differing = next((group for group in (groups if of_one_place else objectives) if _differ(group, name)), None)
        if differing is not None:
            found[spelled(name)] = _sentence(differing, name, of_one_place)
    return found


def _differ(rows: Sequence[dict], name: str) -> bool:
    """Whether rows differ in a flag. The rate at the end is a share of the peak: it is no difference of its own."""
    if name == "min_lr" and all(
        isinstance(row.get(one), (int, float)) and row["lr"] > 0 for row in rows for one in ("min_lr", "lr")
    ):
        shares = [row["min_lr"] / row["lr"] for row in rows]
        return max(shares) - min(shares) > SAME * max(shares)
    return len(_values(rows, name)) > 1


def _sentence(rows: list[dict], name: str, of_one_place: bool) -> str:
    sides = []
    for value in _values(rows, name):
        runs = list(dict.fromkeys(row["run"] for row in rows if row.get(name) == value))
        more = f" and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else ""
        sides.append(f"{said(value)} in {', '.join(runs[:MOST_NAMED])}{more}")
    where = " of the same N, D and unique tokens" if of_one_place else ""
    return (
        f"{rows[0]['objective']} runs{where} differ in {spelled(name)}: {'; '.join(sides)}; fit them apart with --by "
        f"{spelled(name)}, take the best with --best-of {spelled(name)}"
    )


def spelled(name: str) -> str:
    """weight_decay -> weight-decay, as the flag is written; a column such as task-NAME/accuracy is what it is."""
    return name if "/" in name else name.replace("_", "-")


def unspelled(word: str) -> str:
    """weight-decay or --weight-decay -> weight_decay, the column of a flag; a column such as task-NAME/accuracy is what it is."""
    word = word.strip().lstrip("-")
    name = word if "/" in word else word.replace("-", "_")
    return RENAMED.get(name, name)


def said(value) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def column_of(flag: str, rows: Sequence[dict]) -> str:
    """The column that a word of --by or --best-of names. Raises BadData where it is none, or no row states it."""
    name = unspelled(flag)
    values = {str(row.get(name)) for row in rows}
    if len(values) > 1 or name not in FLAGS and values != {"None"}:
        return name
    if name in (*declared(), "batch_size"):
        raise BadData(f"--by, --best-of, --of or --form with {flag}: the runs do not differ in it; leave it out.")
    varied = [spelled(one) for one in columns_of_flags(rows) if len(_values(rows, one)) > 1]
    differ = ", ".join(varied) or "no flag"
    raise BadData(f"--by, --best-of, --of or --form with {flag}: no such flag or column; the runs differ in {differ}.")


def split_by(rows: Sequence[dict], flags: Sequence[str]) -> None:
    """Make every combination of values of these flags an objective of its own: 'mdm weight-decay=0.1'. Raises BadData."""
    columns = [column_of(flag, rows) for flag in flags]
    for row in rows:
        parts = [f"{spelled(name)}={said(UNSET if row.get(name) is None else row[name])}" for name in columns]
        row |= {"objective": " ".join([row["objective"], *parts]), "trained_objective": row["objective"]} if parts else {}


def choose_best(rows: list[dict], flags: Sequence[str]) -> tuple[list[dict], list[dict], list[str]]:
    """(rows of the best setting of these flags at each objective, N, D and U; rows that gave way, with reasons; what that does to
    the error, in a sentence). Seeds of one setting are averaged, and stay together.

    The least of k noisy values is low on average even where all settings are equal, by c_k standard deviations
    (`expected_minimum`): that is the most that selection takes off a loss. Raises BadData.
    """
    columns = [column_of(flag, rows) for flag in flags]

    def setting(row: dict) -> tuple:
        return tuple(row.get(name) for name in columns)

    kept, gave_way, counts = [], [], []
    for members in Places.of(rows).members():
        by_setting: dict[tuple, list[int]] = {}
        for i in members:
            by_setting.setdefault(setting(rows[i]), []).append(i)
        means = {key: np.mean([rows[i]["loss"] for i in found]) for key, found in by_setting.items()}
        best = min(means, key=lambda key: means[key])
        counts.append((len(by_setting), min(map(len, by_setting.values()))))
        kept += by_setting[best]
        names = ", ".join(f"{spelled(name)} {said(value)}" for name, value in zip(columns, best))
        reason = f"--best-of {','.join(map(spelled, columns))}: {names} has a lower loss at the same N, D and U"
        gave_way += [(i, reason) for key, found in by_setting.items() if key != best for i in found]
    left_out = [{"run": rows[i]["run"], "line": rows[i].get("line"), "reason": reason} for i, reason in sorted(gave_way)]
    return [rows[i] for i in sorted(kept)], left_out, [_selection_error(rows, setting, counts, ",".join(map(spelled, columns)))]


def expected_minimum(count: int) -> float:
    """The mean of the least of `count` independent standard normals, below 0 (Harter, Biometrika 48, 1961: -0.5642 for 2,
    -1.1630 for 5, -1.5388 for 10), by integration over x of x times its density."""
    x = np.linspace(-12, 12, 24001)
    density = count * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * ndtr(-x) ** (count - 1)
    return float(np.sum(x * density) * (x[1] - x[0]))


def _selection_error(rows: list[dict], setting: Callable, counts: list[tuple[int, int]], names: str) -> str:
    """What --best-of does to the losses, from the scatter of seeds or, without, from the stated errors."""
    most, least = max(count for count, _ in counts), min(count for count, _ in counts)
    text = f"{least} to {most}" if least < most else f"{most}"
    start = f"--best-of {names}: the best of {text} settings stands at each of {len(counts)} places (N, D, U)"
    most_low = -expected_minimum(most)
    scatter, basis = _scatter(rows, setting)
    if scatter is None:
        return (
            f"{start}; such losses are too low by up to {most_low:.3g} standard deviations between equal runs (the expected "
            "least of equal settings), which no replicates or stated errors tell: add seeds."
        )
    error = most_low * scatter / np.sqrt(min(seeds for _, seeds in counts))
    uneven = "" if least == most else "; places with more settings more so"
    return (
        f"{start}; with a scatter of {scatter:.2g} between equal runs ({basis}) such losses are too low by up to {error:.2g} "
        f"(the expected least of equal settings){uneven}."
    )


def run_scatter(rows: Sequence[dict]) -> tuple[float | None, str]:
    """(standard deviation of the loss of one run, what tells it): of runs that agree in N, D, U and every flag that is stated."""
    columns = columns_of_flags(rows)
    return _scatter(list(rows), lambda row: tuple(str(row.get(name)) for name in columns))


def _scatter(rows: list[dict], setting: Callable) -> tuple[float | None, str]:
    """(standard deviation of the loss of one run, what tells it)."""
    place = Places.of(rows).number
    groups: dict[tuple, list[float]] = {}
    for row, number in zip(rows, place):
        groups.setdefault((number, setting(row)), []).append(row["loss"])
    freedom = sum(len(losses) - 1 for losses in groups.values())
    if freedom:
        squares = sum(float(np.var(losses)) * len(losses) for losses in groups.values())
        return float(np.sqrt(squares / freedom)), f"{freedom} degrees of freedom of replicates"
    stated = [np.hypot(row.get("loss_se_noise") or 0.0, row.get("loss_se_data") or 0.0) for row in rows]
    if not any(stated):
        return None, ""
    return float(np.sqrt(np.mean(np.square(stated)))), "stated errors of the evaluation alone"


def levels(ln_values: np.ndarray, gap: float = SAME) -> np.ndarray:
    """Numbers of groups of values [n] without a gap above that one, rising with them."""
    order = np.argsort(ln_values, kind="stable")
    level = np.zeros(len(order), int)
    level[order[1:]] = np.cumsum(np.diff(ln_values[order]) > gap)
    return level
