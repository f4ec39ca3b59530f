"""A fitted law and how far to trust it; its file."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from megatron.errors import BadData
from megatron.files import is_there, read_json, staged
from megatron.rundir import fields
from megatron.scaling.law.expression import form_of_file, is_formula, parse_form
from megatron.scaling.law.form import Form
from megatron.scaling.law.forms import FORMS
from megatron.scaling.table.comparable import SAME_FOR_ALL
from megatron.scaling.table.json_record import json_text, versions

SCHEMA_VERSION = 2
KINDS: fields.Fields = {
    "form_file": (fields.OBJECT, "", ""),
    **{name: (fields.TEXT, "", "") for name in ("form", "reduction", "ci_method", "residual_kind", "weights")},
    **{name: (fields.COUNT, "", "") for name in ("rows_used", "num_runs", "num_starts", "num_resamples", "failed_resamples")},
    **{name: (fields.NUMBER, "", "") for name in ("objective", "delta", "share_at_optimum", "condition", "residual_rms")},
    **{name: (fields.OBJECT, "", "") for name in ("ci", "se", "profile", "noise_floor", "holdout", "held", "range")},
    **{name: (fields.OBJECT, "", "") for name in ("conventions", "choices")},
    **{name: (fields.OBJECTS, "", "") for name in ("basins", "sources", "rows_dropped")},
}
LABELS = ("objective", "bound", *SAME_FOR_ALL)
FAR = 10.0  # times beyond the data: a prediction there says so
POSITIVE = ("params", "tokens", "unique_tokens", "flops")  # of `range`, whose other columns may be 0
RESIDUALS = ("run", "cluster", "params", "tokens", "unique_tokens", "flops", "loss", "predicted", "residual", "held_out")


@dataclass(frozen=True)
class Objective:
    """What a fit minimises, in words (with room for delta), and what turns the solver's sum into it."""

    words: str
    scale: Callable[[float], float]


OBJECTIVES = {
    "huber-log": Objective("the sum of Huber terms, delta {:g} on ln L", lambda delta: 1.0),
    "mse-log": Objective("the sum of squared residuals of ln L", lambda delta: 2.0),
    "mse": Objective("the sum of squared residuals of L", lambda delta: 2.0),
    "mae": Objective("the sum of absolute residuals of L", lambda delta: 1 / delta),
}


