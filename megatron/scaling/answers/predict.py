"""What a law says of a run that does not exist yet: size, tokens, epochs and loss for a budget, with intervals."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from megatron.errors import BadData, Mismatch
from megatron.files import is_there
from megatron.scaling.answers.critical import drawn_law, num_paired_draws
from megatron.scaling.answers.frontier import Frontier, is_isoflop, load_frontiers
from megatron.scaling.law.fit import Fit, load_fit
from megatron.scaling.law.intervals import percentile_interval
from megatron.scaling.table.downstream import ACCURACY, OTHER
from megatron.scaling.table.labels import NAMES, kind_of

LEAST_SPLIT = 1000.0  # parameters and tokens, below which an optimum is the end of the search
UNIT_WORDS = {"bits-per-byte": ("bpb", "bits"), "nats": ("nats", "nll")}  # in the names of columns
NORMAL_975 = 1.959963984540054


def read_fits(paths) -> tuple[list[Fit], list[dict]]:
    """(fits, their files as {"path", "sha256"}), in the order of `paths`, files or folders. Raises as `load_fit`."""
    fits = [load_fit(path) for path in paths]
    files = [path / "fit.json" if path.is_dir() else path for path in map(Path, paths)]
    return fits, [_source(file) for file in files]


def read_laws(paths) -> tuple[list[Fit], list[dict]]:
    """As `read_fits`, of fit.json or isoflop.json, which has a law of the optimum for each of its objectives.

    Raises as `load_fit` and `load_frontiers`.
    """
    fits: list[Fit] = []
    sources: list[dict] = []
    for path in map(Path, paths):
        if is_there(path / "fit.json") or not is_isoflop(path):
            found, files = read_fits([path])
        else:
            found = load_frontiers(path)
            files = [_source(path / "isoflop.json" if path.is_dir() else path)] * len(found)
        fits, sources = fits + found, sources + files
    return fits, sources


def _source(file: Path) -> dict:
    return {"path": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def predict_run(fit: Fit, label: str, flops=None, params=None, tokens=None, unique_tokens=None, then=None) -> dict:
    """N, D, epochs and loss of one run with 95 % intervals; `flops` alone leaves the split to the law's optimum. `then`: label ->
    Fit of a law of the loss, each asked at the loss that is predicted (`follow`).

    `loss_ci` is where the law lies; `run_ci` is where a run's loss lies, with the scatter of the runs around the law, and
    `ln_sd` its standard deviation in ln loss.
    """
    N, D = _split(fit.law, flops, params, tokens, unique_tokens)
    found = {
        "label": label,
        "form": fit.form,
        "flops": float(6 * N * D) if flops is None or params or tokens else float(flops),
        "unique_tokens": unique_tokens,
        "at": {fit.law_form.columns[symbol]: value for symbol, value in fit.law_form.at.items()},
        **_named(fit.law, N, D, unique_tokens, flops),
    }
    check_number(found["loss"], label)
    if flops is not None and params is None and tokens is None and min(N, D) < LEAST_SPLIT:
        raise BadData(f"{label}: the law has no best split of {flops:g} FLOPs: its loss falls to the end, {N:.3g} parameters.")
    draws: dict = {}
    said: list[str] = []
    if count := num_paired_draws({label: fit}):
        drawn = drawn_law(fit, count, 0)
        sizes, seen = _split(drawn, flops, params, tokens, unique_tokens)
        draws = _named(drawn, sizes, seen, unique_tokens, flops)
        draws["loss"], said = numbers_of(np.broadcast_to(draws["loss"], count), label)
        found |= {f"{name}_ci": percentile_interval(np.broadcast_to(draw, count)) for name, draw in draws.items()}
    low, high = (found["loss"] if end is None else end for end in found.get("loss_ci", [None, None]))
    known = np.isfinite(fit.residual_rms)
    scatter = float(fit.residual_rms) if known else 0.0
    ln_sd = float(np.hypot(np.log(high / low) / 2 / NORMAL_975, scatter))
    sides = np.maximum(np.log([found["loss"] / low, high / found["loss"]]), 0)  # of the law, on either side of its loss
    run_ci = (found["loss"] * np.exp([-1, 1] * np.hypot(sides, NORMAL_975 * scatter))).tolist()
    beyond = fit.extrapolation(found["params"], found["tokens"], unique_tokens, found["flops"])
    if isinstance(fit.law, Frontier) and not fit.params["E"] and not within(fit.range.get("flops"), found["flops"]):
        beyond.append("L*(C) is a power law here, which has no irreducible loss: beyond the budgets it falls too low.")
    unknown = ["the fit states no scatter of its runs: the interval of one run is only that of the law."]
    said += [f"{label}: {sentence}" for sentence in [*beyond, *([] if known else unknown), *fit.warnings]]
    found["kind"] = kind_of(fit.conventions)
    found |= {"run_ci": run_ci, "ln_sd": ln_sd, "warnings": said}
    followed = [follow(then[name], name, found, draws.get("loss"), _unit_of_loss(fit)) for name in then or {}]
    return found | {"accuracy": _accuracy(fit, found), "then": followed}


def within(ends, value: float) -> bool:
    return bool(ends) and ends[0] * (1 - 1e-9) <= value <= ends[1] * (1 + 1e-9)


def follow(law: Fit, label: str, found: dict, losses=None, unit: str | None = None) -> dict:
    """What a law of the loss says of a predicted run (`found`, of `predict_run`): its accuracy, or its loss on other data, with
    an interval of both laws: `losses` [draws] are the first one's, and independent of this one's; `unit` is that of the predicted
    loss, where it is known. Raises BadData, Mismatch."""
    form = law.law_form
    unknown = [column for symbol, column in form.columns.items() if symbol not in form.at]
    if not unknown and form.columns:
        raise BadData(
            f"--then {label}: --at gives {', '.join(form.columns.values())}, which is the predicted loss; leave it out."
        )
    if len(unknown) != 1:
        of = ", ".join(form.columns.values()) or "N, D and U"
        raise BadData(
            f"--then {label}: the law {form.name} is one of {of}; expected a law of one column that is a loss, as the forms "
            "accuracy and loss-to-loss are, and --at for any others."
        )
    place = found["params"], found["tokens"], found["unique_tokens"]
    said = _same_unit(unit, law, unknown[0], label)
    asked = law.given({unknown[0]: found["loss"]})
    answer: dict = {"label": label, "form": law.form, "of": unknown[0], "loss": float(asked.predict(*place))}
    check_number(answer["loss"], label, f" at {unknown[0]} {found['loss']:.4g}")
    count = 0 if losses is None else min(np.size(losses), num_paired_draws({label: law}))
    if count:
        drawn = drawn_law(law.given({unknown[0]: losses[:count]}), count, 0)
        draws, few = numbers_of(np.broadcast_to(drawn.loss(*place), count), label)
        said += few
        answer["loss_ci"] = percentile_interval(draws)
    axes = {} if not law.law_form.axes else dict(zip(("params", "tokens", "unique"), place))
    said += [f"{label}: {sentence}" for sentence in asked.extrapolation(**axes)]
    shown = _accuracy(law, answer) or {"value": answer["loss"], "ci": answer.get("loss_ci")}
    return answer | {"value": shown["value"], "ci": shown["ci"], "warnings": said}


def _same_unit(of_loss: str | None, law: Fit, column: str, label: str) -> list[str]:
    """A sentence where nothing says that a law's column is in the unit of the predicted loss. Raises Mismatch where it is not."""
    source = str((law.choices.get("map") or {}).get(column, column))
    of_column = law.choices.get("unit") if source in (OTHER, "loss") else _unit_in(source)
    of_column = None if of_column == ACCURACY else of_column  # of the law's own loss
    if of_loss == of_column is not None:
        return []
    if of_loss is None or of_column is None:
        words = f" in {of_loss}" if of_loss else "", f" in {of_column}" if of_column else ""
        return [f"{label}: the predicted loss{words[0]} stands for {source}{words[1]}; nothing says that both are in one unit."]
    raise Mismatch(
        f"--then {label}: {source} is in {of_column} and the predicted loss in {of_loss}; fit the loss again in that unit, with "
        "--unit or --map loss=COLUMN."
    )


