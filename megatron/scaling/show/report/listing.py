"""The tables of a report, once, as words: printed in the terminal and set on the page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from megatron.rundir.folders import read_file
from megatron.rundir.names import FACTS
from megatron.scaling.show.figures.style import UNITS
from megatron.scaling.show.screen import interval, show, show_record


@dataclass(frozen=True)
class Listing:
    """A table of words."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def print_report(report) -> None:
    """Runs, minima, exponents, laws, ratios, what was left out and warnings."""
    for listing in (list_losses(report), list_minima(report), list_laws(report), list_ratios(report)):
        show(listing.title, listing.columns, listing.rows)
    show_record(report.table.dropped, report.warnings)


def list_losses(report) -> Listing:
    """C, N, D and the loss of every run with both errors."""
    return Listing(
        f"Runs (loss in {UNITS[report.unit]}; standard errors from masking noise and from the evaluation rows)",
        ["run", "objective", "C (FLOPs)", "N", "D (tokens)", "loss", "se noise", "se data"],
        [
            [
                run["run"],
                study.label,
                f"{run['flops']:.3g}",
                f"{run['params']:,.0f}",
                f"{run['tokens']:,.0f}",
                f"{run['loss']:.4f}",
                _number(run.get("loss_se_noise")),
                _number(run.get("loss_se_data")),
            ]
            for study in report.studies
            for run in study.runs
        ],
    )


def list_minima(report) -> Listing:
    """The isoFLOP minima and their intervals."""
    return Listing(
        "isoFLOP minima (95 % intervals; 'open': the data do not bound it)",
        ["objective", "C (FLOPs)", "N*", "interval", "D*", "interval", "loss", "interval", "used"],
        [
            [
                study.label,
                f"{m.flops:.3g}",
                f"{m.params:,.0f}",
                interval(m.params_ci, ",.0f"),
                f"{m.tokens:,.0f}",
                interval(m.tokens_ci, ",.0f"),
                f"{m.loss:.4f}",
                interval(m.loss_ci, ".4f"),
                m.reason or "yes",
            ]
            for study in report.studies
            for m in study.isoflop.minima
        ],
    )


def list_laws(report) -> Listing:
    """Exponents of the minima and parameters of every law, with intervals."""
    rows = []
    for study in report.studies:
        for name, meaning in (("a", "a: N* ~ C^a (isoFLOP)"), ("b", "b: D* ~ C^b (isoFLOP)"), ("g", "g: L* ~ C^-g (isoFLOP)")):
            if (value := study.isoflop.exponents[name]) is not None:
                rows.append([study.label, meaning, f"{value:.4f}", interval(study.isoflop.ci[name], ".4f")])
        rows += _law_rows(study.label, study.law, "L(N, D)") if study.law else []
    for name, fit in report.fits.items():
        rows += _law_rows(name, fit, fit.form)
    return Listing("Exponents and laws (95 % intervals)", ["objective", "quantity", "value", "interval"], rows)


def _law_rows(label: str, fit, form: str) -> list[list[str]]:
    return [[label, f"{name} of {form}", f"{value:.5g}", interval(fit.ci.get(name), ".5g")] for name, value in fit.params.items()]


def list_ratios(report) -> Listing:
    """The compute ratios at equal loss."""
    return Listing(
        "Compute of MDM over AR at equal loss (95 % intervals)",
        ["C of MDM", "loss", "C of AR", "ratio", "interval", "AR law"],
        [
            [
                f"{ratio['flops']:.3g}",
                f"{ratio['loss']:.4f}",
                f"{ratio['equal_flops']:.3g}",
                f"{ratio['ratio']:.2f}",
                interval(ratio["ci"], ".2f"),
                "extrapolated" if ratio["extrapolated"] else "inside its budgets",
            ]
            for ratio in report.ratios
        ],
    )


def list_fit_settings(report) -> Listing:
    """How every law was fitted and how far its solver can be trusted, a row each."""
    laws = [(study.label, study.law) for study in report.studies if study.law] + list(report.fits.items())
    return Listing(
        "Solver (objective: sum of Huber terms of the residuals of ln L, not scaled)",
        [
            "law",
            "objective",
            "delta",
            "rows",
            "runs",
            "starts",
            "at the optimum",
            "other optima (objective, starts)",
            "condition",
            "residual rms of ln L",
            "resamples",
            "failed",
            "seed",
        ],
        [
            [
                label,
                f"{fit.objective:.8g}",
                f"{fit.delta:g}",
                str(fit.rows_used),
                str(fit.num_runs),
                str(fit.num_starts),
                f"{fit.share_at_optimum:.0%}",
                _basins(fit),
                f"{fit.condition:.3g}",
                f"{fit.residual_rms:.3g}",
                str(fit.num_resamples),
                str(fit.failed_resamples),
                str(fit.seed),
            ]
            for label, fit in laws
        ],
    )