@dataclass(frozen=True)
class Fit:
    """A fitted law. `ci` and `se` are empty where nothing was resampled; None in `ci` is an end that the data do not bound."""

    form: str  # its name
    params: dict[str, float]  # published parameters, and compute exponents a and b where the form has them
    objective: float = math.nan  # the sum over rows, not scaled, whatever the reduction
    delta: float = 1e-3
    residual_kind: str = "huber-log"  # of OBJECTIVES
    weights: str = "equal"
    reduction: str = "sum"
    rows_used: int = 0
    num_runs: int = 0  # clusters
    num_starts: int = 0
    share_at_optimum: float = math.nan
    basins: list[dict] = field(default_factory=list)  # other optima, best first
    condition: float = math.nan  # of the Jacobian with unit columns, centred parameters
    residual_rms: float = math.nan  # of ln L
    seed: int = 0
    ci_method: str = "none"
    ci: dict[str, list] = field(default_factory=dict)
    se: dict[str, float] = field(default_factory=dict)
    profile: dict[str, list] = field(default_factory=dict)  # 95 % intervals of the profile
    draws: np.ndarray | None = field(default=None, repr=False)  # [resamples, len(names)], columns `names`
    num_resamples: int = 0
    failed_resamples: int = 0
    noise_floor: dict | None = None  # rms of ln L and of L among replicates
    holdout: dict | None = None  # error on rows that were not fitted
    held: dict[str, float] = field(default_factory=dict)  # parameters that were given, not fitted
    range: dict[str, list] = field(default_factory=dict)  # least and largest value of each axis
    conventions: dict = field(default_factory=dict)
    choices: dict = field(default_factory=dict)
    sources: list[dict] = field(default_factory=list)
    rows_dropped: list[dict] = field(default_factory=list)
    residuals: list[dict] = field(default_factory=list, repr=False)  # a row each: RESIDUALS
    warnings: list[str] = field(default_factory=list)
    law_form: Form = field(default=None, repr=False)  # type: ignore[assignment]  # FORMS[form], unless the form is somebody's own

    def __post_init__(self):
        if self.law_form is None:
            object.__setattr__(self, "law_form", FORMS[self.form])

    @property
    def names(self) -> tuple[str, ...]:
        """The published parameters, in the order of the columns of `draws`."""
        return self.law_form.names

    def given(self, values: Mapping[str, Any]) -> Fit:
        """The fit whose law is asked at these values of the form's columns. Raises BadData for a column that it has not."""
        return replace(self, law_form=self.law_form.given(values))

    @property
    def law(self):
        """The law with these parameters."""
        return self.law_form.from_values([self.params[name] for name in self.names])

    def predict(self, params, tokens, unique=None):
        """L(N, D) or L(N, D, U); without U no token is seen twice."""
        return self.law.loss(params, tokens, unique)

    def optimum(self, flops, unique=None):
        """(N*, D*) of least loss under 6 N D = C."""
        return self.law.optimum(flops, unique)

    def predict_draws(self, params, tokens, unique=None):
        """`predict` of every resample, [resamples, ...]."""
        shape = np.broadcast_shapes(*(np.shape(axis) for axis in (params, tokens, unique) if axis is not None))
        return self._drawn(shape).loss(params, tokens, unique)

    def optimum_draws(self, flops, unique=None):
        """`optimum` of every resample, [resamples, ...] each."""
        shape = np.broadcast_shapes(np.shape(flops), np.shape(unique) if unique is not None else ())
        return self._drawn(shape).optimum(flops, unique)

    def _drawn(self, shape):
        if self.draws is None:
            raise BadData(f"the fit of the form {self.form} has no resamples: fit again with --bootstrap 1000.")
        return self.law_form.from_values(self.draws.reshape(len(self.draws), *[1] * len(shape), -1))

    def extrapolation(self, params=None, tokens=None, unique=None, flops=None) -> list[str]:
        """A sentence for each quantity, numbers or arrays, that lies more than 10x beyond what was fitted."""
        asked = {"params": params, "tokens": tokens, "unique_tokens": unique, "flops": flops}
        found = []
        for symbol, value in self.law_form.at.items():
            column = self.law_form.columns[symbol]
            low, high = self.range.get(column, [-np.inf, np.inf])
            if not (np.min(value) >= low and np.max(value) <= high):
                found.append(f"{column} lies outside of the {low:.3g} to {high:.3g} of the data: extrapolated.")
        for name, (low, high) in self.range.items():
            beyond = 1.0 if asked.get(name) is None else max(np.max(asked[name]) / high, low / np.min(asked[name]))
            if beyond > FAR:
                found.append(f"{name} lies {beyond:.3g}x beyond the {low:.3g} to {high:.3g} of the data: extrapolated.")
        return found


def as_record(fit: Fit) -> dict:
    """What fit.json says."""
    record = {
        "schema_version": SCHEMA_VERSION,
        **vars(fit),
        "equation": fit.law_form.equation,
        "form_file": fit.law_form.origin,
        "names": list(fit.names),
        "num_parameters": len(fit.law_form.solved) - len(fit.held),
        "residual": "ln loss - ln L",
        "draws": None if fit.draws is None else fit.draws.tolist(),
        "versions": versions(scipy),
    }
    del record["residuals"], record["law_form"]
    return record