def _unit_of_loss(fit: Fit) -> str | None:
    """The unit of what a fit predicts, as far as its choices or the name of the column say it."""
    column = (fit.choices.get("map") or {}).get("loss")
    return fit.choices.get("unit") if column in (None, "loss") else _unit_in(str(column))


def _unit_in(column: str) -> str | None:
    """What a column's name says."""
    return next((unit for unit, words in UNIT_WORDS.items() if any(word in column.lower() for word in words)), None)


def check_number(value: float, label: str, where: str = "") -> None:
    """Raises BadData where a law ends before the place that it is asked at."""
    if not np.isfinite(value):
        raise BadData(
            f"{label}: the law gives no number there{where} ({value}): it ends before that place; ask nearer to its data."
        )


def numbers_of(draws, label: str) -> tuple[np.ndarray, list[str]]:
    """Draws [n], NaN where the law of one gives no number; a sentence where such are more than chance has at an end."""
    known = np.isfinite(draws)
    share = 1 - float(np.mean(known))
    few = f"{label}: {share:.0%} of the draws give no number there, and the interval leaves them out."
    return np.where(known, draws, np.nan), [few] if share > 0.01 else []


def _accuracy(fit: Fit, found: dict) -> dict | None:
    """The accuracy that a predicted -ln of its share above chance stands for, with the interval of the law."""
    chosen = fit.choices.get("accuracy")
    if not chosen:
        return None
    value, *ends = (
        end if end is None else chosen["chance"] + (1 - chosen["chance"]) * float(np.exp(-end))
        for end in (found["loss"], *found.get("loss_ci", [None, None])[::-1])
    )
    return {"of": chosen["column"], "chance": chosen["chance"], "value": value, "ci": ends}