def _basins(fit) -> str:
    return "; ".join(f"{basin['objective']:.6g} ({basin['starts']})" for basin in fit.basins) or "none"


def list_data_value(report) -> Listing:
    """R_D* of every curve and the measured value of every repeating run."""
    rows = []
    for curve in report.data_value:
        if curve.get("R_D") is not None:
            rows.append([curve["label"], "R_D*", "", f"{curve['R_D']:.4g}", interval(curve.get("R_D_ci"), ".4g")])
        rows += [
            [curve["label"], "measured D'/D", f"{epochs:.4g}", f"{value:.4g}", interval((low, high), ".4g")]
            for epochs, value, low, high in sorted(curve.get("points") or [])
        ]
    return Listing("Value of repeated data (95 % intervals)", ["objective", "quantity", "epochs", "value", "interval"], rows)


def list_crossover(report) -> Listing:
    """Critical compute by unique tokens, and its power law."""
    found = report.crossover or {"critical": []}
    rows = [
        [
            f"{point['unique_tokens']:.4g}",
            f"{point['flops']:.4g}" if point.get("flops") else "none in range",
            interval((point.get("low"), point.get("high")), ".4g"),
        ]
        for point in found["critical"]
    ]
    law = found.get("power_law")
    if law:
        rows += [
            [f"{name} of ln C = k + p ln U", f"{law[name]:.4g}", interval((law.get("ci") or {}).get(name), ".4g")]
            for name in ("k", "p")
        ]
    return Listing("Critical compute (95 % intervals)", ["unique tokens U", "C (FLOPs)", "interval"], rows)


# Of a row or of the run directory it came from: what else it takes to do the run again.
IDENTITY = (
    "seed",
    "noise_seed",
    "eval_seed",
    "lr",
    "batch_size",
    "seq_length",
    "steps",
    "epochs",
    "unique_tokens",
    "params_convention",
    "params_non_embedding",
    "params_with_head",
    "flops_convention",
    "flops_exact",
    "bits_per_byte",
    "lr_decayed",
    "skipped",
    "resumes",
    "tokenizer",
    "eval_slice",
    "event",
    "code",
    "torch",
)


def list_identities(report) -> Listing:
    """Every run with what it takes to do it again; columns that no run has are left out."""
    runs = [run | _origin(run) for study in report.studies for run in study.runs]
    asked = dict.fromkeys([*IDENTITY, *report.table.choices.get("varied", {})])
    columns = [name for name in asked if any(run.get(name) is not None for run in runs)]
    return Listing(
        "What it takes to do each run again",
        ["run", *(name.replace("_", " ") for name in columns)],
        [[run["run"], *(_word(run.get(name)) for name in columns)] for run in runs],
    )


def _origin(run: dict) -> dict:
    """Code version, seeds and resumes that the run's own directory states."""
    stated = read_file(Path(run["path"]), FACTS) if run.get("path") else {}
    if not stated:
        return {}
    return {
        "code": stated.get("code"),
        "torch": stated.get("environment", {}).get("torch"),
        "noise_seed": stated.get("noise_seed"),
        "eval_seed": stated.get("eval_seed"),
        "resumes": len(stated.get("resumes", [])),
    }


def list_dropped(report) -> Listing:
    """Rows that were not used, and why."""
    return Listing(
        "Not used",
        ["run", "line", "reason"],
        [[str(row["run"]), _word(row.get("line")), row["reason"]] for row in report.table.dropped],
    )


def list_sources(report) -> Listing:
    """The files behind the rows."""
    return Listing("Sources", ["file", "SHA-256"], [[source["path"], source["sha256"]] for source in report.table.sources])


def list_settings(report) -> Listing:
    """Choices, seeds and package versions."""
    choices = [[name.replace("_", " "), _word(value)] for name, value in report.table.choices.items()]
    return Listing(
        "Settings",
        ["setting", "value"],
        [
            ["command", report.command],
            *choices,
            ["resamples", str(report.num_resamples)],
            ["seed", str(report.seed)],
            *([name, version] for name, version in report.versions.items()),
        ],
    )


def _number(value) -> str:
    return "-" if value is None else f"{value:.4f}"


def _word(value) -> str:
    """A cell: numbers short but exact enough to type again, lists and maps as JSON."""
    if value is None or value == [] or value == {}:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value == round(value) or 1e5 < abs(value) < 1e15 else f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