def save_fit(fit: Fit, folder: str | Path) -> None:
    """Write fit.json, residuals.csv and table.txt into a folder, all or none. Raises CannotWrite."""
    with staged(Path(folder)) as stage:
        (stage / "fit.json").write_text(json_text(as_record(fit)) + "\n")
        (stage / "table.txt").write_text(as_text(fit))
        with open(stage / "residuals.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, [*RESIDUALS, *fit.law_form.columns.values()])
            writer.writeheader()
            writer.writerows(fit.residuals)


def load_fit(path: str | Path, forms: Mapping[str, Form] = FORMS) -> Fit:
    """A fit from its fit.json or its folder. Only `params` must be there; the form defaults to what they name.

    `forms`: those that may be named, where a fit has one of somebody's own. Raises MissingInput, BadData.
    """
    path = Path(path)
    path = path / "fit.json" if path.is_dir() else path
    record = read_json(path, "give a fit.json or the folder that `fit --out` wrote.", "the fit.json of `fit --out`")
    params = _params(record, path)
    _check_shape(record, path)
    stated = record.get("form")
    if stated is not None and record.get("form_file"):  # whatever its name: it may be that of a form of ours
        forms = {**forms, stated: form_of_file(record["form_file"], str(path))}
    elif stated is not None and stated not in forms and is_formula(stated):
        forms = {**forms, stated: parse_form(stated)}
    if stated is not None and stated not in forms:
        raise BadData(f"{path}: the form {stated} is none of {', '.join(forms)}; fit again, or load it with that form.")
    form = forms[stated] if stated else _form_of(params, forms, path)
    missing = [name for name in form.names if name not in params]
    if missing:
        raise BadData(f"{path}: params of the form {form.name} lack {', '.join(missing)}; fit again.")
    known: dict = {name: record[name] for name in Fit.__dataclass_fields__ if record.get(name) is not None}
    draws = _draws(record, form, path)
    params = {name: value for name, value in params.items() if name not in ("a", "b") or name in form.names}
    known |= {"form": form.name, "law_form": form, "params": params, "draws": draws}
    return Fit(**{**known, "residuals": _read_residuals(path.parent)})


def _check_shape(record: dict, path: Path) -> None:
    """Raises BadData where a field is of another kind than `as_record` writes."""
    fields.check_fields(str(path), record, KINDS, "fit again")
    faults = [
        f"{name}.{of} is {fields.spell(value)}"
        for name in ("se", "held")
        for of, value in _items(record, name)
        if not _is_number(value)
    ]
    for name in ("ci", "profile", "range"):
        for of, ends in _items(record, name):
            if not (isinstance(ends, list) and len(ends) == 2 and all(_is_number(end) or end is None for end in ends)):
                faults.append(f"{name}.{of} is {fields.spell(ends)}")
            elif name == "range" and of in POSITIVE and not all(end is not None and end > 0 for end in ends):
                faults.append(f"{name}.{of} is {ends}")
    stated = record.get("conventions") or {}
    faults += [
        f"conventions.{name} is {fields.spell(stated[name])}"
        for name in LABELS
        if not isinstance(stated.get(name), (str, type(None)))
    ]
    origin = record.get("form_file") or {"path": "", "sha256": ""}
    faults += [
        f"form_file.{of} is {fields.spell(origin.get(of))}" for of in ("path", "sha256") if not isinstance(origin.get(of), str)
    ]
    for name in ("holdout", "noise_floor"):
        faults += [
            f"{name}.{of} is a {type(value).__name__}" for of, value in _items(record, name) if isinstance(value, (dict, list))
        ]
    warnings = record.get("warnings") or []
    if not isinstance(warnings, list) or not all(isinstance(one, str) for one in warnings):
        faults.append("warnings are no sentences")
    if faults:
        raise BadData(f"{path}: {faults[0]}, which no fit says; fit again.")


def _items(record: dict, name: str):
    return (record.get(name) or {}).items()


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _params(record, path) -> dict[str, float]:
    params = record.get("params") if isinstance(record, dict) else None
    if isinstance(record, dict) and "objectives" in record:
        raise BadData(f"{path}: this is what the verb report wrote, of several fits; give the fit.json of `fit --out`.")
    if not isinstance(params, dict):
        raise BadData(f"{path}: no params; expected the fit.json of `fit --out`.")
    bad = [name for name, value in params.items() if not _is_number(value)]
    if bad:
        raise BadData(f"{path}: params has {bad[0]} = {params[bad[0]]!r}, expected a number; fit again.")
    params = {name: float(value) for name, value in params.items()}
    if {"alpha", "beta"} <= set(params):
        total = params["alpha"] + params["beta"]
        params = {"a": params["beta"] / total, "b": params["alpha"] / total} | params
    return params


def _form_of(params: dict, forms: Mapping[str, Form], path: Path) -> Form:
    """The form with the most parameters of those that are all there."""
    fitting = [form for form in forms.values() if set(form.names) <= set(params)]
    if not fitting:
        raise BadData(f"{path}: params ({', '.join(params)}) are those of no form ({', '.join(forms)}).")
    return max(fitting, key=lambda form: len(form.names))


def _draws(record: dict, form: Form, path: Path):
    if record.get("draws") is None:
        return None
    try:
        draws = np.asarray(record["draws"], np.float64)
    except (ValueError, TypeError):
        raise BadData(f"{path}: draws are no table of numbers; fit again.") from None
    if draws.ndim != 2 or draws.shape[1] != len(form.names):
        raise BadData(f"{path}: draws have the shape {draws.shape}, expected [resamples, {len(form.names)}]; fit again.")
    return draws


def _read_residuals(folder: Path) -> list[dict]:
    path = folder / "residuals.csv"
    if not is_there(path):
        return []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: _residual_field(name, value) for name, value in row.items()} for row in rows]


