"""The result a stranger can hold: tables, `fit.json` and one picture, from the runs of one or more objectives."""
from __future__ import annotations

import io
import json
import platform
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import scipy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table

import megatron
from megatron.errors import Refusal
from megatron.files import staged
from megatron.scaling.fit import Fit, fit_chinchilla
from megatron.scaling.isoflop import IsoFlop, Minimum, equal_loss_ratios, fit_isoflop, group_budgets
from megatron.scaling.runs import SAME_FOR_ALL, training_curve

SCHEMA_VERSION = 1
NAMES = {"ar": "AR", "mdm": "MDM"}
BOUNDS = {"exact": "exact NLL", "bound": "upper bound"}
# base colour (dark for the first, lighter for the second: apart in greyscale too), line, marker, filled
STYLES = {"ar": ("#0b2f55", "-", "o", True), "mdm": ("#d97a1f", "--", "s", False)}
OTHER_STYLE = ("#4d4d4d", "-.", "^", True)
SMOOTHED_SHARE = 0.05           # of a run's records, for the thin training curves


@dataclass(frozen=True)
class Study:
    """One objective: its runs, its isoFLOP minima and, where there are runs enough, its law."""
    objective: str
    runs: list[dict]
    isoflop: IsoFlop
    law: Fit | None
    warnings: list[str]

    @property
    def label(self) -> str:
        """'AR (exact NLL)', 'MDM (upper bound)'; where runs do not say which, it says so."""
        bound = self.runs[0].get("bound")
        return f"{NAMES.get(self.objective, self.objective)} ({BOUNDS.get(bound, bound or 'bound not stated')})"

    def column(self, name: str) -> np.ndarray:
        """A column of the runs as float64, NaN where a run does not have it."""
        return np.array([np.nan if run.get(name) is None else run[name] for run in self.runs], np.float64)


@dataclass(frozen=True)
class Report:
    """Everything that is printed, written and drawn. `ratios`: compute of MDM over AR at equal loss, by common budget."""
    studies: list[Study]
    ratios: list[dict]
    unfinished: list[dict] = field(default_factory=list)
    num_resamples: int = 400
    seed: int = 0

    @property
    def warnings(self) -> list[str]:
        """Every warning with the objective it is about."""
        ratios = [f"compute ratio at {ratio['flops']:.3g}: AR's power law is extended to {ratio['equal_flops']:.3g} FLOPs, "
                  "beyond its budgets; the interval does not cover the choice of that curve."
                  for ratio in self.ratios if ratio["extrapolated"]]
        return [f"{study.label}: {warning}" for study in self.studies
                for warning in [*study.isoflop.warnings, *(study.law.warnings if study.law else []), *study.warnings]] + ratios


def build_report(runs: list[dict], unfinished: list[dict] = (), num_resamples: int = 400, seed: int = 0) -> Report:
    """Fit minima and law of every objective among comparable runs (`load_runs`, `check_comparable`)."""
    order = {"ar": 0, "mdm": 1}
    objectives = sorted({run["objective"] for run in runs}, key=lambda name: (order.get(name, 2), name))
    studies = [_study(name, [run for run in runs if run["objective"] == name], num_resamples, seed) for name in objectives]
    by_name = {study.objective: study.isoflop for study in studies}
    ratios = equal_loss_ratios(by_name["ar"], by_name["mdm"]) if {"ar", "mdm"} <= set(by_name) else []
    return Report(studies=studies, ratios=ratios, unfinished=list(unfinished), num_resamples=num_resamples, seed=seed)


def _budget(run: dict) -> float:
    """The nominal budget where a table states it, else the compute that was spent."""
    return run.get("budget") or run["flops"]