def compare_at_budget(fits: dict[str, Fit], flops: float, unique_tokens=None) -> dict:
    """Which law has the lowest loss at a budget, and in what share of the draws, paired, it has."""
    count = num_paired_draws(fits)
    loss = {label: fit.law.optimal_loss(flops, unique_tokens) for label, fit in fits.items()}
    best = min(loss, key=lambda label: loss[label])
    if not count:
        return {"best": best, "share_of_draws": None, "num_draws": 0}
    drawn = {label: drawn_law(fit, count, 0).optimal_loss(flops, unique_tokens) for label, fit in fits.items()}
    others = np.min([draws for label, draws in drawn.items() if label != best], axis=0)
    return {"best": best, "share_of_draws": float(np.mean(drawn[best] < others)), "num_draws": count}


def in_words(predictions: list[dict], verdict: dict | None) -> str:
    """The answer as a sentence: which objective, how large, for how many epochs, at which loss."""
    first = predictions[0]
    data = "fresh data" if first["unique_tokens"] is None else f"{first['unique_tokens']:.3g} unique tokens"
    start = f"With {first['flops']:.3g} FLOPs and {data}: "
    if verdict is None:
        return start + "; ".join(map(_phrase, predictions)) + "."
    best = next(prediction for prediction in predictions if prediction["label"] == verdict["best"])
    rest = "; ".join(f"against {_phrase(one)}" for one in predictions if one is not best)
    share = (
        ""
        if verdict["share_of_draws"] is None
        else f". {NAMES.get(best['label'], best['label'])} leads in "
        f"{verdict['share_of_draws']:.0%} of {verdict['num_draws']} paired draws"
    )
    return f"{start}{_phrase(best)}; {rest}{share}."


def _phrase(one: dict) -> str:
    def with_ends(name, form):
        ends = one.get(f"{name}_ci") or [None, None]
        shown = " .. ".join("open" if end is None else f"{end:{form}}" for end in ends)
        return f"{one[name]:{form}}" + ("" if ends[0] is None is ends[1] or ends[0] == ends[1] else f" [{shown}]")

    return (
        f"{NAMES.get(one['label'], one['label'])} with {with_ends('params', '.3g')} parameters for "
        f"{with_ends('epochs', '.3g')} epoch{'s' * (one['epochs'] != 1)} ({with_ends('tokens', '.3g')} tokens), "
        f"loss {with_ends('loss', '.4f')} ({one['kind']})"
    )


def _split(law, flops, params, tokens, unique_tokens):
    """(N, D) of the run that is asked for. Raises BadData where minima alone are known, and it is not the optimum."""
    if isinstance(law, Frontier) and (flops is None or params is not None or tokens is not None):
        raise BadData("isoFLOP minima know the optimum of a budget: give --flops alone, or a fit of L(N, D).")
    if flops is None:
        return np.float64(params), np.float64(tokens)
    product = np.float64(flops) / 6
    if params is not None:
        return np.float64(params), product / params
    return law.optimum(flops, unique_tokens) if tokens is None else (product / tokens, np.float64(tokens))


def _named(law, N, D, unique_tokens, flops) -> dict:
    unique = D if unique_tokens is None else np.minimum(unique_tokens, D)
    loss = law.optimal_loss(flops, unique_tokens) if isinstance(law, Frontier) else law.loss(N, D, unique)
    found = {"params": N, "tokens": D, "epochs": D / unique, "loss": loss}
    return {name: value if np.ndim(value) else float(value) for name, value in found.items()}
