"""What a report holds and what it writes: `report.json`, figures as PNG and PDF, and one HTML page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import scipy
from matplotlib.figure import Figure

from megatron.catalogue import OBJECTIVES
from megatron.files import staged
from megatron.scaling.answers.frontier import equal_loss_ratios, warnings_of
from megatron.scaling.law.fitted import Fit
from megatron.scaling.law.fitted import as_record as fit_record
from megatron.scaling.show.figures import (
    draw_contours,
    draw_crossover,
    draw_curves,
    draw_data_value,
    draw_frontier,
    draw_isoflop,
    draw_residuals,
)
from megatron.scaling.show.figures.style import encode
from megatron.scaling.show.report.page import render
from megatron.scaling.show.report.study import Study, study_runs
from megatron.scaling.table.comparable import SAME_FOR_ALL
from megatron.scaling.table.json_record import json_text, versions
from megatron.scaling.table.labels import file_name
from megatron.scaling.table.table import Table

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Report:
    """Everything that is printed, written and drawn. `ratios`: compute of MDM over AR at equal loss, by budget.

    `fits`: other fits by the name they are shown under; `data_value`: curves and `crossover`: the result, as their verbs
    write them. `command`: what made the report.
    """

    studies: list[Study]
    ratios: list[dict]
    table: Table
    num_resamples: int = 400
    seed: int = 0
    fits: dict[str, Fit] = field(default_factory=dict)
    data_value: list[dict] = field(default_factory=list)
    crossover: dict | None = None
    command: str = ""

    @property
    def warnings(self) -> list[str]:
        """Every warning with what it is about."""
        ratios = [
            f"compute ratio at {ratio['flops']:.3g}: AR's power law is extended to {ratio['equal_flops']:.3g} FLOPs, "
            "beyond its budgets; the interval does not cover the choice of that curve."
            for ratio in self.ratios
            if ratio["extrapolated"]
        ]
        studies = [
            f"{study.label}: {warning}"
            for study in self.studies
            for warning in [
                *study.isoflop.warnings,
                *warnings_of(study.frontier),
                *(study.law.warnings if study.law else []),
                *study.warnings,
            ]
        ]
        others = [(name, fit.warnings) for name, fit in self.fits.items()]
        others += [(curve["label"], curve.get("warnings", [])) for curve in self.data_value]
        others += [("crossover", self.crossover.get("warnings", []))] if self.crossover else []
        return [*self.table.warnings, *studies, *ratios, *(f"{name}: {text}" for name, texts in others for text in texts)]

    @property
    def unit(self) -> str:
        """Of the losses: nats or bits-per-byte."""
        return self.table.choices.get("unit", "nats")

    @property
    def versions(self) -> dict[str, str]:
        """Of every package whose arithmetic is in the report."""
        return versions(scipy, matplotlib)


def build_report(table: Table, num_resamples: int = 400, seed: int = 0, **more) -> Report:
    """Fit minima and law of every objective of a table of comparable runs; `more` are further fields of the Report."""
    order = [*OBJECTIVES, *sorted(set(table.objectives) - set(OBJECTIVES))]
    objectives = [name for name in order if name in table.objectives]
    studies = [study_runs(name, table.only(name).rows, num_resamples, seed) for name in objectives]
    by_name = {study.objective: study.isoflop for study in studies}
    ratios = equal_loss_ratios(by_name["ar"], by_name["mdm"]) if {"ar", "mdm"} <= set(by_name) else []
    return Report(studies=studies, ratios=ratios, table=table, num_resamples=num_resamples, seed=seed, **more)


def as_record(report: Report) -> dict:
    """What `report.json` holds: per objective `isoflop` and `chinchilla`, with the inputs, seeds and versions behind them."""
    runs = [run for study in report.studies for run in study.runs]
    return {
        "schema_version": SCHEMA_VERSION,
        "seed": report.seed,
        "num_resamples": report.num_resamples,
        "versions": report.versions,
        "conventions": {name: runs[0].get(name) for name in SAME_FOR_ALL},
        "objectives": {study.objective: _study_record(study) for study in report.studies},
        "equal_loss_compute_ratio": report.ratios,
        "warnings": report.warnings,
        "runs": runs,
        "dropped": report.table.dropped,
        "sources": report.table.sources,
        "choices": report.table.choices,
    }


def _study_record(study: Study) -> dict:
    isoflop = study.isoflop
    return {
        "label": study.label,
        "num_runs": len(study.runs),
        "isoflop": {
            "budgets": [minimum.flops for minimum in isoflop.minima],
            "minima": [vars(m) for m in isoflop.minima],
            "exponents": {name: {"value": isoflop.exponents[name], "ci": isoflop.ci[name]} for name in ("a", "b")},
            "ci_method": "parametric bootstrap",
            "optimum": None if study.frontier is None else study.frontier | {"draws": None},
            "scatter": isoflop.scatter,
            "degrees_of_freedom": isoflop.degrees_of_freedom,
            "num_resamples": isoflop.num_resamples,
            "failed_resamples": isoflop.failed_resamples,
            "warnings": isoflop.warnings,
        },
        "chinchilla": _law_record(study),
    }


def _law_record(study: Study) -> dict:
    if study.law is None:
        return {"params": None, "objective": None, "ci": {}, "rows_used": 0, "rows_dropped": [], "warnings": study.warnings}
    return {name: value for name, value in fit_record(study.law).items() if name != "draws"}


def draw(report: Report) -> dict[str, tuple[str, Figure]]:
    """File name -> (what the figure shows, the figure), in the order of the page."""
    found = {}
    if report.crossover:
        found["crossover"] = ("Critical compute and crossover", draw_crossover(report.crossover))
    if report.data_value:
        found["data_value"] = ("Value of repeated data", draw_data_value(report.data_value))
    found["isoflop"] = (
        "Loss over compute, isoFLOP minima and compute-optimal loss",
        draw_isoflop(report.studies, report.ratios, report.unit),
    )
    found["frontier"] = ("Compute-optimal parameters, tokens and loss over compute", draw_frontier(report.studies, report.unit))
    if any(study.law for study in report.studies):
        found["contours"] = ("Loss over parameters and tokens", draw_contours(report.studies, report.unit))
    if any((Path(run.get("path") or "none") / "metrics.jsonl").is_file() for run in report.table.rows):
        found["loss_curves"] = ("Loss curves", draw_curves(report.table.rows, report.unit))
    for study in report.studies:
        if study.law is None:
            continue
        found[f"residuals_{file_name(study.objective)}"] = (
            f"Residuals of L(N, D), {study.label}",
            draw_residuals(study.law, study.label, report.unit),
        )
    for number, (name, fit) in enumerate(report.fits.items(), 1):
        found[f"residuals_fit{number}"] = (f"Residuals of {name} ({fit.form})", draw_residuals(fit, f"{name} ({fit.form})"))
    return found


def write_report(report: Report, folder: str | Path) -> list[Path]:
    """Write `report.json`, figures and `report.html` into the folder, each aside and renamed, all only once all exist.

    Raises CannotWrite, with nothing replaced, where the folder takes no files.
    """
    figures = draw(report)
    pictures = {name: encode(figure, "png") for name, (_, figure) in figures.items()}
    files = {
        "report.json": json_text(as_record(report)).encode(),
        "report.html": render(report, {name: (title, pictures[name]) for name, (title, _) in figures.items()}).encode(),
    }
    files |= {f"{name}.png": picture for name, picture in pictures.items()}
    files |= {f"{name}.pdf": encode(figure, "pdf") for name, (_, figure) in figures.items()}
    with staged(Path(folder)) as stage:
        for name, content in files.items():
            (stage / name).write_bytes(content)
    return [Path(folder) / name for name in files]