def _study(objective: str, runs: list[dict], num_resamples: int, seed: int) -> Study:
    groups = group_budgets([_budget(run) for run in runs])
    runs = [run for rows in groups for run in sorted((runs[row] for row in rows), key=lambda run: run["params"])]
    columns = {name: np.array([run.get(name) or 0.0 for run in runs]) for name in ("params", "tokens", "loss", "loss_se_noise")}
    budgets = np.array([_budget(run) for run in runs])
    # each objective draws its own noise: the ratio of two objectives pairs independent draws
    isoflop = fit_isoflop(budgets, columns["params"], columns["tokens"], columns["loss"], columns["loss_se_noise"],
                          num_resamples, [seed, *objective.encode()])
    try:
        law, warnings = fit_chinchilla(columns["params"], columns["tokens"], columns["loss"], seed=seed,
                                       run=[run["run"] for run in runs], num_resamples=num_resamples), []
    except Refusal as refusal:
        law, warnings = None, [f"no L(N, D): {refusal}"]
    return Study(objective, runs, isoflop, law, warnings)


# ---- fit.json

def as_record(report: Report) -> dict:
    """What `fit.json` holds: per objective `isoflop` and `chinchilla`, with the inputs, seeds and versions behind them."""
    runs = [run for study in report.studies for run in study.runs]
    return {"schema_version": SCHEMA_VERSION, "seed": report.seed, "num_resamples": report.num_resamples,
            "versions": {"megatron": megatron.__version__, "python": platform.python_version(), "numpy": np.__version__,
                         "scipy": scipy.__version__, "matplotlib": matplotlib.__version__},
            "conventions": {name: runs[0].get(name) for name in SAME_FOR_ALL},
            "objectives": {study.objective: _study_record(study) for study in report.studies},
            "equal_loss_compute_ratio": report.ratios, "warnings": report.warnings,
            "runs": runs, "unfinished": report.unfinished}


def _study_record(study: Study) -> dict:
    isoflop = study.isoflop
    return {"label": study.label, "num_runs": len(study.runs),
            "isoflop": {"budgets": [minimum.flops for minimum in isoflop.minima], "minima": [vars(m) for m in isoflop.minima],
                        "exponents": {name: {"value": isoflop.exponents[name], "ci": isoflop.ci[name]} for name in ("a", "b")},
                        "ci_method": "parametric bootstrap", "scatter": isoflop.scatter,
                        "degrees_of_freedom": isoflop.degrees_of_freedom, "num_resamples": isoflop.num_resamples,
                        "failed_resamples": isoflop.failed_resamples, "warnings": isoflop.warnings},
            "chinchilla": _law_record(study)}


def _law_record(study: Study) -> dict:
    if study.law is None:
        return {"params": None, "objective": None, "ci": {}, "rows_used": 0, "rows_dropped": [], "warnings": study.warnings}
    law = {name: value for name, value in vars(study.law).items() if name not in ("law", "draws")}
    return {"form": "E + A/N^alpha + B/D^beta", "params": study.law.params, "reduction": "sum", "residual": "log",
            "ci_method": "bootstrap by run, percentile", "rows_dropped": [], **law}


# ---- tables

def print_report(report: Report, console: Console) -> None:
    """Runs, minima, exponents, laws, ratios and warnings, as tables."""
    for table in (_runs_table(report), _minima_table(report), _laws_table(report), _ratios_table(report)):
        if table.row_count:
            console.print(table)
    for run in report.unfinished:
        console.print(f"not used: {run['run']}: {run['reason']}", markup=False, soft_wrap=True)
    for warning in report.warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", highlight=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _runs_table(report: Report) -> Table:
    table = _table("Runs (loss in nats a token; standard errors from masking noise and from the evaluation rows)",
                   ["objective", "C (FLOPs)", "N", "D (tokens)", "loss", "se noise", "se data"])
    for study in report.studies:
        for run in study.runs:
            errors = ("-" if run.get(name) is None else f"{run[name]:.4f}" for name in ("loss_se_noise", "loss_se_data"))
            table.add_row(study.label, f"{run['flops']:.3g}", f"{run['params']:,.0f}", f"{run['tokens']:,.0f}",
                          f"{run['loss']:.4f}", *errors)
    return table