def _residual_field(name: str, value: str):
    return value if name in ("run", "cluster") else value == "True" if name == "held_out" else float(value)


# ---- the table a person reads


def parameter_lines(fit: Fit) -> list[tuple[str, str, str, str, str]]:
    """(name, value, standard error, interval, profile interval) of every parameter."""
    return [
        (
            name,
            f"{fit.params[name]:.6g}",
            "held" if name in fit.held else f"{fit.se[name]:.3g}" if name in fit.se else "-",
            _ends(fit.ci.get(name)),
            _ends(fit.profile.get(name)),
        )
        for name in fit.names
    ]


def setting_lines(fit: Fit) -> list[tuple[str, str]]:
    """(what, value) of everything else that a reader needs."""
    lines = [
        ("form", fit.law_form.equation),
        ("objective", f"{fit.objective:.9g}, {OBJECTIVES[fit.residual_kind].words.format(fit.delta)}{_weighed(fit)}"),
        ("rows", f"{fit.rows_used} used in {fit.num_runs} clusters, {len(fit.rows_dropped)} left out"),
        ("starts", f"{fit.num_starts}, {fit.share_at_optimum:.1%} of them at this optimum"),
        ("residual rms of ln L", f"{fit.residual_rms:.4g}"),
        ("condition number", f"{fit.condition:.4g} (above 1e4 some combination of the parameters is not told apart)"),
        ("intervals", f"95 %, {fit.ci_method}, {fit.num_resamples} resamples ({fit.failed_resamples} failed), seed {fit.seed}"),
    ]
    lines.append(("scatter between runs", _scatter(fit)))
    if {"a", "b"} <= set(fit.names) and fit.law.exponents is not None:
        lines.append(("a, b", "exponents of the best split of compute: N* ~ C^a, D* ~ C^b"))
    if fit.holdout:
        lines.append(
            (
                "hold-out",
                f"{fit.holdout['condition']}: {fit.holdout['rows']} rows, "
                f"rms of ln L {fit.holdout['rms']:.4g}, mean {fit.holdout['mean']:+.4g}",
            )
        )
    for basin in fit.basins:
        inside = ", ".join(f"{name} {value:.5g}" for name, value in basin["params"].items())
        lines.append(("other optimum", f"{basin['objective']:.9g} from {basin['starts']} starts: {inside}"))
    return lines


def _scatter(fit: Fit) -> str:
    """How far runs of one configuration lie apart; without any, what stands for it."""
    floor = fit.noise_floor
    if not floor:
        return "no two runs have one configuration: the residuals hold it and the law's lack of fit together"
    unit = fit.choices.get("unit") or "nats"
    groups = f"{floor['groups']} groups" if floor["groups"] > 1 else "1 group"
    return (
        f"runs of one configuration scatter by {floor['rms_loss']:.3g} {unit}, {floor['rms']:.3g} of ln L ({groups}, "
        f"degrees of freedom: {floor['degrees_of_freedom']})"
    )


def _weighed(fit: Fit) -> str:
    return (
        "" if fit.weights == "equal" else ", rows weighted by their stated errors" if fit.weights == "se" else ", rows weighted"
    )


def as_text(fit: Fit) -> str:
    """table.txt."""
    rows = [("parameter", "value", "std. error", "95 % interval", "profile interval"), *parameter_lines(fit)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines += ["", *(f"{what}: {value}" for what, value in setting_lines(fit))]
    lines += [f"not used: {row.get('run')}: {row.get('reason')}" for row in fit.rows_dropped]
    return "\n".join(lines + [f"warning: {warning}" for warning in fit.warnings]) + "\n"


def _ends(ends) -> str:
    return "-" if ends is None else " .. ".join("open" if end is None else f"{end:.5g}" for end in ends)
