import json
from dataclasses import replace

import pytest

from megatron.errors import CannotWrite
from megatron.scaling.law.fitted import load_fit, save_fit
from megatron.scaling.show.report import as_record, build_report, write_report
from megatron.scaling.show.report.result import draw


def test_the_record_holds_law_minima_exponents_and_their_intervals(sweep):
    record = json.loads(json.dumps(as_record(build_report(sweep(), num_resamples=30)), allow_nan=False, default=float))
    assert record["schema_version"] == 1 and len(record["runs"]) == 30
    for objective in ("ar", "mdm"):
        isoflop, law = (record["objectives"][objective][name] for name in ("isoflop", "chinchilla"))
        assert isoflop["budgets"] == pytest.approx([2e11, 6e11, 2e12])
        assert all(m["params_ci"][0] < m["params"] < m["params_ci"][1] for m in isoflop["minima"])
        assert isoflop["exponents"]["a"]["ci"][0] < isoflop["exponents"]["a"]["value"] < isoflop["exponents"]["a"]["ci"][1]
        assert law["rows_used"] == 15 and law["rows_dropped"] == [] and law["objective"] > 0
        assert law["ci"]["alpha"][0] < law["params"]["alpha"] < law["ci"]["alpha"][1]
    assert len(record["equal_loss_compute_ratio"]) == 3
    assert record["dropped"][0]["run"] == "lost" and record["sources"][0]["sha256"] == "ab" * 32


def test_without_a_law_the_record_says_why(sweep):
    report = build_report(sweep(objectives=("ar",), budgets=(6e11,), sizes=4), num_resamples=20)
    assert as_record(report)["objectives"]["ar"]["chinchilla"]["params"] is None
    assert any("no L(N, D)" in warning for warning in report.warnings)


def test_everything_is_written_or_nothing(sweep, tmp_path):
    report = build_report(sweep(objectives=("ar",)), num_resamples=20)
    paths = write_report(report, tmp_path / "out")
    figures = [f"{name}.{suffix}" for name in ("isoflop", "frontier", "contours", "residuals_ar") for suffix in ("pdf", "png")]
    assert sorted(path.name for path in paths) == sorted(["report.html", "report.json", *figures])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(CannotWrite, match="taken"):
        write_report(report, tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "a file"


def test_the_unit_of_the_losses_stands_on_every_axis(sweep, legible):
    report = build_report(replace(sweep(objectives=("ar",)), choices={"unit": "bits-per-byte"}), num_resamples=10)
    for _, figure in draw(report).values():
        texts = legible(figure)
        assert "(bits/byte)" in texts and "nats" not in texts


def test_a_fit_beside_a_report_stays(sweep, tmp_path):
    report = build_report(sweep(objectives=("ar",)), num_resamples=10)
    save_fit(report.studies[0].law, tmp_path)
    write_report(report, tmp_path)
    assert load_fit(tmp_path).params == report.studies[0].law.params


def test_the_same_runs_give_the_same_bytes(sweep, tmp_path):
    for name in ("one", "other"):
        write_report(build_report(sweep(objectives=("mdm",)), num_resamples=20), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes(), path.name


def test_other_fits_and_results_are_drawn_where_they_are_given(sweep, tmp_path):
    table = sweep(objectives=("ar",), budgets=(6e11,), sizes=4)
    fit = build_report(sweep(objectives=("ar",)), num_resamples=10).studies[0].law
    curve = {"label": "AR (exact NLL)", "epochs": [1, 4], "value": [1, 0.9], "points": [], "warnings": ["R_D* is open"]}
    crossover = {
        "unique_tokens": [1e6, 1e7],
        "flops": [1e12, 1e13],
        "difference": [[0.1, -0.1], [0.2, 0.1]],
        "critical": [{"unique_tokens": 1e6, "flops": 5e12, "low": 3e12, "high": None}],
        "warnings": ["far"],
    }
    report = build_report(table, num_resamples=0, fits={"c4": fit}, data_value=[curve], crossover=crossover)
    names = {path.name for path in write_report(report, tmp_path)}
    assert {"residuals_fit1.png", "data_value.png", "data_value.pdf", "crossover.png"} <= names
    assert {"AR (exact NLL): R_D* is open", "crossover: far"} <= set(report.warnings)