def _minima_table(report: Report) -> Table:
    table = _table("isoFLOP minima (95 % intervals; 'open': the data do not bound it)",
                   ["objective", "C (FLOPs)", "N*", "interval", "D*", "loss", "interval", "used"])
    for study in report.studies:
        for m in study.isoflop.minima:
            table.add_row(study.label, f"{m.flops:.3g}", f"{m.params:,.0f}", _interval(m.params_ci, ",.0f"), f"{m.tokens:,.0f}",
                          f"{m.loss:.4f}", _interval(m.loss_ci, ".4f"), m.reason or "yes")
    return table


def _laws_table(report: Report) -> Table:
    table = _table("Exponents and laws (95 % intervals)", ["objective", "quantity", "value", "interval"])
    for study in report.studies:
        for name, meaning in (("a", "a: N* ~ C^a (isoFLOP)"), ("b", "b: D* ~ C^b (isoFLOP)")):
            if (value := study.isoflop.exponents[name]) is not None:
                table.add_row(study.label, meaning, f"{value:.4f}", _interval(study.isoflop.ci[name], ".4f"))
        for name, value in (study.law.params if study.law else {}).items():
            table.add_row(study.label, f"{name} of L(N, D)", f"{value:.5g}", _interval(study.law.ci.get(name), ".5g"))
    return table


def _ratios_table(report: Report) -> Table:
    table = _table("Compute of MDM over AR at equal loss (95 % intervals)",
                   ["C of MDM", "loss", "C of AR", "ratio", "interval", "AR law"])
    for ratio in report.ratios:
        table.add_row(f"{ratio['flops']:.3g}", f"{ratio['loss']:.4f}", f"{ratio['equal_flops']:.3g}", f"{ratio['ratio']:.2f}",
                      _interval(ratio["ci"], ".2f"), "extrapolated" if ratio["extrapolated"] else "inside its budgets")
    return table


def _interval(ci, spec: str) -> str:
    if ci is None:
        return "-"
    low, high = ("open" if end is None else format(end, spec) for end in ci)
    return f"{low} .. {high}"


# ---- picture

def draw(report: Report) -> Figure:
    """Three panels, 2340 x 1014 pixels: loss over compute, isoFLOP parabolas with their minima, objectives side by side."""
    figure = Figure(figsize=(18, 7.8), dpi=130)
    left, middle, right = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.045, right=0.99, top=0.935, bottom=0.185, wspace=0.16)
    _draw_curves(left, report)
    _draw_parabolas(middle, report)
    _draw_frontier(right, report)
    figure.legend(handles=_legend(report), loc="lower center", bbox_to_anchor=(0.5, 0.045), ncols=6,
                  columnspacing=1.6, handlelength=3, frameon=False, fontsize=10.5)
    figure.text(0.5, 0.02, _caption(report), ha="center", fontsize=10, color="#333333")
    return figure


def _style(objective: str, depth: float = 1.0) -> dict:
    """Line and marker of an objective; `depth` 0..1 from its light to its full colour (small to large budgets)."""
    base, line, marker, filled = STYLES.get(objective, OTHER_STYLE)
    rgb = np.array(matplotlib.colors.to_rgb(base))
    colour = tuple(1 - (1 - rgb) * (0.5 + 0.5 * depth))
    return {"color": colour, "linestyle": line, "marker": marker, "markerfacecolor": colour if filled else "white",
            "markeredgecolor": colour, "markersize": 7, "markeredgewidth": 1.6}


def _depth(number: int, count: int) -> float:
    return number / (count - 1) if count > 1 else 1.0


def _draw_curves(axes: Axes, report: Report) -> None:
    _frame(axes, "Loss against training compute", "training compute (FLOPs)", "validation loss (nats/token); thin: training loss")
    axes.set_xscale("log")
    axes.set_yscale("log")
    lowest, highest = [], []
    for study in report.studies:
        style = _style(study.objective)
        for run in study.runs:
            flops, loss = _smooth(*training_curve(run["path"]))
            keep = flops > run["flops"] * 1e-3        # the first thousandth would take half of the axis
            axes.plot(flops[keep], loss[keep], color=_style(study.objective, 0.4)["color"], linestyle=style["linestyle"],
                      linewidth=0.8, alpha=0.8)
            lowest.append(min([*loss[keep], run["loss"]]))
            highest.append(max([*loss[keep], run["loss"]]))
        axes.plot(study.column("flops"), study.column("loss"), **{**style, "linestyle": "none"}, zorder=3)
    axes.set_ylim(min(lowest) * 0.96, max(highest) * 1.04)
    round_losses = (*np.arange(0.2, 2, 0.2), *np.arange(2, 4, 0.5), 4, 5, 6, 8, 10, 12)
    ticks = [tick for tick in round_losses if min(lowest) < tick < max(highest)]
    axes.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    _log_ticks(axes)


def _smooth(flops: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moving means over SMOOTHED_SHARE of the records, of both columns, so that a mean stands at its own compute."""
    window = max(1, round(SMOOTHED_SHARE * len(loss)))
    if not len(loss):
        return flops, loss
    return tuple(np.convolve(column, np.full(window, 1 / window), mode="valid") for column in (flops, loss))


def _draw_parabolas(axes: Axes, report: Report) -> None:
    _frame(axes, "isoFLOP: loss against size at equal compute C", "parameters", "validation loss (nats/token)")
    axes.set_xscale("log")
    labels = []
    for study in report.studies:
        minima, budgets = study.isoflop.minima, _budgets(study)
        for number, (rows, minimum) in enumerate(budgets):
            style = _style(study.objective, _depth(number, len(minima)))
            runs = [study.runs[row] for row in rows]
            _draw_parabola(axes, runs, minimum, style)
            labels.append((float(minimum.curve(minimum.params_range[1])), minimum, style["color"]))
    if labels:
        _label_budgets(axes, labels)
        _log_ticks(axes)
    else:
        _say(axes, "no compute budget with 3 sizes")


def _budgets(study: Study) -> list[tuple[np.ndarray, Minimum]]:
    """Rows of the runs behind each minimum."""
    flops = np.array([_budget(run) for run in study.runs])
    return [(np.flatnonzero(np.abs(np.log(flops / minimum.flops)) <= 0.25), minimum) for minimum in study.isoflop.minima]


def _draw_parabola(axes: Axes, runs: list[dict], minimum: Minimum, style: dict) -> None:
    """Points with their noise, the fitted curve, and the minimum with its interval (arrow heads where it is open)."""
    low, high = minimum.params_range
    grid = np.geomspace(low, high, 100)
    axes.plot(grid, minimum.curve(grid), color=style["color"], linestyle=style["linestyle"], linewidth=1.6)
    axes.errorbar([run["params"] for run in runs], [run["loss"] for run in runs],
                  yerr=[run.get("loss_se_noise") or 0.0 for run in runs], capsize=3, elinewidth=1.2,
                  **{**style, "linestyle": "none"})
    ends = [edge if end is None else end for end, edge in zip(minimum.params_ci, minimum.params_range)]
    caps = [arrow if end is None else "|" for end, arrow in zip(minimum.params_ci, "<>")]
    if minimum.reason is None:
        axes.plot(ends, [minimum.loss] * 2, color="black", linewidth=1.4, zorder=4)
        for end, cap in zip(ends, caps):
            axes.plot(end, minimum.loss, marker=cap, color="black", markersize=7, zorder=4)
        axes.plot(minimum.params, minimum.loss, marker="D", color="white", markeredgecolor="black", markeredgewidth=1.4,
                  markersize=6.5, zorder=5)
    else:
        axes.plot(minimum.params, minimum.loss, marker="x", color="black", markersize=11, markeredgewidth=2, zorder=5)


def _label_budgets(axes: Axes, labels: list[tuple]) -> None:
    """'C = 2e11' beside the right end of every curve, moved apart where ends lie close together."""
    low, high = (function(minimum.params_range[i] for _, minimum, _ in labels) for i, function in ((0, min), (1, max)))
    axes.set_xlim(low / (high / low) ** 0.06, high * (high / low) ** 0.34)
    bottom, top = axes.get_ylim()
    gap = max((top - bottom) * 0.04, 1e-6)
    labels = sorted(labels, key=lambda label: label[0])
    places = _apart([label[0] for label in labels], gap)
    axes.set_ylim(min(bottom, places[0] - gap), max(top, places[-1] + gap))
    for (end, minimum, colour), place in zip(labels, places):
        axes.annotate(f"C = {_power(minimum.flops)}", xy=(minimum.params_range[1], end),
                      xytext=(high * (high / low) ** 0.10, place), fontsize=10, va="center", color="black", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1.0, "shrinkA": 1, "shrinkB": 6})


def _apart(values: list[float], gap: float) -> list[float]:
    """Rising values moved as little as needed to stand `gap` apart (pooled like an isotonic regression)."""
    pools: list[list[float]] = []       # [sum of (value - rank gap), count]
    for rank, value in enumerate(values):
        pools.append([value - rank * gap, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] >= pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1] = [pools[-1][0] + total, pools[-1][1] + count]
    levels = [total / count for total, count in pools for _ in range(count)]
    return [level + rank * gap for rank, level in enumerate(levels)]


def _draw_frontier(axes: Axes, report: Report) -> None:
    names = " and ".join(NAMES.get(study.objective, study.objective) for study in report.studies)
    _frame(axes, f"Compute-optimal loss: {names}", "training compute (FLOPs)", "loss at the isoFLOP minimum (nats/token)")
    axes.set_xscale("log")
    interior = {study.objective: study.isoflop.interior for study in report.studies}
    every = [minimum for minima in interior.values() for minimum in minima]
    if not every:
        _say(axes, "no minimum inside its data")
        return
    low, high = min(m.flops for m in every), max(m.flops for m in every)
    low = max(low / 100, min([low, *(ratio["equal_flops"] for ratio in report.ratios)]))
    axes.set_xlim(low / 1.7, high * 1.7)
    for study in report.studies:
        _draw_minima(axes, study, np.geomspace(low / 1.3, high * 1.3, 50))
    for ratio in report.ratios if len(report.ratios) <= 4 else (report.ratios[0], report.ratios[-1]):
        _draw_ratio(axes, ratio, low)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.06 * (top - bottom))
    _log_ticks(axes)


def _draw_minima(axes: Axes, study: Study, flops: np.ndarray) -> None:
    """Minima with the interval of their loss, the power law through them, and the optimum of L(N, D) as dots."""
    style, minima = _style(study.objective), study.isoflop.interior
    x, y = np.array([m.flops for m in minima]), np.array([m.loss for m in minima])
    errors = [[m.loss - (m.loss if m.loss_ci[0] is None else m.loss_ci[0]) for m in minima],
              [(m.loss if m.loss_ci[1] is None else m.loss_ci[1]) - m.loss for m in minima]]
    axes.errorbar(x, y, yerr=np.maximum(errors, 0), capsize=4, elinewidth=1.4, zorder=3, **{**style, "linestyle": "none"})
    if len(minima) > 1:
        power = np.polynomial.Polynomial.fit(np.log(x), np.log(y), 1)
        axes.plot(flops, np.exp(power(np.log(flops))), color=style["color"], linestyle=style["linestyle"], linewidth=1.6)
    if study.law and study.law.ci and minima:       # a law without intervals says too little
        axes.plot(flops, study.law.law.optimal_loss(flops), color=style["color"], linestyle=":", linewidth=1.6)


def _draw_ratio(axes: Axes, ratio: dict, lowest: float) -> None:
    """An arrow from MDM's budget to AR's compute of equal loss, with the factor between them."""
    start, end = ratio["flops"], max(ratio["equal_flops"], lowest)
    axes.annotate("", xy=(end, ratio["loss"]), xytext=(start, ratio["loss"]),
                  arrowprops={"arrowstyle": "->", "color": "#444444", "linewidth": 1.1, "shrinkA": 7, "shrinkB": 0})
    mark = "*" if ratio["extrapolated"] else ""
    interval = "" if None in ratio["ci"] else f" [{ratio['ci'][0]:.3g}, {ratio['ci'][1]:.3g}]"
    axes.annotate(f"{ratio['ratio']:.3g}x{interval}{mark}", xy=(np.sqrt(start * end), ratio["loss"]), xytext=(0, 4),
                  textcoords="offset points", ha="center", va="bottom", fontsize=10.5,
                  bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6})


def _frame(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=13)
    axes.set_xlabel(x_label, fontsize=12)
    axes.set_ylabel(y_label, fontsize=12)
    axes.tick_params(labelsize=10.5)
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def _say(axes: Axes, sentence: str) -> None:
    axes.text(0.5, 0.5, sentence, transform=axes.transAxes, ha="center", va="center", fontsize=12, color="#444444")
    axes.set_xticks([])
    axes.set_yticks([])


def _log_ticks(axes: Axes) -> None:
    """Ticks at round numbers, as many a decade as stand apart."""
    low, high = axes.get_xlim()
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1, 2, 3, 4, 6), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) <= (6 if len(steps) == 5 else 8):
            break
    axes.set_xticks(ticks, [_power(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def _power(value: float) -> str:
    """2e11, 1.5e5: short, and the way budgets are typed."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def _legend(report: Report) -> list[Line2D]:
    handles = [Line2D([], [], **_style(study.objective), linewidth=1.6, label=study.label) for study in report.studies]
    if any(study.isoflop.interior for study in report.studies):
        handles.append(Line2D([], [], color="black", marker="D", markerfacecolor="white", markeredgewidth=1.4, linewidth=1.4,
                              label="isoFLOP minimum, 95 % interval (arrow: open)"))
    if any(minimum.reason for study in report.studies for minimum in study.isoflop.minima):
        handles.append(Line2D([], [], color="black", marker="x", markersize=10, markeredgewidth=2, linestyle="none",
                              label="minimum outside the data, not used"))
    if any(study.law and study.law.ci and study.isoflop.interior for study in report.studies):
        handles.append(Line2D([], [], color="#444444", linestyle=":", linewidth=1.6, label="optimum of L(N, D)"))
    if report.ratios:
        handles.append(Line2D([], [], color="#444444", marker="<", markersize=6, linewidth=1.1,
                              label="compute ratio at equal loss"))
    return handles


def _caption(report: Report) -> str:
    first = report.studies[0].runs[0]
    parts = [f"Thin lines: training loss, mean over {100 * SMOOTHED_SHARE:.0f} % of a run's records.",
             "Bars on points: one standard error of the noise.", "Darker: larger C.",
             f"C: {first.get('flops_convention') or 'as given'}.  N: {first.get('params_convention') or 'as given'}."]
    if any(ratio["extrapolated"] for ratio in report.ratios):
        parts.append("*: extrapolated beyond AR's budgets.")
    return "  ".join(parts)


# ---- files

def write_report(report: Report, folder: str | Path) -> list[Path]:
    """Write `fit.json` and `isoflop.png` into the folder, each aside and renamed, both only once both exist.

    Raises CannotWrite, with nothing replaced, where the folder takes no files.
    """
    picture = io.BytesIO()
    draw(report).savefig(picture, format="png")
    record = json.dumps(as_record(report), indent=1, allow_nan=False, default=float).encode()
    files = {Path(folder) / "fit.json": record, Path(folder) / "isoflop.png": picture.getvalue()}
    with staged(Path(folder)) as stage:
        for path, content in files.items():
            (stage / path.name).write_bytes(content)
    return list(files)
